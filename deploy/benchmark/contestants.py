"""What `cmudrn benchmark` times: the same network by several programs, each opened for one piece of work."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cmudrn.deploy.benchmark.timing import Run, timed
from cmudrn.deploy.native.library import is_built, kernels_version
from cmudrn.engines.spec import EngineSpec, Pixel, Precision
from cmudrn.errors import EnvironmentMissing, UsageError

__all__ = [
    "OF_ENGINES",
    "Case",
    "Conditions",
    "Contestant",
    "Kind",
    "Opened",
    "Place",
    "open_contestant",
    "place_of",
    "random_pixels",
    "usual_contestants",
]


class Kind(str, Enum):
    """Which program."""

    TORCH = "torch"  # eager, as in the paper
    COMPILE = "compile"  # torch.compile
    NATIVE = "native"  # our own kernels for CPUs
    ONNX = "onnx"  # ONNX Runtime on the CPU
    ONNX_GPU = "onnx-gpu"  # on what else it has a provider for, CUDA for one, with the copies
    OPENVINO = "openvino"
    TENSORRT = "tensorrt"  # an engine's kernels alone
    STREAM = "tensorrt-stream"  # the same engine with the copies to and fro, as `infer` runs it


class Place(str, Enum):
    """What computes."""

    CPU = "cpu"
    GPU = "gpu"


ALL = (Precision.FP32, Precision.FP16, Precision.BF16)
# The first is what a name without a precision means.
PRECISIONS = {
    Kind.TORCH: ALL,
    Kind.COMPILE: ALL,
    Kind.NATIVE: (Precision.FP32, Precision.BF16),
    Kind.ONNX: (Precision.FP32,),
    Kind.ONNX_GPU: (Precision.FP32,),
    Kind.OPENVINO: (Precision.FP32, Precision.BF16),
    Kind.TENSORRT: (Precision.FP16, Precision.BF16, Precision.FP32),
    Kind.STREAM: (Precision.FP16, Precision.BF16, Precision.FP32),
}
BY_TORCH = (Kind.TORCH, Kind.COMPILE)
OF_ENGINES = (Kind.TENSORRT, Kind.STREAM)
CHANNELS_LAST = "nhwc"
NAME = re.compile(rf"(.+?)(?:-(fp32|fp16|bf16))?(-{CHANNELS_LAST})?")


@dataclass(frozen=True)
class Contestant:
    """A program, in a precision. Raises UsageError for one that there isn't."""

    kind: Kind
    precision: Precision
    channels_last: bool = False  # PyTorch's memory format; else its usual one, channels first

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS[self.kind] or (self.channels_last and self.kind not in BY_TORCH):
            raise unknown(str(self))

    @classmethod
    def parse(cls, text: str) -> Contestant:
        """From a name such as torch, torch-fp16, compile-bf16-nhwc or tensorrt-stream."""
        parts = NAME.fullmatch(text)
        if not parts or parts[1] not in [kind.value for kind in Kind]:
            raise unknown(text)
        kind = Kind(parts[1])
        return cls(kind, Precision(parts[2]) if parts[2] else PRECISIONS[kind][0], bool(parts[3]))

    def __str__(self) -> str:
        """As `parse` takes it."""
        usual = self.precision is PRECISIONS[self.kind][0]
        precision = [] if usual else [self.precision.value]
        return "-".join([self.kind.value, *precision, *([CHANNELS_LAST] if self.channels_last else [])])


def unknown(name: str) -> UsageError:
    kinds = ", ".join(kind.value for kind in Kind)
    return UsageError(
        f"--backend {name}",
        fix=f"choose from {kinds}; with -fp16 or -bf16, -{CHANNELS_LAST} where it has that: torch-fp16-nhwc",
    )


class Case(NamedTuple):
    """One piece of work, alike for all."""

    loops: int
    height: int  # pixels
    width: int  # pixels
    batch: int  # images at once

    def spec(self, contestant: Contestant) -> EngineSpec:
        """For backends. Raises UsageError for sizes and loops that are a slip of the hand."""
        return EngineSpec(**self._asdict(), precision=contestant.precision, pixel=Pixel.UINT8)

    def __str__(self) -> str:
        return f"T = {self.loops}, {self.height}x{self.width}, batch {self.batch}"


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """What all contestants share."""

    weights: str = "default"  # or a path
    threads: int | None = None  # on the CPU; None: one for each core
    device: str | None = None  # cpu, or a GPU's number; None: the first GPU there is, else the CPU
    store: Path | None = None  # of engines; None: the usual one


@dataclass(frozen=True)
class Opened:
    """A contestant that is ready."""

    run: Run  # restores the batch once
    clock: str  # by which a run is timed
    about: str = ""  # what exactly runs, where the name doesn't say it
    plan: str = ""  # of an engine: the start of its plan's SHA-256; of our kernels: their version


