"""What is measured against what it is worth: quality by loop count, the frontier, the recommendation."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cmudrn.checkpoint import Checkpoint
from cmudrn.deploy.profile import Goal, Spread, Way
from cmudrn.deploy.tuning.frame_timing import FrameTimes

__all__ = ["Measured", "Quality", "frontier", "nearest", "quality_of", "recommended"]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A candidate's figures."""

    way: Way
    alone: Spread  # a frame alone
    stream: Spread  # a frame in a stream
    final: bool = False  # of the last round, or hopeless, so that there will be no other
    certified: bool = True  # its engine; without one, nothing needs a certificate

    @classmethod
    def of(cls, way: Way, times: FrameTimes, *, final: bool = False, certified: bool = True) -> Measured:
        return cls(
            way=way,
            alone=Spread.of(times.alone),
            stream=Spread.of(times.stream),
            final=final,
            certified=certified,
        )

    def of_goal(self, goal: Goal) -> Spread:
        """What the goal is about."""
        return self.alone if goal.fps is None else self.stream

    def meets(self, goal: Goal) -> bool:
        """At the 99th percentile."""
        return self.of_goal(goal).p99_s <= goal.budget_s


@dataclass(frozen=True)
class Quality:
    """What loop counts are worth: decibels where the weights know them, else the count itself stands in."""

    psnr_db: Mapping[int, float]  # by loops; empty where it is not known
    protocols: Sequence[str] = ()  # that it is the mean over

    def worth(self, loops: int) -> float:
        """More is better; of one kind for all loops."""
        return self.psnr_db[loops] if self.psnr_db else loops


def quality_of(checkpoint: Checkpoint, depths: Collection[int]) -> Quality:
    """Mean PSNR (RGB) over the protocols that the weights' own figures have for every one of these depths.

    These are the figures of the model card's table.
    """
    figures = checkpoint.training.get("figures")
    by_protocol = {
        str(protocol): values
        for protocol, told in (figures.items() if isinstance(figures, dict) else ())
        if (values := _psnr_by_loops(told)).keys() >= set(depths)
    }
    if not by_protocol:
        return Quality({})
    means = {
        loops: sum(values[loops] for values in by_protocol.values()) / len(by_protocol) for loops in depths
    }
    return Quality(means, tuple(by_protocol))


def _psnr_by_loops(figures: Any) -> dict[int, float]:
    """Of one protocol; what isn't as `tools/ship_weights.py` writes it is left aside."""
    try:
        restored = figures["by_loops"]["restored"]
        scores = {int(loops): float(score["psnr_rgb_db"]) for loops, score in restored.items()}
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}
    return {loops: psnr_db for loops, psnr_db in scores.items() if math.isfinite(psnr_db)}


def frontier(measured: Sequence[Measured], goal: Goal, quality: Quality) -> list[Measured]:
    """Those that no other beats: none is as good and as fast, and better in one of the two. Fastest first.

    Time is the goal's, at the 99th percentile. Of equals in both the first is kept.
    """
    found: list[Measured] = []
    for one in sorted(
        measured, key=lambda one: (one.of_goal(goal).p99_s, -quality.worth(one.way.loops), one.way.loops)
    ):
        if not found or quality.worth(one.way.loops) > quality.worth(found[-1].way.loops):
            found.append(one)
    return found


def recommended(points: Sequence[Measured], goal: Goal) -> Measured | None:
    """The most loops of a frontier that meet the goal; None: none does."""
    return max((one for one in points if one.meets(goal)), key=lambda one: one.way.loops, default=None)


def nearest(points: Sequence[Measured], goal: Goal) -> Measured | None:
    """What misses it least."""
    return min(points, key=lambda one: one.of_goal(goal).p99_s, default=None)
