"""A backend's images beside PyTorch's, counted up for a certificate; and where they differ most.

Differences are in grey levels of 255, for floats too.
"""

from __future__ import annotations

import hashlib
import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cmudrn.engines.certificate import ParityCertificate, ParityLimits
from cmudrn.metrics import PEAK, mean_psnr_db, psnr_db, ssim

__all__ = ["CROP_PX", "Comparison", "Tally", "WorstPlace", "WorstPlaces", "shrunk"]

Levels = NDArray[np.uint8]  # [H, W, 3]
CROP_PX = 48  # side of a place; smaller images are shown whole
WORST_IMAGES = 3
HEATMAP_PX = 560  # longest side; in larger ones a pixel is the worst of several


class Comparison:
    """One image of a backend's beside PyTorch's: [H, W, 3] of one dtype, uint8, or float32 in [0, 1]."""

    def __init__(self, name: str, restored: NDArray[Any], reference: NDArray[Any]) -> None:
        self.name = name
        # What is no number, or beyond the scale, is as wrong as can be; it must not slip through a maximum.
        with np.errstate(over="ignore", invalid="ignore"):
            self.restored, self.reference = in_levels(restored), in_levels(reference)
            difference = np.abs(self.restored - self.reference)
        self.differences = np.minimum(np.nan_to_num(difference, nan=PEAK), PEAK)  # [H, W, 3] grey levels
        self.difference = float(self.differences.max())
        mean_square = float(np.square(self.differences, dtype=np.float64).mean())
        self.psnr_db = 10 * math.log10(PEAK**2 / mean_square) if mean_square else math.inf


def in_levels(image: NDArray[Any]) -> NDArray[np.float32]:
    """0 to 255, not rounded."""
    scale = 1 if image.dtype == np.uint8 else PEAK
    return np.asarray(np.multiply(image, scale, dtype=np.float32))


def rounded(levels: NDArray[np.float32]) -> Levels:
    """Half up, as the graphs round."""
    return np.asarray(np.floor(np.clip(np.nan_to_num(levels), 0, PEAK) + 0.5), np.uint8)


class Tally:
    """All that a certificate says, image by image."""

    def __init__(self) -> None:
        self.images = 0
        self._given = hashlib.sha256()
        self._psnr_db: list[float] = []  # of the images that differ
        self._difference = 0.0
        self._values = self._off_by_one = self._off_by_more = 0
        self._to_truth: list[tuple[float, float]] = []  # PSNR and SSIM, of the backend's images
        self._reference_to_truth: list[tuple[float, float]] = []

    def add(self, given: NDArray[Any], compared: Comparison, truth: Levels | None = None) -> None:
        """given: the pixels that went in."""
        self._given.update(f"{given.dtype} {given.shape}\n".encode())
        self._given.update(given.tobytes())
        self.images += 1
        if compared.difference > 0:
            self._psnr_db.append(compared.psnr_db)
        self._difference = max(self._difference, compared.difference)
        steps = np.floor(compared.differences + 0.5)
        self._values += steps.size
        self._off_by_one += int(np.count_nonzero(steps == 1))
        self._off_by_more += int(np.count_nonzero(steps > 1))
        if truth is not None:
            self._to_truth.append(scores(compared.restored, truth))
            self._reference_to_truth.append(scores(compared.reference, truth))

    def certificate(self, limits: ParityLimits, *, measured_on: str, measured_at: str) -> ParityCertificate:
        """measured_on: a backend's label. measured_at: UTC. At least one image was added."""
        worst = min(self._psnr_db, default=None)
        psnr_change, ssim_change = self._truth_changes()
        return ParityCertificate(
            images=self.images,
            images_sha256=self._given.hexdigest(),
            psnr_min_db=worst,
            # A mean of equal numbers may come out a rounding below them.
            psnr_mean_db=None if worst is None else max(worst, float(np.mean(self._psnr_db))),
            difference=self._difference,
            off_by_one=self._off_by_one / self._values,
            off_by_more=self._off_by_more / self._values,
            truth_psnr_change_db=psnr_change,
            truth_ssim_change=ssim_change,
            measured_on=measured_on,
            measured_at=measured_at,
            limits=limits,
        )

    def _truth_changes(self) -> tuple[float | None, float | None]:
        """Of mean PSNR and mean SSIM, with the backend less with PyTorch."""
        if not self._to_truth:
            return None, None
        psnr, ssims = zip(*self._to_truth, strict=True)
        reference_psnr, reference_ssims = zip(*self._reference_to_truth, strict=True)
        psnr_change = mean_psnr_db(list(psnr)) - mean_psnr_db(list(reference_psnr))
        return psnr_change, float(np.mean(ssims) - np.mean(reference_ssims))


