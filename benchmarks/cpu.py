"""Our own kernels against the runtimes that people have, on this machine's CPU: the README's figures.

    python benchmarks/cpu.py --quick
    python benchmarks/cpu.py --json cpu.json
    python benchmarks/cpu.py --loops 3 --size 500x500 --threads 2 --contestants native-avx2,openvino-avx2

Contestants live in processes of their own and take turns, one image each: what else the machine does falls on
all alike, so that *ratios of one run* are fair. Figures are medians. All take and give uint8 pixels. ONNX
Runtime, and OpenVINO in bfloat16, take the shipped graph, where both branches are one grouped convolution;
OpenVINO in float32 takes one with the branches apart, which is 1.3 times as fast there; ours and PyTorch
take the weights, without a graph. GFLOP/s and shares are those of the direct convolutions:
2 (2T (864 + 9216 T + 432) + 3600) FLOP a pixel, whatever is computed in their place, so Winograd's way may
pass 100% of the peak; the share of the bandwidth is what a layer for itself would move, so fused ones may,
too. A processor's other load makes all figures worse: run it alone. Needs the extras `train`, `openvino` and
`bench`; what isn't there is left out, and named, and the peak needs a C++ compiler. --json is written after
each part anew, so that what was measured stays, whatever happens to the next one.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import psutil
from contest import tables
from contest.bars import Bar, speed_bars
from contest.contestants import Contestant, Work, best_of_ours, parse, usual, why_no_kernels, why_not
from contest.grid import MOST_ROUNDS, Cell, measure_grid
from contest.growth import Growth, growth_bars, measure_growth
from contest.peak import Peaks, Probe
from contest.quality import Quality, measure_quality, quality_bars
from contest.whole_way import WholeWay, measure_whole_way, whole_way_bar
from contest.workers import Worker
from machine import heading

from cmudrn.cli.values import parse_counts, parse_depths, parse_sizes
from cmudrn.deploy.job import BackendName
from cmudrn.deploy.machine import available_cores, describe_machine, processor
from cmudrn.errors import CmudrnError, DeviceError, EnvironmentMissing, UsageError
from cmudrn.files import replacing

WEIGHTS = "default"
MINUTES, QUICK_MINUTES = 60.0, 3.0
GROWTH_SHARE = 0.4  # of the grid's minutes, beside them
WHOLE_WAY_REPEATS = 3
WHOLE_WAY_DEPTHS = (1, 3)  # others where neither is told: at T = 7 reading and writing are as nothing
BUSY = 0.5  # processes, the mean of a minute


class Part(str, Enum):
    """What there is to measure."""

    GRID = "grid"  # contestants at loops, sizes and threads
    GROWTH = "growth"  # ours, with pixels, loops and threads
    QUALITY = "quality"  # all, against PyTorch
    INFER = "infer"  # the whole way from files to files


QUICK_PARTS = (Part.GRID, Part.QUALITY)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What the options say."""

    contestants: Sequence[Contestant]  # that can compete here
    left_out: Mapping[str, str]  # why the others cannot
    works: Sequence[Work]
    parts: Sequence[Part]
    minutes: float  # for the grid
    rounds: int  # at most
    photos: Path | None

    @property
    def ours(self) -> Contestant | None:
        return best_of_ours(self.contestants)

    @property
    def depths(self) -> list[int]:
        return sorted({work.loops for work in self.works})

    @property
    def most_threads(self) -> int:
        return max(work.threads for work in self.works)


