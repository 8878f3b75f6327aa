"""What the processor can do at best: `fma_peak.cpp`, compiled here for each instruction set."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from cmudrn.deploy.benchmark.arithmetic import flops, values_moved
from cmudrn.engines.spec import Precision
from cmudrn.errors import DeviceError, EnvironmentMissing
from contest.contestants import Contestant, Program
from contest.grid import Cell

__all__ = ["Peaks", "Probe", "Shares", "shares"]

SOURCE = Path(__file__).with_name("fma_peak.cpp")
FLAGS: Mapping[str, tuple[str, ...]] = {
    "base": (),
    "avx2": ("-mavx2", "-mfma"),
    "avx512": ("-mavx512f",),
    "avx512bf16": ("-mavx512f", "-mavx512bf16"),
}
NEEDED_FLAG = {"base": "", "avx2": "avx2", "avx512": "avx512f", "avx512bf16": "avx512_bf16"}
BYTES_A_VALUE = {Precision.FP32: 4, Precision.BF16: 2}


@dataclass(frozen=True, kw_only=True)
class Peaks:
    """Of all threads together, the best that was seen."""

    flops_per_s: Mapping[str, float]  # by instruction set; two for each multiply-add
    bytes_per_s: float  # of STREAM's triad, read and written

    def better(self, other: Peaks) -> Peaks:
        """The best of both, measured alike at two times."""
        return Peaks(
            flops_per_s={
                isa: max(rate, other.flops_per_s.get(isa, 0)) for isa, rate in self.flops_per_s.items()
            },
            bytes_per_s=max(self.bytes_per_s, other.bytes_per_s),
        )


class Probe(AbstractContextManager["Probe"]):
    """The compiled programs. Entering raises EnvironmentMissing without a C++ compiler."""

    def __init__(self, cpu_flags: Sequence[str]) -> None:
        self._isas = [isa for isa, flag in NEEDED_FLAG.items() if not flag or flag in cpu_flags]
        self._folder = TemporaryDirectory(prefix="cmudrn-peak-")
        self._programs: dict[str, Path] = {}

    def __enter__(self) -> Probe:
        for isa in self._isas:
            self._programs[isa] = compiled(isa, Path(self._folder.name))
        return self

    def __exit__(self, *ending: object) -> None:
        self._folder.cleanup()

    def measure(self, threads: int) -> Peaks:
        """A second for each instruction set. Raises DeviceError."""
        told = {isa: run(program, threads) for isa, program in self._programs.items()}
        return Peaks(
            flops_per_s={
                isa: rates["bf16_flops_per_s" if isa == "avx512bf16" else "flops_per_s"]
                for isa, rates in told.items()
            },
            bytes_per_s=max(rates["bytes_per_s"] for rates in told.values()),
        )


def compiled(isa: str, folder: Path) -> Path:
    """Raises EnvironmentMissing where that fails."""
    named = shlex.split(os.environ.get("CXX", ""))
    found = [path for name in ("c++", "g++", "clang++") if (path := shutil.which(name))]
    if not named and not found:
        raise EnvironmentMissing("the processor's peak: no C++ compiler", fix="install g++, or clang")
    program = folder / isa
    command = [
        *(named or found[:1]),
        "-O3",
        "-std=c++17",
        "-pthread",
        *FLAGS[isa],
        str(SOURCE),
        "-o",
        str(program),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = next(
            (line for line in done.stderr.splitlines() if "error" in line), f"exit code {done.returncode}"
        )
        raise EnvironmentMissing(f"the processor's peak: {reason}", fix="set CXX to another compiler")
    return program


def run(program: Path, threads: int) -> dict[str, float]:
    """Raises DeviceError where it ends without an answer, as on an instruction that isn't there."""
    try:
        done = subprocess.run([program, str(threads)], capture_output=True, text=True, check=True)
    except subprocess.CalledProcessError as exc:
        raise DeviceError(
            f"the processor's peak: {program.name} ended with exit code {exc.returncode}",
            fix="shares of the peak are left out; the rest is measured all the same",
        ) from exc
    return {name: float(rate) for name, rate in json.loads(done.stdout).items()}


@dataclass(frozen=True, kw_only=True)
class Shares:
    """How far a contestant got, at one piece of work."""

    flops_per_s: float  # of the direct convolutions, whatever it computes in their place
    of_peak: float | None  # of the multiply-adds in its instruction set; Winograd's way may pass 1
    of_bandwidth: (
        float | None
    )  # were each layer's input read and its output written once; fused, it may pass 1


def shares(contestant: Contestant, cell: Cell, peaks: Peaks | None) -> Shares:
    """peaks: with as many threads as the cell's; None where they were not measured."""
    work, seconds = cell.work, cell.times[contestant.name].median_s
    rate = flops(work.loops, work.height, work.width) / seconds
    if peaks is None:
        return Shares(flops_per_s=rate, of_peak=None, of_bandwidth=None)
    peak = peaks.flops_per_s.get(isa_of(contestant, peaks.flops_per_s))
    moved = BYTES_A_VALUE[contestant.precision] * values_moved(work.loops, work.height, work.width)
    return Shares(
        flops_per_s=rate,
        of_peak=rate / peak if peak else None,
        of_bandwidth=moved / seconds / peaks.bytes_per_s,
    )


def isa_of(contestant: Contestant, measured: Iterable[str]) -> str:
    """The instruction set whose peak a contestant is held against: the best one that it may use."""
    if contestant.program is Program.NATIVE:
        return "base" if contestant.isa == "direct" else contestant.isa or ""
    if contestant.environment:
        return "avx2"
    wanted = ("avx512bf16",) if contestant.precision is Precision.BF16 else ("avx512", "avx2", "base")
    return next((isa for isa in wanted if isa in measured), "")
