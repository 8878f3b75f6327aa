"""A training run put together from folders: photographs, streaks, recipe, trainer, monitor."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_fabric import Fabric

from cmudrn import __version__
from cmudrn.checkpoint import read_checkpoint
from cmudrn.errors import UsageError
from cmudrn.train.loop import Progress, Trainer
from cmudrn.train.monitor import Monitor, Validation
from cmudrn.train.photos import PhotoSet, find_photos
from cmudrn.train.recipe import TrainRecipe
from cmudrn.train.scenes import PhotoScenes, SceneBatch, SceneSource, SceneSteps
from cmudrn.train.skies import SnowSky, load_streak_skies, training_files

__all__ = ["Pace", "Session", "TrainData", "open_fabric", "open_session"]

FIXED_SEED = 2211_08290  # of the validation scenes
FIXED_SCENES, FIXED_CROP_PX = 16, 128


@dataclass(frozen=True, kw_only=True)
class TrainData:
    """Where the scenes come from."""

    photos: tuple[Path, ...]  # folders of clean photographs, over which weather is laid
    streaks: Path  # the Columbia database
    validation: Path | None = None  # clean photographs to choose weights on; never trained on
    max_streak_files: int = 220  # spread evenly over the database; more cost start-up and memory, 7 MB each


@dataclass(frozen=True, kw_only=True)
class Pace:
    """What happens every so many steps."""

    report: int = 50
    save: int = 200
    validate: int = 1000
    workers: int = 1  # processes that render, beside the one that trains


@dataclass(frozen=True)
class Session:
    """A run that is ready to go."""

    trainer: Trainer
    scenes: SceneSteps
    fixed: SceneBatch | None

    def train(self, pace: Pace, tell: Callable[[Progress | Validation], None]) -> None:
        """Trains to the end; `tell` gets each Progress and, after validation, the scores at each depth."""
        trainer = self.trainer
        if not trainer.fabric.is_global_zero:
            for _ in trainer.run(
                self.scenes, workers=pace.workers, report_every=pace.report, save_every=pace.save
            ):
                pass
            return
        with Monitor(trainer, self.fixed) as monitor:
            due = trainer.step + pace.validate
            for progress in trainer.run(
                self.scenes, workers=pace.workers, report_every=pace.report, save_every=pace.save
            ):
                monitor.log(progress)
                tell(progress)
                if progress.step >= due:
                    due += pace.validate
                    for score in monitor.validate():
                        tell(score)
            for score in monitor.validate():
                tell(score)


def open_fabric(devices: int, accelerator: str = "cpu") -> Fabric:
    """Processes and devices; begins the other processes, each of which runs the same command."""
    if devices < 1:
        raise UsageError(f"--devices {devices}", fix="give 1 or more")
    fabric = Fabric(accelerator=accelerator, devices=devices, strategy="ddp" if devices > 1 else "auto")
    fabric.launch()
    return fabric


def open_session(
    recipe: TrainRecipe,
    folder: Path,
    data: TrainData,
    *,
    fabric: Fabric | None = None,
    start_from: str | None = None,
) -> Session:
    """Reads and checks all data, then resumes the folder's run or begins one.

    start_from: weights, by name or file, that a new run begins with; a resumed one goes on with its own.
    """
    devices, rank = (fabric.world_size, fabric.global_rank) if fabric else (1, 0)
    if recipe.scenes % devices:
        raise UsageError(
            f"--scenes {recipe.scenes} on {devices} devices", fix="give a number that they share evenly"
        )
    files = training_files(data.streaks, data.max_streak_files)
    photos = PhotoSet(find_photos(data.photos), recipe.crop_px)
    rains, snows = load_streak_skies(files), [SnowSky()]
    sources: list[SceneSource] = [PhotoScenes(photos, rains=rains, snows=snows, crop_px=recipe.crop_px)]
    provenance: dict[str, Any] = {
        "code_version": __version__,
        "photos": len(photos.photos),
        "photos_sha256": photos.sha256,
        "streak_files": len(files),
        "streaks_sha256": hash_files(files),
    }
    fixed = None
    if data.validation is not None:
        held = PhotoSet(find_photos([data.validation]), FIXED_CROP_PX)
        if shared := photos.digests & held.digests:
            raise UsageError(
                f"{data.validation}: {len(shared)} of its photographs are trained on",
                fix="validate on photographs that training does not see",
            )
        provenance["validation_sha256"] = held.sha256
        source = PhotoScenes(held, rains=rains, snows=snows, crop_px=FIXED_CROP_PX)
        fixed = SceneSteps([source], scenes=FIXED_SCENES, seed=FIXED_SEED)[0]
    trainer = Trainer(recipe, folder, provenance, fabric=fabric)
    if not trainer.resume() and start_from is not None:
        trainer.start_from(read_checkpoint(start_from), start_from)
    scenes = SceneSteps(sources, scenes=recipe.scenes, seed=recipe.seed, rank=rank, devices=devices)
    return Session(trainer, scenes, fixed)


def hash_files(files: Sequence[Path]) -> str:
    """SHA-256 over names and contents, in order."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()
