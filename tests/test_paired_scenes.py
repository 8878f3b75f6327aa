"""Training on paired datasets: equal crops of both, the missing weather rendered, bad files named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import pyvips

from cmudrn.checkpoint import read_checkpoint
from cmudrn.cli.app import main
from cmudrn.errors import TrainingError, UsageError
from cmudrn.train.data import parse_pairs
from cmudrn.train.paired_scenes import PairedScenes
from cmudrn.train.skies import ProceduralSnow


def write(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pyvips.Image.new_from_array(pixels).write_to_file(str(path))


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
    source = PairedScenes(parse_pairs(str(rain100)), others=[ProceduralSnow()], crop_px=24)
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
        PairedScenes(parse_pairs(str(rain100)), others=[ProceduralSnow()], crop_px=24)


def test_a_set_that_does_not_say_its_weather_has_to_be_told(tmp_path: Path) -> None:
    for number in range(4):
        for side in ("input", "target"):
            write(tmp_path / "mine" / side / f"{number}.png", np.zeros((30, 30, 3), np.uint8))
    with pytest.raises(UsageError, match="rain or snow"):
        PairedScenes(parse_pairs(str(tmp_path / "mine")), others=[ProceduralSnow()], crop_px=24)
    told = parse_pairs(f"snow:{tmp_path / 'mine'}")
    assert len(told.pairs) == 2  # 70 % of four, rounded down
    PairedScenes(told, others=[ProceduralSnow()], crop_px=24)


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
