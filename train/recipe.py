"""How weights are trained: one frozen value that goes into the checkpoint whole."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import Any

from cmudrn.errors import UsageError
from cmudrn.model import PAPER_STITCHES, ModelConfig
from cmudrn.train.losses import LossWeights
from cmudrn.train.optimizer import USUAL_RATES, OptimizerName

__all__ = ["Network", "Schedule", "TrainRecipe"]


class Network(str, Enum):
    """What is trained: the unified network, or one of the paper's baselines."""

    CMUDRN = "cmudrn"
    DRN_RAIN = "drn-rain"  # one DRN that sees rain alone: DRN@rain of the paper's Table I
    DRN_SNOW = "drn-snow"


class Schedule(str, Enum):
    """How the learning rate goes on after the warm-up."""

    COSINE = "cosine"  # down to `final_rate` at the last step
    CONSTANT = "constant"  # the paper's


@dataclass(frozen=True, kw_only=True)
class TrainRecipe:
    """A training run. Checks itself."""

    network: Network = Network.CMUDRN
    steps: int = 15_000
    scenes: int = 8  # in a step, over all devices; each is seen twice, rainy and snowy
    crop_px: int = 64
    depths: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 7)  # loop counts T that one set of weights shall serve
    usual_share: float = 0.4  # of the steps: those at the usual depth, beside its share among the others
    optimizer: OptimizerName = OptimizerName.SOAP
    learning_rate: float = USUAL_RATES[OptimizerName.SOAP]  # the highest; the paper: 1e-4 throughout
    final_rate: float = 1e-5
    warmup_steps: int = 200
    schedule: Schedule = Schedule.COSINE
    clip_norm: float = 0.5  # of the whole gradient; recursion makes rare huge ones; 0: not clipped
    ema: float = 0.999  # share of the old in the running average of weights, which is what is saved; 0: none
    identity_start: bool = True  # begin with weights that return the input, nearly
    bfloat16: bool = False  # autocast, where the processor has the instructions ...
    float32_steps: int = 2_000  # ... but not in the last steps
    seed: int = 0  # of weights, scenes and depths
    model: ModelConfig = field(default_factory=ModelConfig)  # its loops are those of a user who asks for none
    loss: LossWeights = field(default_factory=LossWeights)

    def __post_init__(self) -> None:
        for name in ("steps", "scenes"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} = {getattr(self, name)}", fix="give 1 or more")
        if self.seed < 0:
            raise UsageError(f"seed = {self.seed}", fix="give 0 or more")
        if self.float32_steps < 0:
            raise UsageError(f"float32_steps = {self.float32_steps}", fix="give 0 or more")
        if self.crop_px < 16:
            raise UsageError(
                f"crop_px = {self.crop_px}", fix="give 16 or more: SSIM's window is 11 pixels wide"
            )
        if not 0 < self.learning_rate < float("inf"):
            raise UsageError(f"learning_rate = {self.learning_rate}", fix="give a positive rate such as 1e-3")
        if not self.depths or min(self.depths) < 1 or len(set(self.depths)) < len(self.depths):
            raise UsageError(f"depths = {self.depths}", fix="give loop counts of 1 or more, each once")
        if not 0 <= self.usual_share <= 1:
            raise UsageError(f"usual_share = {self.usual_share}", fix="give 0 to 1")
        if not 0 <= self.ema < 1:
            raise UsageError(f"ema = {self.ema}", fix="give 0 (none) up to less than 1, such as 0.999")

    @classmethod
    def paper(cls, **changes: Any) -> TrainRecipe:
        """The paper's: Adam, 1e-4 throughout, T = 3, alpha = 0.5, the loss as printed.

        How scenes are drawn is not part of a recipe: crops, weather and camera stay ours.
        """
        recipe: dict[str, Any] = {
            "depths": (3,),
            "optimizer": OptimizerName.ADAM,
            "learning_rate": 1e-4,
            "schedule": Schedule.CONSTANT,
            "warmup_steps": 0,
            "clip_norm": 0.0,
            "ema": 0.0,
            "identity_start": False,
            "model": ModelConfig(stitches=PAPER_STITCHES),
            "loss": LossWeights.paper(),
        }
        return cls(**(recipe | changes))

    @property
    def depth_chances(self) -> tuple[float, ...]:
        """The chance of each depth in a step.

        `usual_share` of the steps goes to the usual depth, by which the weights are judged; the others are
        shared as 1/sqrt(T), for the time that a step takes grows with T squared. (With 1/T, T = 7 had one
        step in 36, and restored heavy rain worse than T = 2 did.)
        """
        inverse = [depth**-0.5 for depth in self.depths]
        shared = [value / sum(inverse) for value in inverse]
        usual = self.model.inter_loops
        if usual not in self.depths:
            return tuple(shared)
        share = self.usual_share
        chances = zip(self.depths, shared, strict=True)
        return tuple((1 - share) * chance + share * (depth == usual) for depth, chance in chances)

    def to_json(self) -> dict[str, Any]:
        """Plain values, for a checkpoint's metadata and for comparing a run with the one to resume."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return plain
