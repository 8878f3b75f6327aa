"""Rain from physics, without a database: drops by size and depth, what a shutter makes of them, and mist.

Sizes after Marshall & Palmer 1948, fall speeds after Atlas, Srivastava & Sekhon 1973, streaks as a pinhole
camera with a thin lens sees them, opacities after Garg & Nayar 2007, mist after the extinction of rain.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from cmudrn.train.weather.weathered import Image, Weathered, check_image

__all__ = ["RainParams", "draw_rain", "drop_density", "extinction_per_km", "fall_speed", "render_rain"]

# Ours: drops that are drawn, in millimetres; finer ones only add to the mist, larger ones break up.
SMALLEST_MM, LARGEST_MM = 1.0, 5.5
INTERCEPT = 8000.0  # N0 of Marshall & Palmer 1948, drops per cubic metre and millimetre of diameter
# Ours: a drop of 1.5 mm thinner than this is too far to be drawn, it belongs to the mist.
FINEST_PX = 0.35
LAYERS = 5  # depths that are blurred apart; ours
LAYER_RATIO = 1.5  # far end of a layer against its near end; ours
CHUNK = 100_000  # drops whose samples are held in memory at once
STEP_PX = 0.7  # between two samples along a streak: closer than a pixel, or the streak is dotted


@dataclass(frozen=True, kw_only=True)
class RainParams:
    """One shower before one camera; equal parameters with equal chance give equal bytes.

    What each does is physics, with its source beside it; the values that draw_rain draws are ours.
    """

    # Millimetres an hour: 1 drizzle, 10 heavy, 50 and more a cloudburst (WMO: violent). Sets sizes and number
    # of drops (Marshall & Palmer 1948) and how much light they take (Halder, Lalonde & Charette 2019).
    rate_mm_h: float
    focal_px: float  # pixels: a pinhole camera; 0.87 times the width of an image that sees 60 degrees
    exposure_s: float  # seconds: a streak is as long as the fall in that time (Garg & Nayar 2007)
    aperture_mm: float  # millimetres: the lens' opening, how far near drops are out of focus (thin lens)
    focus_m: float  # metres: distance in focus (thin lens)
    wind_m_s: float  # metres a second across the view, to the right; slant is wind against fall speed
    gust_m_s: float  # metres a second: standard deviation of the wind from drop to drop; normal, ours
    brightness: float  # 0 to 1: a drop gathers light from 165 degrees of sky (Garg & Nayar 2007)
    # Ratio, on opacity; ours. 1 is physics, hardly seen; photographs chosen to show rain: 5 to 40.
    contrast: float
    scene_m: float  # metres: distance of the scene, depth of the mist (Koschmieder 1924)
    mist_brightness: float  # 0 to 1: airlight (Koschmieder 1924)


def fall_speed(diameter_mm: NDArray[np.float64]) -> NDArray[np.float64]:
    """Terminal velocity in m/s of drops of 0.6 to 5.8 mm: Atlas, Srivastava & Sekhon 1973."""
    return 9.65 - 10.3 * np.exp(-0.6 * diameter_mm)


def slope_per_mm(rate_mm_h: float) -> float:
    """Lambda of Marshall & Palmer 1948: N(D) = N0 exp(-Lambda D)."""
    return float(4.1 * rate_mm_h**-0.21)


def drop_density(rate_mm_h: float) -> float:
    """Drops of SMALLEST_MM to LARGEST_MM per cubic metre: Marshall & Palmer 1948, integrated."""
    if rate_mm_h <= 0:
        return 0.0
    slope = slope_per_mm(rate_mm_h)
    return float(INTERCEPT / slope * (np.exp(-slope * SMALLEST_MM) - np.exp(-slope * LARGEST_MM)))


def extinction_per_km(rate_mm_h: float) -> float:
    """Of light by rain, per kilometre: 0.312 R^0.67 (as Halder, Lalonde & Charette, ICCV 2019, use it)."""
    return float(0.312 * rate_mm_h**0.67)


def draw_rain(rng: np.random.Generator, *, severity: float = 1.0, focal_px: float = 600.0) -> RainParams:
    """A shower by chance; all ranges are ours.

    severity: ratio, on rainfall, and its root, at most 1, on contrast; 0 is no rain, at 1 eight of ten inputs
    lie between 15 and 27 dB (docs/weather.md).
    focal_px: pixels, of the whole photograph.
    """
    exposure_s = float(np.exp(rng.uniform(np.log(1 / 500), np.log(1 / 25))))
    # Opacity falls with exposure; those who photograph rain choose light and background so that it shows.
    contrast = float(rng.uniform(0.35, 1.0)) * 10 * max(1.0, exposure_s * 300) * min(severity, 1.0) ** 0.5
    return RainParams(
        rate_mm_h=float(rng.uniform(15, 110)) * severity,
        focal_px=focal_px,
        exposure_s=exposure_s,
        aperture_mm=float(rng.uniform(1, 6)),
        focus_m=float(rng.uniform(4, 40)),
        wind_m_s=float(rng.normal(0, 1.5)),
        gust_m_s=float(rng.uniform(0.05, 0.5)),
        brightness=float(rng.uniform(0.7, 1.0)),
        contrast=contrast,
        scene_m=float(rng.uniform(2, 25)),
        mist_brightness=float(rng.uniform(0.55, 0.9)),
    )


def render_rain(clean: Image, params: RainParams, rng: np.random.Generator) -> Weathered:
    """Lay a shower over a photograph.

    clean: [H, W, 3] float32 in [0, 1]; left as it is. rng: the only chance; equal state, equal bytes.
    Returns the rainy image, the layer added, [H, W, 3] float32 each, and params.
    No libvips: workers may fork. Raises ImageError for another shape or dtype.

    Light passes drops one after the other: with opacities a of all drops before a pixel, the pixel keeps
    exp(-sum a) of the scene and takes the rest from the drops. A drop of diameter D that falls v in a
    second hides a point of its streak for D / v of the exposure t, so a = contrast D / (v t), at most 1.
    """
    check_image(clean)
    height, width = clean.shape[:2]
    depth = np.zeros((height, width), np.float32)
    farthest_m = params.focal_px * 1.5e-3 / FINEST_PX
    for layer in range(LAYERS):
        far_m = farthest_m / LAYER_RATIO**layer
        depth += layer_depth(height, width, (far_m / LAYER_RATIO, far_m), params, rng)
    seen = np.exp(-depth)[..., None]
    mist = np.float32(1 - np.exp(-extinction_per_km(params.rate_mm_h) * params.scene_m / 1000))
    hazy = clean * (1 - mist) + np.float32(params.mist_brightness) * mist
    rainy = hazy * seen + np.float32(params.brightness) * (1 - seen)
    return Weathered(rainy, rainy - clean, params)


def layer_depth(
    height: int, width: int, reach_m: tuple[float, float], params: RainParams, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Optical depth of the drops between two distances, [height, width] float32."""
    near_m, far_m = reach_m
    longest_px = params.focal_px / near_m * params.exposure_s * float(fall_speed(np.float64(LARGEST_MM)))
    sideways_px = params.focal_px / near_m * params.exposure_s * (abs(params.wind_m_s) + 2 * params.gust_m_s)
    # Drops whose middle lies outside still reach in: the field is wider than the image by half a streak.
    rim = np.array((longest_px, sideways_px)) / 2 + 2
    field_px = (height + 2 * rim[0]) * (width + 2 * rim[1])
    volume_m3 = field_px / params.focal_px**2 * (far_m**3 - near_m**3) / 3
    flux = np.zeros(height * width, np.float64)
    middle_px = params.focal_px / ((near_m + far_m) / 2)  # pixels of a metre, there
    left = int(rng.poisson(volume_m3 * drop_density(params.rate_mm_h)))
    while left > 0:
        draw_streaks(flux, (height, width), rim, min(left, CHUNK), reach_m, params, rng)
        left -= CHUNK
    spread = flux.reshape(height, width).astype(np.float32)
    drop_px = middle_px * (SMALLEST_MM + 1 / slope_per_mm(max(params.rate_mm_h, 0.1))) / 1000
    circle_px = params.focal_px * params.aperture_mm / 1000 * abs(2 / (near_m + far_m) - 1 / params.focus_m)
    # A disc of diameter d spreads its light by d / 4 (standard deviation along one axis).
    depth: NDArray[np.float32] = ndimage.gaussian_filter(
        spread, np.hypot(drop_px, circle_px) / 4, mode="nearest", truncate=3
    )
    return depth


