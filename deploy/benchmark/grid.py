"""The paper's Fig. 4 on this machine: seconds over loops and sizes, by several programs in turns."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

from cmudrn.checkpoint import read_checkpoint
from cmudrn.deploy.benchmark.contestants import (
    OF_ENGINES,
    Case,
    Conditions,
    Contestant,
    Kind,
    Opened,
    Place,
    open_contestant,
    place_of,
)
from cmudrn.deploy.benchmark.peak import Peak, measure_peak
from cmudrn.deploy.benchmark.table import Cell, Gap, Key, Table, Terms
from cmudrn.deploy.benchmark.timing import Effort, Times, take_turns
from cmudrn.deploy.machine import available_cores, describe_machine
from cmudrn.deploy.native.library import kernels_version
from cmudrn.engines.spec import Precision
from cmudrn.errors import CmudrnError, UsageError

__all__ = ["BenchmarkPlan", "Measured", "run_benchmark", "terms_of"]


@dataclass(frozen=True, kw_only=True)
class BenchmarkPlan:
    """All cells that are wanted, and how they are measured. Checks itself."""

    contestants: tuple[Contestant, ...]
    cases: tuple[Case, ...]
    effort: Effort
    conditions: Conditions

    def __post_init__(self) -> None:
        if not self.contestants or not self.cases:
            raise UsageError("nothing to measure", fix="give loop counts, sizes and --backend")
        for case in self.cases:
            case.spec(self.contestants[0])  # raises for a slip of the hand

    def left(self, case: Case, table: Table) -> dict[Contestant, Key]:
        """Those that the table has no figure of; what was missing is tried again.

        A figure of an engine, or of our kernels, that were built anew since is none, nor is one of another
        instruction set; one of what is gone stays.
        """
        keys = {one: key_of(one, case, self.conditions) for one in self.contestants}
        return {one: key for one, key in keys.items() if not self._has(table, one, key)}

    def _has(self, table: Table, contestant: Contestant, key: Key) -> bool:
        cell = table.cells.get(key)
        if cell is None:
            return False
        try:
            return cell.plan == self._plan_now(contestant, key.case)
        except CmudrnError:
            return True

    def _plan_now(self, contestant: Contestant, case: Case) -> str:
        """As `Opened.plan`. Raises what opening it raises."""
        if contestant.kind is Kind.NATIVE:
            return kernels_version(contestant.precision)
        if contestant.kind not in OF_ENGINES:
            return ""
        from cmudrn.deploy.benchmark.engine_timing import plan_of

        return plan_of(contestant, case, self.conditions)

    def of(self, table: Table) -> tuple[list[Cell], list[Gap]]:
        """What the table has of this plan, in its order, and what is missing."""
        keys = [key_of(one, case, self.conditions) for case in self.cases for one in self.contestants]
        cells = [table.cells[key] for key in keys if key in table.cells]
        return cells, [table.gaps[key] for key in keys if key in table.gaps]


@dataclass(frozen=True)
class Measured:
    """A case that is done."""

    case: Case
    cells: tuple[Cell, ...]
    gaps: tuple[Gap, ...]


def key_of(contestant: Contestant, case: Case, conditions: Conditions) -> Key:
    return Key(str(contestant), place_of(contestant, conditions).value, *case)


def terms_of(conditions: Conditions) -> Terms:
    """Of this machine, now. Raises CheckpointError for weights that can't be read."""
    return Terms(
        machine=describe_machine(),
        weights_sha256=read_checkpoint(conditions.weights).sha256,
        threads=conditions.threads or available_cores(),
        gpu="0" if conditions.device in (None, "cpu") else str(conditions.device),
    )


def run_benchmark(plan: BenchmarkPlan, table: Table) -> Iterator[Measured]:
    """Measures what the table doesn't have yet, case by case; each is in it when it is given."""
    session = _Session(plan, time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))
    for case in plan.cases:
        measured = session.measure(case, plan.left(case, table))
        if measured.cells or measured.gaps:
            table.add(measured.cells, measured.gaps)
        yield measured


class _Session:
    """One call of the command: its cells may be compared with each other."""

    def __init__(self, plan: BenchmarkPlan, began: str) -> None:
        self.plan, self.began = plan, began
        self._peaks: dict[tuple[Place, Precision], Peak | None] = {}

    def measure(self, case: Case, wanted: dict[Contestant, Key]) -> Measured:
        """All that can be opened, in turns."""
        gaps: list[Gap] = []
        cells: list[Cell] = []
        with ExitStack() as taken:
            opened: dict[Contestant, Opened] = {}
            for one, key in wanted.items():
                try:
                    opened[one] = taken.enter_context(open_contestant(one, case, self.plan.conditions))
                except CmudrnError as exc:
                    gaps.append(Gap(key=key, reason=exc.what, fix=exc.fix))
            for one in opened:
                self._peak(one)
            outcomes = take_turns({one: ready.run for one, ready in opened.items()}, self.plan.effort)
        for one, outcome in outcomes.items():
            if isinstance(outcome, CmudrnError):
                gaps.append(Gap(key=wanted[one], reason=outcome.what, fix=outcome.fix))
            else:
                cells.append(self._cell(one, wanted[one], opened[one], outcome))
        return Measured(case, tuple(cells), tuple(gaps))

    def _cell(self, contestant: Contestant, key: Key, ready: Opened, times: Times) -> Cell:
        peak, batch = self._peak(contestant), key.batch
        return Cell(
            **key._asdict(),
            seconds=times.median_s / batch,
            lower_s=times.lower_s / batch,
            upper_s=times.upper_s / batch,
            least_s=times.least_s / batch,
            first_s=times.first_s,
            runs=times.runs,
            clock=ready.clock,
            about=ready.about,
            plan=ready.plan,
            peak_flops_per_s=peak.flops_per_s if peak else None,
            peak_bytes_per_s=peak.bytes_per_s if peak else None,
            began=self.began,
        )

    def _peak(self, contestant: Contestant) -> Peak | None:
        """Measured once; None where nothing here can."""
        what = place_of(contestant, self.plan.conditions), contestant.precision
        if what not in self._peaks:
            try:
                self._peaks[what] = measure_peak(*what, self.plan.conditions)
            except CmudrnError:
                self._peaks[what] = None
        return self._peaks[what]
