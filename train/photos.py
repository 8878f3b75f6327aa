"""Clean photographs in memory, and crops of them as a camera might have taken them."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as PillowImage
from scipy import ndimage
from torch.nn.functional import interpolate

from cmudrn.errors import ImageError, TrainingError, UsageError
from cmudrn.formats import READABLE_SUFFIXES
from cmudrn.images import Picture, read_picture
from cmudrn.train.weather.weathered import Image
from cmudrn.wording import listed

__all__ = ["Camera", "PhotoSet", "draw_camera", "find_photos", "to_pixels", "to_scene"]


def find_photos(folders: Sequence[Path]) -> list[Path]:
    """All photographs below the folders, in order. Raises UsageError for a folder without any."""
    photos: list[Path] = []
    for folder in folders:
        found = sorted(
            path
            for path in folder.rglob("*")
            if path.suffix.lower() in READABLE_SUFFIXES and not path.name.startswith(".") and path.is_file()
        )
        if not found:
            raise UsageError(
                f"{folder}: no photographs", fix=f"what is read: {' '.join(sorted(READABLE_SUFFIXES))}"
            )
        photos += found
    return photos


def to_pixels(image: Image) -> NDArray[np.uint8]:
    """[0, 1] float32 to 8 bits, rounded half up, the same shape."""
    pixels: NDArray[np.uint8] = np.floor(np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)
    return pixels


def to_scene(pixels: NDArray[np.uint8 | np.uint16]) -> Image:
    """8 or 16 bits to [0, 1] float32, the same shape."""
    scene: Image = pixels.astype(np.float32) / np.float32(np.iinfo(pixels.dtype).max)
    return scene


def read_8_bits(path: Path) -> NDArray[np.uint8]:
    """[H, W, 3]; grey becomes three channels, alpha is left out, 16 bits are rounded to 8."""
    return as_8_bits(read_picture(path))


def as_8_bits(picture: Picture) -> NDArray[np.uint8]:
    """The same of a picture that is read."""
    pixels = picture.pixels
    return to_pixels(to_scene(pixels)) if pixels.dtype == np.uint16 else pixels.astype(np.uint8, copy=False)


def shrink_to(crop: NDArray[np.uint8], size_px: int) -> NDArray[np.uint8]:
    """Antialiased. By torch, not by libvips: this runs in forked workers, where libvips would hang."""
    planes = torch.from_numpy(crop).permute(2, 0, 1)[None]
    shrunk = interpolate(planes, (size_px, size_px), mode="bilinear", antialias=True)
    pixels: NDArray[np.uint8] = shrunk[0].permute(1, 2, 0).numpy()
    return pixels


class PhotoSet:
    """Clean photographs, [H, W, 3] uint8 each; every one is read and checked before the first step.

    fix: the way out of what is refused.
    Raises TrainingError that names the files which cannot be read or are smaller than the crop.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        crop_px: int,
        *,
        fix: str = "mend or remove these files, or use a smaller crop",
    ) -> None:
        self.photos: list[NDArray[np.uint8]] = []
        self.digests: set[str] = set()  # of each photograph's pixels
        problems, digest = [], hashlib.sha256()
        for path in paths:
            try:
                pixels = read_8_bits(path)
            except ImageError as exc:
                problems.append(exc.what)
                continue
            if min(pixels.shape[:2]) < crop_px:
                size = f"{pixels.shape[1]}x{pixels.shape[0]}"
                problems.append(f"{path}: {size} is smaller than the crop of {crop_px}")
            digest.update(path.name.encode() + pixels.tobytes())
            self.digests.add(hashlib.sha256(pixels.tobytes()).hexdigest())
            self.photos.append(pixels)
        if problems:
            raise TrainingError(listed(problems, between="; "), fix=fix)
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
        return to_scene(np.ascontiguousarray(crop))


@dataclass(frozen=True, kw_only=True)
class Camera:
    """How a scene becomes a file. The defaults are a perfect camera."""

    exposure: float = 1.0  # factor on the light; below 1 is dusk and night
    blur_px: float = 0.0  # sigma of a lens out of focus
    noise: float = 0.0  # standard deviation, share of the full range
    jpeg_quality: int | None = None  # 1 to 95; None: not compressed

    def expose(self, scene: Image) -> Image:
        """Before the weather: light and focus of the scene. Returns [H, W, 3] float32 in [0, 1]."""
        if self.blur_px:
            scene = ndimage.gaussian_filter(scene, (self.blur_px, self.blur_px, 0))
        return scene if self.exposure == 1 else scene * np.float32(self.exposure)

    def grain(self, shape: tuple[int, ...], rng: np.random.Generator) -> Image | None:
        """The sensor's noise, one pattern for a scene under all its weathers; None without noise."""
        if not self.noise:
            return None
        noise: Image = rng.standard_normal(shape, dtype=np.float32) * np.float32(self.noise)
        return noise

    def develop(self, image: Image, grain: Image | None) -> Image:
        """After the weather: noise, 8 bits, compression. Returns [H, W, 3] float32 in [0, 1]."""
        pixels = to_pixels(image if grain is None else image + grain)
        if self.jpeg_quality is not None:
            file = io.BytesIO()
            # 4:4:4: with half the colour the best possible answer would be blurred colour.
            PillowImage.fromarray(pixels).save(file, "JPEG", quality=self.jpeg_quality, subsampling=0)
            pixels = np.asarray(PillowImage.open(file))
        return to_scene(pixels)


def draw_camera(rng: np.random.Generator) -> Camera:
    """Mostly a good camera by day; some dusk, some blur, some grain, some compression."""
    dusk, blurred, grainy, compressed = rng.random(4) < (0.15, 0.1, 0.2, 0.3)
    return Camera(
        exposure=float(rng.uniform(0.25, 0.9)) if dusk else 1.0,
        blur_px=float(rng.uniform(0.3, 1.2)) if blurred else 0.0,
        noise=float(rng.uniform(0.002, 0.02)) if grainy else 0.0,
        jpeg_quality=int(rng.integers(60, 96)) if compressed else None,
    )
