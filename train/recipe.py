"""How the weights are trained: one frozen value that goes into the checkpoint whole."""

from __future__ import annotations

from dataclasses import dataclass, field

from cmudrn.errors import UsageError
from cmudrn.model import ModelConfig
from cmudrn.train.losses import LossWeights

__all__ = ["TrainRecipe"]


@dataclass(frozen=True, kw_only=True)
class TrainRecipe:
    """A training run. Checks itself."""

    steps: int = 15_000
    scenes: int = 8  # in a step; each is seen twice, rainy and snowy
    crop_px: int = 64
    learning_rate: float = 1e-3  # the paper: 1e-4 throughout; ours falls along a cosine
    final_rate: float = 1e-5
    warmup_steps: int = 200
    clip_norm: float = 0.5  # of the whole gradient; recursion makes rare huge ones
    ema: float = 0.999  # share of the old in the running average of weights, which is what is saved
    bfloat16: bool = False  # autocast, where the CPU has the instructions
    seed: int = 0
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossWeights = field(default_factory=LossWeights)

    def __post_init__(self) -> None:
        for name in ("steps", "scenes"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} = {getattr(self, name)}", fix="give 1 or more")
        if self.crop_px < 16:
            raise UsageError(
                f"crop_px = {self.crop_px}", fix="give 16 or more: SSIM's window is 11 pixels wide"
            )
        if self.learning_rate <= 0:
            raise UsageError(f"learning_rate = {self.learning_rate}", fix="give a positive rate such as 1e-3")
