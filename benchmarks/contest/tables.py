"""What was found as tables in Markdown, for docs/measurements.md."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from cmudrn.deploy.benchmark.arithmetic import flops
from cmudrn.deploy.benchmark.timing import Times
from contest.bars import Bar, linearity, speedups
from contest.contestants import Contestant, Work
from contest.grid import Cell
from contest.growth import Growth
from contest.peak import Peaks, shares
from contest.quality import Quality
from contest.whole_way import WholeWay

__all__ = [
    "bars_table",
    "grid_table",
    "growth_tables",
    "peaks_table",
    "quality_table",
    "shares_table",
    "whole_way_table",
]

GIGA = 1e9


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, words: int = 1) -> str:
    """words: columns of words, on the left; the others are figures."""
    rule = ["---"] * words + ["---:"] * (len(head) - words)
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *rows))


def grid_table(cells: Sequence[Cell], contestants: Sequence[Contestant], ours: str | None) -> str:
    """Milliseconds of an image; behind each, how often our best fits into it."""
    names = [one.name for one in contestants]
    rows = [
        [str(cell.work.threads), str(cell.work.loops), size_of(cell.work), *grid_cells(cell, names, ours)]
        for cell in sorted(cells, key=lambda cell: (-cell.work.threads, *cell.work))
    ]
    return table(["threads", "T", "size", *names, "rounds", "spread"], rows, words=3)


def grid_cells(cell: Cell, names: Sequence[str], ours: str | None) -> list[str]:
    if cell.left_out:
        return [*[""] * len(names), "", cell.left_out]
    texts = [in_ms(cell.times.get(name), cell.times.get(ours or "")) for name in names]
    runs = min((times.runs for times in cell.times.values()), default=0)
    return [*texts, str(runs), percent(spread(cell))]


def spread(cell: Cell) -> float | None:
    """Half the distance of the quartiles, of the median, for the one that has most of it."""
    shares = [(one.upper_s - one.lower_s) / 2 / one.median_s for one in cell.times.values()]
    return max(shares, default=None)


def in_ms(times: Times | None, ours: Times | None) -> str:
    if times is None:
        return "failed"
    ratio = f" ({times.median_s / ours.median_s:.2f}x)" if ours and times is not ours else ""
    return f"{milliseconds(times.median_s)}{ratio}"


def milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:,.{0 if seconds >= 0.1 else 1}f}"


def size_of(work: Work) -> str:
    return f"{work.height}x{work.width}"


def shares_table(cells: Sequence[Cell], contestants: Sequence[Contestant], peaks: Mapping[int, Peaks]) -> str:
    rows = []
    for cell in sorted(cells, key=lambda cell: (-cell.work.threads, *cell.work)):
        for one in contestants:
            if one.name not in cell.times:
                continue
            found = shares(one, cell, peaks.get(cell.work.threads))
            rows.append(
                [
                    *(str(cell.work.threads), str(cell.work.loops), size_of(cell.work), one.name),
                    f"{found.flops_per_s / GIGA:,.0f}",
                    percent(found.of_peak),
                    percent(found.of_bandwidth),
                ]
            )
    head = ["threads", "T", "size", "", "GFLOP/s", "of the FMA peak", "of the bandwidth"]
    return table(head, rows, words=4)


def percent(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}"


def peaks_table(peaks: Mapping[int, Peaks]) -> str:
    isas = next(iter(peaks.values())).flops_per_s
    rows = [
        [
            str(threads),
            *(f"{found.flops_per_s[isa] / GIGA:,.0f}" for isa in isas),
            f"{found.bytes_per_s / GIGA:.1f}",
        ]
        for threads, found in sorted(peaks.items())
    ]
    return table(["threads", *(f"{isa}, GFLOP/s" for isa in isas), "triad, GB/s"], rows)


def growth_tables(growth: Growth) -> str:
    parts = [pixels_table(loops, times, growth) for loops, times in growth.pixels.items()]
    if growth.loops:
        parts.append(loops_table(growth.loops))
    if growth.threads:
        parts.append(threads_table(growth.threads))
    named = "".join(
        f"\nNot enough memory free for T = {work.loops}, {size_of(work)}: "
        f"{growth.bytes_needed[work] / GIGA:.1f} GB beside the image."
        for work in growth.too_large
    )
    return "\n\n".join(parts) + named


def pixels_table(loops: int, times: Mapping[Work, Times], growth: Growth) -> str:
    off = linearity(times)
    rows = [
        [
            f"{work.height * work.width / 1e6:g}",
            f"{one.median_s:.3f}",
            f"{1e9 * one.median_s / (work.height * work.width):.1f}",
            f"{off[work]:+.1%}",
            f"{growth.bytes_needed[work] / 1e6:,.0f}",
            str(one.runs),
        ]
        for work, one in sorted(times.items())
    ]
    head = [f"megapixels, T = {loops}", "seconds", "ns a pixel", "off the line", "MB of memory", "runs"]
    return table(head, rows, words=0)


def loops_table(times: Mapping[Work, Times]) -> str:
    rows = [
        [
            str(work.loops),
            milliseconds(one.median_s),
            f"{flops(work.loops, work.height, work.width) / one.median_s / GIGA:,.0f}",
        ]
        for work, one in sorted(times.items())
    ]
    return table([f"T, {size_of(min(times))}", "ms", "GFLOP/s"], rows, words=0)


def threads_table(times: Mapping[Work, Times]) -> str:
    ratios = speedups(times)
    rows = [
        [str(work.threads), milliseconds(one.median_s), f"{ratios[work]:.2f}x"]
        for work, one in sorted(times.items())
    ]
    first = min(times)
    return table([f"threads, T = {first.loops}, {size_of(first)}", "ms", "speed"], rows, words=0)


def quality_table(qualities: Sequence[Quality]) -> str:
    rows = [
        [
            one.contestant,
            str(one.loops),
            f"{one.difference:.1e}",
            f"{one.difference_float64:.1e}",
            str(one.levels),
            f"{one.psnr_db:.1f}",
            f"{one.mean_psnr_db:.1f}",
            f"{one.parity_psnr_db:.1f}",
            f"{one.parity_mean_psnr_db:.1f}",
        ]
        for one in qualities
    ]
    head = ["", "T", "float32", "float64", "grey levels", "PSNR, worst", "PSNR, mean"]
    head += ["parity images, worst", "mean"]
    return table(head, rows)


def whole_way_table(found: WholeWay) -> str:
    rows = [
        [f"`cmudrn infer --backend {found.backend}`, the process", f"{found.infer_s:.2f}"],
        ["from the first image to the last", f"{found.pipeline_s:.2f}"],
        ["backend alone", f"{found.alone_s:.2f}"],
        ["decoding alone, one thread", f"{found.decode_s:.2f}"],
        ["encoding alone, one thread", f"{found.encode_s:.2f}"],
        *([f"lost: {name}", f"{seconds:+.2f}"] for name, seconds in found.losses_s.items()),
    ]
    head = f"{found.images} photographs, {found.megapixels:.1f} megapixels, T = {found.loops}"
    return table([head, "seconds"], rows)


def bars_table(bars: Sequence[Bar]) -> str:
    rows = [[bar.what, bar.bar, bar.found, bar.verdict] for bar in bars]
    return table(["", "bar", "found", ""], rows, words=4)
