"""What was promised, and whether it was kept: a bar is kept where every case keeps it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cmudrn.deploy.benchmark.timing import Times
from cmudrn.wording import counted
from contest.contestants import Work
from contest.grid import Cell

__all__ = ["SPEED_BARS", "Bar", "SpeedBar", "linearity", "speed_bars", "speedups"]


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One promise: its words, the bar, what came out."""

    what: str
    bar: str
    found: str
    kept: bool | None  # None: not measured

    @property
    def verdict(self) -> str:
        return "not measured" if self.kept is None else "kept" if self.kept else "**missed**"


@dataclass(frozen=True, kw_only=True)
class SpeedBar:
    """So many times another's speed."""

    ours: str
    other: str
    least: float


SPEED_BARS = (
    SpeedBar(ours="native-avx512", other="onnx", least=4.0),
    SpeedBar(ours="native-avx512", other="openvino", least=3.0),
    SpeedBar(ours="native-avx2", other="openvino-avx2", least=2.5),
    SpeedBar(ours="native-avx512bf16", other="openvino-bf16", least=1.8),
)
HEADLINE = (3, 500, 500)


def speed_bars(cells: Sequence[Cell], threads: int) -> list[Bar]:
    """On that many threads, all cases of the grid."""
    of_all = [cell for cell in cells if cell.work.threads == threads]
    return [speed_bar(bar, of_all) for bar in SPEED_BARS]


def speed_bar(bar: SpeedBar, cells: Sequence[Cell]) -> Bar:
    what = f"{bar.ours} against {bar.other}, all threads"
    ratios = {
        cell.work: cell.times[bar.other].median_s / cell.times[bar.ours].median_s
        for cell in cells
        if {bar.ours, bar.other} <= set(cell.times)
    }
    wanted = f">= {bar.least:g}x"
    if not ratios:
        return Bar(what=what, bar=wanted, found="", kept=None)
    least, most = min(ratios.values()), max(ratios.values())
    passed = sum(ratio >= bar.least for ratio in ratios.values())
    found = f"{least:.2f}x to {most:.2f}x, kept in {passed} of {counted(len(ratios), 'case')}"
    headline = [ratio for work, ratio in ratios.items() if work[:3] == HEADLINE]
    if headline:
        found += f"; {headline[0]:.2f}x at T = {HEADLINE[0]}, {HEADLINE[1]}x{HEADLINE[2]}"
    return Bar(what=what, bar=wanted, found=found, kept=passed == len(ratios))


def linearity(times: Mapping[Work, Times]) -> dict[Work, float]:
    """By how much each time is above the straight line through zero that fits them best, as a share of it.

    Best: the largest of these shares, either way, is as small as can be.
    """
    if not times:
        return {}
    rates = {work: one.median_s / (work.height * work.width) for work, one in times.items()}
    middle = (max(rates.values()) + min(rates.values())) / 2
    return {work: rate / middle - 1 for work, rate in rates.items()}


def speedups(times: Mapping[Work, Times]) -> dict[Work, float]:
    """Against the one with the fewest threads, which counts for one."""
    if not times:
        return {}
    first = min(times, key=lambda work: work.threads)
    return {work: times[first].median_s / one.median_s for work, one in times.items()}
