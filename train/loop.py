"""The training loop: a depth and a batch a step, a running average of the weights, one folder a run."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.utils.data import DataLoader

from cmudrn.checkpoint import Checkpoint, NetworkKind, check_tensors, save_checkpoint
from cmudrn.errors import CheckpointError, TrainingError
from cmudrn.files import replacing
from cmudrn.train.interruption import Interruption, end_with_parent
from cmudrn.train.kernels import Kernels, choose_kernels
from cmudrn.train.losses import LossTerms, Reduction, restoration_loss
from cmudrn.train.optimizer import build_optimizer
from cmudrn.train.passes import build_passes
from cmudrn.train.recipe import Network, Schedule, TrainRecipe
from cmudrn.train.run_state import STATE_NAME, check_same_run, read_state, saving
from cmudrn.train.scenes import SceneBatch, SceneSteps
from cmudrn.train.stability import is_due, noise_gain, pair_with_noise

__all__ = ["Progress", "Trainer", "draw_depth", "learning_rate"]


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
    """Linear warm-up, then a cosine down to the final rate at the last step, or no change.

    A short run warms up for a quarter of its steps at most.
    """
    warmup_steps, final_rate = min(recipe.warmup_steps, recipe.steps // 4), recipe.final_rate
    if step < warmup_steps:
        return recipe.learning_rate * (step + 1) / warmup_steps
    if recipe.schedule is Schedule.CONSTANT or recipe.learning_rate < final_rate:
        return recipe.learning_rate
    done = (step - warmup_steps) / max(1, recipe.steps - warmup_steps)
    span = recipe.learning_rate - final_rate
    return float(final_rate + span * 0.5 * (1 + np.cos(np.pi * min(1.0, done))))


def draw_depth(recipe: TrainRecipe, step: int) -> int:
    """The loop count T of a step: a function of seed and step, the same on every device."""
    rng = np.random.default_rng([recipe.seed, step])
    return int(rng.choice(recipe.depths, p=recipe.depth_chances))


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
        optimizer = build_optimizer(recipe.optimizer, self.model, recipe.learning_rate)
        self.passes, self.optimizer = self.fabric.setup(passes, optimizer)
        self.average = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.step = 0
        self.started_from: dict[str, Any] | None = None  # weights that the run began with, and theirs

    @property
    def state_file(self) -> Path:
        return self.folder / STATE_NAME

    def start_from(self, checkpoint: Checkpoint, name: str) -> None:
        """Takes weights instead of drawn ones, and says so in its own checkpoints.

        Raises CheckpointError for those of another network, or that are not finite.
        """
        own = self.recipe.network
        kind = NetworkKind.CMUDRN if own is Network.CMUDRN else NetworkKind.DRN
        if checkpoint.network is not kind:
            raise CheckpointError(f"{name}: weights of another network", fix="give those of the same network")
        check_tensors(checkpoint, name)
        self.load_weights({key: torch.from_numpy(value) for key, value in checkpoint.tensors.items()})
        self.average = {key: value.clone() for key, value in self.model.state_dict().items()}
        self.started_from = {
            "sha256": checkpoint.sha256,
            "steps": checkpoint.training.get("steps"),
            "stitches": dict(checkpoint.stitches),
            "started_from": checkpoint.training.get("started_from"),
        }

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        """In place, so that the optimizer and other processes' copies stay bound to them."""
        with torch.no_grad():
            for name, value in self.model.state_dict().items():
                value.copy_(weights[name])

    def resume(self) -> bool:
        """Goes on from the folder's state, where there is one. Returns whether there was.

        Raises UsageError where the run was begun with another recipe or on other data.
        """
        state = read_state(self.state_file, self.fabric.device)
        if state is None:
            return False
        now = self.recipe.to_json() | {"data": self.provenance}
        check_same_run(self.folder, state["recipe"] | {"data": state["provenance"]}, now)
        self.load_weights(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.average, self.step = state["average"], int(state["step"])
        self.started_from = state.get("started_from")
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
            "started_from": self.started_from,
        }
        with saving(self.folder, self.step):
            save_checkpoint(self.checkpoint(), self.folder / "weights.safetensors")
            with replacing(self.state_file) as file:
                torch.save(state, file)

    def checkpoint(self, **notes: Any) -> Checkpoint:
        """The averaged weights, with how and from what they were made; notes go beside that."""
        unified = self.recipe.network is Network.CMUDRN
        return Checkpoint(
            tensors={name: value.contiguous().cpu().numpy().copy() for name, value in self.average.items()},
            network=NetworkKind.CMUDRN if unified else NetworkKind.DRN,
            inter_loops=self.recipe.model.inter_loops,
            intra_loops=self.recipe.model.intra_loops,
            stitches=dict(self.recipe.model.stitches) if unified else {},
            training={
                **self.provenance,
                "steps": self.step,
                "started_from": self.started_from,
                "recipe": self.recipe.to_json(),
                **notes,
            },
        )

    def train_step(self, batch: SceneBatch) -> Tensor:
        """One step. Returns the loss and its parts, [4] float32; TrainingError where it isn't finite."""
        recipe = self.recipe
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(recipe, self.step)
        self.model.inter_loops = self.model.intra_loops = draw_depth(recipe, self.step)
        device = self.fabric.device
        rainy, snowy, clean = batch.to(device)
        factor, fabric = recipe.loss.stability, self.fabric
        has_pairs = is_due(factor, self.step)
        if has_pairs:
            rank, devices = fabric.global_rank, fabric.world_size
            rainy, snowy, clean = pair_with_noise(
                rainy, snowy, clean, seed=recipe.seed, step=self.step, rank=rank, devices=devices
            )
        lower = recipe.bfloat16 and self.step < recipe.steps - recipe.float32_steps
        # Not Fabric's precision: that is one for the whole run.
        with torch.autocast(device.type, torch.bfloat16, enabled=lower):
            made = self.passes(rainy, snowy)
        terms = restoration_loss(made, clean, recipe.loss)
        if has_pairs:
            terms = terms._replace(total=terms.total + factor * noise_gain(made.finals))
        self.optimizer.zero_grad(set_to_none=True)
        # Devices average their gradients: where the loss is a sum, each carries its share times their number.
        summed = recipe.loss.reduction is Reduction.SUM
        self.fabric.backward(terms.total * (self.fabric.world_size if summed else 1))
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), recipe.clip_norm or float("inf"))
        losses = torch.stack([term.detach() for term in terms])
        if not (torch.isfinite(losses).all() and torch.isfinite(norm)):
            raise TrainingError(
                f"step {self.step}: not finite: {name_terms(terms)}, gradient {norm:.3g}",
                fix="begin a new run with a lower --learning-rate "
                f"and --start-from {self.folder / 'weights.safetensors'}, of an earlier step",
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

        Saves every `save_every` steps, at the end, and when it is closed or interrupted; Ctrl-C and SIGTERM
        wait for the step they fall into, and are a KeyboardInterrupt then.
        """
        self.save()  # a folder that cannot be written to is found now, not after an hour
        loader = DataLoader(
            scenes,
            batch_size=None,
            sampler=range(self.step, self.recipe.steps),
            num_workers=workers,
            prefetch_factor=4 if workers else None,
            worker_init_fn=end_with_parent,
        )
        try:
            with Interruption() as interruption:
                yield from self.steps(loader, interruption, report_every=report_every, save_every=save_every)
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

    def any_was_told_to_stop(self, interruption: Interruption) -> bool:
        """All processes stop after the same step, whichever got the signal: one alone would wait for ever."""
        if self.fabric.world_size == 1:
            return interruption.came
        came = torch.tensor(float(interruption.came), device=self.fabric.device)
        return bool(self.fabric.all_reduce(came, reduce_op="max"))

    def steps(
        self, loader: Iterable[SceneBatch], interruption: Interruption, *, report_every: int, save_every: int
    ) -> Iterator[Progress]:
        """The loop itself."""
        losses, summed, since = torch.zeros(4, device=self.fabric.device), 0, time.perf_counter()
        for batch in loader:
            losses += self.train_step(batch)
            summed += 1
            if self.step % report_every == 0:
                mean: tuple[float, float, float, float] = tuple((losses / summed).tolist())
                rate = learning_rate(self.recipe, self.step - 1)
                yield Progress(self.step, *mean, rate, summed / (time.perf_counter() - since))
                losses.zero_()
                summed, since = 0, time.perf_counter()
            if self.any_was_told_to_stop(interruption):
                raise KeyboardInterrupt
            if self.step % save_every == 0:
                self.save()


def name_terms(terms: LossTerms) -> str:
    """`local nan, recur 0.3, global 0.2`."""
    parts = zip(("local", "recur", "global"), terms[1:], strict=True)
    return ", ".join(f"{name} {value.item():.3g}" for name, value in parts)
