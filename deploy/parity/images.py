"""The images that parity is measured on, each at whatever size an engine has."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from cmudrn.errors import ImageError, UsageError
from cmudrn.formats import ImageFormat
from cmudrn.images import read_header, read_picture
from cmudrn.wording import counted, listed

__all__ = ["PHOTOS", "ParityImage", "ParityImages", "fit", "given_images", "shipped_images"]

Levels = NDArray[np.uint8]  # [H, W, 3], 0..255
PHOTOS = Path(__file__).parent / "photos"
NOISE_SEEDS = (0, 1)
SQUARE_PX = 8  # of the checkerboard: edges as hard as they get, further apart than a lens blurs


class ParityImage(NamedTuple):
    """One image at one size."""

    name: str
    pixels: Levels
    truth: Levels | None  # the same place without weather, where it is known


class Source(Protocol):
    """Gives its image at any size; always the same one."""

    @property
    def name(self) -> str: ...

    def at(self, height: int, width: int) -> ParityImage: ...


@dataclass(frozen=True)
class ParityImages:
    """Images in their order, of which any size can be had. They are read anew for each size: none is kept."""

    sources: tuple[Source, ...]
    with_truth: bool = False  # whether each comes with the same place without weather

    def __len__(self) -> int:
        return len(self.sources)

    def at(self, height: int, width: int) -> Iterator[ParityImage]:
        """height, width: in pixels. Raises ImageError for a file that cannot be read."""
        return (source.at(height, width) for source in self.sources)


@dataclass(frozen=True)
class Photo:
    """A file, and that of the same place without weather."""

    path: Path
    truth: Path | None = None

    @property
    def name(self) -> str:
        return self.path.name

    def check(self) -> None:
        """Decodes both. Raises ImageError where that fails, or where they differ in their size."""
        header = read_header(self.path)
        truth = read_header(self.truth) if self.truth else header
        if (truth.height, truth.width) != (header.height, header.width):
            raise ImageError(
                f"{self.truth}: {truth.height}x{truth.width} pixels, "
                f"{self.path} has {header.height}x{header.width}",
                fix="give pairs of one size",
            )
        # A header says nothing of what follows it, and the first engine may be hours before the last one.
        for path in (self.path, self.truth):
            if path:
                read_picture(path)

    def at(self, height: int, width: int) -> ParityImage:
        """Both fitted alike. Raises ImageError for a file that cannot be read."""
        truth = fit(read_levels(self.truth), height, width) if self.truth else None
        return ParityImage(self.name, fit(read_levels(self.path), height, width), truth)


@dataclass(frozen=True)
class Drawing:
    """An image that no camera took."""

    name: str
    draw: Callable[[int, int], Levels]  # of height and width; equal ones give equal bytes

    def at(self, height: int, width: int) -> ParityImage:
        """Drawn at that size."""
        return ParityImage(self.name, self.draw(height, width), None)


def shipped_images() -> ParityImages:
    """Photographs of the package, uniform noise, and extremes. Raises ImageError where they are missing."""
    photos = image_files(PHOTOS)
    if not photos:
        raise ImageError(f"{PHOTOS}: no photographs", fix="install cmudrn again, or give --images DIR")
    drawings = (
        *(Drawing(f"noise {seed}", partial(draw_noise, seed)) for seed in NOISE_SEEDS),
        Drawing("black", partial(draw_grey, 0)),
        Drawing("white", partial(draw_grey, 255)),
        Drawing("checkerboard", draw_checkerboard),
    )
    return ParityImages((*map(Photo, photos), *drawings))


def given_images(folder: Path, truths: Path | None = None) -> ParityImages:
    """The images of a folder, by name; truths: a folder with one of the same name, but for the suffix, each.

    Decodes each once. Raises UsageError for folders without them, ImageError for a file that cannot be read,
    or whose truth is of another size.
    """
    paths = image_files(folder)
    if not paths:
        raise UsageError(f"--images {folder}: no images there", fix="name a folder with images")
    by_stem = {path.stem: path for path in image_files(truths)} if truths else {}
    missing = [path.name for path in paths if path.stem not in by_stem] if truths else []
    if missing:
        raise UsageError(
            f"--truth {truths}: {counted(len(missing), 'image')} of {folder} not there: {listed(missing)}",
            fix="give a folder with a clean image of the same name for each",
        )
    photos = [Photo(path, by_stem.get(path.stem)) for path in paths]
    for photo in photos:
        photo.check()
    return ParityImages(tuple(photos), with_truth=truths is not None)


def image_files(folder: Path) -> list[Path]:
    """By name. Raises UsageError for what is no folder that can be read."""
    try:
        return sorted(path for path in folder.iterdir() if ImageFormat.of(path.suffix) and path.is_file())
    except OSError as exc:
        raise UsageError(f"{folder}: {exc.strerror}", fix="name a folder with images") from exc


def read_levels(path: Path) -> Levels:
    """Of 16 bits the upper 8, rounded."""
    pixels = read_picture(path).pixels
    if pixels.dtype == np.uint16:
        return ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
    return np.asarray(pixels, np.uint8)


def fit(pixels: Levels, height: int, width: int) -> Levels:
    """The middle of an image, mirrored at its edges where it is smaller: [height, width, 3], contiguous."""
    for axis, wanted in enumerate((height, width)):
        missing = max(0, wanted - pixels.shape[axis])
        around: list[tuple[int, int]] = [(0, 0)] * 3
        around[axis] = (missing // 2, missing - missing // 2)
        start = (pixels.shape[axis] + missing - wanted) // 2
        middle: list[Any] = [slice(None)] * 3
        middle[axis] = slice(start, start + wanted)
        pixels = np.pad(pixels, around, mode="symmetric")[tuple(middle)]
    return np.ascontiguousarray(pixels)


def draw_noise(seed: int, height: int, width: int) -> Levels:
    """Every value as likely as any other."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def draw_grey(level: int, height: int, width: int) -> Levels:
    """One level everywhere."""
    return np.full((height, width, 3), level, np.uint8)


def draw_checkerboard(height: int, width: int) -> Levels:
    """Black and white squares."""
    rows, columns = np.mgrid[0:height, 0:width] // SQUARE_PX
    white = (rows + columns) % 2 == 1
    return np.repeat(np.where(white, 255, 0).astype(np.uint8)[..., None], 3, axis=2)
