"""What one watches while a run goes: losses, scores on a fixed set, pictures; and the best weights so far."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cmudrn.checkpoint import save_checkpoint
from cmudrn.errors import EnvironmentMissing
from cmudrn.model import CMUDRN
from cmudrn.train.loop import Progress, Trainer
from cmudrn.train.losses import ssim
from cmudrn.train.recipe import Network
from cmudrn.train.scenes import SceneBatch

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

__all__ = ["Monitor", "Validation", "mean_psnr_db"]

SAMPLES = 4  # triples shown
CAP_DB = 60.0  # of an image that is almost equal, lest it rule the mean


@dataclass(frozen=True)
class Validation:
    """Scores of the averaged weights on the fixed set, at one depth; means over scenes and weathers."""

    loops: int
    psnr_db: float
    ssim: float


def mean_psnr_db(restored: Tensor, clean: Tensor) -> float:
    """[N, 3, H, W] each, in [0, 1]; restored is clamped. Image by image, at most 60 dB, then averaged."""
    squares = ((restored.clamp(0, 1) - clean) ** 2).mean(dim=(1, 2, 3))
    return float((-10 * squares.clamp(min=1e-12).log10()).clamp(max=CAP_DB).mean())


class Monitor(AbstractContextManager["Monitor"]):
    """Writes TensorBoard's files into the run's folder, and `best.safetensors` beside them.

    fixed: scenes on which the weights are scored, or None: then no best is kept.
    Raises EnvironmentMissing without TensorBoard.
    """

    def __init__(self, trainer: Trainer, fixed: SceneBatch | None) -> None:
        self.trainer, self.fixed = trainer, fixed
        self.best_psnr_db = float("-inf")
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
            save_checkpoint(self.trainer.checkpoint(), self.trainer.folder / "best.safetensors")
        return scores

    def score(self, loops: int) -> Validation:
        """One depth, each weather by a pass of its own; a baseline sees its own weather alone."""
        assert self.fixed is not None
        model, network = self.trainer.averaged_model(loops), self.trainer.recipe.network
        rainy, snowy, clean = self.fixed.to(self.trainer.fabric.device)
        weathers = {"rainy": rainy, "snowy": snowy}
        if network is not Network.CMUDRN:
            weathers.pop("snowy" if network is Network.DRN_RAIN else "rainy")
        psnrs, ssims = [], []
        for name, degraded in weathers.items():
            with torch.no_grad():
                restored = model(degraded) if isinstance(model, CMUDRN) else model(degraded)[-1]
            psnrs.append(mean_psnr_db(restored, clean))
            ssims.append(float(ssim(restored.clamp(0, 1), clean).mean()))
            triples = torch.cat([degraded, restored.clamp(0, 1), clean], dim=3)[:SAMPLES]
            self.writer.add_images(f"{name}_restored_clean/t{loops}", triples, self.trainer.step)
        return Validation(loops, sum(psnrs) / len(psnrs), sum(ssims) / len(ssims))


def open_writer(folder: Path, step: int) -> SummaryWriter:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as exc:
        raise EnvironmentMissing("training needs TensorBoard", fix="pip install 'cmudrn[train]'") from exc
    # What an interrupted run wrote after its last save is hidden, not shown twice.
    return SummaryWriter(str(folder), purge_step=step or None)
