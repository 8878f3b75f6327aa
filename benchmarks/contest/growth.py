"""How our kernels' time grows: with the image, with the loops, with the threads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import psutil

from cmudrn.deploy.benchmark.timing import Times
from contest.bars import Bar, linearity, speedups
from contest.contestants import Contestant, Work
from contest.grid import measure_series
from contest.workers import Worker

__all__ = ["Growth", "growth_bars", "measure_growth", "pixel_bar", "thread_bar", "thread_counts"]

SIDES_PX = (500, 1000, 2000, 4000, 6000, 8000, 10_000)  # 0.25 to 100 megapixels
PIXEL_LOOPS = (1, 3)  # each: at T = 3, 100 megapixels take seven times as long
DEPTHS = range(1, 8)
SIDE_PX = 500
THREADS_WORK = (3, 720, 1280)
# An image goes in and out, and the process that asks has neither.
IMAGE_BYTES_A_PIXEL = 6
MEMORY_SHARE = 0.8  # of what is free
OFF_BY = 0.05
TWICE = 1.9
SHARES_S = (0.35, 0.45, 0.1, 0.1)  # of the time: pixels at each of PIXEL_LOOPS, loops, threads


@dataclass(frozen=True, kw_only=True)
class Growth:
    """Times of one contestant; what no memory or no time was left for is not in them."""

    contestant: str
    pixels: Mapping[int, Mapping[Work, Times]]  # by loops; all threads
    bytes_needed: Mapping[Work, int]  # beside the images; of every size, measured or not
    too_large: Sequence[Work]  # for the free memory
    loops: Mapping[Work, Times]
    threads: Mapping[Work, Times]

    def to_json(self) -> dict[str, Any]:
        """Plain values: a list of works, each with its times, in the place of a mapping."""
        return {
            "contestant": self.contestant,
            "pixels": [row for times in self.pixels.values() for row in rows_of(times)],
            "bytes_needed": [[*work, need] for work, need in self.bytes_needed.items()],
            "too_large": list(self.too_large),
            "loops": rows_of(self.loops),
            "threads": rows_of(self.threads),
        }


def rows_of(times: Mapping[Work, Times]) -> list[dict[str, Any]]:
    return [{"work": work, **asdict(one)} for work, one in times.items()]


def measure_growth(contestant: Contestant, cores: int, limit_s: float, weights: str) -> Growth:
    """Raises what the contestant raises."""
    with Worker(contestant, weights) as worker:
        sizes = {loops: [Work(loops, side, side, cores) for side in SIDES_PX] for loops in PIXEL_LOOPS}
        needed = {work: worker.bytes_needed(work) or 0 for works in sizes.values() for work in works}
        too_large = [work for work, need in needed.items() if not fits(work, need)]
        pixels = {
            loops: measure_series(worker, [work for work in works if work not in too_large], share * limit_s)
            for (loops, works), share in zip(sizes.items(), SHARES_S, strict=False)
        }
        depths = [Work(loops, SIDE_PX, SIDE_PX, cores) for loops in DEPTHS]
        parts = [Work(*THREADS_WORK, threads) for threads in thread_counts(cores)]
        return Growth(
            contestant=contestant.name,
            pixels=pixels,
            bytes_needed=needed,
            too_large=too_large,
            loops=measure_series(worker, depths, SHARES_S[2] * limit_s),
            threads=measure_series(worker, parts, SHARES_S[3] * limit_s),
        )


def fits(work: Work, needed_bytes: int) -> bool:
    images = IMAGE_BYTES_A_PIXEL * work.height * work.width
    return needed_bytes + images < MEMORY_SHARE * int(psutil.virtual_memory().available)


def thread_counts(cores: int) -> list[int]:
    """1, 2, 4 and so on, and all."""
    return sorted({1 << power for power in range(cores.bit_length()) if 1 << power <= cores} | {cores})


def growth_bars(growth: Growth) -> list[Bar]:
    bars = [pixel_bar(loops, times) for loops, times in growth.pixels.items()]
    return [*bars, thread_bar(growth.threads)]


def thread_bar(times: Mapping[Work, Times]) -> Bar:
    """Not measured where one of both is missing."""
    found = {work.threads: ratio for work, ratio in speedups(times).items()}
    measured = {1, 2} <= set(found)
    return Bar(
        what=f"two threads against one, T = {THREADS_WORK[0]}, {THREADS_WORK[1]}x{THREADS_WORK[2]}",
        bar=f">= {TWICE:g}x",
        found=f"{found[2]:.2f}x" if measured else "",
        kept=found[2] >= TWICE if measured else None,
    )


def pixel_bar(loops: int, times: Mapping[Work, Times]) -> Bar:
    """Not measured where the largest size could not be, unless those that could miss it already."""
    what = f"time linear in the pixels, T = {loops}"
    wanted = f"within {OFF_BY:.0%} up to {SIDES_PX[-1] ** 2 / 1e6:g} megapixels"
    if not times:
        return Bar(what=what, bar=wanted, found="", kept=None)
    off = max(map(abs, linearity(times).values()))
    ends = [work.height * work.width / 1e6 for work in (min(times), max(times))]
    whole = max(times).height == SIDES_PX[-1]
    return Bar(
        what=what,
        bar=wanted,
        found=f"within {off:.1%}, {ends[0]:g} to {ends[1]:g} megapixels",
        kept=off <= OFF_BY if whole or off > OFF_BY else None,
    )
