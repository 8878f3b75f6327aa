"""What makes a training step on a CPU fast: one change after the other, on the same batch.

python benchmarks/training.py [--loops 1,3] [--scenes 4] [--crop 96] [--rounds 5]

A step: both passes, the loss, its gradients, clipping, Adam. The variants take turns, a step each, so that
what else the machine does falls on all alike. Medians, in steps a second and against the first variant.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from machine import heading
from torch import Tensor, nn

from cmudrn.model import CMUDRN
from cmudrn.train.kernels import Kernels
from cmudrn.train.losses import Supervised, restoration_loss
from cmudrn.train.passes import build_passes
from cmudrn.train.recipe import TrainRecipe


@dataclass(frozen=True)
class Variant:
    """One way to compute the same step."""

    name: str
    channels_last: bool = False
    together: bool = False  # both passes as one batch
    bfloat16: bool = False
    compiled: bool = False
    kernels: Kernels = Kernels.TORCH


VARIANTS = (
    Variant("PyTorch, two passes"),
    Variant("both passes as one batch", together=True),
    Variant("and channels last", together=True, channels_last=True),
    Variant("and torch.compile", together=True, channels_last=True, compiled=True),
    Variant("and bfloat16 autocast", together=True, channels_last=True, bfloat16=True),
    Variant("own kernels, float32", together=True, channels_last=True, kernels=Kernels.WINOGRAD),
)


def has_bfloat16() -> bool:
    """Whether the processor computes in bfloat16; emulated, it is many times slower."""
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    return "avx512_bf16" in flags or "amx_bf16" in flags


def step_of(variant: Variant, loops: int, batch: tuple[Tensor, Tensor, Tensor]) -> Callable[[], None]:
    recipe = TrainRecipe(depths=(loops,))
    model = build_passes(recipe, variant.kernels).model
    assert isinstance(model, CMUDRN)
    model.inter_loops = model.intra_loops = loops
    layout = torch.channels_last if variant.channels_last else torch.contiguous_format
    model.to(memory_format=layout)  # type: ignore[call-overload]
    adam = torch.optim.Adam(model.parameters(), lr=1e-4)
    forward = torch.compile(model.forward_all) if variant.compiled else model.forward_all
    rainy, snowy, clean = (images.contiguous(memory_format=layout) for images in batch)
    n = len(clean)

    def passes() -> Supervised:
        if variant.together:
            both = forward(torch.cat([rainy, snowy]))
            stages = [x[:n] for x in both.rain_stages] + [x[n:] for x in both.snow_stages]
            return Supervised(
                torch.stack(stages).float(), 2, both.fused.reshape(2, n, *clean.shape[1:]).float()
            )
        rain, snow = forward(rainy), forward(snowy)
        stages = [*rain.rain_stages, *snow.snow_stages]
        return Supervised(torch.stack(stages).float(), 2, torch.stack([rain.fused, snow.fused]).float())

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16) if variant.bfloat16 else nullcontext():
            made = passes()
        adam.zero_grad(set_to_none=True)
        restoration_loss(made, clean, recipe.loss).total.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
        adam.step()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--loops", default="1,3")
    parser.add_argument("--scenes", type=int, default=4)
    parser.add_argument("--crop", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(heading())
    print(f"{arguments.scenes} scenes of {arguments.crop}x{arguments.crop}, {arguments.threads} threads")
    torch.manual_seed(0)
    size = (arguments.scenes, 3, arguments.crop, arguments.crop)
    batch = torch.rand(size), torch.rand(size), torch.rand(size)
    variants = [variant for variant in VARIANTS if has_bfloat16() or not variant.bfloat16]
    for loops in (int(part) for part in arguments.loops.split(",")):
        steps = [step_of(variant, loops, batch) for variant in variants]
        seconds: list[list[float]] = [[] for _ in steps]
        for step in steps:
            step()  # compiles, allocates
        for _ in range(arguments.rounds):
            for step, taken in zip(steps, seconds, strict=True):
                begun = time.perf_counter()
                step()
                taken.append(time.perf_counter() - begun)
        print(f"\nT = {loops}")
        first = statistics.median(seconds[0])
        for variant, taken in zip(variants, seconds, strict=True):
            median = statistics.median(taken)
            print(f"  {variant.name:28}{1 / median:7.2f} steps/s {first / median:6.2f}x")
    if not has_bfloat16():
        print("\nbfloat16 autocast: left out, this processor has no bfloat16")


if __name__ == "__main__":
    main()
