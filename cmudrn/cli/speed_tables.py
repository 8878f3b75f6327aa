"""How speed looks on a terminal: a row for each backend at each size, and where the time of `infer` goes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import TYPE_CHECKING

import typer

from cmudrn.errors import EnvironmentMissing
from cmudrn.wording import counted

if TYPE_CHECKING:
    from rich.table import Table as RichTable

    from cmudrn.deploy.benchmark.contestants import Case
    from cmudrn.deploy.benchmark.end_to_end import EndToEnd
    from cmudrn.deploy.benchmark.grid import Measured
    from cmudrn.deploy.benchmark.table import Cell, Gap, Table, Terms

__all__ = ["print_cells", "print_gaps", "print_passes", "progress", "write_heatmap"]

COLUMNS = ("T", "size", "batch", "backend", "s/image", "±", "FPS", "GFLOP/s", "of peak", "of copy", "x first")
RESTLESS = 0.2  # a spread that a machine at rest doesn't show
WIDE = 200  # whole lines, which a narrow terminal wraps


def print_cells(terms: Terms, cells: Sequence[Cell]) -> None:
    """For each case its backends in turn, and the paper's figure where there is one."""
    from cmudrn.deploy.benchmark.table import PAPER_FPS

    if not cells:
        return
    table = _table(COLUMNS, right=4)
    for case, group in groupby(cells, key=lambda cell: cell.key.case):
        some = list(group)
        rows = [row_of(cell, some[0]) for cell in some]
        if fps := PAPER_FPS.get(case[:3]):
            rows.append(["the paper's, GTX 1070 Ti", f"{1 / fps:.3g}", "", f"{fps:.3g}"])
        heads = [
            [str(case.loops), f"{case.height}x{case.width}", str(case.batch)],
            *[["", "", ""]] * len(rows),
        ]
        for head, row in zip(heads, rows, strict=False):
            table.add_row(*head, *row)
    typer.echo(str(terms.machine))
    _print(table)
    restless = sum(cell.spread > RESTLESS for cell in cells)
    if restless:
        what = f"{counted(restless, 'figure')} of {len(cells)} spread by more than {RESTLESS:.0%}"
        fix = "measure again with --overwrite, on a machine that does nothing else"
        typer.echo(f"{what}: something else ran meanwhile\n  -> {fix}", err=True)


def _table(columns: Sequence[str], *, right: int) -> RichTable:
    """Columns from number `right` on hold numbers."""
    from rich import box
    from rich.table import Table as RichTable

    table = RichTable(*columns, box=box.SIMPLE, pad_edge=False, padding=(0, 1))
    for number, column in enumerate(table.columns):
        column.no_wrap = True
        column.justify = "right" if number >= right else "left"
    return table


def _print(table: RichTable) -> None:
    from rich.console import Console

    Console(highlight=False, width=WIDE, file=sys.stdout).print(table)


def row_of(cell: Cell, first: Cell) -> list[str]:
    """first: of the same case; the ratio is fair where both took turns, else it is left out."""
    ratio = first.seconds / cell.seconds if cell.began == first.began else None
    return [
        f"{cell.backend} ({cell.place})",
        f"{cell.seconds:.3g}",
        f"{cell.spread:.0%}",
        f"{cell.fps:.3g}",
        f"{cell.flops_per_s / 1e9:.0f}",
        percent(cell.peak_share),
        percent(cell.moved_share),
        "" if ratio is None else f"{ratio:.2f}",
    ]


def percent(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}"


def print_gaps(gaps: Sequence[Gap]) -> None:
    """Once for each backend, to the standard error."""
    by_backend = sorted(gaps, key=lambda gap: gap.key.backend)
    for backend, group in groupby(by_backend, key=lambda gap: gap.key.backend):
        first, *others = list(group)
        more = f" (and {counted(len(others), 'cell')} more)" if others else ""
        typer.echo(f"{backend}, {first.key.case}: {first.reason}{more}\n  -> {first.fix}", err=True)


def write_heatmap(table: Table) -> None:
    """Says where everything lies."""
    from cmudrn.deploy.benchmark.plot import draw_heatmaps

    if not table.cells:
        return
    files = "benchmark.csv, benchmark.json"
    try:
        draw_heatmaps(table)
        files += ", heatmap.png"
    except EnvironmentMissing as exc:
        typer.echo(f"{exc.what}\n  -> {exc.fix}", err=True)
    typer.echo(f"{table.folder}: {files}")


def print_passes(terms: Terms, passes: Sequence[EndToEnd]) -> None:
    """Where the time of each went, on one line."""
    heads = ("T", "backend", "open", "wall", "decode", "restore", "encode", "restoring", "images/s", "MP/s")
    table = _table(heads, right=2)
    for one in passes:
        seconds = (one.open_s, one.wall_s, one.decode_s, one.restore_s, one.encode_s)
        table.add_row(
            str(one.loops),
            one.backend,
            *(f"{value:.2f} s" for value in seconds),
            percent(one.restoring_share),
            f"{one.images_per_s:.2f}",
            f"{one.megapixels_per_s:.2f}",
        )
    typer.echo(str(terms.machine))
    typer.echo(
        f"{passes[0].images} images, {passes[0].megapixels:.1f} megapixels; stages work at the same time"
    )
    _print(table)


@contextmanager
def progress(cases: int) -> Iterator[Callable[[Measured], None]]:
    """A bar on the standard error where that is a terminal, else a line for each case; gives what tells."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("measuring", total=cases)

        def show(measured: Measured) -> None:
            bar.update(task, advance=1, description=str(measured.case))
            if not console.is_terminal and measured.cells:
                console.print(line_of(measured.case, measured.cells))

        yield show


def line_of(case: Case, cells: Sequence[Cell]) -> str:
    return f"{case}: " + ", ".join(f"{cell.backend} {cell.seconds:.3g} s" for cell in cells)
