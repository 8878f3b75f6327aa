"""Paired datasets from clean photographs: rain and snow laid over them, and a manifest that says how.

OUT gets `clean/` with `rainy/` and `snowy/`, or one of them: the layout `cmudrn` of docs/datasets.md. What
lies over a photograph is a function of the seed, its name in OUT and the options, and of nothing else: not of
the number of workers, nor of the other photographs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmudrn import __version__
from cmudrn.errors import ImageError, UsageError
from cmudrn.files import replacing
from cmudrn.formats import ImageFormat
from cmudrn.images import Picture, write_picture
from cmudrn.train.data import hash_files
from cmudrn.train.pairs import Weather
from cmudrn.train.photos import read_8_bits, to_pixels, to_scene
from cmudrn.train.skies import ProceduralRain, ProceduralSnow, Sky, StreakRain, training_files
from cmudrn.train.synthesis_folders import MANIFEST, Photo, clear_out, find_clean, make_out
from cmudrn.train.weather.streaks import SLANTED, STRAIGHT, StreakDatabase

__all__ = ["RAINS", "Outcome", "Synthesis", "SynthesisJob", "open_synthesis"]

RECIPES = {"straight": STRAIGHT, "slanted": SLANTED}
RAINS = ("physics", *RECIPES)  # renderers of rain by their names in options and manifest
FOLDERS = {Weather.RAIN: "rainy", Weather.SNOW: "snowy"}
MOST_STREAK_FILES = 100  # 0.7 GB for both recipes
NATIVE_PX = 500  # longer side of the photographs that scale 1 suits


@dataclass(frozen=True, kw_only=True)
class SynthesisJob:
    """What is asked for. Raises UsageError for what makes no sense."""

    sources: tuple[Path, ...]  # photographs, and folders with all below them
    out: Path
    weathers: tuple[Weather, ...] = (Weather.RAIN, Weather.SNOW)
    seed: int = 0  # of all chance
    severity: tuple[float, float] = (0.05, 1.15)  # drawn evenly between; 0 none, 1 heavy; what training sees
    scale: float | None = None  # of drops and flakes; None: longer side / 500, the same seen by more pixels
    rains: tuple[str, ...] = ()  # of RAINS, drawn from in equal shares; (): all that there are
    streaks: Path | None = None  # the Columbia database; without it there is rain from physics alone
    workers: int = 2  # threads, for libvips would hang in forked processes
    overwrite: bool = False  # replace the dataset that an earlier run made there

    def __post_init__(self) -> None:
        low, high = self.severity
        if not 0 <= low <= high <= 3:
            raise UsageError(f"--severity {low:g}-{high:g}", fix="give X or A-B, 0 to 3, the smaller first")
        if self.scale is not None and not 0.1 <= self.scale <= 50:
            raise UsageError(f"--scale {self.scale:g}", fix="give a number from 0.1 to 50")
        if self.seed < 0:
            raise UsageError(f"--seed {self.seed}", fix="give 0 or more")
        if unknown := [name for name in self.rains if name not in RAINS]:
            raise UsageError(f"--rain {unknown[0]}", fix=f"choose from {', '.join(RAINS)}")
        if Weather.RAIN not in self.weathers and (self.rains or self.streaks):
            raise UsageError("--rain and --streaks without rain", fix="leave them away, or ask for rain")
        if self.streaks is None and set(self.rains) & set(RECIPES):
            raise UsageError(f"--rain {','.join(self.rains)}: of which streaks?", fix="give --streaks DIR")

    @property
    def renderers(self) -> tuple[str, ...]:
        """Of rain, each once."""
        return tuple(dict.fromkeys(self.rains)) or (RAINS if self.streaks else RAINS[:1])


@dataclass(frozen=True)
class Outcome:
    """What became of one photograph: its entry in the manifest, or why there is none."""

    photo: Photo
    entry: Mapping[str, Any] | None = None
    problem: str = ""


@dataclass(frozen=True)
class Synthesis:
    """A job whose photographs are found, whose streaks are cut, and whose OUT is there."""

    job: SynthesisJob
    photos: Sequence[Photo]
    skies: Mapping[Weather, Mapping[str, Sky]]
    streak_files: Sequence[Path]

    def run(self) -> Iterator[Outcome]:
        """Renders all, in order. The manifest comes last: a folder without one is not whole.

        A photograph that cannot be read is an Outcome with a problem. Raises ImageError where a file cannot
        be written, for the next could not be either.
        """
        clear_out(self.job.out, overwrite=self.job.overwrite)
        entries, left_out = [], []
        with ThreadPoolExecutor(self.job.workers) as pool:
            for outcome in pool.map(self.render, self.photos):
                if outcome.entry is None:
                    left_out.append(outcome.photo.source)
                else:
                    entries.append(outcome.entry)
                yield outcome
        if entries:
            text = json.dumps(self.manifest(entries, left_out), indent=1)
            with replacing(self.job.out / MANIFEST) as target:
                target.write(text.encode() + b"\n")

    def render(self, photo: Photo) -> Outcome:
        """Writes one photograph and its weathers."""
        try:
            if not photo.path.is_file():  # a pipe would block for ever
                raise ImageError(f"{photo.path}: not a regular file")
            clean = read_8_bits(photo.path)
        except ImageError as exc:
            return Outcome(photo, problem=exc.what)
        entry = {
            "name": photo.name,
            "source": photo.source,
            "height": clean.shape[0],
            "width": clean.shape[1],
            "clean": self.write(f"clean/{photo.name}.png", clean),
        }
        for weather in self.job.weathers:
            entry[weather.value] = self.lay(weather, photo, clean)
        return Outcome(photo, entry)

    def lay(self, weather: Weather, photo: Photo, clean: NDArray[np.uint8]) -> dict[str, Any]:
        """Writes one photograph under one weather. Returns what the manifest says of it.

        `renderer` names a sky; its `render(clean, default_rng(seed), severity=..., scale=...)` is the image.
        """
        skies = self.skies[weather]
        named = hashlib.sha256(f"{weather.value}/{photo.name}".encode(errors="surrogateescape")).digest()
        rng = np.random.default_rng([self.job.seed, int.from_bytes(named[:8], "big")])
        renderer = list(skies)[int(rng.integers(len(skies)))]
        severity, seed = float(rng.uniform(*self.job.severity)), int(rng.integers(2**32))
        scale = max(clean.shape) / NATIVE_PX if self.job.scale is None else self.job.scale
        scene, chance = to_scene(clean), np.random.default_rng(seed)
        drawn = skies[renderer].render(scene, chance, severity=severity, scale=scale)
        return {
            **self.write(f"{FOLDERS[weather]}/{photo.name}.png", to_pixels(drawn.image)),
            "renderer": renderer,
            "seed": seed,
            "severity": severity,
            "scale": scale,
            "params": asdict(drawn.params),
        }

    def write(self, file: str, pixels: NDArray[np.uint8]) -> dict[str, str]:
        """A PNG below OUT. Returns its name there and the SHA-256 of its bytes."""
        path = self.job.out / file
        try:
            path.parent.mkdir(exist_ok=True)
        except OSError as exc:
            raise ImageError(
                f"{path.parent}: {exc.strerror}", fix="check the disk, or give another OUT"
            ) from exc
        write_picture(Picture(pixels, None, ImageFormat.PNG, False, 1, (1.0, 1.0), {}), path)
        return {"file": file, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}

    def manifest(self, entries: Sequence[Mapping[str, Any]], left_out: Sequence[str]) -> dict[str, Any]:
        """All that was asked for and made. `sha256`: of what `sha256sum */*.png` prints in the C locale."""
        made = sorted(
            (entry[side] for entry in entries for side in ("clean", *self.job.weathers)),
            key=itemgetter("file"),
        )
        lines = "".join(f"{one['sha256']}  {one['file']}\n" for one in made)
        return {
            "cmudrn": __version__,
            "seed": self.job.seed,
            "options": {
                "weather": list(self.job.weathers),
                "renderers": {weather: list(skies) for weather, skies in self.skies.items()},
                "severity": self.job.severity,
                "scale": self.job.scale,
                "streak_files": len(self.streak_files),
                "streaks_sha256": hash_files(self.streak_files) if self.streak_files else None,
            },
            "sha256": hashlib.sha256(lines.encode(errors="surrogateescape")).hexdigest(),
            "left_out": left_out,
            "images": entries,
        }


def open_synthesis(job: SynthesisJob, tell: Callable[[str], None] = lambda news: None) -> Synthesis:
    """Finds the photographs, makes OUT and cuts the streaks.

    tell: hears of the cutting before it begins, for it takes a minute or two the first time.
    Raises UsageError for what makes no sense, TrainingError for a damaged streak file.
    """
    photos, files = find_clean(job.sources), find_streaks(job)
    make_out(job.out, job.sources, photos, overwrite=job.overwrite)
    if files:
        tell(f"cutting {len(files)} streak files, which takes a minute or two the first time")
    skies: dict[Weather, Mapping[str, Sky]] = {}
    for weather in job.weathers:
        if weather is Weather.RAIN:
            skies[weather] = {name: open_rain(name, files, job.workers) for name in job.renderers}
        else:
            skies[weather] = {"flakes": ProceduralSnow()}
    return Synthesis(job, photos, skies, files)


def find_streaks(job: SynthesisJob) -> list[Path]:
    """Those that no protocol owns, so that what is trained on this dataset can be scored there."""
    if job.streaks is None or not set(job.renderers) & set(RECIPES):
        return []
    return training_files(job.streaks, MOST_STREAK_FILES)


def open_rain(name: str, files: Sequence[Path], workers: int) -> Sky:
    if name not in RECIPES:
        return ProceduralRain()
    return StreakRain(StreakDatabase.load(files, RECIPES[name], workers=workers), whole=True)
