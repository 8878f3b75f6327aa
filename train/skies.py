"""The renderers as the training sees them: parameters drawn anew for every scene."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cmudrn.train.weather.snow import draw_snow, render_snow
from cmudrn.train.weather.streaks import (
    SLANTED,
    STRAIGHT,
    StreakDatabase,
    is_held_out,
    render_streaks,
    streak_files,
)
from cmudrn.train.weather.weathered import Image, Weathered

__all__ = ["SnowSky", "StreakSky", "load_streak_skies"]


@dataclass(frozen=True)
class StreakSky:
    """Rain of the paper's generator."""

    database: StreakDatabase

    def render(self, clean: Image, rng: np.random.Generator, *, severity: float) -> Weathered:
        """Over a crop: no layer is stretched to fit."""
        return render_streaks(clean, self.database, rng, severity=severity, whole=False)


@dataclass(frozen=True)
class SnowSky:
    """Procedural snow."""

    def render(self, clean: Image, rng: np.random.Generator, *, severity: float) -> Weathered:
        """A snowfall of its own for every crop."""
        return render_snow(clean, draw_snow(rng, severity=severity), rng)


def load_streak_skies(files: Sequence[Path]) -> list[StreakSky]:
    """Both recipes over the same files."""
    return [StreakSky(StreakDatabase.load(files, recipe)) for recipe in (STRAIGHT, SLANTED)]


def training_files(folder: Path, most: int) -> list[Path]:
    """The database's files that no protocol owns, `most` of them spread evenly over it."""
    files = [file for file in streak_files(folder) if not is_held_out(file)]
    return [files[i] for i in np.linspace(0, len(files) - 1, min(most, len(files))).astype(int)]