def scores(levels: NDArray[np.float32], truth: Levels) -> tuple[float, float]:
    """PSNR and SSIM in RGB. Raises ImageError for images smaller than SSIM's window."""
    image = rounded(levels)
    return psnr_db(image, truth), ssim(image, truth)


class WorstPlace(NamedTuple):
    """A piece of an image where a backend differs much."""

    image: str
    psnr_db: float  # of the whole image
    difference: float  # grey levels, of the image's worst value
    top: int  # pixels, within the image
    left: int
    reference: Levels
    restored: Levels
    differences: NDArray[np.float32]  # [H, W, 3] grey levels


class WorstPlaces:
    """Keeps the places to look at: around the worst value of all, and the worst part of each worst image."""

    def __init__(self) -> None:
        # [H, W] grey levels, of the first place's image, shrunk.
        self.heatmap: NDArray[np.float32] | None = None
        self._worst_value: WorstPlace | None = None
        self._worst_images: list[WorstPlace] = []

    def add(self, compared: Comparison) -> None:
        """An image that is equal leaves no place."""
        if compared.difference == 0:
            return
        strongest = compared.differences.max(axis=2)
        if self._worst_value is None or compared.difference > self._worst_value.difference:
            row, column = np.unravel_index(np.argmax(strongest), strongest.shape)
            half = CROP_PX // 2
            self._worst_value = cut(compared, int(row) - half, int(column) - half)
            self.heatmap = shrunk(strongest)
        if len(self._worst_images) < WORST_IMAGES or compared.psnr_db < self._worst_images[-1].psnr_db:
            self._worst_images.append(cut(compared, *worst_window(compared.differences)))
            self._worst_images = sorted(self._worst_images, key=lambda one: one.psnr_db)[:WORST_IMAGES]

    @property
    def places(self) -> tuple[WorstPlace, ...]:
        """Each of another image, around the worst value first; none where all images are equal."""
        first = self._worst_value
        return (first, *(one for one in self._worst_images if one.image != first.image)) if first else ()


def worst_window(differences: NDArray[np.float32]) -> tuple[int, int]:
    """Top and left of the square with the most error."""
    squares = np.square(differences, dtype=np.float64).sum(axis=2)
    squares = np.pad(squares.cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
    height, width = (min(CROP_PX, size - 1) for size in squares.shape)
    sums = (squares[height:, width:] - squares[:-height, width:] - squares[height:, :-width]) + squares[
        :-height, :-width
    ]
    top, left = np.unravel_index(np.argmax(sums), sums.shape)
    return int(top), int(left)


def shrunk(levels: NDArray[np.float32]) -> NDArray[np.float32]:
    """[H, W] to at most HEATMAP_PX a side; of each block the largest value, so that no spot is lost."""
    step = -(-max(levels.shape) // HEATMAP_PX)
    height, width = (-(-size // step) for size in levels.shape)
    filled = np.zeros((height * step, width * step), levels.dtype)
    filled[: levels.shape[0], : levels.shape[1]] = levels
    return np.asarray(filled.reshape(height, step, width, step).max(axis=(1, 3)))


def cut(compared: Comparison, top: int, left: int) -> WorstPlace:
    """A square, moved into the image where it would jut out."""
    height, width = compared.differences.shape[:2]
    top, left = (max(0, min(at, size - CROP_PX)) for at, size in ((top, height), (left, width)))
    there = np.s_[top : top + CROP_PX, left : left + CROP_PX]
    return WorstPlace(
        image=compared.name,
        psnr_db=compared.psnr_db,
        difference=compared.difference,
        top=top,
        left=left,
        reference=rounded(compared.reference[there]),
        restored=rounded(compared.restored[there]),
        differences=compared.differences[there].copy(),
    )
