"""How near a restored image comes to the truth: PSNR and SSIM, in RGB and in luma, in NumPy alone.

All on uint8, over the whole image. Papers on rain and snow score either the three channels or the luma alone,
and the two differ by a decibel and more: every figure says by its name which it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmudrn.errors import ImageError

__all__ = ["CAP_DB", "WINDOW_PX", "Scores", "Truth", "luma", "mean_psnr_db", "psnr_db", "ssim"]

Array = NDArray[np.float64]

WINDOW_PX, SIGMA_PX = 11, 1.5  # Wang et al. 2004
PEAK = 255.0
C1, C2 = (0.01 * PEAK) ** 2, (0.03 * PEAK) ** 2
CAP_DB = 100.0  # what an image equal to its truth counts in a mean; one grey level off everywhere is 48.1 dB


@dataclass(frozen=True)
class Scores:
    """One image against its truth. The names of the fields are the ids of the metrics."""

    psnr_rgb_db: float  # infinite for equal images
    ssim_rgb: float  # mean of the three channels
    psnr_y_db: float  # infinite for equal luma
    ssim_y: float


class Truth:
    """A clean image, [H, W, 3] uint8, H and W >= 11, prepared for many comparisons with it."""

    def __init__(self, clean: NDArray[Any]) -> None:
        self.clean, self.clean_luma = clean, luma(clean)
        self.rgb, self.y = WindowedImage(clean), WindowedImage(self.clean_luma)

    def score(self, image: NDArray[Any]) -> Scores:
        """All metrics of an image of the same shape and dtype. Raises ImageError for another one."""
        check_pair(image, self.clean)
        image_luma = luma(image)
        return Scores(
            psnr_rgb_db=psnr_db(image, self.clean),
            ssim_rgb=self.rgb.ssim(image),
            psnr_y_db=psnr_db(image_luma, self.clean_luma),
            ssim_y=self.y.ssim(image_luma),
        )


def psnr_db(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Peak signal-to-noise ratio of two uint8 images over all values, in decibels; infinite for equal ones.

    Raises ImageError for other dtypes or different shapes.
    """
    check_pair(a, b)
    error = np.mean((a.astype(np.float64) - b) ** 2)
    return float(10 * np.log10(PEAK**2 / error)) if error else float("inf")


def ssim(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Structural similarity (Wang et al. 2004): Gaussian window of 11 pixels, sigma 1.5, population variance.

    a, b: [H, W] or [H, W, C] uint8, H and W >= 11. Averaged over channels and all windows that lie inside.
    Raises ImageError for other dtypes, different shapes, or images smaller than the window.
    """
    check_pair(a, b)
    return WindowedImage(b).ssim(a)


def luma(image: NDArray[Any]) -> NDArray[np.uint8]:
    """[H, W, 3] uint8 RGB to [H, W] uint8 luma, 16 to 235: BT.601 as MATLAB's rgb2ycbcr rounds it."""
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ImageError(f"luma of {image.dtype} {image.shape}", fix="give an RGB image of 8 bits")
    weighted = image @ (np.array([65.481, 128.553, 24.966]) / PEAK)
    rounded: NDArray[np.uint8] = np.floor(weighted + 16.5).astype(np.uint8)
    return rounded


def mean_psnr_db(values: list[float]) -> float:
    """Mean over images, each counted with at most 100 dB: so equal images leave the mean finite."""
    return float(np.minimum(values, CAP_DB).mean())


def check_pair(a: NDArray[Any], b: NDArray[Any]) -> None:
    if a.shape != b.shape or a.dtype != np.uint8 or b.dtype != np.uint8:
        raise ImageError(
            f"cannot compare {a.dtype} {a.shape} with {b.dtype} {b.shape}",
            fix="give two uint8 images of one size",
        )


class WindowedImage:
    """One side of SSIM: means and mean squares in every window, which all images compared with it share."""

    def __init__(self, image: NDArray[Any]) -> None:
        if min(image.shape[:2]) < WINDOW_PX:
            size = f"{image.shape[1]}x{image.shape[0]}"
            raise ImageError(f"SSIM of {size} pixels", fix=f"give at least {WINDOW_PX} a side")
        self.image = image.astype(np.float64)
        self.mean, self.mean_square = blur(self.image), blur(self.image**2)

    def ssim(self, other: NDArray[Any]) -> float:
        y = other.astype(np.float64)
        mean_y = blur(y)
        means, squares = self.mean * mean_y, self.mean**2 + mean_y**2
        variances = self.mean_square + blur(y * y) - squares
        covariance = blur(self.image * y) - means
        luminance = (2 * means + C1) / (squares + C1)
        structure = (2 * covariance + C2) / (variances + C2)
        return float((luminance * structure).mean())


def blur(x: Array) -> Array:
    """Gaussian window over the first two axes, only where it lies inside."""
    offsets = np.arange(WINDOW_PX) - WINDOW_PX // 2
    weights = np.exp(-(offsets**2) / (2 * SIGMA_PX**2))
    weights /= weights.sum()
    rows, columns = x.shape[0] - WINDOW_PX + 1, x.shape[1] - WINDOW_PX + 1
    down = sum(weight * x[i : i + rows] for i, weight in enumerate(weights))
    return np.asarray(sum(weight * down[:, i : i + columns] for i, weight in enumerate(weights)))