@dataclass(kw_only=True)
class Found:
    """What was measured so far."""

    cells: list[Cell] = field(default_factory=list)
    peaks: dict[int, Peaks] = field(default_factory=dict)  # by threads
    growth: Growth | None = None
    qualities: list[Quality] = field(default_factory=list)
    whole_ways: list[WholeWay] = field(default_factory=list)  # by loops

    def bars(self, plan: Plan) -> list[Bar]:
        return [
            *(speed_bars(self.cells, plan.most_threads) if self.cells else []),
            *(quality_bars(self.qualities, plan.contestants) if self.qualities else []),
            *(growth_bars(self.growth) if self.growth else []),
            *map(whole_way_bar, self.whole_ways),
        ]

    def to_json(self, plan: Plan) -> dict[str, Any]:
        """Plain values, but for works as lists: loops, height, width, threads."""
        growth = self.growth
        return {
            "command": heading().splitlines()[0],
            "machine": describe_machine().to_json(),
            "left_out": dict(plan.left_out),
            "cells": [asdict(cell) for cell in self.cells],
            "peaks": {str(threads): asdict(peaks) for threads, peaks in self.peaks.items()},
            "growth": None if growth is None else growth.to_json(),
            "quality": [asdict(one) for one in self.qualities],
            "infer": [asdict(one) for one in self.whole_ways],
            "bars": [asdict(bar) for bar in self.bars(plan)],
        }


def run(plan: Plan, *, keep: Callable[[Found], None] = lambda found: None) -> Found:
    """Prints each table as soon as it is measured; what cannot be, says so, and the rest goes on.

    keep: gets all that was measured so far, after each part, also where that ended early.
    """
    found = Found()
    steps = {
        Part.GRID: measure_cells,
        Part.QUALITY: measure_qualities,
        Part.GROWTH: measure_how_it_grows,
        Part.INFER: measure_infer,
    }
    for part, measure in steps.items():
        if part in plan.parts:
            try:
                print(f"\n{measure(plan, found)}", flush=True)
            except CmudrnError as exc:
                print(f"\n{part.value}: not measured: {exc}", flush=True)
            finally:
                keep(found)
    return found


def measure_cells(plan: Plan, found: Found) -> str:
    with ExitStack() as taken:
        probe = open_probe(taken)
        measure_peaks(plan, found, probe)
        workers = [taken.enter_context(Worker(one, WEIGHTS)) for one in plan.contestants]
        cells = measure_grid(workers, plan.works, 60 * plan.minutes, rounds=plan.rounds)
        found.cells += shown(cells, len(plan.works))
        measure_peaks(plan, found, probe)  # again: clocks may have fallen meanwhile
    ours = plan.ours.name if plan.ours else None
    parts = [tables.grid_table(found.cells, plan.contestants, ours)]
    if found.peaks:
        parts.append(tables.peaks_table(found.peaks))
    parts.append(tables.shares_table(found.cells, plan.contestants, found.peaks))
    failures = {line: None for cell in found.cells for line in cell.failures.values()}
    return "\n\n".join([*parts, *failures])


def open_probe(taken: ExitStack) -> Probe | None:
    try:
        return taken.enter_context(Probe(processor()[1]))
    except EnvironmentMissing as exc:
        note(str(exc))
        return None


def measure_peaks(plan: Plan, found: Found, probe: Probe | None) -> None:
    for threads in sorted({work.threads for work in plan.works}) if probe else ():
        try:
            peaks = probe.measure(threads) if probe else None
        except DeviceError as exc:
            note(str(exc))
            continue
        if peaks:
            found.peaks[threads] = peaks.better(found.peaks.get(threads, peaks))


def shown(cells: Iterable[Cell], count: int) -> Iterator[Cell]:
    for number, cell in enumerate(cells, 1):
        note(f"{number}/{count}: {cell.work}{': ' + cell.left_out if cell.left_out else ''}")
        yield cell


def measure_qualities(plan: Plan, found: Found) -> str:
    found.qualities += measure_quality(plan.contestants, plan.depths, plan.most_threads, WEIGHTS)
    return tables.quality_table(found.qualities)


def measure_how_it_grows(plan: Plan, found: Found) -> str:
    ours = need_ours(plan)
    found.growth = measure_growth(ours, plan.most_threads, 60 * GROWTH_SHARE * plan.minutes, WEIGHTS)
    return tables.growth_tables(found.growth)


def measure_infer(plan: Plan, found: Found) -> str:
    need_ours(plan)
    try:
        backend = BackendName("native")
    except ValueError as exc:
        raise EnvironmentMissing("cmudrn infer has no --backend native", fix="install cmudrn again") from exc
    for loops in [depth for depth in plan.depths if depth in WHOLE_WAY_DEPTHS] or plan.depths:
        found.whole_ways.append(
            measure_whole_way(plan.photos, backend, loops, available_cores(), WHOLE_WAY_REPEATS)
        )
    return "\n\n".join(map(tables.whole_way_table, found.whole_ways))


