"""The renderers as the training sees them: parameters drawn anew for every scene."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from cmudrn.errors import UsageError
from cmudrn.train.weather.rain import draw_rain, render_rain
from cmudrn.train.weather.snow import draw_snow, render_snow
from cmudrn.train.weather.streaks import (
    SLANTED,
    STRAIGHT,
    StreakDatabase,
    StreakParams,
    is_held_out,
    render_streaks,
    streak_files,
)
from cmudrn.train.weather.weathered import Image, Weathered

__all__ = ["ProceduralRain", "ProceduralSnow", "Sky", "StreakRain", "load_streak_rains", "training_files"]

FOCAL_PX = (300.0, 700.0)  # of a photograph 500 pixels wide: 80 down to 40 degrees of view


def air_is_clear(rng: np.random.Generator, severity: float) -> bool:
    """Whether drops or flakes fall without mist or veil: often in light weather, sometimes in heavy.

    Weights that always saw a veil take one off where there is none: they darkened lightly snowed photographs
    of another generator by ten grey levels.
    """
    return bool(rng.random() < 0.8 - 0.5 * min(severity, 1.0))


class Sky(Protocol):
    """A kind of weather whose parameters are drawn anew for every scene. No libvips: workers may fork."""

    def render(self, clean: Image, rng: np.random.Generator, *, severity: float, scale: float) -> Weathered:
        """Lays weather over a photograph or a crop.

        clean: [H, W, 3] float32 in [0, 1]. severity: 0 none, 1 heavy. scale: of drops, streaks and flakes; 1
        suits photographs 500 pixels wide, 8 those of 4000.
        """


@dataclass(frozen=True)
class StreakRain:
    """Rain of the paper's generator. whole: over whole photographs, with libvips; False: over crops."""

    database: StreakDatabase
    whole: bool = False

    def render(self, clean: Image, rng: np.random.Generator, *, severity: float, scale: float) -> Weathered:
        """Other streaks for every scene."""
        params = StreakParams(recipe=self.database.recipe, severity=severity, scale=scale, whole=self.whole)
        return render_streaks(clean, self.database, rng, params)


@dataclass(frozen=True)
class ProceduralRain:
    """Rain from physics."""

    def render(self, clean: Image, rng: np.random.Generator, *, severity: float, scale: float) -> Weathered:
        """A shower and a camera of its own for every scene."""
        focal_px = scale * float(rng.uniform(*FOCAL_PX))
        params = draw_rain(rng, severity=severity, focal_px=focal_px)
        if air_is_clear(rng, severity):
            params = replace(params, scene_m=0.0)  # mist of no depth
        return render_rain(clean, params, rng)


@dataclass(frozen=True)
class ProceduralSnow:
    """Procedural snow."""

    def render(self, clean: Image, rng: np.random.Generator, *, severity: float, scale: float) -> Weathered:
        """A snowfall of its own for every scene."""
        params = draw_snow(rng, severity=severity, scale=scale)
        if air_is_clear(rng, severity):
            params = replace(params, veil=0.0)
        return render_snow(clean, params, rng)


def load_streak_rains(files: Sequence[Path], *, whole: bool = False) -> list[StreakRain]:
    """Both recipes over the same files."""
    return [StreakRain(StreakDatabase.load(files, recipe), whole) for recipe in (STRAIGHT, SLANTED)]


def training_files(folder: Path, most: int) -> list[Path]:
    """The database's files that no protocol owns, `most` of them spread evenly over it.

    Raises UsageError for a folder without any.
    """
    files = [file for file in streak_files(folder) if not is_held_out(file)]
    if not files:
        raise UsageError(
            f"{folder}: every streak in it is kept for the protocols", fix="fetch the whole database"
        )
    return [files[i] for i in np.linspace(0, len(files) - 1, min(most, len(files))).astype(int)]
