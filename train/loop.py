"""The training loop: two passes as one batch, Adam, a running average of the weights."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from cmudrn.checkpoint import Checkpoint, save_checkpoint
from cmudrn.errors import TrainingError
from cmudrn.model import CMUDRN
from cmudrn.train.losses import cmudrn_loss
from cmudrn.train.recipe import TrainRecipe
from cmudrn.train.scenes import SceneBatch, WeatheredScenes

__all__ = ["Progress", "Trainer", "start_as_identity"]


@dataclass(frozen=True)
class Progress:
    """What happened in the last steps, averaged."""

    step: int
    total: float  # the loss and its parts
    local: float
    recur: float
    global_: float
    steps_per_s: float


def start_as_identity(model: CMUDRN) -> None:
    """Makes an untrained model return its input, nearly: changes its weights in place.

    The fusion head has no skip connection: from plain initialisation it spends thousands of steps on learning
    the image itself. Its centre taps are set to carry both branches' images through and to average them; all
    else in it, and conv_out, is scaled by a tenth. Channel c carries the rain branch, c + 3 the snow branch.
    """
    with torch.no_grad():
        for conv in (model.rain.conv_out, model.snow.conv_out, *model.fusion.children()):
            assert isinstance(conv, nn.Conv2d)
            assert conv.bias is not None
            conv.weight *= 0.1
            conv.bias *= 0.0
        for c in range(6):
            model.fusion.conv1.weight[c, c, 1, 1] += 1
            model.fusion.conv2.weight[c, c, 1, 1] += 1
            model.fusion.conv3.weight[c % 3, c, 1, 1] += 0.5


def learning_rate(recipe: TrainRecipe, step: int) -> float:
    """Linear warm-up, then a cosine down to the final rate at the last step."""
    if step < recipe.warmup_steps:
        return recipe.learning_rate * (step + 1) / recipe.warmup_steps
    done = (step - recipe.warmup_steps) / max(1, recipe.steps - recipe.warmup_steps)
    span = recipe.learning_rate - recipe.final_rate
    return float(recipe.final_rate + span * 0.5 * (1 + np.cos(np.pi * min(1.0, done))))


class Trainer:
    """One run: the model, its optimizer and its average, from `recipe`, resumable from its folder."""

    def __init__(self, recipe: TrainRecipe, folder: Path, provenance: dict[str, Any]) -> None:
        self.recipe, self.folder, self.provenance = recipe, folder, provenance
        torch.manual_seed(recipe.seed)
        self.model = CMUDRN(recipe.model)
        start_as_identity(self.model)
        # channels_last and both passes in one batch: the fastest way measured on CPUs.
        self.model = self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=recipe.learning_rate)
        self.average = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.step = 0

    @property
    def state_file(self) -> Path:
        return self.folder / "state.pt"

    def resume(self) -> bool:
        """Goes on from the folder's state, where there is one. Returns whether there was."""
        if not self.state_file.is_file():
            return False
        state = torch.load(self.state_file, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.average, self.step = state["average"], state["step"]
        return True

    def save(self) -> None:
        """Writes the averaged weights as a checkpoint and the whole state for resuming, each atomically."""
        checkpoint = Checkpoint(
            tensors={name: value.contiguous().numpy().copy() for name, value in self.average.items()},
            inter_loops=self.recipe.model.inter_loops,
            intra_loops=self.recipe.model.intra_loops,
            stitches=dict(self.recipe.model.stitches),
            training={**self.provenance, "steps": self.step, "recipe": asdict(self.recipe)},
        )
        save_checkpoint(checkpoint, self.folder / "weights.safetensors")
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average,
            "step": self.step,
        }
        temporary = self.state_file.with_suffix(".part")
        torch.save(state, temporary)
        temporary.replace(self.state_file)

    def train_step(self, batch: SceneBatch) -> Tensor:
        """One step. Returns the loss and its parts, [4] float32; TrainingError where it isn't finite."""
        recipe = self.recipe
        rate = learning_rate(recipe, self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        degraded = torch.cat([batch.rainy, batch.snowy]).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=recipe.bfloat16):
            restored = self.model.forward_all(degraded)
        terms = cmudrn_loss(restored.to_float(), batch.clean, recipe.loss)
        self.optimizer.zero_grad(set_to_none=True)
        terms.total.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), recipe.clip_norm)
        losses = torch.stack([term.detach() for term in terms])
        if not (torch.isfinite(losses).all() and torch.isfinite(norm)):
            parts = ", ".join(
                f"{name} {value:.3g}" for name, value in zip(terms._fields, losses, strict=True)
            )
            raise TrainingError(
                f"step {self.step}: not finite: {parts}, gradient {norm:.3g}",
                fix="resume from the last checkpoint with a lower learning rate",
            )
        self.optimizer.step()
        self.step += 1
        with torch.no_grad():
            # A young average forgets its random start sooner.
            keep = min(recipe.ema, (1 + self.step) / (10 + self.step))
            for name, value in self.model.state_dict().items():
                self.average[name].lerp_(value, 1 - keep)
        return losses

    def run(
        self, scenes: WeatheredScenes, *, workers: int, report_every: int, save_every: int
    ) -> Iterator[Progress]:
        """Trains to the recipe's last step and saves; yields a Progress every `report_every` steps.

        Saves every `save_every` steps, at the end, and when it is closed or interrupted.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        loader = DataLoader(
            scenes, batch_size=None, num_workers=workers, prefetch_factor=4 if workers else None
        )
        batches = iter(loader)
        losses, since = torch.zeros(4), time.perf_counter()
        try:
            while self.step < self.recipe.steps:
                losses += self.train_step(next(batches))
                if self.step % report_every == 0:
                    now = time.perf_counter()
                    average: tuple[float, float, float, float] = tuple((losses / report_every).tolist())
                    yield Progress(self.step, *average, report_every / (now - since))
                    losses, since = torch.zeros(4), now
                if self.step % save_every == 0:
                    self.save()
        except TrainingError:
            raise  # what is on disk is from before the bad step: it stays
        except BaseException:
            self.save()
            raise
        self.save()
