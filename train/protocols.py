"""Evaluation protocols: fixed photographs under fixed weather, or a paired dataset, each under its own id.

Figures of two ids are never compared: the id says which images were shown, and the manifest's hash in
`evaluate` proves it. docs/evaluation.md holds the definitions and the hashes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cmudrn.errors import UsageError
from cmudrn.metrics import WINDOW_PX
from cmudrn.train.pairs import PairedSet, Weather, check_pixels, check_sizes
from cmudrn.train.photos import read_8_bits, to_pixels, to_scene
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

__all__ = [
    "RENDERED",
    "EvaluationData",
    "EvaluationItem",
    "Pixels",
    "Protocol",
    "RenderedWeather",
    "open_protocol",
    "paired_protocol",
]

Pixels = NDArray[np.uint8]  # [H, W, 3]
SEED = 2211_08290


class EvaluationItem(NamedTuple):
    """One image that is shown, and the truth."""

    name: str
    degraded: Pixels
    clean: Pixels


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """What is shown to a model, in which order."""

    id: str
    about: str  # one line for reports
    count: int  # images in all
    first: Callable[[int], Iterator[EvaluationItem]]  # the first n, read or rendered one by one

    def items(self, limit: int | None = None) -> Iterator[EvaluationItem]:
        """Its images in order, the same bytes every time; with a limit, only the first ones."""
        return self.first(self.count if limit is None else min(limit, self.count))


# ---- Weather rendered over photographs


@dataclass(frozen=True, kw_only=True)
class RenderedWeather:
    """The definition of one protocol of our own; with the data folder it becomes a Protocol."""

    id: str
    about: str
    photos: str  # their folder, below the data folder
    weather: Weather | None  # None: the photographs as they are
    severity: float = 1.0  # 1: as heavy as the renderer's own


# Light: severities at which the inputs lie near 29 dB; over all images 29.36 (rain) and 29.31 (snow).
RENDERED = {
    protocol.id: protocol
    for protocol in (
        RenderedWeather(
            id="bsd-rain",
            about="BSD100 under heavy rain: the paper's generator, two recipes, held-out streaks",
            photos="bsds500/val",
            weather=Weather.RAIN,
        ),
        RenderedWeather(
            id="bsd-snow",
            about="BSD100 under heavy snow: the project's renderer",
            photos="bsds500/val",
            weather=Weather.SNOW,
        ),
        RenderedWeather(
            id="bsd-rain-light",
            about="BSD100 under light rain: bsd-rain's streaks at severity 0.2",
            photos="bsds500/val",
            weather=Weather.RAIN,
            severity=0.2,
        ),
        RenderedWeather(
            id="bsd-snow-light",
            about="BSD100 under light snow: bsd-snow's renderer at severity 0.1",
            photos="bsds500/val",
            weather=Weather.SNOW,
            severity=0.1,
        ),
        RenderedWeather(
            id="photos-clean",
            about="clean photographs, not degraded: what is lost here is harm done",
            photos="photos/val",
            weather=None,
        ),
    )
}


class EvaluationData:
    """The folder that holds bsds500/val, garg06_streaks and photos/val, or those of them that are asked for.

    Streaks take 600 MB, and a minute the first time, when a rain protocol begins; protocols share them.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.databases: list[StreakDatabase] = []

    def photos(self, below: str) -> list[Path]:
        """The photographs, by name. Raises UsageError where there are none."""
        found = sorted((self.folder / below).glob("*.jpg"))
        if not found:
            raise UsageError(
                f"{self.folder}: no {below}/*.jpg in it", fix="give the folder of the evaluation data"
            )
        return found

    def held_out_streaks(self) -> list[Path]:
        """Every second file that training never sees: all drop sizes and types, half the start-up."""
        return [file for file in streak_files(self.folder / "garg06_streaks") if is_held_out(file)][::2]

    def rain(self, number: int) -> StreakDatabase:
        """For the image of this number: the straight recipe for even ones, the slanted for odd ones."""
        if not self.databases:
            files = self.held_out_streaks()
            self.databases = [StreakDatabase.load(files, recipe) for recipe in (STRAIGHT, SLANTED)]
        return self.databases[number % 2]


def open_protocol(name: str, data: EvaluationData) -> Protocol:
    """A protocol of RENDERED. Raises UsageError for another name, and where its data are missing."""
    if name not in RENDERED:
        raise UsageError(f"no protocol {name!r}", fix=f"choose from {', '.join(RENDERED)}")
    rendered = RENDERED[name]
    photos = data.photos(rendered.photos)
    if rendered.weather is Weather.RAIN and not data.held_out_streaks():
        raise UsageError(
            f"{data.folder / 'garg06_streaks'}: none of the protocols' streaks",
            fix="fetch the whole database: the protocols use every fifth streak",
        )
    return Protocol(
        id=rendered.id,
        about=rendered.about,
        count=len(photos),
        first=partial(_render_first, rendered, data, photos),
    )


def _render_first(
    rendered: RenderedWeather, data: EvaluationData, photos: list[Path], count: int
) -> Iterator[EvaluationItem]:
    check_pixels(photos[:count])  # before the streaks are cut, and before the first is restored
    for number, path in enumerate(photos[:count]):
        clean = read_8_bits(path)
        yield EvaluationItem(path.stem, _degrade(clean, rendered, data, number), clean)


def _degrade(clean: Pixels, rendered: RenderedWeather, data: EvaluationData, number: int) -> Pixels:
    if rendered.weather is None:
        return clean
    rng = np.random.default_rng([SEED, number])
    scene = to_scene(clean)
    if rendered.weather is Weather.RAIN:
        database = data.rain(number)
        params = StreakParams(recipe=database.recipe, severity=rendered.severity)
        return to_pixels(render_streaks(scene, database, rng, params).image)
    return to_pixels(render_snow(scene, draw_snow(rng, severity=rendered.severity), rng).image)


# ---- Paired datasets


def paired_protocol(pairs: PairedSet) -> Protocol:
    """A paired dataset as a protocol; its id tells layout and split, as in `csd-test`."""
    return Protocol(
        id=_paired_id(pairs),
        about=pairs.describe(),
        count=len(pairs.pairs),
        first=partial(_read_first, pairs),
    )


def _read_first(pairs: PairedSet, count: int) -> Iterator[EvaluationItem]:
    # Before the first is restored, for a wrong pair is not to be found after hours. Decoding every file twice
    # costs little: milliseconds an image, where restoring takes a second.
    shown = pairs.pairs[:count]
    check_sizes(shown, window_px=WINDOW_PX)
    check_pixels(path for pair in shown for path in pair.files)
    for pair in shown:
        name = pair.degraded.relative_to(pairs.root).with_suffix("").as_posix()
        yield EvaluationItem(name, read_8_bits(pair.degraded), read_8_bits(pair.clean))


def _paired_id(pairs: PairedSet) -> str:
    # Sets of very different weather share a layout, and are known by their folders' names.
    variant = re.search(r"rain\d+[hl]|raintrain[hl]|snow100k-[sml]", pairs.name.lower())
    parts = [variant[0] if variant else pairs.layout.lower()]
    if pairs.weather and pairs.layout in ("cmudrn", "pairs"):  # the others hold one weather alone
        parts.append(pairs.weather.value)
    return "-".join([*parts, pairs.split.value])