def usual_contestants(conditions: Conditions) -> tuple[Contestant, ...]:
    """What is worth a comparison here: engines and PyTorch's ways on a GPU, else what runs on the CPU."""
    if conditions.device != "cpu" and torch_sees_a_gpu():
        names = ["torch", "torch-fp16", "compile-fp16", "tensorrt", "tensorrt-stream"]
    else:
        names = [name for name in ("torch", "openvino") if find_spec(name)] + ["onnx"]
        names += ["native"] if is_built() else []
    return tuple(Contestant.parse(name) for name in names)


def place_of(contestant: Contestant, conditions: Conditions) -> Place:
    """Where it would run here; whether it can, opening it tells."""
    if contestant.kind in BY_TORCH and conditions.device is None:
        return Place.GPU if torch_sees_a_gpu() else Place.CPU
    if contestant.kind in BY_TORCH:
        return Place.CPU if conditions.device == "cpu" else Place.GPU
    on_gpu = (*OF_ENGINES, Kind.ONNX_GPU)
    return Place.GPU if contestant.kind in on_gpu else Place.CPU


def torch_sees_a_gpu() -> bool:
    try:
        import torch
    except ImportError:
        return False
    return torch.cuda.is_available()


@contextmanager
def open_contestant(contestant: Contestant, case: Case, conditions: Conditions) -> Iterator[Opened]:
    """The contestant with a batch of random images; all it took is freed at the end.

    Raises EnvironmentMissing, EngineError, DeviceError where something isn't there or has no room.
    """
    if conditions.device == "cpu" and place_of(contestant, conditions) is Place.GPU:
        raise EnvironmentMissing(f"{contestant}: runs on a GPU alone", fix="leave --device cpu away")
    if contestant.kind in BY_TORCH:
        need_torch(contestant)
        from cmudrn.deploy.benchmark.torch_timing import open_torch

        with open_torch(contestant, case, conditions) as opened:
            yield opened
    elif contestant.kind in OF_ENGINES:
        from cmudrn.deploy.benchmark.engine_timing import open_engine

        with open_engine(contestant, case, conditions) as opened:
            yield opened
    else:
        on = open_onnx_gpu if contestant.kind is Kind.ONNX_GPU else open_on_cpu
        with on(contestant, case, conditions) as opened:
            yield opened


@contextmanager
def open_on_cpu(contestant: Contestant, case: Case, conditions: Conditions) -> Iterator[Opened]:
    """The backends of `infer` that take any size."""
    from cmudrn.deploy.any_size import open_backend
    from cmudrn.deploy.job import CPU, BackendName, BackendOptions, InferJob

    name = BackendName(contestant.kind.value)
    options = BackendOptions(name=name, devices=(CPU,), threads=conditions.threads)
    job = InferJob(sources=(Path(),), loops=case.loops, weights=conditions.weights, backend=options)
    pixels = random_pixels(case)
    with open_backend(options.name, job, case.spec(contestant)) as backend:
        plan = kernels_version(contestant.precision) if contestant.kind is Kind.NATIVE else ""
        yield Opened(timed(lambda: list(backend.stream([pixels]))), "wall", backend.label, plan)


@contextmanager
def open_onnx_gpu(contestant: Contestant, case: Case, conditions: Conditions) -> Iterator[Opened]:
    """ONNX Runtime as `infer` runs it on a GPU. Raises EnvironmentMissing where it takes the CPU."""
    from cmudrn.deploy.any_size import graph_of
    from cmudrn.deploy.onnxruntime import CPU, OnnxBackend

    graph, pixels = graph_of(conditions.weights, case.loops, Pixel.UINT8), random_pixels(case)
    with OnnxBackend(graph, case.spec(contestant), device=conditions.device) as backend:
        if backend.taken[0] == CPU:
            raise EnvironmentMissing(
                f"{contestant}: nothing but the CPU starts: {backend.label}",
                fix="pip uninstall onnxruntime, then pip install onnxruntime-gpu",
            )
        yield Opened(timed(lambda: list(backend.stream([pixels]))), "wall", backend.label)


def need_torch(contestant: Contestant) -> None:
    """Raises EnvironmentMissing without PyTorch."""
    try:
        import torch  # noqa: F401
    except ImportError as exc:
        raise EnvironmentMissing(
            f"{contestant}: PyTorch is not installed", fix="pip install 'cmudrn[train]'"
        ) from exc


def random_pixels(case: Case) -> NDArray[np.uint8]:
    """Normal-random images around mid-grey, [B, H, W, 3]; equal cases, equal pixels."""
    rng = np.random.default_rng(list(case))
    levels = rng.standard_normal((case.batch, case.height, case.width, 3), np.float32) * 64 + 128
    return np.clip(levels, 0, 255).astype(np.uint8)
