"""What only a GPU can tell: engines, tests, parity, speed. Offline, within a budget of time; writes a report.

    make gpu-check
    python tools/gpu_check.py [--budget 600] [--out DIR] [--work DIR] [--flavors tensorrt,rtx]
                               [--loops 1,3,7] [--size N] [--batch N]

Every step is a command in a process of its own. Whatever isn't here is a line of the report, and the rest is
run all the same. Exit code 1 where a step or a bar failed, 0 where none did, also where nothing can be
checked. A GPU is not shared meanwhile, or the figures are somebody else's.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gpu_report import Report
from gpu_results import (
    EAGER,
    FLAVORS,
    KERNELS,
    STREAM,
    judge_engines_timed,
    judge_installation,
    judge_parity,
    judge_tests,
    memory_bars,
    parity_bar,
    read_engines,
    read_json,
    read_tests,
    speed_bars,
)
from gpu_steps import Budget, Outcome, State, Step, run_step, skipped

ROOT = Path(__file__).resolve().parent.parent
CMUDRN = (sys.executable, "-m", "cmudrn")
# Not `-m pytest`, which would search the working folder before all others.
PYTEST = (
    sys.executable,
    "-c",
    "import pytest, sys; sys.path = [p for p in sys.path if p]; sys.exit(pytest.main())",
)
DOCTOR_S = 60.0
# The share of the budget that is spent when a phase must be over; what one leaves, the next ones have.
BUILT, TESTED, COMPARED, TIMED = 0.40, 0.53, 0.77, 0.98
SHOWN = ("machine", "driver", "GPU", "pycuda", "cuda-bindings", *FLAVORS, "PyTorch", "ONNX Runtime")
BAR_LOOPS, BAR_SIZE, BAR_BATCH = 3, 500, 8
TEST_FILES = ("test_runtime.py", "test_engines.py")
MAIN_S, GRID_S = 10, 2  # for each contestant, at the bars' case and at the others
# TensorRT's words for a GPU that it has no kernels for: that GPU is none, as far as it is concerned.
UNSUPPORTED = ("is not supported by this TensorRT release", "Unsupported SM")


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """Engines: every loop count at every size with every batch."""

    loops: Sequence[int] = (1, 3, 7)
    sizes: Sequence[int] = (500, 1000)  # pixels a side
    batches: Sequence[int] = (1, 8)

    def __len__(self) -> int:
        return len(self.loops) * len(self.sizes) * len(self.batches)

    @property
    def of_the_bars(self) -> Matrix:
        """The one engine that the bars are about, or the nearest to it that there is."""
        loops, size, batch = (
            wanted if wanted in some else some[-1]
            for wanted, some in (
                (BAR_LOOPS, self.loops),
                (BAR_SIZE, self.sizes),
                (BAR_BATCH, self.batches),
            )
        )
        return Matrix(loops=(loops,), sizes=(size,), batches=(batch,))

    def options(self) -> list[str]:
        """But for the batches."""
        sizes = (part for size in self.sizes for part in ("--size", str(size)))
        return ["--loops", ",".join(map(str, self.loops)), *sizes]


class GpuCheck:
    """One run. labels: of FLAVORS. work: for engines, and for what the commands write."""

    def __init__(
        self, matrix: Matrix, labels: Sequence[str], budget: Budget, report: Report, work: Path, out: Path
    ) -> None:
        self.matrix, self.labels, self.budget = matrix, labels, budget
        self.report, self.work, self.out = report, work, out
        self.parts: dict[str, Mapping[str, Any]] = {}  # doctor's findings
        self.environment = {**os.environ, "PYTHONUNBUFFERED": "1"}

    def run(self) -> None:
        """Every phase; what is found is in the report, on disk after each step."""
        self.doctor()
        if "GPU" in self.parts and not self.is_there("GPU"):
            self.report.nothing_to_check = "no GPU"
            return
        flavors = [label for label in self.labels if self.usable(label)]
        for label in flavors[:]:
            if not self.build(label):
                flavors.remove(label)
        self.test(flavors)
        for label in flavors:
            self.compare(label)
        for label in flavors:
            self.time(label)
        self.time_compiled()

    # --- what is here -------------------------------------------------------------------------------------

    def doctor(self) -> None:
        """Engines of other runs are no matter here, hence a store of its own."""
        step = Step(
            name="doctor",
            command=[*CMUDRN, "doctor", "--json", "--store", self.work / "none"],
            read=partial(read_json, self.work / "stdout.txt"),
            judge=judge_installation,
        )
        outcome = self.step(step, min(DOCTOR_S, self.budget.until(TIMED)), keep_facts=False)
        for one in outcome.facts.get("findings", ()):
            self.parts.setdefault(one["part"], one)  # of several GPUs the first
        self.report.parts = {name: self.parts[name]["found"] for name in SHOWN if name in self.parts}
        self.report.machine = self.parts.get("machine", {}).get("facts", {})

    def is_there(self, part: str) -> bool:
        """Also where doctor failed, and nothing is known: the steps will tell."""
        return not self.parts or self.parts.get(part, {}).get("state") == "ok"

    def usable(self, label: str) -> bool:
        """Says why not."""
        for part in (label, "pycuda", "onnx"):
            if not self.is_there(part):
                self.add(skipped(label, f"{part}: {self.parts[part]['found']}"))
                return False
        targets = self.parts.get(label, {}).get("facts", {}).get("targets")
        here = self.parts.get("GPU", {}).get("facts", {}).get("target")
        if targets and here not in targets:
            self.add(skipped(label, f"builds for {', '.join(targets)}; this GPU is {here}"))
            return False
        return True

    # --- phases -------------------------------------------------------------------------------------------

    def build(self, label: str) -> bool:
        """The engine of the bars first. False where the flavour doesn't know this GPU."""
        whole = [
            Matrix(loops=self.matrix.loops, sizes=self.matrix.sizes, batches=(batch,))
            for batch in self.matrix.batches
        ]
        for part in (self.matrix.of_the_bars, *whole):
            [batch] = part.batches
            command = [*CMUDRN, "build-engine", "--flavor", FLAVORS[label], *part.options()]
            step = Step(
                name=f"{label}: engines for T = {listed(part.loops)} at {listed(part.sizes)}, batch {batch}",
                command=[*command, "--batch", str(batch), "--store", self.store(label)],
                read=partial(read_engines, self.store(label)),
            )
            outcome = self.step(step, self.budget.until(BUILT))
            unsupported = [line for line in outcome.last_lines if any(words in line for words in UNSUPPORTED)]
            if unsupported:
                self.report.outcomes[-1] = skipped(label, unsupported[0])
                return False
        return True

    def test(self, flavors: Sequence[str]) -> None:
        """flavors: those that build here."""
        if find_spec("pytest") is None:
            self.add(skipped("tests/gpu", "pytest is not installed: pip install 'cmudrn[test]'"))
            return
        for file in TEST_FILES:
            xml = self.work / f"{file}.xml"
            xml.unlink(missing_ok=True)
            names = ",".join(FLAVORS[label] for label in flavors) or "none"
            options = ["-c", ROOT / "pyproject.toml", "--rootdir", ROOT, "-rs", f"--junitxml={xml}"]
            step = Step(
                name=f"tests/gpu/{file}",
                command=[*PYTEST, ROOT / "tests" / "gpu" / file, *options, "--flavors", names],
                read=partial(read_tests, xml),
                judge=judge_tests,
            )
            outcome = self.step(step, self.budget.until(TESTED))
            if outcome.state is State.PASSED and not outcome.facts["passed"]:
                self.report.outcomes[-1] = replace(
                    outcome, state=State.SKIPPED, reason="; ".join(outcome.facts["skipped"])
                )
            if file == TEST_FILES[0]:
                self.report.bars += memory_bars(self.labels, outcome)

    def compare(self, label: str) -> None:
        """Parity of all engines there are."""
        name, found = f"{label}: parity", self.work / f"parity-{FLAVORS[label]}.json"
        found.unlink(missing_ok=True)
        if not self.is_there("PyTorch"):
            outcome = self.add(skipped(name, f"PyTorch: {self.parts['PyTorch']['found']}"))
        elif not self.has_engines(label):
            outcome = self.add(skipped(name, "no engine was built"))
        else:
            step = Step(
                name=name,
                command=[*CMUDRN, "parity-check", "--store", self.store(label), "--json", found],
                read=lambda: {"parity": read_json(found)["results"]},
                judge=judge_parity,
            )
            outcome = self.step(step, self.budget.until(COMPARED))
        self.report.bars.append(parity_bar(label, outcome, len(self.matrix)))

    def time(self, label: str) -> None:
        """The bars' case with its bars, then all others."""
        name = f"{label}: speed at the bars' case"
        if self.has_engines(label):
            contestants = [KERNELS, STREAM, *EAGER]
            outcome = self.benchmark(name, contestants, self.matrix.of_the_bars, MAIN_S, label)
        else:
            outcome = self.add(skipped(name, "no engine was built"))
        self.report.bars += speed_bars(label, outcome.facts, outcome.reason)
        if len(self.matrix) > 1 and self.has_engines(label):
            contestants = [KERNELS, STREAM, EAGER[0]]
            self.benchmark(f"{label}: speed everywhere", contestants, self.matrix, GRID_S, label)

    def has_engines(self, label: str) -> bool:
        return bool(read_engines(self.store(label))["engines"])

    def time_compiled(self) -> None:
        """torch.compile apart: what its compiler does stops no other step."""
        name, torch = "torch.compile", self.parts.get("PyTorch", {})
        if self.parts and not torch.get("facts", {}).get("cuda"):
            self.add(skipped(name, f"PyTorch: {torch.get('found')}"))
            return
        self.benchmark(name, [EAGER[0], "compile-fp16"], self.matrix.of_the_bars, MAIN_S, None)

    def benchmark(
        self, name: str, contestants: Sequence[str], matrix: Matrix, seconds: float, label: str | None
    ) -> Outcome:
        """A table of its own for each call: what is measured in another one isn't compared."""
        out = self.work / f"benchmark-{len(self.report.outcomes)}"
        command = [*CMUDRN, "benchmark", "--backend", ",".join(contestants), *matrix.options()]
        command += ["--batch", ",".join(map(str, matrix.batches)), "--seconds", str(seconds)]
        store = ["--store", self.store(label)] if label else []
        step = Step(
            name=name,
            command=[*command, "--device", "0", *store, "--out", out, "--overwrite"],
            read=lambda: {kind: read_json(out / "benchmark.json")[kind] for kind in ("cells", "missing")},
            judge=judge_engines_timed,
        )
        return self.step(step, self.budget.until(TIMED))

    # --- steps --------------------------------------------------------------------------------------------

    def store(self, label: str) -> Path:
        """One for each flavour: `benchmark` takes TensorRT's engine where it has both."""
        return self.work / f"engines-{FLAVORS[label]}"

    def step(self, step: Step, limit_s: float, *, keep_facts: bool = True) -> Outcome:
        print(f"{step.name} ... ", end="", flush=True)
        outcome = run_step(step, limit_s, self.work, self.environment)
        print(f"{outcome.state.value}, {outcome.seconds:.0f} s {outcome.reason}", flush=True)
        self.add(outcome if keep_facts else replace(outcome, facts={}))
        return outcome

    def add(self, outcome: Outcome) -> Outcome:
        self.report.outcomes.append(outcome)
        self.write()
        return outcome

    def write(self) -> None:
        self.report.spent_s = round(self.budget.spent_s, 1)
        names = {sys.executable: "python", str(self.work): "WORK", str(ROOT): "ROOT", str(Path.home()): "~"}
        self.report.write(self.out, {path: name for path, name in names.items() if len(Path(path).parts) > 1})


def listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    usual = Matrix()
    parser.add_argument("--budget", type=float, default=600.0, metavar="S", help="seconds for all of it")
    parser.add_argument("--out", type=Path, default=Path(), metavar="DIR", help="for the report")
    parser.add_argument("--work", type=Path, metavar="DIR", help="where engines are kept, and taken from")
    parser.add_argument(
        "--loops", type=lambda text: [int(part) for part in text.split(",")], default=usual.loops
    )
    parser.add_argument("--flavors", default=",".join(FLAVORS.values()), metavar="NAME,...")
    parser.add_argument("--size", type=int, action="append", metavar="N", help="repeatable")
    parser.add_argument("--batch", type=int, action="append", metavar="N", help="repeatable")
    return parser.parse_args()


def main() -> int:
    told = parse_arguments()
    usual = Matrix()
    matrix = Matrix(loops=told.loops, sizes=told.size or usual.sizes, batches=told.batch or usual.batches)
    labels = [label for label, flavor in FLAVORS.items() if flavor in told.flavors.split(",")]
    report = Report(began=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), budget_s=told.budget)
    with tempfile.TemporaryDirectory() as scratch:
        work = (told.work or Path(scratch)).absolute()
        work.mkdir(parents=True, exist_ok=True)
        check = GpuCheck(matrix, labels, Budget(told.budget), report, work, told.out)
        try:
            check.run()
        except KeyboardInterrupt:
            report.interrupted = True
        check.write()
    print(f"\n{report.verdict}\n{told.out / 'gpu-report.md'}, {told.out / 'gpu-report.json'}")
    return report.exit_code


if __name__ == "__main__":
    sys.exit(main())
