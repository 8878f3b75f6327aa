"""The command that measures speed: it parses and calls."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cmudrn.cli.options import StoreFolder, Threads, Weights
from cmudrn.cli.speed_tables import print_cells, print_gaps, print_passes, progress, write_heatmap
from cmudrn.cli.values import need_positive, one_of, parse_counts, parse_depths, parse_sizes
from cmudrn.errors import UsageError

if TYPE_CHECKING:
    from cmudrn.deploy.benchmark.contestants import Conditions
    from cmudrn.deploy.benchmark.timing import Effort

__all__ = ["benchmark", "register"]

Names = Annotated[
    str | None,
    typer.Option(
        "--backend",
        metavar="NAME,...",
        help="torch, compile, native, onnx, onnx-gpu, openvino, tensorrt, tensorrt-stream; with -fp16 or "
        "-bf16, and -nhwc for PyTorch's channels last. Default: what is usual here.",
        show_default=False,
    ),
]
Loops = Annotated[
    str | None,
    typer.Option(metavar="N|A-B|A,B", help="Loop counts [default: 1-7; 3 end to end].", show_default=False),
]
Sizes = Annotated[
    list[str],
    typer.Option(
        "--size",
        metavar="SIDE|HxW|A-B:STEP",
        help="Pixels, height first; repeatable, or with commas [default: 100-1000:50].",
        show_default=False,
    ),
]
Batches = Annotated[
    str | None,
    typer.Option("--batch", metavar="N,...", help="Images at once [default: 1].", show_default=False),
]
Repeats = Annotated[
    int | None,
    typer.Option(
        metavar="N", help="Runs of each that count [default: 15; 3 end to end].", show_default=False
    ),
]
Warmup = Annotated[int, typer.Option(metavar="N", help="Runs before, that don't count.")]
Seconds = Annotated[
    float, typer.Option(metavar="S", help="For each backend at each size; a run counts however long.")
]
Device = Annotated[
    str | None,
    typer.Option(
        metavar="N|cpu", help="A GPU's number, or cpu. Default: the first GPU, if any.", show_default=False
    ),
]
Out = Annotated[
    Path, typer.Option("--out", "-o", metavar="OUT", help="Folder for the table and the heatmap.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Begin anew, instead of going on with OUT.")]
WholeWay = Annotated[
    bool, typer.Option("--end-to-end", help="Measure `cmudrn infer`, from decoding to encoding.")
]
Photos = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="End to end: these photographs. Default: eight made-up ones of 640x960.",
        show_default=False,
    ),
]


def register(app: typer.Typer) -> None:
    """Adds the command to the application."""
    app.command("benchmark")(benchmark)


def benchmark(
    backend: Names = None,
    loops: Loops = None,
    size: Sizes = [],  # noqa: B006 (Typer makes a new one)
    batch: Batches = None,
    repeats: Repeats = None,
    warmup: Warmup = 2,
    seconds: Seconds = 10.0,
    device: Device = None,
    threads: Threads = None,
    weights: Weights = "default",
    store: StoreFolder = None,
    out: Out = Path("cmudrn-benchmark"),
    overwrite: Overwrite = False,
    end_to_end: WholeWay = False,
    photos: Photos = None,
) -> int:
    """Measure speed: seconds an image over loops and sizes, the paper's Fig. 4 by default.

    Backends take turns at each size, so that their ratios are fair. Every figure is on disk as soon as it is
    measured: the same command goes on where it was stopped, on the same machine.
    """
    from cmudrn.deploy.benchmark.contestants import Conditions
    from cmudrn.deploy.benchmark.timing import Effort

    need_positive(threads=threads, repeats=repeats)
    conditions = Conditions(weights=weights, threads=threads, device=device, store=store)
    names = [] if backend is None else [name.strip() for name in backend.split(",")]
    if end_to_end:
        refuse_grid(size, batch)
        return measure_infer(names, parse_depths(loops or "3"), conditions, photos, out, passes=repeats or 3)
    if photos is not None:
        raise UsageError(f"--photos {photos}: the grid is of random images", fix="add --end-to-end")
    effort = Effort(warmup=warmup, repeats=repeats or 15, budget_s=seconds)
    grid = (
        parse_depths(loops or "1-7"),
        parse_sizes(size or ["100-1000:50"]),
        parse_counts("batch", batch or "1"),
    )
    return measure_grid(names, *grid, effort, conditions, out, overwrite=overwrite)


def refuse_grid(size: Sequence[str], batch: str | None) -> None:
    """Raises UsageError for what only the grid has."""
    told = [f"--size {part}" for part in size] + ([] if batch is None else [f"--batch {batch}"])
    if told:
        raise UsageError(f"{told[0]}: end to end, photographs have sizes of their own", fix="leave it away")


def measure_grid(
    names: Sequence[str],
    depths: Sequence[int],
    sizes: Sequence[tuple[int, int]],
    batches: Sequence[int],
    effort: Effort,
    conditions: Conditions,
    out: Path,
    *,
    overwrite: bool,
) -> int:
    """Exit code 1 where nothing could be measured."""
    from cmudrn.deploy.benchmark.contestants import Case, Contestant, usual_contestants
    from cmudrn.deploy.benchmark.grid import BenchmarkPlan, run_benchmark, terms_of
    from cmudrn.deploy.benchmark.table import Table

    plan = BenchmarkPlan(
        contestants=tuple(dict.fromkeys(map(Contestant.parse, names))) or usual_contestants(conditions),
        cases=tuple(Case(loops, *size, batch) for loops in depths for size in sizes for batch in batches),
        effort=effort,
        conditions=conditions,
    )
    table = Table.open(out, terms_of(conditions), overwrite=overwrite)
    try:
        with progress(len(plan.cases)) as show:
            for measured in run_benchmark(plan, table):
                show(measured)
    finally:  # Ctrl-C, too: what is measured is measured
        cells, gaps = plan.of(table)
        print_cells(table.terms, cells)
        print_gaps(gaps)
        write_heatmap(table)
    return 0 if cells else 1


def measure_infer(
    names: Sequence[str],
    depths: Sequence[int],
    conditions: Conditions,
    photos: Path | None,
    out: Path,
    *,
    passes: int,
) -> int:
    """Prints the pass of the median time for each backend and depth; all are in OUT/end-to-end.json."""
    from cmudrn.deploy.benchmark.end_to_end import (
        EndToEnd,
        jobs_of,
        median_pass,
        photos_or_made,
        run_end_to_end,
        write_passes,
    )
    from cmudrn.deploy.benchmark.grid import terms_of
    from cmudrn.deploy.job import BackendName

    backends = [one_of(BackendName, "--backend", name) for name in names or ["auto"]]
    measured: list[EndToEnd] = []
    medians: list[EndToEnd] = []
    with photos_or_made(photos) as folder:
        for job in jobs_of(folder, backends, depths, conditions):
            some = list(run_end_to_end(job, passes=passes))
            measured += some
            medians.append(median_pass(some))
    terms = terms_of(conditions)
    write_passes(measured, terms, out)
    print_passes(terms, medians)
    return 0
