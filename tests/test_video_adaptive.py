"""How many loops a frame gets, on made-up times: no clock, no network."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import pytest

from cmudrn.deploy.benchmark.arithmetic import flops
from cmudrn.deploy.video.adaptive import LoopController
from cmudrn.deploy.video.options import VideoOptions
from cmudrn.errors import UsageError

BUDGET_S = 0.04  # 25 frames a second
ALL = range(1, 8)


def frame_s(loops: int, at_three_s: float, *, besides_s: float = 0.0) -> float:
    """Of a machine that takes so long at T = 3; besides_s: what does not depend on the loops."""
    return besides_s + at_three_s * flops(loops, 1, 1) / flops(3, 1, 1)


def run(controller: LoopController, frames: int, seconds: Callable[[int], float]) -> list[int]:
    """The loop counts of so many frames. seconds: of a frame, by its count."""
    used = []
    for _ in range(frames):
        used.append(controller.loops)
        controller.observe(controller.loops, seconds(controller.loops))
    return used


def test_it_begins_with_the_most_and_stays_where_time_suffices() -> None:
    controller = LoopController(ALL, BUDGET_S)
    assert run(controller, 100, lambda loops: 0.01) == [7] * 100


@pytest.mark.parametrize(
    ("at_three_s", "loops"),
    [(0.03, 3), (0.04 * flops(3, 1, 1) / flops(5, 1, 1), 5), (0.1, 1), (10.0, 1)],
    ids=["fits three", "fits five exactly", "fits one", "fits none"],
)
def test_it_goes_down_at_once_to_what_fits(at_three_s: float, loops: int) -> None:
    controller = LoopController(ALL, BUDGET_S)
    used = run(controller, 60, lambda count: frame_s(count, at_three_s))
    assert used[0] == 7
    assert used[4:] == [loops] * 56  # a block of four is the longest that it waits


def test_a_block_that_is_lost_already_is_not_waited_for() -> None:
    controller = LoopController(ALL, BUDGET_S)
    assert run(controller, 3, lambda loops: frame_s(loops, 0.5)) == [7, 1, 1]


def test_it_comes_back_when_the_load_is_gone() -> None:
    controller = LoopController(range(1, 4), BUDGET_S)
    assert run(controller, 40, lambda loops: frame_s(loops, 0.06))[-1] < 3
    assert run(controller, 60, lambda loops: frame_s(loops, 0.02))[-1] == 3


def test_it_never_goes_below_the_least() -> None:
    controller = LoopController(range(2, 4), BUDGET_S)
    assert set(run(controller, 50, lambda loops: 1.0)) == {2, 3}


def test_only_the_counts_that_are_there_are_used() -> None:
    controller = LoopController([1, 3, 7], BUDGET_S)
    used = run(controller, 40, lambda loops: frame_s(loops, 0.05))
    used += run(controller, 60, lambda loops: frame_s(loops, 0.004))
    assert set(used) == {1, 3, 7}


def test_it_does_not_swing_where_the_next_count_nearly_fits() -> None:
    """T = 3 takes 1.1 budgets and T = 2 half of one: it stays at 2, and does not try 3 again and again."""
    controller = LoopController(range(1, 4), BUDGET_S)
    used = run(controller, 400, lambda loops: frame_s(loops, 1.1 * BUDGET_S))
    assert used[-100:] == [2] * 100
    assert sum(loops != later for loops, later in pairwise(used)) == 1


def test_steps_up_that_fail_are_tried_ever_more_seldom() -> None:
    """Time that does not follow the arithmetic: T = 3 looks as if it fitted, and never does."""
    controller = LoopController(range(2, 4), BUDGET_S)
    used = run(controller, 1000, lambda loops: 0.01 if loops == 2 else 0.05)
    tries = sum(used[at] == 2 and used[at + 1] == 3 for at in range(999))
    assert 2 <= tries <= 10
    assert used.count(2) > 900


def test_frames_that_come_back_by_batches_are_judged_together() -> None:
    """Of four at once, three take no time and one the time of all."""
    controller = LoopController(range(1, 4), BUDGET_S, block=4)
    times = [0.0, 0.0, 0.0, 0.12] * 25
    used = []
    for seconds in times:
        used.append(controller.loops)
        controller.observe(controller.loops, seconds)
    assert used == [3] * 100


def test_without_a_budget_nothing_moves() -> None:
    controller = LoopController([3], math.inf)
    assert run(controller, 20, lambda loops: 100.0) == [3] * 20


def test_frames_of_an_earlier_count_say_nothing_about_this_one() -> None:
    controller = LoopController(range(1, 4), BUDGET_S)
    run(controller, 4, lambda loops: 0.2)
    loops = controller.loops
    for _ in range(50):
        controller.observe(3, 0.2)
    assert controller.loops == loops == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"fps": 25.0}, "belong together"),
        ({"adaptive": True}, "belong together"),
        ({"fps": 0.0, "adaptive": True}, "--fps 0"),
        ({"fps": math.nan, "adaptive": True}, "--fps nan"),
        ({"min_loops": 0}, "--min-loops 0"),
        ({"min_loops": 8}, "--min-loops 8"),
        ({"start_s": 5.0, "end_s": 5.0}, "not after --start"),
        ({"start_s": -1.0}, "--start -1"),
        ({"crf": -1}, "--crf -1"),
        ({"crf": 64}, "--crf 64"),
    ],
    ids=str,
)
def test_options_that_make_no_sense_are_refused(options: dict[str, float], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        VideoOptions(**options)  # type: ignore[arg-type]


def test_the_least_may_not_be_more_than_the_most() -> None:
    options = VideoOptions(fps=25.0, adaptive=True, min_loops=4)
    assert list(options.counts(6)) == [4, 5, 6]
    with pytest.raises(UsageError, match="--min-loops 4 is more than --loops 3"):
        options.counts(3)
    assert list(VideoOptions(min_loops=4).counts(3)) == [3]
