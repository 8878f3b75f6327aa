"""Training on paired datasets: equal crops of both, the missing weather rendered, bad files named."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest
import pyvips
from PIL import Image as PillowImage
from PIL import UnidentifiedImageError
from torch.utils.data import DataLoader

from cmudrn.checkpoint import read_checkpoint
from cmudrn.cli.app import main
from cmudrn.errors import TrainingError, UsageError
from cmudrn.formats import writable
from cmudrn.train.data import parse_pairs
from cmudrn.train.paired_scenes import PairedScenes, PairFiles, check_pairs
from cmudrn.train.pairs import PairedSet, Split
from cmudrn.train.photos import read_8_bits, to_scene
from cmudrn.train.scenes import SceneSteps
from cmudrn.train.skies import ProceduralSnow


def write(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pyvips.Image.new_from_array(pixels).write_to_file(str(path))


def opened(paired: PairedSet, crop_px: int) -> PairedScenes:
    check_pairs(paired, crop_px)
    return PairedScenes(PairFiles(paired), others=[ProceduralSnow()], crop_px=crop_px)


@pytest.fixture
def rain100(tmp_path: Path) -> Path:
    """Three pairs; a rainy pixel is its clean one plus 7, so that a shifted crop would show."""
    rng = np.random.default_rng(0)
    for number in range(1, 4):
        clean = rng.integers(0, 200, (40, 50, 3), dtype=np.uint8)
        write(tmp_path / "RainTrainL" / f"norain-{number}.png", clean)
        write(tmp_path / "RainTrainL" / f"rain-{number}.png", clean + 7)
    return tmp_path / "RainTrainL"


def test_both_images_of_a_pair_are_cropped_turned_and_mirrored_alike(rain100: Path) -> None:
    source = opened(parse_pairs(str(rain100)), 24)
    for seed in range(20):
        scene = source.draw(np.random.default_rng(seed))
        assert np.abs(scene.rainy - scene.clean - 7 / 255).max() < 1e-6
        assert scene.snowy.shape == scene.clean.shape == (24, 24, 3)
    assert any(
        (
            source.draw(np.random.default_rng(seed)).snowy != source.draw(np.random.default_rng(seed)).clean
        ).any()
        for seed in range(5)
    )


def test_a_damaged_file_among_good_ones_is_named_before_the_first_step(rain100: Path) -> None:
    bad = rain100 / "rain-2.png"
    bad.write_bytes(bad.read_bytes()[:2000])  # the header is whole, the pixels are not
    with pytest.raises(TrainingError, match=r"rain-2\.png"):
        opened(parse_pairs(str(rain100)), 24)


def test_a_set_that_does_not_say_its_weather_has_to_be_told(tmp_path: Path) -> None:
    for number in range(4):
        for side in ("input", "target"):
            write(tmp_path / "mine" / side / f"{number}.png", np.zeros((30, 30, 3), np.uint8))
    with pytest.raises(UsageError, match="rain or snow"):
        opened(parse_pairs(str(tmp_path / "mine")), 24)
    told = parse_pairs(f"snow:{tmp_path / 'mine'}")
    assert len(told.pairs) == 2  # 70 % of four, rounded down
    opened(told, 24)


# ---- Files that Pillow, which reads in forked workers, takes otherwise than libvips, which checks


def picture(seed: int) -> np.ndarray:
    """[32, 32, 3] uint8: smooth, so that JPEG keeps it, and different in all eight turns and mirrors."""
    corners = np.random.default_rng(seed).integers(0, 256, (2, 2, 3), dtype=np.uint8)
    return np.asarray(PillowImage.fromarray(corners).resize((32, 32), PillowImage.Resampling.BICUBIC))


def pairs_of(folder: Path, kind: str) -> PairedSet:
    """Two pairs in one kind of file, 32 x 32."""
    for number, side in enumerate(("input", "target")):
        pixels, path = picture(number), folder / side / "1.png"
        grey16 = pixels[..., 0].astype(np.uint16) * 256 + 255
        path.parent.mkdir(parents=True)
        if kind == "grey16 png":
            pyvips.Image.new_from_array(grey16, interpretation="grey16").write_to_file(str(path))
        elif kind == "grey16 tiff":
            path = path.with_suffix(".tif")
            pyvips.Image.new_from_array(grey16, interpretation="grey16").write_to_file(str(path))
        elif kind == "rgb16 png":
            deep = pixels.astype(np.uint16) * 256 + 255
            pyvips.Image.new_from_array(deep, interpretation="rgb16").write_to_file(str(path))
        elif kind == "rgba png":
            rgba = np.dstack([pixels, pixels[..., :1]])
            PillowImage.fromarray(rgba).save(path)
        elif kind == "palette png":
            PillowImage.fromarray(pixels).quantize(40).save(path)
        elif kind == "cmyk jpeg":
            PillowImage.fromarray(pixels).convert("CMYK").save(path.with_suffix(".jpg"))
        elif kind == "turned jpeg":
            exif = PillowImage.Exif()
            exif[0x0112] = 6
            PillowImage.fromarray(pixels).save(path.with_suffix(".jpg"), exif=exif)
        elif kind == "avif":
            write(path.with_suffix(".avif"), pixels)
    return parse_pairs(f"rain:{folder}", split=Split.ALL)


KINDS = (
    "rgba png",
    "palette png",
    "turned jpeg",
    "grey16 png",
    "grey16 tiff",
    "rgb16 png",
    "cmyk jpeg",
    "avif",
)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_drawn_is_what_was_checked(kind: str, tmp_path: Path) -> None:
    if kind == "avif" and not writable(".avif"):
        pytest.skip("libvips without an encoder")
    paired = pairs_of(tmp_path, kind)
    source = opened(paired, 32)
    scene = source.draw(np.random.default_rng(0))
    for drawn, file in zip((scene.rainy, scene.clean), paired.pairs[0].files, strict=True):
        whole = to_scene(read_8_bits(file))
        turned = [np.rot90(side, turns) for side in (whole, whole[:, ::-1]) for turns in range(4)]
        assert sum(np.array_equal(drawn, each) for each in turned) == 1


@pytest.mark.parametrize(("kind", "copies"), [("rgba png", 0), ("turned jpeg", 0), ("grey16 png", 2)])
def test_only_what_pillow_reads_otherwise_is_copied_and_only_for_the_run(
    kind: str, copies: int, tmp_path: Path
) -> None:
    source = opened(pairs_of(tmp_path, kind), 32)
    folder = source.files.folder
    assert len(list(folder.iterdir())) == copies
    # A worker ends, and so does its copy of the source: the files stay.
    (batch,) = DataLoader(SceneSteps([source], scenes=2, seed=0), batch_size=None, sampler=[0], num_workers=1)
    assert batch.clean.shape == (2, 3, 32, 32)
    assert len(list(folder.iterdir())) == copies
    del source
    gc.collect()
    assert not folder.exists()


def test_what_pillow_cannot_read_is_copied(rain100: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise UnidentifiedImageError(f"cannot identify image file {path}")

    monkeypatch.setattr("cmudrn.train.paired_scenes.PillowImage.open", refuse)
    source = opened(parse_pairs(str(rain100)), 24)
    scene = source.draw(np.random.default_rng(0))
    assert np.abs(scene.rainy - scene.clean - 7 / 255).max() < 1e-6


def test_a_full_disk_is_said_with_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("numpy.save", full)
    with pytest.raises(TrainingError, match=r"1\.png: no room .* No space left") as caught:
        opened(pairs_of(tmp_path, "grey16 png"), 32)
    assert "TMPDIR" in caught.value.fix


# ---- From the command line


def test_a_run_may_use_pairs_alone_and_its_weights_say_which(
    rain100: Path, evaluation_data: Path, tmp_path: Path
) -> None:
    options = [
        "--steps",
        "2",
        "--scenes",
        "1",
        "--crop",
        "24",
        "--loops",
        "1",
        "--default-loops",
        "1",
        "--threads",
        "1",
    ]
    streaks = ["--streaks", str(evaluation_data / "garg06_streaks")]
    command = ["train", *streaks, "--pairs", str(rain100), "-o", str(tmp_path / "run"), *options]
    assert main(command) == 0
    (manifest,) = read_checkpoint(tmp_path / "run" / "weights.safetensors").training["pairs"]
    assert (manifest["layout"], manifest["split"], manifest["count"]) == ("Rain100", "train", 3)
    assert len(manifest["sha256"]) == 64


def test_nothing_to_train_on_is_said(
    evaluation_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    streaks = str(evaluation_data / "garg06_streaks")
    assert main(["train", "--streaks", streaks, "-o", str(tmp_path / "run")]) == 2
    assert "nothing to train on" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
