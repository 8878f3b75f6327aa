"""Every contestant at every piece of work, by turns, within the time that is given for all of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from cmudrn.deploy.benchmark.arithmetic import flops
from cmudrn.deploy.benchmark.timing import Effort, Run, Times, take_turns
from cmudrn.errors import CmudrnError
from contest.contestants import Work
from contest.workers import Worker

__all__ = ["MOST_ROUNDS", "Allowance", "Cell", "cost", "in_order", "measure_grid", "measure_series"]

MOST_ROUNDS = 15
ROUNDS_AFTER_WARMING_UP = 3  # with fewer, a round that doesn't count is a luxury
OPENING_PX = 256  # side of the image that opens a backend: libraries, threads, weights
Clock = Callable[[], float]


def cost(work: Work) -> float:
    """What its time is about proportional to, whoever does it."""
    return flops(work.loops, work.height, work.width) / work.threads


def in_order(works: Sequence[Work]) -> list[Work]:
    """The quick ones first: they foretell what the others will take."""
    return sorted(works, key=lambda work: (cost(work), work))


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What the contestants took for one piece of work, by name."""

    work: Work
    times: Mapping[str, Times] = field(default_factory=dict)
    failures: Mapping[str, str] = field(default_factory=dict)
    left_out: str = ""  # why nothing was measured


class Allowance:
    """Rounds for each piece of work, so that the time for all of them suffices; one never fails for that.

    The time left is shared by what the works cost; what an easy one leaves is the others'.
    """

    def __init__(
        self,
        works: Sequence[Work],
        limit_s: float,
        *,
        most_rounds: int = MOST_ROUNDS,
        clock: Clock = time.perf_counter,
    ) -> None:
        self._waiting = list(works)
        self._most_rounds, self._clock = most_rounds, clock
        self._until = clock() + limit_s
        self._rates: dict[int, float] = {}  # by threads: seconds of a round for each unit of cost

    @property
    def left_s(self) -> float:
        return self._until - self._clock()

    def knows(self, work: Work) -> bool:
        """Whether something with as many threads was measured before."""
        return work.threads in self._rates

    def learn(self, work: Work, round_s: float) -> None:
        """round_s: what a run of each contestant took, with all that goes on around it."""
        self._rates[work.threads] = round_s / cost(work)

    def effort(self, work: Work) -> Effort | None:
        """For the next of the works, which is done then. None where not even one round fits."""
        shared = self.left_s * cost(work) / sum(map(cost, self._waiting))
        self._waiting.remove(work)
        round_s = self._rates[work.threads] * cost(work)
        if round_s > self.left_s:
            return None
        rounds = max(1, int(shared / round_s))
        warmup = 1 if rounds > ROUNDS_AFTER_WARMING_UP else 0
        repeats = min(self._most_rounds, rounds - warmup)
        return Effort(warmup=warmup, repeats=repeats, budget_s=max(shared, round_s))


def measure_grid(
    workers: Sequence[Worker], works: Sequence[Work], limit_s: float, *, rounds: int = MOST_ROUNDS
) -> Iterator[Cell]:
    """Each as soon as it is measured, the quick ones first. rounds: at most."""
    order = in_order(works)
    allowance = Allowance(order, limit_s, most_rounds=rounds)
    for work in order:
        runs: dict[str, Run] = {worker.contestant.name: partial(worker.run, work) for worker in workers}
        for worker in workers:
            open_for(worker, work)
        if not allowance.knows(work):
            began = time.perf_counter()
            take_turns(runs, Effort(warmup=0, repeats=1))
            allowance.learn(work, time.perf_counter() - began)
        effort = allowance.effort(work)
        if effort is None:
            yield Cell(work=work, left_out="no time was left")
        else:
            began = time.perf_counter()
            cell = outcome(work, take_turns(runs, effort))
            allowance.learn(work, (time.perf_counter() - began) / (effort.warmup + effort.repeats))
            yield cell
        for worker in workers:
            forget(worker)


def measure_series(worker: Worker, works: Sequence[Work], limit_s: float) -> dict[Work, Times]:
    """One contestant at several pieces of work, by turns: the machine's moods fall on all alike.

    Leaves out the costly ones for which the time doesn't suffice. Raises what the contestant raises.
    """
    if not works:
        return {}
    order = in_order(works)
    worker.run(order[0])
    rate = worker.run(order[0]) / cost(order[0])
    while sum(map(cost, order)) * rate > limit_s / 2 and len(order) > 1:
        order.pop()
    effort = Effort(warmup=1, repeats=MOST_ROUNDS, budget_s=limit_s / len(order))
    outcomes = take_turns({work: partial(worker.run, work) for work in order}, effort)
    worker.forget()
    return {work: found for work, found in outcomes.items() if isinstance(found, Times)}


def open_for(worker: Worker, work: Work) -> None:
    """Whatever goes wrong shows itself again in the run."""
    try:
        worker.run(work._replace(height=OPENING_PX, width=OPENING_PX))
    except CmudrnError:
        return


def forget(worker: Worker) -> None:
    try:
        worker.forget()
    except CmudrnError:  # its process has ended
        return


def outcome(work: Work, found: Mapping[str, Times | CmudrnError]) -> Cell:
    return Cell(
        work=work,
        times={name: one for name, one in found.items() if isinstance(one, Times)},
        failures={name: str(one) for name, one in found.items() if isinstance(one, CmudrnError)},
    )
