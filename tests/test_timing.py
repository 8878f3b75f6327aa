"""Turns, and the arithmetic of what they took; a clock that the tests move stands for the wall's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from cmudrn.deploy.benchmark.timing import Effort, Times, take_turns, timed
from cmudrn.errors import CmudrnError, DeviceError, UsageError


@dataclass
class Course:
    """Contestants of told speeds, on a clock that stands still between their runs."""

    now_s: float = 0.0
    log: list[str] = field(default_factory=list)  # who ran, in order

    def clock(self) -> float:
        return self.now_s

    def run(self, name: str, *seconds: float) -> Callable[[], float]:
        """Takes these seconds, run by run; the last ones for ever."""

        def work() -> None:
            self.now_s += seconds[min(self.log.count(name), len(seconds) - 1)]
            self.log.append(name)

        return timed(work, self.clock)

    def times(self, effort: Effort, **runs: Callable[[], float]) -> dict[str, Times]:
        outcomes = take_turns(runs, effort, clock=self.clock)
        return {name: outcome for name, outcome in outcomes.items() if isinstance(outcome, Times)}


def test_medians_and_quartiles_of_the_runs() -> None:
    times = Times.of([5.0, 1.0, 2.0, 4.0, 3.0], first_s=9.0)
    assert times == Times(runs=5, median_s=3.0, lower_s=2.0, upper_s=4.0, least_s=1.0, first_s=9.0)
    alone = Times.of([7.0], first_s=7.0)
    assert (alone.median_s, alone.lower_s, alone.upper_s) == (7.0, 7.0, 7.0)


def test_what_warms_up_does_not_count() -> None:
    course = Course()
    times = course.times(Effort(warmup=2, repeats=3), a=course.run("a", 100.0, 5.0, 1.0))
    assert times["a"] == Times(runs=3, median_s=1.0, lower_s=1.0, upper_s=1.0, least_s=1.0, first_s=100.0)
    assert len(course.log) == 5


def test_slow_contestants_run_one_after_the_other() -> None:
    course = Course()
    times = course.times(Effort(warmup=0, repeats=3), a=course.run("a", 1.0), b=course.run("b", 2.0))
    assert course.log == ["a", "b"] * 3
    assert [times[name].median_s for name in "ab"] == [1.0, 2.0]


def test_quick_contestants_run_in_fives_after_one_that_does_not_count() -> None:
    """The run after another contestant is slower: its threads still spin."""
    course = Course()
    disturbed = [2**-6, *([2**-5, *[2**-6] * 5] * 2)]
    times = course.times(Effort(warmup=1, repeats=10), a=course.run("a", *disturbed), b=course.run("b", 0.01))
    assert "".join(course.log) == "ab" + ("aaaaaa" + "bbbbbb") * 2
    assert times["a"].upper_s == times["a"].least_s == 2**-6


def test_the_budget_ends_it_and_one_run_counts_whatever_it_takes() -> None:
    course = Course()
    effort = Effort(warmup=2, repeats=100, budget_s=10.0)
    times = course.times(effort, slow=course.run("slow", 60.0), middle=course.run("middle", 3.0))
    assert times["slow"].runs == 1
    assert course.log.count("slow") == 3  # the second warm-up was all the budget
    assert times["middle"].runs == 3  # 3 s of warm-up, then up to 12 s


def test_one_that_fails_does_not_stop_the_others() -> None:
    course = Course()

    def fails() -> float:
        course.log.append("x")
        raise DeviceError("no room")

    outcomes = take_turns({"x": fails, "a": course.run("a", 1.0)}, Effort(warmup=1, repeats=2))
    assert isinstance(outcomes["x"], DeviceError)
    assert isinstance(outcomes["a"], Times)
    assert course.log.count("x") == 1


def test_other_errors_are_nobodys_outcome() -> None:
    def broken() -> float:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        take_turns({"x": broken}, Effort())


@pytest.mark.parametrize(
    "told", [{"warmup": -1}, {"repeats": 0}, {"budget_s": 0.0}, {"budget_s": float("nan")}]
)
def test_an_effort_that_makes_no_sense_is_refused(told: dict[str, float]) -> None:
    with pytest.raises(UsageError) as refusal:
        Effort(**told)  # type: ignore[arg-type]
    assert isinstance(refusal.value, CmudrnError)
    assert refusal.value.fix
