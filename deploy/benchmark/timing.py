"""Contestants timed at the same work by turns: what else the machine does falls on all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from cmudrn.errors import CmudrnError, UsageError

__all__ = ["Effort", "Times", "take_turns", "timed"]

# A turn of runs as quick as that is several of them, after one that doesn't count: libraries' threads spin
# for some milliseconds after their work and hold a core, and the caches are those of who went before.
QUICK_S = 0.05
QUICK_RUNS = 5

Name = TypeVar("Name")
Run = Callable[[], float]  # does the work once; returns the seconds, by a clock of its own


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How long each contestant is timed at one piece of work."""

    warmup: int = 2  # runs before, that don't count
    repeats: int = 15  # runs that count
    budget_s: float = 10.0  # no run begins after that; the very first is free, and one counts in any case

    def __post_init__(self) -> None:
        if self.warmup < 0 or self.repeats < 1:
            option, value = ("--warmup", self.warmup) if self.warmup < 0 else ("--repeats", self.repeats)
            raise UsageError(f"{option} {value}", fix="give 2 and 15, or more")
        if not self.budget_s > 0:
            raise UsageError(f"--seconds {self.budget_s:g}", fix="give more than 0")


@dataclass(frozen=True, kw_only=True)
class Times:
    """Seconds of one run: the median, and how the runs spread around it."""

    runs: int
    median_s: float
    lower_s: float  # a quarter of the runs took less
    upper_s: float  # a quarter took more
    least_s: float
    first_s: float  # of the very first run, which compiles and allocates; it counts only without a warm-up

    @classmethod
    def of(cls, seconds: Sequence[float], first_s: float) -> Times:
        """seconds: of each run that counts, at least one."""
        lower = upper = seconds[0]
        if len(seconds) > 1:
            lower, _, upper = statistics.quantiles(seconds, n=4, method="inclusive")
        return cls(
            runs=len(seconds),
            median_s=statistics.median(seconds),
            lower_s=lower,
            upper_s=upper,
            least_s=min(seconds),
            first_s=first_s,
        )


def timed(work: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> Run:
    """The work as a run, timed by the wall's clock."""

    def run() -> float:
        began = clock()
        work()
        return clock() - began

    return run


def take_turns(
    contestants: Mapping[Name, Run], effort: Effort, *, clock: Callable[[], float] = time.perf_counter
) -> dict[Name, Times | CmudrnError]:
    """What each contestant's runs took, or why it failed; the others go on.

    clock: of the budget, not of the runs.
    """
    runners = {name: _Runner(run, effort, clock) for name, run in contestants.items()}
    for runner in runners.values():
        runner.warm_up()
    while unfinished := [runner for runner in runners.values() if not runner.finished]:
        for runner in unfinished:
            runner.take_turn()
    return {name: runner.outcome for name, runner in runners.items()}


class _Runner:
    """One contestant on its way."""

    def __init__(self, run: Run, effort: Effort, clock: Callable[[], float]) -> None:
        self.run, self.effort, self.clock = run, effort, clock
        self.seconds: list[float] = []  # of the runs that count
        self.began = False
        self.spent_s = 0.0  # of the budget
        self.first_s = self.last_s = 0.0
        self.error: CmudrnError | None = None

    @property
    def outcome(self) -> Times | CmudrnError:
        return self.error or Times.of(self.seconds, self.first_s)

    @property
    def finished(self) -> bool:
        return bool(self.error) or len(self.seconds) >= self.effort.repeats or self._spent_all

    @property
    def _spent_all(self) -> bool:
        return self.spent_s >= self.effort.budget_s and bool(self.seconds)

    def warm_up(self) -> None:
        for _ in range(self.effort.warmup):
            if not self.error and self.spent_s < self.effort.budget_s:
                self._once()

    def take_turn(self) -> None:
        quick = 0 < self.last_s < QUICK_S
        if quick:
            self._once()
        for _ in range(QUICK_RUNS if quick else 1):
            if not self.finished:
                self._once()
                if not self.error:
                    self.seconds.append(self.last_s)

    def _once(self) -> None:
        began = self.clock()
        try:
            self.last_s = self.run()
            self.first_s = self.first_s or self.last_s
        except CmudrnError as exc:
            self.error = exc
        if self.began:
            self.spent_s += self.clock() - began
        self.began = True
