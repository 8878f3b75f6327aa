"""Training tuples from paired datasets: one weather from the files, the other rendered on the clean image."""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage
from PIL import ImageOps

from cmudrn.errors import TrainingError, UsageError
from cmudrn.formats import ImageFormat
from cmudrn.images import Picture
from cmudrn.train.pairs import PairedSet, Weather, check_pixels, check_sizes
from cmudrn.train.photos import as_8_bits, to_pixels, to_scene
from cmudrn.train.scenes import Scene, draw_scale, draw_severity
from cmudrn.train.skies import Sky
from cmudrn.train.weather.weathered import Image

__all__ = ["PairFiles", "PairedScenes", "check_pairs"]


def check_pairs(paired: PairedSet, crop_px: int) -> None:
    """What headers tell, before anything is decoded.

    Raises UsageError for a set whose weather nobody says, TrainingError for images that don't fit.
    """
    if paired.weather is None:
        raise UsageError(
            f"{paired.root}: rain or snow?", fix="give the set as rain:DIR or snow:DIR, it doesn't say"
        )
    check_sizes(paired.pairs, crop_px=crop_px)


class PairFiles:
    """The files of a paired dataset, as forked workers can read them: without libvips, which hangs there.

    Every file is decoded at the start, by libvips and by Pillow. Where the two agree, Pillow reads the file
    again whenever it is drawn: large sets don't fit into memory. Where they don't (16 bits, CMYK, AVIF, what
    Pillow can't read at all), libvips' pixels are kept in a temporary folder, which goes with this object.
    Pixels are compared, not kinds of files: no list of those would be whole, and all is decoded anyway.

    Raises TrainingError for files that cannot be read to their end, and where a copy finds no room.
    """

    def __init__(self, paired: PairedSet) -> None:
        self.paired = paired
        self.copies: dict[Path, Path] = {}
        self.folder = Path(tempfile.mkdtemp(prefix="cmudrn-pairs-"))
        # Not TemporaryDirectory: it can't be pickled for workers that are spawned.
        weakref.finalize(self, remove_own, self.folder, os.getpid())
        check_pixels((path for pair in paired.pairs for path in pair.files), self.see)

    def see(self, path: Path, picture: Picture) -> None:
        """Keeps a copy of a picture that Pillow would read otherwise."""
        if pillow_agrees(path, picture):
            return
        try:
            with tempfile.NamedTemporaryFile(dir=self.folder, suffix=".npy", delete=False) as file:
                np.save(file, as_8_bits(picture))
        except OSError as exc:
            raise TrainingError(
                f"{path}: no room for its pixels in {self.folder}: {exc.strerror}",
                fix="set TMPDIR to a folder with room, or save such images as 8-bit RGB",
            ) from exc
        self.copies[path] = Path(file.name)

    def read(self, path: Path) -> NDArray[np.uint8]:
        """[H, W, 3], upright: what read_8_bits gives. A copy is mapped: a crop reads its own part alone."""
        copy = self.copies.get(path)
        return read_by_pillow(path) if copy is None else np.asarray(np.load(copy, mmap_mode="r"))


def pillow_agrees(path: Path, picture: Picture) -> bool:
    """Whether Pillow reads a file as libvips did: the same pixels, or JPEG's but for the rounding."""
    if picture.pixels.dtype != np.uint8:
        return False  # Pillow clips 16-bit grey, and cuts 16-bit RGB where we round
    try:
        pixels = read_by_pillow(path)
    except Exception:  # noqa: BLE001 - whatever its many readers raise: libvips has read the file
        return False
    if pixels.shape != picture.pixels.shape:
        return False
    if picture.format is not ImageFormat.JPEG:
        return np.array_equal(pixels, picture.pixels)
    # Two builds of libjpeg may round differently: no reason to copy a whole dataset.
    return bool(np.abs(pixels.astype(np.int16) - picture.pixels).max() <= 4)


def read_by_pillow(path: Path) -> NDArray[np.uint8]:
    """[H, W, 3], upright."""
    with PillowImage.open(path) as file:
        return np.asarray(ImageOps.exif_transpose(file).convert("RGB"))


def remove_own(folder: Path, process: int) -> None:
    """Removes the copies, unless this is a worker that was forked with them."""
    if os.getpid() == process:
        shutil.rmtree(folder, ignore_errors=True)


class PairedScenes:
    """Crops of a paired dataset, turned and mirrored at random; files are read when they are drawn.

    files: of a set that check_pairs found good for crop_px.
    others: what renders the weather that the dataset lacks.
    """

    def __init__(self, files: PairFiles, *, others: Sequence[Sky], crop_px: int) -> None:
        self.files, self.others, self.crop_px = files, others, crop_px

    def draw(self, rng: np.random.Generator) -> Scene:
        """One scene; the rendered weather is as heavy or light as over photographs."""
        paired = self.files.paired
        pair = paired.pairs[rng.integers(len(paired.pairs))]
        given, clean = self.same_crop(self.files.read(pair.degraded), self.files.read(pair.clean), rng)
        sky = self.others[int(rng.integers(len(self.others)))]
        weathered = sky.render(clean, rng, severity=draw_severity(rng), scale=draw_scale(rng))
        rendered = to_scene(to_pixels(weathered.image))
        rainy, snowy = (given, rendered) if paired.weather is Weather.RAIN else (rendered, given)
        return Scene(rainy, snowy, clean)

    def same_crop(
        self, degraded: NDArray[np.uint8], clean: NDArray[np.uint8], rng: np.random.Generator
    ) -> tuple[Image, Image]:
        """The same square of both, turned and mirrored alike: [S, S, 3] float32 in [0, 1]."""
        top, left = (int(rng.integers(length - self.crop_px + 1)) for length in clean.shape[:2])
        turns, mirrored = int(rng.integers(4)), rng.random() < 0.5
        crops = []
        for pixels in (degraded, clean):
            crop = np.rot90(pixels[top : top + self.crop_px, left : left + self.crop_px], turns)
            crops.append(to_scene(np.ascontiguousarray(crop[:, ::-1] if mirrored else crop)))
        return crops[0], crops[1]
