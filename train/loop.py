"""The training loop: a depth and a batch a step, Adam, a running average of the weights, one folder a run."""

from __future__ import annotations

import pickle
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.utils.data import DataLoader

from cmudrn.checkpoint import Checkpoint, NetworkKind, save_checkpoint
from cmudrn.errors import CheckpointError, TrainingError, UsageError
from cmudrn.files import replacing
from cmudrn.train.kernels import Kernels, choose_kernels
from cmudrn.train.losses import LossTerms, Reduction, restoration_loss
from cmudrn.train.passes import build_passes
from cmudrn.train.recipe import Network, Schedule, TrainRecipe
from cmudrn.train.scenes import SceneBatch, SceneSteps

__all__ = ["Progress", "Trainer", "draw_depth", "learning_rate"]

# What may differ when a run is resumed: where it ends.
ENDS = ("steps", "float32_steps")


@dataclass(frozen=True)
class Progress:
    """What happened in the last steps, averaged."""

    step: int
    total: float  # the loss and its parts
    local: float
    recur: float
    global_: float
    learning_rate: float
    steps_per_s: float


def learning_rate(recipe: TrainRecipe, step: int) -> float:
    """Linear warm-up, then a cosine down to the final rate at the last step, or no change."""
    if step < recipe.warmup_steps:
        return recipe.learning_rate * (step + 1) / recipe.warmup_steps
    if recipe.schedule is Schedule.CONSTANT:
        return recipe.learning_rate
    done = (step - recipe.warmup_steps) / max(1, recipe.steps - recipe.warmup_steps)
    span = recipe.learning_rate - recipe.final_rate
    return float(recipe.final_rate + span * 0.5 * (1 + np.cos(np.pi * min(1.0, done))))


def draw_depth(recipe: TrainRecipe, step: int) -> int:
    """The loop count T of a step: a function of seed and step, the same on every device."""
    rng = np.random.default_rng([recipe.seed, step])
    return int(rng.choice(recipe.depths, p=recipe.depth_chances))


