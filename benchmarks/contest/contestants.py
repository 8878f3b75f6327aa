"""Who competes on the CPU: our kernels in each instruction set, and the runtimes that people have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from importlib.util import find_spec
from typing import TYPE_CHECKING, NamedTuple

from cmudrn.engines.layout import FOR_ONNX_RUNTIME, Branches, Layout
from cmudrn.engines.spec import EngineSpec, Pixel, Precision
from cmudrn.errors import CmudrnError, UsageError

if TYPE_CHECKING:
    from cmudrn.deploy.backend import Backend

__all__ = [
    "OURS",
    "Contestant",
    "Program",
    "Work",
    "best_of_ours",
    "open_contestant",
    "parse",
    "usual",
    "why_no_kernels",
    "why_not",
]

OURS = "native-"
BF16_ISA = "avx512bf16"
PLAIN_ISAS = ("base", "direct")  # competing only where there is nothing better, or where asked for


class Program(str, Enum):
    """By the name that is imported."""

    NATIVE = "cmudrn"
    ONNX = "onnxruntime"
    OPENVINO = "openvino"
    TORCH = "torch"


class Work(NamedTuple):
    """One image, restored by so many threads."""

    loops: int
    height: int  # pixels
    width: int  # pixels
    threads: int

    def __str__(self) -> str:
        return f"T = {self.loops}, {self.height}x{self.width}, {self.threads} threads"


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """A program and how it is told to compute."""

    name: str
    program: Program
    precision: Precision = Precision.FP32
    isa: str | None = None  # of ours; None: the program's own choice
    # Each in the layout that it is fastest with; ours and PyTorch have but one.
    layout: Layout = FOR_ONNX_RUNTIME
    environment: Mapping[str, str] = field(
        default_factory=dict
    )  # of its process, before anything is imported


# OpenVINO takes the separate branches 1.3 times as fast in float32 as the shipped, grouped ones.
SEPARATE = Layout(branches=Branches.SEPARATE)
OTHERS = {
    one.name: one
    for one in (
        Contestant(name="onnx", program=Program.ONNX),
        Contestant(name="openvino", program=Program.OPENVINO, layout=SEPARATE),
        Contestant(
            name="openvino-avx2",
            program=Program.OPENVINO,
            layout=SEPARATE,
            environment={"ONEDNN_MAX_CPU_ISA": "AVX2"},
        ),
        Contestant(name="openvino-bf16", program=Program.OPENVINO, precision=Precision.BF16),
        Contestant(name="torch", program=Program.TORCH),
    )
}


def parse(name: str) -> Contestant:
    """`native-avx2` and the like, or one of OTHERS. Raises UsageError for another name."""
    if name in OTHERS:
        return OTHERS[name]
    isa = name.removeprefix(OURS)
    if isa in (name, ""):
        raise UsageError(f"--contestants {name}", fix=f"choose from {OURS}ISA, {', '.join(OTHERS)}")
    precision = Precision.BF16 if isa == BF16_ISA else Precision.FP32
    return Contestant(name=name, program=Program.NATIVE, precision=precision, isa=isa)


def usual(flags: Sequence[str]) -> list[Contestant]:
    """Those worth a comparison on a processor with these flags, ours first.

    flags: as `cmudrn.deploy.machine.processor` gives them.
    """
    others = [one for one in OTHERS.values() if one.precision is not Precision.BF16 or has_bf16(flags)]
    if "avx512f" not in flags:  # OpenVINO takes no more than AVX2 anyway
        others = [one for one in others if not one.environment]
    return [*map(parse, our_names()), *others]


def our_names() -> list[str]:
    """Best first, bfloat16 last; none where our kernels were not built."""
    try:
        from cmudrn.deploy.native.library import has_isa, usable_isas

        isas = list(usable_isas())
    except (ImportError, CmudrnError):
        return []
    better = [isa for isa in isas if isa not in PLAIN_ISAS]
    return [f"{OURS}{isa}" for isa in (better or isas[:1]) + [BF16_ISA] * has_isa(BF16_ISA)]


def best_of_ours(contestants: Sequence[Contestant]) -> Contestant | None:
    """The first in float32: as `usual` has them, that of the best instruction set."""
    ours = (one for one in contestants if one.program is Program.NATIVE and one.precision is Precision.FP32)
    return next(ours, None)


def why_not(contestant: Contestant, flags: Sequence[str]) -> str:
    """Why it cannot compete here, in a line; empty where it can."""
    if contestant.program is Program.NATIVE:
        return why_no_kernels(contestant.isa or "")
    if not find_spec(contestant.program.value):
        return f"{contestant.program.value} is not installed"
    if contestant.precision is Precision.BF16 and not has_bf16(flags):
        return "this processor has no bfloat16"
    return ""


def why_no_kernels(isa: str = "direct") -> str:
    """By default: whether there are any of ours, for that one is in every build of them."""
    try:
        from cmudrn.deploy.native.library import has_isa

        return "" if has_isa(isa) else f"no {isa} in this build, or on this processor"
    except ImportError as exc:
        return str(exc)
    except CmudrnError as exc:
        return exc.what


def has_bf16(flags: Sequence[str]) -> bool:
    return bool({"avx512_bf16", "amx_bf16", "bf16"} & set(flags))


def open_contestant(contestant: Contestant, work: Work, pixel: Pixel, weights: str) -> Backend:
    """Its backend, to be entered, which takes images of any size. Raises what opening it raises."""
    spec = EngineSpec(
        loops=work.loops,
        height=work.height,
        width=work.width,
        precision=contestant.precision,
        pixel=pixel,
    )
    if contestant.program in (Program.NATIVE, Program.TORCH):
        return of_a_checkpoint(contestant, spec, work.threads, weights)
    from cmudrn.deploy.any_size import graph_of

    graph = graph_of(weights, work.loops, pixel, contestant.layout)
    if contestant.program is Program.OPENVINO:
        from cmudrn.deploy.openvino import OpenVinoBackend

        return OpenVinoBackend(graph, spec, threads=work.threads)
    from cmudrn.deploy.onnxruntime import OnnxBackend

    return OnnxBackend(graph, spec, threads=work.threads, device="cpu")


def of_a_checkpoint(contestant: Contestant, spec: EngineSpec, threads: int, weights: str) -> Backend:
    from cmudrn.checkpoint import read_checkpoint

    checkpoint = read_checkpoint(weights)
    if contestant.program is Program.TORCH:
        from cmudrn.deploy.torch import TorchBackend

        return TorchBackend(checkpoint, spec, threads=threads)
    from cmudrn.deploy.native import NativeBackend

    return NativeBackend(checkpoint, spec, threads=threads, isa=contestant.isa)
