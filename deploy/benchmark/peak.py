"""How fast a machine multiplies matrices and copies memory: what a restoration's speed is a share of."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cmudrn.deploy.benchmark.contestants import Conditions, Place
from cmudrn.deploy.benchmark.timing import Effort, Run, Times, take_turns, timed
from cmudrn.deploy.machine import available_cores
from cmudrn.engines.spec import Precision
from cmudrn.errors import CmudrnError, EnvironmentMissing

__all__ = ["Peak", "measure_peak"]

SIDE = {Place.CPU: 2048, Place.GPU: 8192}  # of square matrices: 17 GFLOP, and 1.1 TFLOP
SIDE_FP16_CPU = 512  # most processors have no half precision, and take minutes for more
COPIED_BYTES = {Place.CPU: 1 << 28, Place.GPU: 1 << 30}  # far more than any cache holds
EFFORT = Effort(warmup=1, repeats=10, budget_s=2.0)


@dataclass(frozen=True, kw_only=True)
class Peak:
    """The best of some runs each, in one precision at one place."""

    place: Place
    precision: Precision
    flops_per_s: float  # of a matrix product, two for each multiply-add
    bytes_per_s: float  # of a copy, read and written
    by: str  # the library


def measure_peak(place: Place, precision: Precision, conditions: Conditions) -> Peak:
    """By PyTorch, or without it on the CPU by numpy, in FP32.

    Raises EnvironmentMissing where neither can, DeviceError where it fails.
    """
    try:
        import torch
    except ImportError as exc:
        if place is Place.GPU or precision is not Precision.FP32:
            raise EnvironmentMissing(
                f"the {place.value}'s peak in {precision.value}: PyTorch is not installed",
                fix="pip install 'cmudrn[train]'",
            ) from exc
        return _best(place, precision, *_by_numpy(), f"numpy {np.__version__}")
    product, copy = _by_torch(place, precision, conditions)
    return _best(place, precision, product, copy, f"torch {torch.__version__}")


def _best(place: Place, precision: Precision, product: Run, copy: Run, by: str) -> Peak:
    times = take_turns({"product": product, "copy": copy}, EFFORT)
    return Peak(
        place=place,
        precision=precision,
        flops_per_s=2 * _side(place, precision) ** 3 / _least_s(times["product"]),
        bytes_per_s=2 * COPIED_BYTES[place] / _least_s(times["copy"]),
        by=by,
    )


def _side(place: Place, precision: Precision) -> int:
    """Of the matrices."""
    return SIDE_FP16_CPU if (place, precision) == (Place.CPU, Precision.FP16) else SIDE[place]


def _least_s(outcome: Times | CmudrnError) -> float:
    if isinstance(outcome, CmudrnError):
        raise outcome
    return outcome.least_s


def _by_numpy() -> tuple[Run, Run]:
    rng, side = np.random.default_rng(0), SIDE[Place.CPU]
    left, right = (rng.standard_normal((side, side), np.float32) for _ in range(2))
    product = np.empty_like(left)
    source = np.zeros(COPIED_BYTES[Place.CPU], np.uint8)
    target = np.zeros_like(source)
    return timed(lambda: np.matmul(left, right, out=product)), timed(lambda: np.copyto(target, source))


def _by_torch(place: Place, precision: Precision, conditions: Conditions) -> tuple[Run, Run]:
    import torch

    from cmudrn.deploy.benchmark.torch_timing import device_of, device_timed, in_words
    from cmudrn.engines.torch_frontend import DTYPES

    device = torch.device("cpu") if place is Place.CPU else device_of(conditions)
    if place is Place.GPU and device.type != "cuda":
        raise EnvironmentMissing("the GPU's peak: PyTorch sees no GPU", fix="install its build for CUDA")
    torch.set_num_threads(conditions.threads or available_cores())
    with in_words("the peak"):
        shape = (_side(place, precision),) * 2
        left, right = (torch.rand(shape, device=device).to(DTYPES[precision]) for _ in range(2))
        product = torch.empty_like(left)
        source = torch.zeros(COPIED_BYTES[place], dtype=torch.uint8, device=device)
        target = torch.zeros_like(source)

    def multiply() -> None:
        with torch.inference_mode(), in_words("the peak"):
            torch.matmul(left, right, out=product)

    return device_timed(multiply, device), device_timed(lambda: target.copy_(source), device)
