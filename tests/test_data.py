"""What a training run is given: opened and checked before the first step, the cheap before the expensive."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import pyvips

from cmudrn.errors import TrainingError, UsageError
from cmudrn.formats import writable
from cmudrn.train.data import Data, open_data, parse_pairs
from cmudrn.train.pairs import Split, Weather


def lay(root: Path, *names: str) -> Path:
    """Empty files below root: nothing here looks inside."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


@pytest.mark.parametrize(
    ("prefix", "weather", "split", "count"),
    [
        ("snow:", Weather.SNOW, Split.TRAIN, 8),
        ("", None, Split.TRAIN, 8),
        ("paper:", None, Split.PAPER_TRAIN, 7),  # 70 % of ten
        ("snow:paper:", Weather.SNOW, Split.PAPER_TRAIN, 7),
        ("paper:rain:", Weather.RAIN, Split.PAPER_TRAIN, 7),
    ],
)
def test_what_stands_before_the_folder_says_weather_and_cut(
    prefix: str, weather: Weather | None, split: Split, count: int, tmp_path: Path
) -> None:
    trained = (f"train/{side}/{n}.png" for side in ("input", "target") for n in range(8))
    tested = (f"test/{side}/{n}.png" for side in ("input", "target") for n in range(2))
    found = parse_pairs(f"{prefix}{lay(tmp_path / 'mine', *trained, *tested)}")
    assert (found.weather, found.split, len(found.pairs)) == (weather, split, count)


def test_two_weathers_are_not_one(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="snow:"):
        parse_pairs(f"rain:snow:{lay(tmp_path / 'mine', 'input/1.png', 'target/1.png')}")


# ---- The cheap before the expensive


def draw(path: Path, size_px: int = 30) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(list(path.stem.encode()))
    pixels = rng.integers(0, 255, (size_px, size_px, 3), dtype=np.uint8)
    pyvips.Image.new_from_array(pixels).write_to_file(str(path))


def drawn_pairs(folder: Path, *, size_px: int = 30) -> Path:
    for number in range(4):
        for side in ("input", "target"):
            draw(folder / side / f"{number}.png", size_px)
    return folder


@pytest.fixture
def never_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cmudrn.train.data.load_streak_rains", lambda files: pytest.fail("streaks were cut"))


@pytest.mark.usefixtures("never_cut")
@pytest.mark.parametrize("what", ["no weather", "damaged", "small", "validation"])
def test_what_will_not_do_is_said_before_streaks_are_cut(what: str, streaks: Path, tmp_path: Path) -> None:
    draw(tmp_path / "photos" / "a.png")
    folder = drawn_pairs(tmp_path / "mine", size_px=20 if what == "small" else 30)
    if what == "damaged":
        file = folder / "target" / "1.png"
        file.write_bytes(file.read_bytes()[:-20])
    if what == "validation":
        draw(tmp_path / "held" / "a.png", 100)
    data = Data(
        photos=(tmp_path / "photos",),
        streaks=streaks,
        pairs=(parse_pairs(f"{'' if what == 'no weather' else 'snow:'}{folder}"),),
        validation=tmp_path / "held" if what == "validation" else None,
    )
    with pytest.raises((UsageError, TrainingError)):
        open_data(data, 24)


def test_headers_of_all_pairs_are_read_before_any_file_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cmudrn.train.data.PairFiles", lambda paired: pytest.fail("files were decoded"))
    monkeypatch.setattr("cmudrn.train.data.PhotoSet", lambda *_: pytest.fail("photographs were decoded"))
    good, small = drawn_pairs(tmp_path / "good"), drawn_pairs(tmp_path / "small", size_px=20)
    with pytest.raises(TrainingError, match="smaller than the crop of 24"):
        open_data(Data(photos=(), pairs=(parse_pairs(f"rain:{good}"), parse_pairs(f"rain:{small}"))), 24)


@pytest.mark.usefixtures("never_cut")
def test_rain_pairs_alone_need_no_streaks_and_name_none(streaks: Path, tmp_path: Path) -> None:
    pairs = (parse_pairs(f"rain:{drawn_pairs(tmp_path / 'mine')}"),)
    opened = open_data(Data(photos=(), streaks=streaks, pairs=pairs), 24)
    assert (opened.provenance["streak_files"], opened.provenance["streaks_sha256"]) == (0, None)


