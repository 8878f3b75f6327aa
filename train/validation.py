"""Scores of a run's averaged weights on scenes that are held fixed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cmudrn.model import CMUDRN
from cmudrn.train.loop import Trainer
from cmudrn.train.losses import ssim
from cmudrn.train.recipe import Network
from cmudrn.train.scenes import SceneBatch

__all__ = ["Scores", "mean_psnr_db", "restore_fixed", "score_network"]

CAP_DB = 60.0  # of an image that is almost equal, lest it rule the mean


@dataclass(frozen=True)
class Scores:
    """Means over the fixed scenes under one weather."""

    psnr_db: float  # RGB, image by image, at most 60
    ssim: float


def mean_psnr_db(restored: Tensor, clean: Tensor) -> float:
    """[N, 3, H, W] each, in [0, 1]; restored is clamped. Image by image, at most 60 dB, then averaged."""
    squares = ((restored.clamp(0, 1) - clean) ** 2).mean(dim=(1, 2, 3))
    return float((-10 * squares.clamp(min=1e-12).log10()).clamp(max=CAP_DB).mean())


def restore_fixed(trainer: Trainer, fixed: SceneBatch, loops: int) -> tuple[Tensor | None, Tensor | None]:
    """The rainy and the snowy scenes restored, [N, 3, H, W], clamped; a baseline has one of them."""
    rainy, snowy, _ = fixed.to(trainer.fabric.device)
    model, network = trainer.averaged_model(loops), trainer.recipe.network

    def restore(degraded: Tensor, baseline: Network) -> Tensor | None:
        if network is not Network.CMUDRN and network is not baseline:
            return None
        with torch.no_grad():
            restored: Tensor = model(degraded) if isinstance(model, CMUDRN) else model(degraded)[-1]
        return restored.clamp(0, 1)

    return restore(rainy, Network.DRN_RAIN), restore(snowy, Network.DRN_SNOW)


def score_network(
    trainer: Trainer, fixed: SceneBatch, *, loops: int | None = None
) -> tuple[Scores | None, Scores | None]:
    """Under rain and under snow; loops: the recipe's usual ones where None."""
    clean = fixed.to(trainer.fabric.device)[2]
    rain, snow = (
        None
        if restored is None
        else Scores(mean_psnr_db(restored, clean), float(ssim(restored, clean).mean()))
        for restored in restore_fixed(trainer, fixed, loops or trainer.recipe.model.inter_loops)
    )
    return rain, snow
