"""The protocols: the same images for everyone, under ids that keep different ones apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import pyvips

from cmudrn.checkpoint import read_checkpoint
from cmudrn.errors import TrainingError, UsageError
from cmudrn.images import read_picture
from cmudrn.metrics import psnr_db
from cmudrn.train.evaluate import Candidate, evaluate, load_restorers
from cmudrn.train.layouts import Split, Weather, find_pairs
from cmudrn.train.protocols import RENDERED, EvaluationData, Pixels, open_protocol, paired_protocol
from cmudrn.train.weather.snow import draw_snow, render_snow
from cmudrn.train.weather.streaks import SLANTED, STRAIGHT, StreakDatabase, StreakParams, render_streaks
from cmudrn.train.weather.weathered import Image

SHARED = Path(__file__).parents[2] / "shared" / "data"
SEED = 2211_08290
needs_shared = pytest.mark.skipif(
    not SHARED.is_dir(), reason="needs ../shared/data, which does not come with the project"
)


@pytest.fixture(scope="module")
def data(evaluation_data: Path, tmp_path_factory: pytest.TempPathFactory) -> EvaluationData:
    """The small data of conftest, with photos/val beside it."""
    folder = tmp_path_factory.mktemp("whole")
    for name in ("bsds500", "garg06_streaks"):
        (folder / name).symlink_to(evaluation_data / name)
    (folder / "photos").mkdir()
    (folder / "photos" / "val").symlink_to(evaluation_data / "bsds500" / "val")
    return EvaluationData(folder)


def test_the_ids_are_these() -> None:
    assert list(RENDERED) == ["bsd-rain", "bsd-snow", "bsd-rain-light", "bsd-snow-light", "photos-clean"]


@pytest.mark.parametrize("name", RENDERED)
def test_every_run_shows_the_same_images(name: str, data: EvaluationData) -> None:
    protocol = open_protocol(name, data)
    first, second = list(protocol.items()), list(open_protocol(name, EvaluationData(data.folder)).items())
    assert protocol.id == name
    assert [item.name for item in first] == ["0", "1", "2"]
    assert protocol.count == 3
    for item, again in zip(first, second, strict=True):
        assert np.array_equal(item.degraded, again.degraded)
        assert np.array_equal(item.clean, again.clean)
        assert np.array_equal(item.degraded, item.clean) == (name == "photos-clean")


@pytest.mark.parametrize("name", RENDERED)
def test_a_limit_leaves_the_images_before_it_as_they_are(name: str, data: EvaluationData) -> None:
    protocol = open_protocol(name, data)
    few = list(protocol.items(2))
    for limited, full in zip(few, protocol.items(), strict=False):
        assert np.array_equal(limited.degraded, full.degraded)
    assert len(few) == 2
    assert len(list(protocol.items(99))) == 3


def expected_pixels(image: Image) -> Pixels:
    pixels: Pixels = np.floor(np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)
    return pixels


@pytest.mark.parametrize(("name", "severity"), [("bsd-rain", 1.0), ("bsd-rain-light", 0.2)])
def test_rain_is_straight_on_even_images_and_slanted_on_odd_ones(
    name: str, severity: float, data: EvaluationData
) -> None:
    # Of the ten files numbers 5 and 10 are held out, and every second of these is used.
    held_out = [data.folder / "garg06_streaks" / "5-4.png"]
    for number, item in enumerate(open_protocol(name, data).items()):
        database = StreakDatabase.load(held_out, [STRAIGHT, SLANTED][number % 2])
        scene = item.clean.astype(np.float32) / np.float32(255)
        rng = np.random.default_rng([SEED, number])
        rainy = render_streaks(
            scene, database, rng, StreakParams(recipe=database.recipe, severity=severity)
        ).image
        assert np.array_equal(item.degraded, expected_pixels(rainy))


@pytest.mark.parametrize(("name", "severity"), [("bsd-snow", 1.0), ("bsd-snow-light", 0.1)])
def test_snow_falls_by_the_images_number(name: str, severity: float, data: EvaluationData) -> None:
    for number, item in enumerate(open_protocol(name, data).items()):
        rng = np.random.default_rng([SEED, number])
        scene = item.clean.astype(np.float32) / np.float32(255)
        snowy = render_snow(scene, draw_snow(rng, severity=severity), rng).image
        assert np.array_equal(item.degraded, expected_pixels(snowy))


@pytest.mark.parametrize("weather", ["rain", "snow"])
def test_light_weather_is_lighter(weather: str, data: EvaluationData) -> None:
    heavy, light = (open_protocol(f"bsd-{weather}{light}", data).items() for light in ("", "-light"))
    for heavier, lighter in zip(heavy, light, strict=True):
        assert psnr_db(lighter.degraded, lighter.clean) > psnr_db(heavier.degraded, heavier.clean) + 5


def test_images_are_rendered_one_by_one(data: EvaluationData, monkeypatch: pytest.MonkeyPatch) -> None:
    rendered: list[int] = []

    def degrade(clean: Pixels, *rest: object) -> Pixels:
        rendered.append(len(rendered))
        return clean

    monkeypatch.setattr("cmudrn.train.protocols._degrade", degrade)
    items = open_protocol("bsd-snow", data).items()
    assert rendered == []
    next(items)
    assert rendered == [0]


def test_rain_protocols_of_one_folder_share_their_streaks(data: EvaluationData) -> None:
    assert data.rain(0) is data.rain(2)
    assert data.rain(0) is not data.rain(1)


@pytest.mark.parametrize(
    ("name", "missing"),
    [("bsd-rain", "bsds500/val"), ("bsd-snow-light", "bsds500/val"), ("photos-clean", "photos/val")],
)
def test_a_folder_without_the_photographs_is_named(name: str, missing: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=missing):
        open_protocol(name, EvaluationData(tmp_path))


def test_rain_without_held_out_streaks_is_refused_before_the_first_image(
    data: EvaluationData, tmp_path: Path
) -> None:
    (tmp_path / "bsds500").symlink_to(data.folder / "bsds500")
    (tmp_path / "garg06_streaks").mkdir()
    with pytest.raises(UsageError, match="no streak files"):
        open_protocol("bsd-rain", EvaluationData(tmp_path))
    (tmp_path / "garg06_streaks" / "1-4.png").symlink_to(data.folder / "garg06_streaks" / "1-4.png")
    with pytest.raises(UsageError, match="none of the protocols' streaks"):
        open_protocol("bsd-rain", EvaluationData(tmp_path))


def test_an_unknown_protocol_lists_the_known(data: EvaluationData) -> None:
    with pytest.raises(UsageError, match="bsd-snow-light") as caught:
        open_protocol("bsd-fog", data)
    assert "'bsd-fog'" in caught.value.what


# ---- Paired datasets


def write_image(path: Path, value: int, size: tuple[int, int] = (20, 30)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pyvips.Image.new_from_array(np.full((*size, 3), value, np.uint8)).write_to_file(str(path))


def make_pairs(folder: Path, degraded: str, clean: str) -> Path:
    """Ten pairs: pair n is n + 100 and n everywhere."""
    for number in range(10):
        write_image(folder / degraded / f"{number}.png", number + 100)
        write_image(folder / clean / f"{number}.png", number)
    return folder


def test_pairs_are_read_in_natural_order_under_names_below_the_root(tmp_path: Path) -> None:
    protocol = paired_protocol(find_pairs(make_pairs(tmp_path / "a", "Snow", "Gt"), split=Split.TEST))
    items = list(protocol.items())
    assert protocol.count == 3  # the last 30 % of ten
    assert [item.name for item in items] == ["Snow/7", "Snow/8", "Snow/9"]
    assert [int(item.degraded[0, 0, 0]) for item in items] == [107, 108, 109]
    assert [int(item.clean[0, 0, 0]) for item in items] == [7, 8, 9]
    assert len(list(protocol.items(1))) == 1


@pytest.mark.parametrize(
    ("folder", "sides", "split", "weather", "expected"),
    [
        ("CSD-2021", ("Snow", "Gt"), Split.TEST, None, "csd-test"),
        ("CSD", ("Snow", "Gt"), Split.ALL, None, "csd-all"),
        ("CSD", ("Snow", "Gt"), Split.PAPER_TEST, None, "csd-paper-test"),
        ("mine", ("input", "target"), Split.TRAIN, Weather.RAIN, "pairs-rain-train"),
        ("mine", ("input", "target"), Split.ALL, None, "pairs-all"),
        ("drawn", ("rainy", "clean"), Split.TEST, None, "cmudrn-rain-test"),
        ("Snow100K-L", ("synthetic", "gt"), Split.TEST, None, "snow100k-l-test"),  # not -S, which is easy
    ],
)
def test_an_id_tells_layout_and_split(
    folder: str,
    sides: tuple[str, str],
    split: Split,
    weather: Weather | None,
    expected: str,
    tmp_path: Path,
) -> None:
    pairs = find_pairs(make_pairs(tmp_path / folder, *sides), split=split, weather=weather)
    assert paired_protocol(pairs).id == expected


def test_a_pair_of_two_sizes_is_found_before_the_first_is_shown(tmp_path: Path) -> None:
    make_pairs(tmp_path, "input", "target")
    write_image(tmp_path / "input" / "9.png", 1, size=(21, 30))
    protocol = paired_protocol(find_pairs(tmp_path))
    with pytest.raises(TrainingError, match=r"9\.png is 21x30"):
        next(protocol.items())
    assert next(protocol.items(9)).name == "input/0"


def test_a_damaged_file_is_found_before_the_first_is_shown(tmp_path: Path) -> None:
    make_pairs(tmp_path, "input", "target")
    last = tmp_path / "target" / "9.png"
    last.write_bytes(last.read_bytes()[:-20])  # the header is whole, the pixels are not
    protocol = paired_protocol(find_pairs(tmp_path))
    with pytest.raises(TrainingError, match=r"target/9\.png: cannot read"):
        next(protocol.items())
    assert next(protocol.items(9)).name == "input/0"


def test_a_pair_smaller_than_the_window_of_ssim_is_found_before_the_first_is_shown(tmp_path: Path) -> None:
    make_pairs(tmp_path, "input", "target")
    for side in ("input", "target"):
        write_image(tmp_path / side / "9.png", 1, size=(8, 40))
    with pytest.raises(TrainingError, match=r"9\.png is 8x40, smaller than SSIM's window of 11") as caught:
        next(paired_protocol(find_pairs(tmp_path)).items())
    assert "crop" not in caught.value.fix


def test_a_damaged_photograph_is_found_before_the_first_is_shown(tmp_path: Path) -> None:
    (tmp_path / "photos" / "val").mkdir(parents=True)
    for name in "ab":
        write_image(tmp_path / "photos" / "val" / f"{name}.jpg", 90)
    last = tmp_path / "photos" / "val" / "b.jpg"
    last.write_bytes(last.read_bytes()[:-200])
    with pytest.raises(TrainingError, match=r"b\.jpg: cannot read"):
        next(open_protocol("photos-clean", EvaluationData(tmp_path)).items())


def test_16_bits_are_rounded_and_grey_becomes_three_channels(tmp_path: Path) -> None:
    for side in ("input", "target"):
        (tmp_path / side).mkdir()
        grey = np.full((20, 30), 257 * 40 + 200, np.uint16)
        pyvips.Image.new_from_array(grey).copy(interpretation="grey16").write_to_file(
            str(tmp_path / side / "0.png")
        )
    item = next(paired_protocol(find_pairs(tmp_path)).items())
    assert read_picture(tmp_path / "input" / "0.png").pixels.dtype == np.uint16
    assert item.degraded.shape == (20, 30, 3)
    assert item.degraded.dtype == np.uint8
    assert (item.degraded == 41).all()  # 40 + 200 / 257, to the nearest


# ---- The shipped weights, and the real data


@pytest.mark.parametrize(
    ("name", "least_db"),
    [("bsd-rain", 7.5), ("bsd-snow", 6.8), ("bsd-rain-light", 1.5), ("bsd-snow-light", 1.8)],
)
def test_the_shipped_figures_are_gains(name: str, least_db: float) -> None:
    figures = read_checkpoint("default").training["figures"][name]
    assert figures["images"] == 100
    assert figures["psnr_db"] - figures["input_psnr_db"] >= least_db


def test_the_shipped_weights_gain_on_heavy_snow_at_every_depth() -> None:
    at_depths = read_checkpoint("default").training["figures"]["bsd-snow"]["by_loops"]
    assert set(at_depths["restored"]) == set("1234567")
    for scores in at_depths["restored"].values():
        assert scores["psnr_rgb_db"] > at_depths["input"]["psnr_rgb_db"] + 5


@pytest.fixture(scope="module")
def shared_data() -> EvaluationData:
    return EvaluationData(SHARED)


@needs_shared
@pytest.mark.parametrize(
    ("name", "manifest"),
    [
        ("bsd-rain", "7a5da29dd03c489b"),
        ("bsd-snow", "ddff7919d0817cd8"),
        ("bsd-rain-light", "d231610265df322b"),
        ("bsd-snow-light", "8d6732c619c168a9"),
    ],
)
def test_the_first_four_images_are_those_that_all_figures_were_measured_on(
    name: str, manifest: str, shared_data: EvaluationData
) -> None:
    protocol = open_protocol(name, shared_data)
    done = evaluate(protocol, protocol.items(4), {0: lambda shown: shown}, candidate=Candidate("nothing"))
    assert done.manifest_sha256[:16] == manifest


@needs_shared
@pytest.mark.parametrize(("name", "least_db"), [("bsd-rain", 7.0), ("bsd-snow", 5.5)])
def test_the_shipped_weights_restore(name: str, least_db: float, shared_data: EvaluationData) -> None:
    # The first four of the hundred images, for time's sake; on these snow gains a decibel less than on all.
    protocol, restorers = open_protocol(name, shared_data), load_restorers("default")
    done = evaluate(protocol, protocol.items(4), restorers.by_loops, candidate=restorers.candidate)
    (row,) = done.summary()
    assert row.gain
    assert row.gain.psnr_rgb_db >= least_db


@needs_shared
def test_clean_photographs_are_shown_as_they_are() -> None:
    protocol = open_protocol("photos-clean", EvaluationData(SHARED))
    done = evaluate(protocol, protocol.items(1), {0: lambda shown: shown}, candidate=Candidate("nothing"))
    assert done.inputs_are_the_truth
    assert done.results[0].restored.psnr_rgb_db == float("inf")
