"""The command that scores weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cmudrn.cli.train import KernelsName
from cmudrn.cli.values import need_positive, need_torch, one_of, parse_depths
from cmudrn.errors import UsageError

if TYPE_CHECKING:
    from cmudrn.train.evaluate import Evaluation, Restoration
    from cmudrn.train.protocols import Protocol

    Tell = Callable[[Restoration], None]

__all__ = ["evaluate", "register"]

Subject = Annotated[
    str,
    typer.Argument(
        metavar="PROTOCOL|DATASET",
        help="bsd-rain, bsd-snow, bsd-rain-light, bsd-snow-light, photos-clean; or a folder of pairs.",
    ),
]
Data = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Of a protocol: the folder with bsds500/val, garg06_streaks, photos/val.",
        show_default=False,
    ),
]
Weights = Annotated[str, typer.Option(metavar="NAME|FILE", help="Shipped weights or a .safetensors file.")]
Loops = Annotated[
    str | None,
    typer.Option(
        metavar="N|A-B|A,B", help="Loop counts [default: the one trained with].", show_default=False
    ),
]
OutputChoice = Annotated[
    str, typer.Option("--output", metavar="fused|rain|snow", help="Both branches' fused image, or one's.")
]
SplitChoice = Annotated[
    str | None,
    typer.Option(
        "--split",
        metavar="train|test|all|paper-train|paper-test",
        help="Of a dataset [default: test]; the paper's: 70 % and 30 % of the whole, in order.",
        show_default=False,
    ),
]
WeatherChoice = Annotated[
    str | None,
    typer.Option("--weather", metavar="rain|snow", help="Of a dataset that holds both.", show_default=False),
]
Limit = Annotated[int | None, typer.Option(metavar="N", help="Only the first images.", show_default=False)]
Threads = Annotated[int | None, typer.Option(metavar="N", help="Of the restoring.", show_default=False)]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out",
        "-o",
        metavar="OUT",
        help="Folder for tables (CSV, Markdown, JSON), a plot and the worst images.",
        show_default=False,
    ),
]


def register(app: typer.Typer) -> None:
    """Adds the command to the application."""
    app.command()(evaluate)


def evaluate(
    subject: Subject,
    data: Data = None,
    weights: Weights = "default",
    loops: Loops = None,
    output: OutputChoice = "fused",
    split: SplitChoice = None,
    weather: WeatherChoice = None,
    limit: Limit = None,
    kernels: KernelsName = "auto",
    threads: Threads = None,
    out: Out = None,
) -> None:
    """Score weights: PSNR and SSIM at each loop count, beside the input's own.

    On a protocol (fixed photographs and weather, from --data) or on the pairs of a dataset's folder.
    """
    need_positive(limit=limit, threads=threads)
    need_torch()
    from cmudrn.train.evaluate import Output, evaluate, load_restorers
    from cmudrn.train.evaluation_report import WorstImages, write_report
    from cmudrn.train.kernels import Kernels

    depths = parse_depths(loops) if loops is not None else None
    convolutions = one_of(Kernels, "--kernels", kernels)
    restorers = load_restorers(weights, depths, one_of(Output, "--output", output), convolutions)
    protocol = _find_protocol(subject, data, split, weather)
    _prepare(out, threads)
    worst = WorstImages(restorers.usual_loops)
    with _progress(protocol, limit, len(restorers.by_loops)) as advance:
        items, candidate = protocol.items(limit), restorers.candidate
        tell = _both(worst.add, advance)
        evaluation = evaluate(protocol, items, restorers.by_loops, candidate=candidate, tell=tell)
    _print_table(evaluation)
    if out is not None:
        write_report(evaluation, worst, out)
        typer.echo(f"report: {out}")


def _find_protocol(subject: str, data: Path | None, split: str | None, weather: str | None) -> Protocol:
    """A protocol by its name, else the pairs of a folder. Raises UsageError for options of the other kind."""
    from cmudrn.train.layouts import Split, Weather, find_pairs
    from cmudrn.train.protocols import RENDERED, EvaluationData, open_protocol, paired_protocol

    if subject in RENDERED:
        _refuse(f"{subject} is a protocol: it has but one set of images", split=split, weather=weather)
        if data is None:
            raise UsageError(
                f"{subject}: whose images?", fix="give --data DIR, the folder with bsds500/val in it"
            )
        return open_protocol(subject, EvaluationData(data))
    if not Path(subject).is_dir():
        raise UsageError(
            f"no protocol {subject!r}, and no such folder",
            fix=f"choose from {', '.join(RENDERED)}, or give the folder of a dataset",
        )
    _refuse(f"{subject} is a dataset's folder: --data is for protocols", data=data)
    wanted_weather = None if weather is None else one_of(Weather, "--weather", weather)
    wanted_split = one_of(Split, "--split", split or "test")
    return paired_protocol(find_pairs(Path(subject), split=wanted_split, weather=wanted_weather))


def _refuse(why: str, **options: object) -> None:
    for name, value in options.items():
        if value is not None:
            raise UsageError(f"--{name} {value}: {why}", fix=f"leave --{name} away")


def _prepare(out: Path | None, threads: int | None) -> None:
    """All that can fail or must be set before the first image."""
    import torch

    from cmudrn.train.evaluation_report import check_output_folder

    if out is not None:
        check_output_folder(out)
    if threads is not None:
        torch.set_num_threads(threads)


def _both(first: Tell, second: Tell) -> Tell:
    def tell(restoration: Restoration) -> None:
        first(restoration)
        second(restoration)

    return tell


@contextmanager
def _progress(protocol: Protocol, limit: int | None, depths: int) -> Iterator[Tell]:
    """A bar on standard error, where that is a terminal. Yields what moves it on."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        images = protocol.count if limit is None else min(limit, protocol.count)
        task = bar.add_task(protocol.id, total=images * depths)

        def advance(restoration: Restoration) -> None:
            scores = restoration.scores
            bar.update(task, advance=1, description=f"{scores.name}, T = {scores.loops}")

        yield advance


def _print_table(evaluation: Evaluation) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from cmudrn.train.evaluation_report import TABLE_HEADER, headline, table_rows

    headers = [name.replace(" ", "\n") for name in TABLE_HEADER]  # two lines: all nine fit into 80 columns
    table = Table(*headers, box=box.SIMPLE, pad_edge=False, padding=(0, 1))
    for column in table.columns:
        column.justify, column.no_wrap = "right", True
    for row in table_rows(evaluation):
        table.add_row(*row)
    typer.echo(headline(evaluation))
    Console(highlight=False).print(table)
