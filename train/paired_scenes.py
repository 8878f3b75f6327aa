"""Training tuples from paired datasets: one weather from the files, the other rendered on the clean image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage
from PIL import ImageOps

from cmudrn.errors import UsageError
from cmudrn.train.pairs import PairedSet, Weather, check_pixels, check_sizes
from cmudrn.train.photos import to_pixels, to_scene
from cmudrn.train.scenes import Scene, draw_scale, draw_severity
from cmudrn.train.skies import Sky
from cmudrn.train.weather.weathered import Image

__all__ = ["PairedScenes"]


def read_rgb(path: Path) -> NDArray[np.uint8]:
    """[H, W, 3], upright. By Pillow: this runs in forked workers, where libvips would hang."""
    with PillowImage.open(path) as file:
        return np.asarray(ImageOps.exif_transpose(file).convert("RGB"))


class PairedScenes:
    """Crops of a paired dataset, turned and mirrored at random; files are read when they are drawn.

    others: what renders the weather that the dataset lacks. Every file is decoded once, at the start.
    Raises UsageError for a set whose weather nobody says, TrainingError for files that won't do.
    """

    def __init__(self, paired: PairedSet, *, others: Sequence[Sky], crop_px: int) -> None:
        if paired.weather is None:
            raise UsageError(
                f"{paired.root}: rain or snow?", fix="give the set as rain:DIR or snow:DIR, it doesn't say"
            )
        check_sizes(paired.pairs, crop_px=crop_px)
        check_pixels(path for pair in paired.pairs for path in pair.files)
        self.paired, self.others, self.crop_px = paired, others, crop_px

    def draw(self, rng: np.random.Generator) -> Scene:
        """One scene; the rendered weather is as heavy or light as over photographs."""
        pair = self.paired.pairs[rng.integers(len(self.paired.pairs))]
        given, clean = self.same_crop(read_rgb(pair.degraded), read_rgb(pair.clean), rng)
        sky = self.others[int(rng.integers(len(self.others)))]
        weathered = sky.render(clean, rng, severity=draw_severity(rng), scale=draw_scale(rng))
        rendered = to_scene(to_pixels(weathered.image))
        rainy, snowy = (given, rendered) if self.paired.weather is Weather.RAIN else (rendered, given)
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