def draw_streaks(
    flux: NDArray[np.float64],
    size: tuple[int, int],
    rim: NDArray[np.float64],
    drops: int,
    reach_m: tuple[float, float],
    params: RainParams,
    rng: np.random.Generator,
) -> None:
    """Adds drops to flux, [height * width]: opacity times area, in samples along each drop's way."""
    height, width = size
    near_m, far_m = reach_m
    top, left = (rng.uniform(-edge, side + edge, drops) for edge, side in zip(rim, size, strict=True))
    distance_m = np.cbrt(rng.uniform(near_m**3, far_m**3, drops))  # as many drops in every cubic metre
    diameter_mm = draw_diameters(drops, params.rate_mm_h, rng)
    speed = fall_speed(diameter_mm)
    wind = rng.normal(params.wind_m_s, params.gust_m_s, drops)
    metre_px = params.focal_px / distance_m
    down_px, right_px = (metre_px * params.exposure_s * v for v in (speed, wind))
    length_px = np.hypot(down_px, right_px)
    drop_px = metre_px * diameter_mm / 1000
    opacity = np.minimum(1, params.contrast * diameter_mm / 1000 / (speed * params.exposure_s))
    samples = np.ceil(length_px / STEP_PX).astype(np.int64) + 1
    light = np.repeat(opacity * drop_px * np.maximum(length_px, drop_px) / samples, samples)
    # The place of every sample on its streak, -0.5 at its beginning to 0.5 at its end.
    first = np.repeat(np.cumsum(samples) - samples, samples)
    along = (np.arange(first.size) - first + 0.5) / np.repeat(samples, samples) - 0.5
    y = np.repeat(top, samples) + along * np.repeat(down_px, samples)
    x = np.repeat(left, samples) + along * np.repeat(right_px, samples)
    row, column = np.floor(y).astype(np.int64), np.floor(x).astype(np.int64)
    below, beside = y - row, x - column
    for dy, share_y in ((0, 1 - below), (1, below)):  # shared among the four pixels around
        for dx, share_x in ((0, 1 - beside), (1, beside)):
            r, c = row + dy, column + dx
            inside = (r >= 0) & (r < height) & (c >= 0) & (c < width)
            place, share = (r * width + c)[inside], (light * share_y * share_x)[inside]
            flux += np.bincount(place, share, minlength=flux.size)


def draw_diameters(drops: int, rate_mm_h: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Diameters in mm: the exponential of Marshall & Palmer between the smallest and the largest drawn."""
    slope = slope_per_mm(rate_mm_h)
    tail = np.exp(-slope * (LARGEST_MM - SMALLEST_MM))
    diameters: NDArray[np.float64] = SMALLEST_MM - np.log(1 - rng.random(drops) * (1 - tail)) / slope
    return diameters
