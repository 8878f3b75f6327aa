"""Rain and snow over photographs. Streak files are drawn by the tests themselves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import pyvips

from cmudrn.errors import ImageError, TrainingError, UsageError
from cmudrn.train.weather import streaks as streaks_module
from cmudrn.train.weather.snow import draw_snow, render_snow
from cmudrn.train.weather.streaks import (
    SLANTED,
    STRAIGHT,
    RainRecipe,
    StreakDatabase,
    StreakParams,
    cut_layers,
    otsu_threshold,
    render_streaks,
    streak_files,
)
from cmudrn.train.weather.weathered import Image


@pytest.fixture
def clean() -> Image:
    return np.random.default_rng(1).uniform(0, 0.5, (70, 90, 3)).astype(np.float32)


@pytest.mark.parametrize("recipe", [STRAIGHT, SLANTED])
def test_rain_brightens_repeats_and_leaves_the_photograph_alone(
    streaks: Path, clean: Image, recipe: RainRecipe
) -> None:
    database = StreakDatabase.load(streak_files(streaks), recipe, workers=1)
    before = clean.copy()
    rainy, layer, params = render_streaks(clean, database, np.random.default_rng(3))
    again = render_streaks(clean, database, np.random.default_rng(3))
    np.testing.assert_array_equal(clean, before)
    np.testing.assert_array_equal(rainy, again.image)
    assert rainy.dtype == np.float32
    assert rainy.max() <= 1
    assert layer.min() >= 0
    assert layer.mean() > 0.01
    np.testing.assert_allclose(clean + layer, rainy, atol=1e-6)
    assert params == StreakParams(recipe=recipe)


def test_severity_scales_the_rain_and_zero_is_none(streaks: Path, clean: Image) -> None:
    database = StreakDatabase.load(streak_files(streaks), STRAIGHT, workers=1)
    layers = [
        render_streaks(
            clean, database, np.random.default_rng(3), StreakParams(recipe=STRAIGHT, severity=severity)
        ).layer
        for severity in (0.0, 0.1, 0.2)
    ]
    assert not layers[0].any()
    unclipped = clean + layers[2] < 1
    np.testing.assert_allclose(layers[2][unclipped], 2 * layers[1][unclipped], atol=1e-5)


def test_streaks_are_sorted_by_area_and_keep_their_brightness(tmp_path: Path) -> None:
    """Upscaled four times, a 2x3 block has about 96 px (dense), a 10x20 one 3200 (middle and sparse)."""
    file = np.zeros((103, 160), np.uint8)
    file[20:23, 20:22], file[50:70, 100:110] = 200, 240
    pyvips.Image.new_from_array(file).write_to_file(str(tmp_path / "1-4.png"))
    dense, middle, sparse = cut_layers(tmp_path / "1-4.png", STRAIGHT)
    # The top three rows are cut off, so row 50 became 47; dense is at scale 1, middle at 2.
    assert dense[50:65, 101:109].max() == 0
    assert dense[17:20, 20:22].max() > 80
    assert middle[2 * 57, 2 * 105] == pytest.approx(240, abs=4)
    assert middle[2 * 16 : 2 * 22, 2 * 18 : 2 * 24].max() == 0
    assert sparse[4 * 57, 4 * 105] == pytest.approx(240, abs=4)


def test_otsu_splits_two_heaps() -> None:
    grey = np.array([10] * 50 + [12] * 50 + [200] * 20 + [210] * 20, np.uint8)
    assert 12 <= otsu_threshold(grey) < 200


def test_a_folder_without_streaks_and_a_broken_streak_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no streak files"):
        streak_files(tmp_path)
    (tmp_path / "1-4.png").write_bytes(b"not a png")
    with pytest.raises(TrainingError, match=r"1-4\.png"):
        cut_layers(tmp_path / "1-4.png", STRAIGHT)


def test_a_streak_file_that_breaks_off_is_named(streaks: Path, tmp_path: Path) -> None:
    broken = tmp_path / "1-4.png"
    whole = (streaks / "1-4.png").read_bytes()
    broken.write_bytes(whole[: len(whole) // 2])  # the header is whole, the pixels are not
    with pytest.raises(TrainingError, match=r"1-4\.png: not readable as a streak file"):
        StreakDatabase.load([broken], STRAIGHT)


def test_a_file_with_no_row_below_the_line_is_no_streak_file(tmp_path: Path) -> None:
    pyvips.Image.new_from_array(np.zeros((3, 160), np.uint8)).write_to_file(str(tmp_path / "1-4.png"))
    with pytest.raises(TrainingError, match=r"1-4\.png: not a streak file, it is 160 wide and 3 high"):
        cut_layers(tmp_path / "1-4.png", STRAIGHT)


def test_snow_repeats_whitens_and_leaves_the_photograph_alone(clean: Image) -> None:
    before, params = clean.copy(), draw_snow(np.random.default_rng(2))
    snowy, layer, drawn = render_snow(clean, params, np.random.default_rng(3))
    np.testing.assert_array_equal(clean, before)
    np.testing.assert_array_equal(snowy, render_snow(clean, params, np.random.default_rng(3)).image)
    assert snowy.dtype == np.float32
    assert 0 <= snowy.min() <= snowy.max() <= 1
    assert layer.mean() > 0.02
    np.testing.assert_allclose(clean + layer, snowy, atol=1e-6)
    assert drawn == params


def test_snow_of_severity_zero_is_none(clean: Image) -> None:
    params = draw_snow(np.random.default_rng(2), severity=0.0)
    np.testing.assert_array_equal(render_snow(clean, params, np.random.default_rng(3)).image, clean)


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (300, 20)])
def test_snow_falls_on_any_size(size: tuple[int, int]) -> None:
    clean = np.full((*size, 3), 0.5, np.float32)
    assert (
        render_snow(clean, draw_snow(np.random.default_rng(2)), np.random.default_rng(3)).image.shape
        == clean.shape
    )


def test_other_shapes_and_dtypes_are_refused(clean: Image) -> None:
    with pytest.raises(ImageError, match="float64"):
        render_snow(clean.astype(np.float64), draw_snow(np.random.default_rng(2)), np.random.default_rng(3))


@pytest.mark.parametrize("recipe", [STRAIGHT, SLANTED], ids=["straight", "slanted"])
def test_what_was_cut_of_a_file_is_kept_and_comes_back_the_same(
    recipe: RainRecipe, streaks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CMUDRN_CACHE", str(tmp_path))
    files = streak_files(streaks)[:2]
    cut = StreakDatabase.load(files, recipe)
    kept = sorted((tmp_path / "streaks").iterdir())
    assert len(kept) == 2

    def never(*_: object) -> None:
        raise AssertionError("cut again")

    with monkeypatch.context() as patch:
        patch.setattr(streaks_module, "cut_layers", never)
        again = StreakDatabase.load(files, recipe)
    for layers, same in zip(cut.layers, again.layers, strict=True):
        for layer, equal in zip(layers, same, strict=True):
            np.testing.assert_array_equal(layer, equal)
    kept[0].write_bytes(kept[0].read_bytes()[:100])  # a damaged one is cut anew
    assert len(StreakDatabase.load(files, recipe).layers) == len(cut.layers)
    assert sorted((tmp_path / "streaks").iterdir()) == kept


def test_a_file_that_changed_is_cut_again(
    streaks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CMUDRN_CACHE", str(tmp_path / "cache"))
    first, second = (file.read_bytes() for file in streak_files(streaks)[:2])
    file = tmp_path / "1-4.png"
    file.write_bytes(first)
    (before,) = StreakDatabase.load([file], STRAIGHT).layers
    file.write_bytes(second)
    (after,) = StreakDatabase.load([file], STRAIGHT).layers
    assert not all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


def test_without_a_cache_that_can_be_written_files_are_cut_all_the_same(
    streaks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("CMUDRN_CACHE", str(tmp_path / "file"))
    assert len(StreakDatabase.load(streak_files(streaks)[:1], STRAIGHT).layers) == 1