def need_ours(plan: Plan) -> Contestant:
    if plan.ours is None:
        raise EnvironmentMissing("none of our own kernels competes", fix="build them, or name one")
    return plan.ours


def note(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def plan_of(arguments: argparse.Namespace) -> Plan:
    """Raises UsageError for what makes no sense."""
    quick, flags = arguments.quick, processor()[1]
    if arguments.rounds < 1:
        raise UsageError(f"--rounds {arguments.rounds}", fix="give 1 or more")
    named = (
        [parse(name) for name in arguments.contestants.split(",")] if arguments.contestants else usual(flags)
    )
    left_out = {one.name: reason for one in named if (reason := why_not(one, flags))}
    if not arguments.contestants and best_of_ours(named) is None:
        left_out["native"] = why_no_kernels()
    contestants = [one for one in named if one.name not in left_out]
    if not contestants:
        raise UsageError(f"--contestants {arguments.contestants}: {left_out}", fix="name others, or none")
    cores = available_cores()
    depths = parse_depths(arguments.loops or ("3" if quick else "1,3,7"))
    sizes = parse_sizes([arguments.size or ("500" if quick else "500,720x1280,1080x1920")])
    threads = parse_counts("threads", arguments.threads or f"1,{cores}")
    usual_parts = QUICK_PARTS if quick else tuple(Part)
    return Plan(
        contestants=contestants,
        left_out=left_out,
        works=[Work(loops, *size, count) for count in threads for size in sizes for loops in depths],
        parts=parse_parts(arguments.parts) if arguments.parts else usual_parts,
        minutes=arguments.minutes or (QUICK_MINUTES if quick else MINUTES),
        rounds=arguments.rounds,
        photos=arguments.photos,
    )


def parse_parts(text: str) -> tuple[Part, ...]:
    names = [part.value for part in Part]
    for name in text.split(","):
        if name not in names:
            raise UsageError(f"--parts {name}", fix=f"choose from {', '.join(names)}")
    return tuple(map(Part, text.split(",")))


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="T = 3, 500x500, grid and quality alone")
    parser.add_argument("--loops", metavar="N,...", help="T [default: 1,3,7]")
    parser.add_argument("--size", metavar="HxW,...", help="[default: 500,720x1280,1080x1920]")
    parser.add_argument("--threads", metavar="N,...", help="[default: 1, and one for each core]")
    parser.add_argument("--rounds", type=int, default=MOST_ROUNDS, metavar="N", help="at most [%(default)s]")
    parser.add_argument("--contestants", metavar="NAME,...", help="native-ISA, onnx, openvino, torch, ...")
    parser.add_argument("--parts", metavar="NAME,...", help=f"of {', '.join(Part)}")
    parser.add_argument(
        "--minutes",
        type=float,
        metavar="M",
        help=f"for the grid; rounds, in the end cases, are left out for it [{MINUTES:g}, quick "
        f"{QUICK_MINUTES:g}]; growth takes {GROWTH_SHARE:g} of that more",
    )
    parser.add_argument("--photos", type=Path, metavar="DIR", help="for infer [those of the package]")
    parser.add_argument("--json", type=Path, metavar="FILE", help="all figures, to compute with")
    return parser.parse_args()


def main() -> None:
    arguments = parsed()
    plan = plan_of(arguments)
    print(heading())
    if (load := psutil.getloadavg()[0]) > BUSY:
        print(f"The machine is busy with something else: its load was {load:.1f} before this began.")
    for name, reason in plan.left_out.items():
        print(f"{name} does not compete: {reason}")

    def keep(found: Found) -> None:
        if arguments.json:
            with replacing(arguments.json) as file:
                file.write(json.dumps(found.to_json(plan), indent=1).encode())

    found = run(plan, keep=keep)
    print(f"\n{tables.bars_table(found.bars(plan))}")


if __name__ == "__main__":
    try:
        main()
    except CmudrnError as error:
        sys.exit(str(error))
