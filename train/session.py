"""A training run put together: data, recipe, trainer, monitor."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lightning_fabric import Fabric

from cmudrn.checkpoint import read_checkpoint
from cmudrn.errors import INTERRUPTED, UsageError
from cmudrn.train.data import Data, open_data
from cmudrn.train.kernels import Kernels
from cmudrn.train.loop import Progress, Trainer
from cmudrn.train.monitor import Monitor, Validation
from cmudrn.train.recipe import TrainRecipe
from cmudrn.train.run_state import check_same_run, read_state
from cmudrn.train.scenes import SceneBatch, SceneSteps

__all__ = ["Pace", "Session", "open_fabric", "open_session"]


@dataclass(frozen=True, kw_only=True)
class Pace:
    """What happens every so many steps."""

    report: int = 50
    save: int = 200
    validate: int = 1000
    workers: int = 1  # processes that render, beside the one that trains; 0: that one renders too

    def __post_init__(self) -> None:
        if self.workers < 0:
            raise UsageError(f"--workers {self.workers}", fix="give 0 or more")


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
            try:
                for _ in trainer.run(
                    self.scenes, workers=pace.workers, report_every=pace.report, save_every=pace.save
                ):
                    pass
            except KeyboardInterrupt:
                raise SystemExit(INTERRUPTED) from None  # in silence: the first process speaks for all
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
    strategy = "ddp" if devices > 1 else "auto"
    try:
        fabric = Fabric(accelerator=accelerator, devices=devices, strategy=strategy)
    except (RuntimeError, ValueError) as exc:  # Fabric's own are of these
        said = str(exc).splitlines()[0]
        raise UsageError(
            f"--accelerator {accelerator}, --devices {devices}: {said}", fix="cpu is always there"
        ) from exc
    fabric.launch()
    return fabric


def open_session(
    recipe: TrainRecipe,
    folder: Path,
    data: Data,
    *,
    fabric: Fabric | None = None,
    start_from: str | None = None,
    kernels: Kernels = Kernels.AUTO,
) -> Session:
    """Reads and checks all data, then resumes the folder's run or begins one.

    start_from: weights, by name or file, that a new run begins with; a resumed one goes on with its own.
    """
    devices, rank = (fabric.world_size, fabric.global_rank) if fabric else (1, 0)
    if recipe.scenes % devices:
        raise UsageError(
            f"--scenes {recipe.scenes} on {devices} devices", fix="give a number that they share evenly"
        )
    # What costs nothing comes first: streaks take minutes to cut, the first time.
    check_writable(folder)
    start = read_checkpoint(start_from) if start_from is not None else None
    trainer = Trainer(recipe, folder, {}, fabric=fabric, kernels=kernels)
    if state := read_state(trainer.state_file, trainer.fabric.device):
        check_same_run(folder, state["recipe"], recipe.to_json())
    elif start is not None:
        trainer.start_from(start, str(start_from))
    opened = open_data(data, recipe.crop_px)
    trainer.provenance = opened.provenance
    trainer.resume()
    scenes = SceneSteps(opened.sources, scenes=recipe.scenes, seed=recipe.seed, rank=rank, devices=devices)
    return Session(trainer, scenes, opened.fixed)


def check_writable(folder: Path) -> None:
    """Raises UsageError for a folder that cannot be made or written to. Makes nothing yet."""
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise UsageError(f"{folder}: cannot write there", fix="give another --out, a folder of yours")
