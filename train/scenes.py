"""Training tuples (rainy, snowy, clean) of one scene: weather laid over clean photographs on the fly."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils.data import IterableDataset, get_worker_info

from cmudrn.errors import TrainingError, UsageError
from cmudrn.images import read_picture
from cmudrn.train.weather.snow import draw_snow, render_snow
from cmudrn.train.weather.streaks import StreakDatabase, render_streaks
from cmudrn.train.weather.weathered import Image

__all__ = ["PhotoSet", "SceneBatch", "WeatheredScenes", "draw_severity", "find_photos"]

PHOTO_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp")


@dataclass(frozen=True)
class SceneBatch:
    """N scenes: [N, 3, S, S] float32 in [0, 1] each."""

    rainy: Tensor
    snowy: Tensor
    clean: Tensor


def find_photos(folders: Sequence[Path]) -> list[Path]:
    """All photographs below the folders, in order. Raises UsageError for a folder without any."""
    photos: list[Path] = []
    for folder in folders:
        found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in PHOTO_SUFFIXES)
        if not found:
            raise UsageError(
                f"{folder}: no photographs", fix="give a folder with JPEG, PNG, TIFF or WebP files"
            )
        photos += found
    return photos


def shrink_to(crop: NDArray[np.uint8], size_px: int) -> NDArray[np.uint8]:
    """Antialiased. By torch, not by libvips: this runs in forked workers, where libvips would hang."""
    planes = torch.from_numpy(crop).permute(2, 0, 1)[None]
    shrunk = interpolate(planes, (size_px, size_px), mode="bilinear", antialias=True)
    pixels: NDArray[np.uint8] = shrunk[0].permute(1, 2, 0).numpy()
    return pixels


def as_8_bit(pixels: NDArray[np.uint8 | np.uint16]) -> NDArray[np.uint8]:
    if pixels.dtype == np.uint16:
        return (pixels // 257).astype(np.uint8)
    return pixels.astype(np.uint8, copy=False)


class PhotoSet:
    """Clean photographs in memory, uint8; every one is checked before the first step."""

    def __init__(self, paths: Sequence[Path], crop_px: int) -> None:
        self.photos: list[NDArray[np.uint8]] = []
        digest = hashlib.sha256()
        for path in paths:
            pixels = read_picture(path).pixels
            if min(pixels.shape[:2]) < crop_px:
                size = f"{pixels.shape[1]}x{pixels.shape[0]}"
                raise TrainingError(
                    f"{path}: {size} is smaller than the crop of {crop_px}",
                    fix="remove it or use a smaller crop",
                )
            digest.update(path.name.encode() + pixels.tobytes())
            self.photos.append(as_8_bit(pixels))
        self.sha256 = digest.hexdigest()

    def draw_crop(self, size_px: int, rng: np.random.Generator) -> Image:
        """A random square, shrunk by up to 2.5 where the photograph allows, turned and mirrored at random.

        Returns [size_px, size_px, 3] float32 in [0, 1].
        """
        photo = self.photos[rng.integers(len(self.photos))]
        largest = min(photo.shape[0], photo.shape[1]) / size_px
        shrink = rng.uniform(1.0, min(2.5, largest)) if rng.random() < 0.6 else 1.0
        window_px = int(size_px * shrink)
        top = rng.integers(photo.shape[0] - window_px + 1)
        left = rng.integers(photo.shape[1] - window_px + 1)
        crop = np.ascontiguousarray(photo[top : top + window_px, left : left + window_px])
        if window_px > size_px:
            crop = shrink_to(crop, size_px)
        crop = np.rot90(crop, int(rng.integers(4)))
        if rng.random() < 0.5:
            crop = crop[:, ::-1]
        scaled: Image = np.ascontiguousarray(crop, dtype=np.float32) / np.float32(255)
        return scaled


def draw_severity(rng: np.random.Generator) -> float:
    """None to heavy: a model that saw only heavy weather spoils light weather, and clean photographs."""
    kind = rng.random()
    if kind < 0.06:
        return 0.0
    return float(rng.uniform(0.05, 0.7) if kind < 0.40 else rng.uniform(0.7, 1.15))


def through_8_bits(image: Image) -> Image:
    rounded: Image = np.round(image * np.float32(255)) / np.float32(255)
    return rounded


class WeatheredScenes(IterableDataset[SceneBatch]):
    """An endless stream of batches; each worker draws its own, from seed, its number and the first step."""

    def __init__(
        self,
        photos: PhotoSet,
        rains: Sequence[StreakDatabase],
        *,
        crop_px: int,
        scenes: int,
        seed: int,
        first_step: int,
    ) -> None:
        self.photos, self.rains = photos, rains
        self.crop_px, self.scenes = crop_px, scenes
        self.seed, self.first_step = seed, first_step

    def draw_scene(self, rng: np.random.Generator) -> tuple[Image, Image, Image]:
        clean = self.photos.draw_crop(self.crop_px, rng)
        rain = self.rains[int(rng.integers(len(self.rains)))]
        rainy = render_streaks(clean, rain, rng, severity=draw_severity(rng), whole=False).image
        snowy = render_snow(clean, draw_snow(rng, severity=draw_severity(rng)), rng).image
        # What people restore has been through 8 bits: so have the inputs here.
        return through_8_bits(rainy), through_8_bits(snowy), clean

    def __iter__(self) -> Iterator[SceneBatch]:
        worker = get_worker_info()
        rng = np.random.default_rng([self.seed, self.first_step, worker.id if worker else 0])
        while True:
            drawn = [
                np.stack(images)
                for images in zip(*(self.draw_scene(rng) for _ in range(self.scenes)), strict=True)
            ]
            rainy, snowy, clean = (torch.from_numpy(images).permute(0, 3, 1, 2) for images in drawn)
            yield SceneBatch(rainy, snowy, clean)
