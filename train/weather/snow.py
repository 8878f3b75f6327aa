"""Falling snow, drawn flake by flake: sizes in three depths, motion blur, opacity, and a veil.

The look follows CSD (Chen et al., ICCV 2021): flakes of several sizes and transparencies, streaks where they
move fast, and a whitish veil over the scene. All numbers are ours, tuned so that inputs lie at 15 to 20 dB.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from cmudrn.train.weather.weathered import Image, Weathered, check_image

__all__ = ["FlakeLayer", "SnowParams", "draw_snow", "render_snow"]


@dataclass(frozen=True, kw_only=True)
class FlakeLayer:
    """Flakes of one depth. That sizes and transparencies vary is CSD's look; the numbers are ours."""

    per_megapixel: float  # flakes in a million pixels, at severity 1 and scale 1
    radius_px: tuple[float, float]  # pixels at scale 1, drawn evenly between
    opacity: tuple[float, float]  # 0 to 1, of a flake's flat middle, drawn evenly between
    softness: float  # ratio: width of the rim against the radius, near flakes are out of focus


@dataclass(frozen=True, kw_only=True)
class SnowParams:
    """One snowfall; draw_snow draws them, and equal parameters with equal chance give equal bytes.

    Streaks and veil are CSD's look; the numbers are ours, and so are the factors severity and scale.
    """

    layers: tuple[FlakeLayer, ...]  # from far to near
    fall_deg: float  # degrees: direction of fall against the vertical, to the right
    stretch: float  # ratio: length of a streak against the flake's diameter; 1 is a round flake
    veil: float  # 0 to 1: mean opacity of the whitish veil
    whiteness: float  # 0 to 1: brightness of flakes and veil
    severity: float = 1.0  # ratio, on the number of flakes and on the veil; 0 is no snow
    scale: float = 1.0  # ratio: size of flakes against the layers'; they cover the same share of the image


FAR, MIDDLE, NEAR = (
    FlakeLayer(per_megapixel=5000, radius_px=(0.7, 1.6), opacity=(0.4, 0.95), softness=0.8),
    FlakeLayer(per_megapixel=1000, radius_px=(1.6, 3.6), opacity=(0.4, 0.95), softness=0.6),
    FlakeLayer(per_megapixel=150, radius_px=(3.6, 8.0), opacity=(0.25, 0.75), softness=0.9),
)


def draw_snow(rng: np.random.Generator, *, severity: float = 1.0, scale: float = 1.0) -> SnowParams:
    """A snowfall by chance: wind to either side, slow to fast flakes, thin to thick veil.

    severity: 0 is no snow, 1 gives inputs of 15 to 20 dB. scale: 1 suits photographs of 500 pixels.
    """
    return SnowParams(
        layers=(FAR, MIDDLE, NEAR),
        fall_deg=float(rng.normal(0, 20)),
        stretch=float(rng.uniform(1.0, 3.5)),
        veil=float(rng.uniform(0.0, 0.22)),
        whiteness=float(rng.uniform(0.85, 1.0)),
        severity=severity,
        scale=scale,
    )


def flake(
    radius_px: float, length_px: float, softness: float, angle_rad: float, offset: NDArray[np.float64]
) -> NDArray[np.float32]:
    """One streaked flake's opacity, [n, n] float32 in [0, 1]: the distance to a segment, with a soft rim."""
    reach = int(np.ceil(radius_px + length_px / 2 + 1))
    y, x = np.ogrid[-reach : reach + 1, -reach : reach + 1]
    y, x = y - offset[0], x - offset[1]
    along = x * np.sin(angle_rad) + y * np.cos(angle_rad)
    across = x * np.cos(angle_rad) - y * np.sin(angle_rad)
    past_end = np.maximum(np.abs(along) - length_px / 2, 0)
    distance = np.sqrt(past_end**2 + across**2) / radius_px
    opacity: NDArray[np.float32] = np.clip((1 - distance) / softness + 0.3, 0, 1).astype(np.float32)
    return opacity


def render_snow(clean: Image, params: SnowParams, rng: np.random.Generator) -> Weathered:
    """Lay falling snow over a photograph.

    clean: [H, W, 3] float32 in [0, 1]; left as it is.
    rng: the only chance; equal state, equal bytes.
    Returns the snowy image, the layer added, both [H, W, 3] float32, and params.
    Raises ImageError for another shape or dtype.
    Source: the look of CSD (Chen et al., ICCV 2021); flake sizes are ours.
    """
    check_image(clean)
    height, width = clean.shape[:2]
    through = np.full((height, width), 1, np.float32)  # share of the scene that is still seen
    for layer in params.layers:
        # Flakes whose centre lies outside still reach in: the field is wider than the image by their reach.
        rim = int(np.ceil(layer.radius_px[1] * params.scale * (1 + params.stretch)))
        field = (height + 2 * rim) * (width + 2 * rim)
        for _ in range(rng.poisson(layer.per_megapixel * params.severity / params.scale**2 * field / 1e6)):
            draw_flake(through, layer, params, rim, rng)
    veil = params.veil * params.severity * smooth_noise(height, width, rng)
    through *= 1 - np.clip(veil, 0, 1)
    snowy = clean * through[..., None] + np.float32(params.whiteness) * (1 - through[..., None])
    return Weathered(snowy, snowy - clean, params)


def draw_flake(
    through: NDArray[np.float32], layer: FlakeLayer, params: SnowParams, rim: int, rng: np.random.Generator
) -> None:
    height, width = through.shape
    centre = rng.uniform((-rim, -rim), (height + rim, width + rim))
    radius = rng.uniform(*layer.radius_px) * params.scale
    length = 2 * radius * (params.stretch - 1) * rng.uniform(0.5, 1.2)
    angle = np.deg2rad(params.fall_deg + rng.normal(0, 6))
    opacity = np.float32(rng.uniform(*layer.opacity))
    whole = np.round(centre).astype(int)
    mask = flake(radius, length, layer.softness, angle, centre - whole)
    reach = mask.shape[0] // 2
    top, left = whole - reach
    rows = slice(max(top, 0), min(top + mask.shape[0], height))
    columns = slice(max(left, 0), min(left + mask.shape[1], width))
    if rows.start < rows.stop and columns.start < columns.stop:
        seen = mask[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
        through[rows, columns] *= 1 - opacity * seen


def smooth_noise(height: int, width: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """A veil's density around 1: [H, W] float32, varying over hundreds of pixels."""
    coarse = rng.uniform(0.5, 1.5, (height // 160 + 2, width // 160 + 2)).astype(np.float32)
    zoom = ((height + 1) / coarse.shape[0], (width + 1) / coarse.shape[1])
    noise: NDArray[np.float32] = ndimage.zoom(coarse, zoom, order=1, mode="nearest", grid_mode=True)
    return noise[:height, :width]