def test_snow_pairs_are_rained_on_with_streaks(streaks: Path, tmp_path: Path) -> None:
    pairs = (parse_pairs(f"snow:{drawn_pairs(tmp_path / 'mine')}"),)
    assert open_data(Data(photos=(), streaks=streaks, pairs=pairs), 24).provenance["streak_files"] == 8


def test_a_photograph_too_small_to_validate_on_is_not_blamed_on_the_crop(tmp_path: Path) -> None:
    draw(tmp_path / "photos" / "a.png")
    draw(tmp_path / "held" / "b.png", 100)
    with pytest.raises(TrainingError, match=r"b\.png: 100x100 is smaller than the crop of 128") as caught:
        open_data(Data(photos=(tmp_path / "photos",), validation=tmp_path / "held"), 24)
    assert "smaller crop" not in caught.value.fix
    assert "validation takes crops of 128, whatever --crop says" in caught.value.fix


# ---- Clean photographs, and what is none


@pytest.mark.parametrize(
    ("given", "files", "found", "way_out"),
    [
        ("CSD", ["Snow/1.tif", "Gt/1.tif", "Mask/1.tif"], "CSD: ", "--pairs ROOT/CSD, .* in ROOT/CSD/Gt"),
        (
            "CSD",
            [f"{half}/{side}/1.tif" for half in ("Test", "Train") for side in ("Snow", "Gt")],
            "CSD: ",
            "--pairs ROOT/CSD, .* in ROOT/CSD/Train/Gt",
        ),
        ("CSD/Train", ["Snow/1.tif", "Gt/1.tif"], "CSD/Train: ", "--pairs ROOT/CSD/Train, "),
        ("DATA", ["bsd/1.jpg", "deep/er/CSD/Snow/1.tif", "deep/er/CSD/Gt/1.tif"], "er/CSD: ", "/er/CSD/Gt"),
        (
            "made",  # by cmudrn synthesize
            ["rainy/a.png", "snowy/a.png", "clean/a.png"],
            "made: ",
            "--pairs rain:ROOT/made or --pairs snow:ROOT/made, .* in ROOT/made/clean",
        ),
        ("mine", ["input/a.png", "target/a.png", "input/b.png"], "mine: ", "--pairs rain:ROOT/mine or "),
        ("RainTrainL", ["rain-1.png", "norain-1.png"], "RainTrainL: ", "--pairs ROOT/RainTrainL$"),
    ],
)
@pytest.mark.parametrize("as_validation", [False, True])
def test_a_paired_dataset_is_not_taken_for_clean_photographs(
    given: str, files: list[str], found: str, way_out: str, as_validation: bool, tmp_path: Path
) -> None:
    draw(tmp_path / "photos" / "a.png")
    folder, photos = lay(tmp_path / given, *files), tmp_path / "photos"
    data = Data(photos=(photos,), validation=folder) if as_validation else Data(photos=(photos, folder))
    with pytest.raises(UsageError, match=f"{found}pairs of degraded and clean images") as caught:
        open_data(data, 24)
    assert re.search(way_out.replace("ROOT", re.escape(str(tmp_path))), caught.value.fix)


@pytest.mark.parametrize(
    ("given", "files"),
    [
        ("CSD/Train/Gt", ["1.png", "../Snow/1.png"]),  # the clean side alone
        ("photos", ["input/a.png", "target/b.png"]),  # no name on both sides
        ("photos", ["snow/a.png", "rain/a.png", "summer/a.png"]),
        ("photos", ["clean/a.png", "b.png"]),
        ("norain", ["norain-1.png", "norain-2.png"]),
    ],
)
def test_folders_of_photographs_may_be_called_anything(given: str, files: list[str], tmp_path: Path) -> None:
    for file in files:
        draw(tmp_path / given / file)
    assert open_data(Data(photos=(tmp_path / given,)), 24).provenance["photos"] > 0


@pytest.mark.skipif(not writable(".avif"), reason="libvips without an encoder")
def test_every_format_that_can_be_read_is_trained_on(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.PNG", "c.avif"):
        draw(tmp_path / "photos" / name)
    (tmp_path / "photos" / "folder.png").mkdir()
    assert open_data(Data(photos=(tmp_path / "photos",)), 24).provenance["photos"] == 3
