"""Training tuples (rainy, snowy, clean) of one scene, drawn step by step.

What a step shows is a function of the run's seed, the step and the scene's place in it, and of nothing else:
not of the number of workers or devices, nor of where a run was interrupted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from cmudrn.train.photos import PhotoSet, draw_camera
from cmudrn.train.skies import Sky
from cmudrn.train.weather.weathered import Image

__all__ = [
    "SCENES_VERSION",
    "PhotoScenes",
    "Scene",
    "SceneBatch",
    "SceneSource",
    "SceneSteps",
    "draw_scale",
    "draw_severity",
]


class Scene(NamedTuple):
    """One scene, [S, S, 3] float32 in [0, 1] each."""

    rainy: Image
    snowy: Image
    clean: Image


@dataclass(frozen=True)
class SceneBatch:
    """N scenes: [N, 3, S, S] float32 in [0, 1] each.

    Arrays, not tensors: what workers hand over is then copied, and no descriptor outlives an interrupted run.
    """

    rainy: NDArray[np.float32]
    snowy: NDArray[np.float32]
    clean: NDArray[np.float32]

    def to(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Rainy, snowy and clean as tensors on a device."""
        rainy, snowy, clean = (
            torch.from_numpy(images).to(device) for images in (self.rainy, self.snowy, self.clean)
        )
        return rainy, snowy, clean


class SceneSource(Protocol):
    """Where scenes come from."""

    def draw(self, rng: np.random.Generator) -> Scene:
        """One scene by chance; equal state, equal bytes. Runs in forked workers: no libvips."""


# How scenes are drawn, for checkpoints to tell: one more whenever a chance or a range below, a sky's or the
# camera's changes. 2: a third light, by its logarithm; a tenth none; scales up to 8.
SCENES_VERSION = 2


def draw_severity(rng: np.random.Generator) -> float:
    """None to heavy: a model that saw only heavy weather spoils light weather, and clean photographs."""
    kind = rng.random()
    if kind < 0.10:
        return 0.0
    if kind < 0.45:  # as many near 0.1 as near 0.5: a decibel is lost more easily in light weather
        return float(np.exp(rng.uniform(np.log(0.05), np.log(0.7))))
    return float(rng.uniform(0.7, 1.15))


def draw_scale(rng: np.random.Generator) -> float:
    """Of streaks and flakes: photographs have 300 to 4000 pixels, seen through wide and long lenses.

    Few are large: to a network that sees 45 pixels to each side, a flake of 60 is a wall.
    """
    kind = rng.random()
    if kind < 0.5:
        return 1.0
    smallest, largest = (0.7, 3.0) if kind < 0.9 else (3.0, 8.0)
    return float(np.exp(rng.uniform(np.log(smallest), np.log(largest))))


class PhotoScenes:
    """Weather laid over clean photographs, then the camera: both weathers and the truth share its noise."""

    def __init__(self, photos: PhotoSet, *, rains: Sequence[Sky], snows: Sequence[Sky], crop_px: int) -> None:
        self.photos, self.rains, self.snows, self.crop_px = photos, rains, snows, crop_px

    def draw(self, rng: np.random.Generator) -> Scene:
        camera = draw_camera(rng)
        clean = camera.expose(self.photos.draw_crop(self.crop_px, rng))
        rain = self.rains[int(rng.integers(len(self.rains)))]
        snow = self.snows[int(rng.integers(len(self.snows)))]
        rainy, snowy = (
            sky.render(clean, rng, severity=draw_severity(rng), scale=draw_scale(rng)).image
            for sky in (rain, snow)
        )
        grain = camera.grain(clean.shape, rng)
        # The truth goes through the same camera: to remove weather is the task, not to mend photographs.
        return Scene(*(camera.develop(image, grain) for image in (rainy, snowy, clean)))


class SceneSteps(Dataset[SceneBatch]):
    """Item s is the batch of step s, or this device's share of it: scenes rank, rank + devices, ..."""

    def __init__(
        self, sources: Sequence[SceneSource], *, scenes: int, seed: int, rank: int = 0, devices: int = 1
    ) -> None:
        self.sources, self.seed = sources, seed
        self.places = range(rank, scenes, devices)

    def __getitem__(self, step: int) -> SceneBatch:
        drawn = []
        for place in self.places:
            rng = np.random.default_rng([self.seed, step, place])
            drawn.append(self.sources[int(rng.integers(len(self.sources)))].draw(rng))
        stacked = (np.stack(images) for images in zip(*drawn, strict=True))
        return SceneBatch(*(np.ascontiguousarray(images.transpose(0, 3, 1, 2)) for images in stacked))
