"""A training run put together: data, recipe, trainer, monitor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lightning_fabric import Fabric

from cmudrn.checkpoint import read_checkpoint
from cmudrn.errors import UsageError
from cmudrn.train.data import Data, open_data
from cmudrn.train.kernels import Kernels
from cmudrn.train.loop import Progress, Trainer
from cmudrn.train.monitor import Monitor, Validation
from cmudrn.train.recipe import TrainRecipe
from cmudrn.train.scenes import SceneBatch, SceneSteps

__all__ = ["Pace", "Session", "open_fabric", "open_session"]


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
    opened = open_data(data, recipe.crop_px)
    trainer = Trainer(recipe, folder, opened.provenance, fabric=fabric, kernels=kernels)
    if not trainer.resume() and start_from is not None:
        trainer.start_from(read_checkpoint(start_from), start_from)
    scenes = SceneSteps(opened.sources, scenes=recipe.scenes, seed=recipe.seed, rank=rank, devices=devices)
    return Session(trainer, scenes, opened.fixed)
