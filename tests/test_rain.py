"""Rain from physics: each test is a sentence of the formulas it cites, with its arithmetic beside it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from cmudrn.errors import ImageError
from cmudrn.train.weather import rain
from cmudrn.train.weather.rain import (
    RainParams,
    draw_diameters,
    draw_rain,
    draw_streaks,
    drop_density,
    extinction_per_km,
    fall_speed,
    layer_depth,
    render_rain,
    slope_per_mm,
)
from cmudrn.train.weather.weathered import Image

SIDE_PX = 300
SHOWER = RainParams(
    rate_mm_h=50,
    focal_px=1000,
    exposure_s=0.05,
    aperture_mm=0,
    focus_m=5,
    wind_m_s=0,
    gust_m_s=0,
    brightness=0.8,
    contrast=10,
    scene_m=20,
    mist_brightness=0.7,
)
# Of the streak of a drop of 2 mm, five metres away: 1000 px / 5 m * 6.5477 m/s * 0.05 s.
LENGTH_PX = 65.477


@pytest.fixture
def clean() -> Image:
    return np.random.default_rng(1).uniform(0, 1, (70, 90, 3)).astype(np.float32)


def chance() -> np.random.Generator:
    return np.random.default_rng(3)


# ---- Drops


@pytest.mark.parametrize(
    ("diameter_mm", "speed_m_s"),
    [(1, 3.997), (2, 6.548), (5, 9.137)],  # 9.65 - 10.3 exp(-0.6 D): 10.3 times 0.54881, 0.30119, 0.04979
)
def test_drops_fall_as_atlas_1973_says(diameter_mm: float, speed_m_s: float) -> None:
    assert fall_speed(np.float64(diameter_mm)) == pytest.approx(speed_m_s, abs=1e-3)


def test_fifty_millimetres_an_hour_have_marshall_palmers_slope() -> None:
    """4.1 * 50^-0.21 = 4.1 * exp(-0.21 * 3.91202) = 4.1 * 0.43976 = 1.8030 per mm."""
    assert slope_per_mm(50) == pytest.approx(1.8030, abs=2e-4)


@pytest.mark.parametrize("rate_mm_h", [1.0, 20.0, 100.0])
def test_the_number_of_drops_is_marshall_palmers_distribution_summed_up(rate_mm_h: float) -> None:
    diameter_mm = np.linspace(1.0, 5.5, 200_001)
    density = 8000 * np.exp(-4.1 * rate_mm_h**-0.21 * diameter_mm)  # per cubic metre and millimetre
    summed = np.sum((density[1:] + density[:-1]) / 2 * np.diff(diameter_mm))
    assert drop_density(rate_mm_h) == pytest.approx(summed, rel=1e-6)


def test_drawn_diameters_have_the_mean_of_the_cut_exponential() -> None:
    """1 + 1 / L - 4.5 / (exp(4.5 L) - 1) at L = 1.8030: 1 + 0.55463 - 0.00135 = 1.55328 mm."""
    drawn = draw_diameters(200_000, 50, chance())
    assert 1 <= drawn.min() < drawn.max() <= 5.5
    # The standard deviation is 0.55 mm: the mean of 200,000 is good to 0.0012.
    assert drawn.mean() == pytest.approx(1.55328, abs=0.004)


# ---- What a camera makes of one drop


@pytest.fixture
def two_millimetres(monkeypatch: pytest.MonkeyPatch) -> None:
    """All drops have a diameter of 2 mm."""
    monkeypatch.setattr(rain, "draw_diameters", lambda drops, rate_mm_h, rng: np.full(drops, 2.0))


def one_streak(params: RainParams, distance_m: float = 5.0) -> NDArray[np.float64]:
    """[SIDE_PX, SIDE_PX], opacity times area of one drop that lies in the middle third."""
    flux = np.zeros(SIDE_PX**2)
    inwards = np.array((-SIDE_PX / 3, -SIDE_PX / 3))
    reach_m = (distance_m, distance_m * (1 + 1e-9))
    draw_streaks(flux, (SIDE_PX, SIDE_PX), inwards, 1, reach_m, params, chance())
    return flux.reshape(SIDE_PX, SIDE_PX)


def moments(flux: NDArray[np.float64]) -> tuple[float, float, float]:
    """Variance down, variance across and covariance, of where the light lies; pixels squared."""
    share = flux / flux.sum()
    rows, columns = np.mgrid[: flux.shape[0], : flux.shape[1]]
    down, across = rows - np.sum(share * rows), columns - np.sum(share * columns)
    return (
        float(np.sum(share * down**2)),
        float(np.sum(share * across**2)),
        float(np.sum(share * down * across)),
    )


def length_px(flux: NDArray[np.float64]) -> float:
    """Of an upright streak: an even line of length L has variance L^2 / 12."""
    return float(np.sqrt(12 * moments(flux)[0]))


@pytest.mark.usefixtures("two_millimetres")
@pytest.mark.parametrize(
    ("changes", "distance_m", "expected_px"),
    [
        ({}, 5.0, LENGTH_PX),
        ({"focal_px": 500.0}, 5.0, LENGTH_PX / 2),
        ({"exposure_s": 0.025}, 5.0, LENGTH_PX / 2),
        ({}, 10.0, LENGTH_PX / 2),
    ],
)
def test_a_streak_is_focal_length_times_fall_over_distance(
    changes: dict[str, float], distance_m: float, expected_px: float
) -> None:
    streak = one_streak(replace(SHOWER, **changes), distance_m)
    assert length_px(streak) == pytest.approx(expected_px, abs=0.2)


@pytest.mark.usefixtures("two_millimetres")
@pytest.mark.parametrize("wind_m_s", [-3.0, 0.0, 1.5])
def test_the_slant_is_wind_over_fall_speed(wind_m_s: float) -> None:
    down, _, both = moments(one_streak(replace(SHOWER, wind_m_s=wind_m_s)))
    assert both / down == pytest.approx(wind_m_s / 6.548, abs=0.005)


@pytest.mark.usefixtures("two_millimetres")
def test_a_streak_hides_its_area_for_the_share_of_the_exposure_that_the_drop_needs_to_pass() -> None:
    """Contrast 10: 10 * 0.002 m / (6.548 m/s * 0.05 s) = 0.0611; times 0.4 px wide, times 65.48 px long."""
    assert one_streak(SHOWER).sum() == pytest.approx(0.0611 * 0.4 * LENGTH_PX, rel=1e-3)


@pytest.mark.usefixtures("two_millimetres")
def test_a_drop_is_never_more_than_opaque() -> None:
    """At contrast 1000 the share would be 6.1: the streak hides its area of 0.4 by 65.48 px, no more."""
    assert one_streak(replace(SHOWER, contrast=1000)).sum() == pytest.approx(0.4 * LENGTH_PX, rel=1e-3)


@pytest.mark.usefixtures("two_millimetres")
def test_twice_the_exposure_makes_a_streak_twice_as_long_and_half_as_opaque() -> None:
    short, long = one_streak(SHOWER), one_streak(replace(SHOWER, exposure_s=0.1))
    assert length_px(long) == pytest.approx(2 * length_px(short), rel=0.005)
    assert long.sum() == pytest.approx(short.sum())
    # Half, over the rows that both reach to the full.
    assert long.sum(axis=1).max() == pytest.approx(short.sum(axis=1).max() / 2, rel=0.03)


@pytest.mark.parametrize(
    ("distance_m", "circle_px"),
    [(10.0, 0.0), (4.0, 3.0), (2.0, 8.0)],  # 1000 px * 0.02 m * |1 / distance - 1 / 10 m|
)
def test_drops_nearer_than_the_focus_are_wider_by_the_circle_of_confusion(
    distance_m: float, circle_px: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spot(flux: NDArray[np.float64], size: tuple[int, int], *_: object) -> None:
        flux[size[0] // 2 * size[1] + size[1] // 2] = 1

    monkeypatch.setattr(rain, "draw_streaks", spot)
    monkeypatch.setattr(rain, "drop_density", lambda rate_mm_h: 1e9)  # there is one in any slice
    params = replace(SHOWER, aperture_mm=20, focus_m=10)
    depth = layer_depth(101, 101, (distance_m, distance_m * 1.001), params, chance())
    down, across, _ = moments(depth.astype(np.float64))
    # Drops of 1 + 1 / 1.8030 = 1.555 mm are 1.555 px wide a metre away; a disc d wide has deviation d / 4.
    deviation_px = np.hypot(1.555 / distance_m, circle_px) / 4
    # The kernel ends at three deviations, and a narrow one is sampled at whole pixels.
    assert np.sqrt(down) == pytest.approx(deviation_px, abs=0.1)
    assert np.sqrt(across) == pytest.approx(deviation_px, abs=0.1)


# ---- Over a photograph


def test_rain_of_rate_zero_is_none(clean: Image) -> None:
    shown = render_rain(clean, replace(SHOWER, rate_mm_h=0), chance())
    np.testing.assert_array_equal(shown.image, clean)
    assert not shown.layer.any()


def test_where_drops_hide_nothing_there_is_koschmieders_mist_alone(clean: Image) -> None:
    """0.312 * 50^0.67 = 0.312 * 13.750 = 4.290 per km; over 20 m exp(-0.0858) = 0.91778 of the scene."""
    assert extinction_per_km(50) == pytest.approx(4.290, abs=1e-3)
    misty = render_rain(clean, replace(SHOWER, contrast=0), chance()).image
    np.testing.assert_allclose(misty, 0.91778 * clean + (1 - 0.91778) * 0.7, atol=1e-4)


def test_rain_lies_between_the_photograph_the_mist_and_the_drops(clean: Image) -> None:
    """Light is only mixed: with drops of 0.8 and mist of 0.7, black stays below 0.8 and white above 0.7."""
    dense = replace(SHOWER, rate_mm_h=100, contrast=100)
    black, white = (render_rain(np.full_like(clean, level), dense, chance()).image for level in (0.0, 1.0))
    assert 0.7 < black.max() < 0.8 + 1e-6
    assert 0.7 - 1e-6 < white.min() < 0.9
    assert white.max() <= 1


def test_rain_repeats_tells_its_parameters_and_leaves_the_photograph_alone(clean: Image) -> None:
    before = clean.copy()
    rainy, layer, params = render_rain(clean, SHOWER, chance())
    np.testing.assert_array_equal(clean, before)
    np.testing.assert_array_equal(rainy, render_rain(clean, SHOWER, chance()).image)
    assert np.any(rainy != render_rain(clean, SHOWER, np.random.default_rng(4)).image)
    assert rainy.dtype == layer.dtype == np.float32
    np.testing.assert_allclose(clean + layer, rainy, atol=1e-6)
    assert params == SHOWER


def test_twice_the_rate_hides_more(clean: Image) -> None:
    black = np.zeros_like(clean)
    light, heavy = (
        render_rain(black, replace(SHOWER, rate_mm_h=rate, scene_m=0), chance()).layer.mean()
        for rate in (25, 50)
    )
    assert 0 < light < heavy


def test_drawn_showers_repeat_and_severity_scales_their_rainfall() -> None:
    whole, half = (draw_rain(chance(), severity=severity) for severity in (1.0, 0.5))
    assert whole == draw_rain(chance())
    assert half.rate_mm_h == pytest.approx(whole.rate_mm_h / 2)
    assert half.contrast == pytest.approx(whole.contrast * 0.5**0.5)
    assert draw_rain(chance(), severity=0).rate_mm_h == 0


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (300, 2)])
def test_rain_falls_on_any_size(size: tuple[int, int]) -> None:
    clean = np.full((*size, 3), 0.5, np.float32)
    rainy = render_rain(clean, draw_rain(chance()), chance()).image
    assert rainy.shape == clean.shape
    assert np.isfinite(rainy).all()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (np.zeros((8, 8, 3), np.uint8), "uint8"),
        (np.zeros((8, 8, 3), np.float64), "float64"),
        (np.zeros((8, 8), np.float32), r"\(8, 8\)"),
        (np.zeros((8, 8, 4), np.float32), r"\(8, 8, 4\)"),
    ],
)
def test_other_shapes_and_dtypes_are_refused_by_name(wrong: Image, said: str) -> None:
    with pytest.raises(ImageError, match=said):
        render_rain(wrong, SHOWER, chance())