def ignore_interrupt(worker: int) -> None:
    """Ctrl-C reaches the whole process group: the parent saves and ends the workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class Trainer:
    """One run: network, optimizer and average, from `recipe`, resumable from `folder`.

    folder: gets `weights.safetensors` (the average) and `state.pt` (all that resuming needs).
    provenance: what is known of the data; goes into the checkpoint, and a resumed run must have the same.
    fabric: devices and their processes; one CPU process by default.
    kernels: whose convolutions; a run may go on with others, as on another machine: equal up to rounding.
    """

    def __init__(
        self,
        recipe: TrainRecipe,
        folder: Path,
        provenance: dict[str, Any],
        *,
        fabric: Fabric | None = None,
        kernels: Kernels = Kernels.AUTO,
    ) -> None:
        self.recipe, self.folder, self.provenance = recipe, folder, provenance
        self.fabric = fabric or Fabric(accelerator="cpu", devices=1)
        self.kernels = choose_kernels(kernels, device=self.fabric.device.type, bfloat16=recipe.bfloat16)
        self.model = (passes := build_passes(recipe, self.kernels)).model
        adam = torch.optim.Adam(self.model.parameters(), lr=recipe.learning_rate)
        self.passes, self.optimizer = self.fabric.setup(passes, adam)
        self.average = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.step = 0

    @property
    def state_file(self) -> Path:
        return self.folder / "state.pt"

    def start_from(self, checkpoint: Checkpoint, name: str) -> None:
        """Takes weights instead of drawn ones. Raises CheckpointError for those of another network."""
        own = self.model.state_dict()
        if {key: value.shape for key, value in checkpoint.tensors.items()} != {
            key: tuple(value.shape) for key, value in own.items()
        }:
            raise CheckpointError(f"{name}: weights of another network", fix="give those of the same network")
        self.load_weights({key: torch.from_numpy(value) for key, value in checkpoint.tensors.items()})
        self.average = {key: value.clone() for key, value in self.model.state_dict().items()}

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        """In place, so that the optimizer and other processes' copies stay bound to them."""
        with torch.no_grad():
            for name, value in self.model.state_dict().items():
                value.copy_(weights[name])

    def resume(self) -> bool:
        """Goes on from the folder's state, where there is one. Returns whether there was.

        Raises UsageError where the run was begun with another recipe or on other data.
        """
        if not self.state_file.is_file():
            return False
        try:
            state = torch.load(self.state_file, weights_only=True, map_location=self.fabric.device)
            begun, step = state["recipe"] | {"data": state["provenance"]}, int(state["step"])
        except (OSError, RuntimeError, pickle.UnpicklingError, KeyError, TypeError, EOFError) as exc:
            raise CheckpointError(
                f"{self.state_file}: not the state of a run: {str(exc).splitlines()[0]}",
                fix="give another --out",
            ) from exc
        now = self.recipe.to_json() | {"data": self.provenance}
        for name, value in now.items():
            if name not in ENDS and begun.get(name) != value:
                raise UsageError(
                    f"{self.folder}: this run was begun with {difference(name, begun.get(name), value)}",
                    fix="resume with the options it was begun with, or give another --out, "
                    f"with --start-from {self.folder / 'weights.safetensors'} to go on from its weights",
                )
        self.load_weights(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.average, self.step = state["average"], step
        return True

    def save(self) -> None:
        """Writes the averaged weights and the state for resuming, each whole or not at all.

        Raises TrainingError where the disk refuses; what was saved before stays.
        """
        if not self.fabric.is_global_zero:
            return
        state = {
            "recipe": self.recipe.to_json(),
            "provenance": self.provenance,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average,
            "step": self.step,
        }
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            save_checkpoint(self.checkpoint(), self.folder / "weights.safetensors")
            with replacing(self.state_file) as file:
                torch.save(state, file)
        except (OSError, RuntimeError) as exc:  # torch makes a RuntimeError of a full disk
            raise TrainingError(
                f"{self.folder}: cannot save step {self.step}: {exc}",
                fix="make room and resume: what was saved before is whole",
            ) from exc

    def checkpoint(self) -> Checkpoint:
        """The averaged weights, with how and from what they were made."""
        unified = self.recipe.network is Network.CMUDRN
        return Checkpoint(
            tensors={name: value.contiguous().cpu().numpy().copy() for name, value in self.average.items()},
            network=NetworkKind.CMUDRN if unified else NetworkKind.DRN,
            inter_loops=self.recipe.model.inter_loops,
            intra_loops=self.recipe.model.intra_loops,
            stitches=dict(self.recipe.model.stitches) if unified else {},
            training={**self.provenance, "steps": self.step, "recipe": self.recipe.to_json()},
        )

    def train_step(self, batch: SceneBatch) -> Tensor:
        """One step. Returns the loss and its parts, [4] float32; TrainingError where it isn't finite."""
        recipe = self.recipe
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(recipe, self.step)
        self.model.inter_loops = self.model.intra_loops = draw_depth(recipe, self.step)
        device = self.fabric.device
        rainy, snowy, clean = batch.to(device)
        lower = recipe.bfloat16 and self.step < recipe.steps - recipe.float32_steps
        # Not Fabric's precision: that is one for the whole run.
        with torch.autocast(device.type, torch.bfloat16, enabled=lower):
            made = self.passes(rainy, snowy)
        terms = restoration_loss(made, clean, recipe.loss)
        self.optimizer.zero_grad(set_to_none=True)
        # Devices average their gradients: where the loss is a sum, each carries its share times their number.
        summed = recipe.loss.reduction is Reduction.SUM
        self.fabric.backward(terms.total * (self.fabric.world_size if summed else 1))
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), recipe.clip_norm or float("inf"))
        losses = torch.stack([term.detach() for term in terms])
        if not (torch.isfinite(losses).all() and torch.isfinite(norm)):
            raise TrainingError(
                f"step {self.step}: not finite: {name_terms(terms)}, gradient {norm:.3g}",
                fix=f"go on from {self.state_file}, of an earlier step, with a lower learning rate",
            )
        self.optimizer.step()
        self.step += 1
        # A young average forgets its random start sooner.
        keep = min(recipe.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for name, value in self.model.state_dict().items():
                self.average[name].lerp_(value, 1 - keep)
        return losses

    def averaged_model(self, loops: int) -> nn.Module:
        """The network with the averaged weights, at a depth; its own copy, float32, in evaluation mode."""
        model = build_passes(replace(self.recipe, identity_start=False), self.kernels).model
        model.load_state_dict(self.average)
        model.inter_loops = model.intra_loops = loops
        return model.to(self.fabric.device).eval()

    def run(
        self, scenes: SceneSteps, *, workers: int, report_every: int, save_every: int
    ) -> Iterator[Progress]:
        """Trains to the recipe's last step and saves; yields a Progress every `report_every` steps.

        Saves every `save_every` steps, at the end, and when it is closed or interrupted.
        """
        self.save()  # a folder that cannot be written to is found now, not after an hour
        loader = DataLoader(
            scenes,
            batch_size=None,
            sampler=range(self.step, self.recipe.steps),
            num_workers=workers,
            prefetch_factor=4 if workers else None,
            worker_init_fn=ignore_interrupt,
        )
        losses, since = torch.zeros(4, device=self.fabric.device), time.perf_counter()
        try:
            for batch in loader:
                losses += self.train_step(batch)
                if self.step % report_every == 0:
                    mean: tuple[float, float, float, float] = tuple((losses / report_every).tolist())
                    rate = learning_rate(self.recipe, self.step - 1)
                    took_s = time.perf_counter() - since
                    yield Progress(self.step, *mean, rate, report_every / took_s)
                    losses.zero_()
                    since = time.perf_counter()
                if self.step % save_every == 0:
                    self.save()
        except TrainingError:
            raise  # what is on disk is from before the bad step: it stays
        except KeyboardInterrupt as exc:
            self.save()
            # Without its frames nothing holds the loader's iterator: its workers end in order and in silence.
            raise exc.with_traceback(None)  # noqa: B904
        except BaseException:
            self.save()
            raise
        self.save()


def difference(name: str, begun: Any, now: Any) -> str:
    """`crop_px = 64, not 96`; of a mapping the first entry that differs."""
    if isinstance(begun, dict) and isinstance(now, dict):
        key = next(key for key in (*now, *begun) if begun.get(key) != now.get(key))
        return f"{name}: {difference(key, begun.get(key), now.get(key))}"
    return f"{name} = {begun}, not {now}"


def name_terms(terms: LossTerms) -> str:
    """`local nan, recur 0.3, global 0.2`."""
    parts = zip(("local", "recur", "global"), terms[1:], strict=True)
    return ", ".join(f"{name} {value.item():.3g}" for name, value in parts)
