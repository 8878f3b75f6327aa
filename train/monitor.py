"""What one watches while a run goes: losses, scores on a fixed set, pictures; and the best weights so far."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from cmudrn.checkpoint import read_checkpoint, save_checkpoint
from cmudrn.errors import CheckpointError, EnvironmentMissing
from cmudrn.train.loop import Progress, Trainer
from cmudrn.train.losses import ssim
from cmudrn.train.run_state import saving
from cmudrn.train.scenes import SceneBatch
from cmudrn.train.validation import mean_psnr_db, restore_fixed

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

__all__ = ["Monitor", "Validation"]

SAMPLES = 4  # triples shown
BEST = "validation_psnr_db"  # in the best weights' metadata: mean over the depths scored


@dataclass(frozen=True)
class Validation:
    """Scores of the averaged weights on the fixed set, at one depth; means over scenes and weathers."""

    loops: int
    psnr_db: float
    ssim: float


class Monitor(AbstractContextManager["Monitor"]):
    """Writes TensorBoard's files into the run's folder, and `best.safetensors` beside them.

    fixed: scenes on which the weights are scored, or None: then no best is kept.
    Raises EnvironmentMissing without TensorBoard.
    """

    def __init__(self, trainer: Trainer, fixed: SceneBatch | None) -> None:
        self.trainer, self.fixed = trainer, fixed
        self.best_file = trainer.folder / "best.safetensors"
        self.best_psnr_db = best_so_far(self.best_file) if trainer.step else float("-inf")
        self.writer = open_writer(trainer.folder / "tensorboard", trainer.step)

    def __exit__(self, *exc_info: object) -> None:
        self.writer.close()

    def log(self, progress: Progress) -> None:
        """The losses of the last steps."""
        for name in ("total", "local", "recur", "global_"):
            self.writer.add_scalar(f"loss/{name.strip('_')}", getattr(progress, name), progress.step)
        self.writer.add_scalar("learning_rate", progress.learning_rate, progress.step)
        self.writer.add_scalar("steps_per_s", progress.steps_per_s, progress.step)

    def validate(self) -> list[Validation]:
        """Scores the averaged weights at the shallowest, the usual and the deepest T; keeps the best."""
        if self.fixed is None:
            return []
        recipe, step = self.trainer.recipe, self.trainer.step
        depths = sorted(
            {min(recipe.depths), recipe.model.inter_loops, max(recipe.depths)} & set(recipe.depths)
        )
        scores = [self.score(depth) for depth in depths]
        for score in scores:
            self.writer.add_scalar(f"validation/psnr_db_t{score.loops}", score.psnr_db, step)
            self.writer.add_scalar(f"validation/ssim_t{score.loops}", score.ssim, step)
        mean = sum(score.psnr_db for score in scores) / len(scores)
        if mean > self.best_psnr_db:
            self.best_psnr_db = mean
            with saving(self.trainer.folder, step):
                save_checkpoint(self.trainer.checkpoint(**{BEST: mean}), self.best_file)
        return scores

    def score(self, loops: int) -> Validation:
        """One depth, and its sample triples."""
        assert self.fixed is not None
        clean = torch.from_numpy(self.fixed.clean)
        scores = []
        for name, restored, degraded in zip(
            ("rainy", "snowy"),
            restore_fixed(self.trainer, self.fixed, loops),
            (self.fixed.rainy, self.fixed.snowy),
            strict=True,
        ):
            if restored is None:
                continue
            images = restored.cpu()
            scores.append((mean_psnr_db(images, clean), float(ssim(images, clean).mean())))
            triples = torch.cat([torch.from_numpy(degraded), images, clean], dim=3)[:SAMPLES]
            self.writer.add_images(f"{name}_restored_clean/t{loops}", triples, self.trainer.step)
        psnrs, ssims = zip(*scores, strict=True)
        return Validation(loops, sum(psnrs) / len(psnrs), sum(ssims) / len(ssims))


def best_so_far(file: Path) -> float:
    """What the best weights of a resumed run scored, in dB; minus infinity where nothing tells."""
    try:
        return float(read_checkpoint(file).training[BEST])
    except (CheckpointError, KeyError, TypeError, ValueError):
        return float("-inf")


def open_writer(folder: Path, step: int) -> SummaryWriter:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as exc:
        raise EnvironmentMissing("training needs TensorBoard", fix="pip install 'cmudrn[train]'") from exc
    # What an interrupted run wrote after its last save is hidden, not shown twice.
    return SummaryWriter(str(folder), purge_step=step or None)
