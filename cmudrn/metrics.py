"""How near a restored image comes to the truth: PSNR and SSIM, in NumPy alone."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmudrn.errors import ImageError

__all__ = ["psnr_db", "ssim"]

Array = NDArray[np.float64]

WINDOW_PX, SIGMA_PX = 11, 1.5  # Wang et al. 2004
PEAK = 255.0
C1, C2 = (0.01 * PEAK) ** 2, (0.03 * PEAK) ** 2


def check_pair(a: NDArray[Any], b: NDArray[Any]) -> None:
    if a.shape != b.shape or a.dtype != np.uint8 or b.dtype != np.uint8:
        raise ImageError(
            f"cannot compare {a.dtype} {a.shape} with {b.dtype} {b.shape}",
            fix="give two uint8 images of one size",
        )


def psnr_db(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Peak signal-to-noise ratio of two uint8 images over all values, in decibels; infinite for equal ones.

    Raises ImageError for other dtypes or different shapes.
    """
    check_pair(a, b)
    error = np.mean((a.astype(np.float64) - b) ** 2)
    return float(10 * np.log10(PEAK**2 / error)) if error else float("inf")


def blur(x: Array) -> Array:
    """Gaussian window over the first two axes, only where it lies inside."""
    offsets = np.arange(WINDOW_PX) - WINDOW_PX // 2
    weights = np.exp(-(offsets**2) / (2 * SIGMA_PX**2))
    weights /= weights.sum()
    rows, columns = x.shape[0] - WINDOW_PX + 1, x.shape[1] - WINDOW_PX + 1
    down = sum(weight * x[i : i + rows] for i, weight in enumerate(weights))
    return np.asarray(sum(weight * down[:, i : i + columns] for i, weight in enumerate(weights)))


def ssim(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Structural similarity (Wang et al. 2004): Gaussian window of 11 pixels, sigma 1.5, population variance.

    a, b: [H, W, C] uint8, H and W >= 11. Averaged over channels and over the windows that lie inside.
    Raises ImageError for other dtypes, different shapes, or images smaller than the window.
    """
    check_pair(a, b)
    if min(a.shape[:2]) < WINDOW_PX:
        raise ImageError(f"SSIM of {a.shape[1]}x{a.shape[0]} pixels", fix=f"give at least {WINDOW_PX} a side")
    x, y = a.astype(np.float64), b.astype(np.float64)
    mean_x, mean_y = blur(x), blur(y)
    var_x, var_y = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2
    cov = blur(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + C1) / (mean_x**2 + mean_y**2 + C1)
    structure = (2 * cov + C2) / (var_x + var_y + C2)
    return float((luminance * structure).mean())
