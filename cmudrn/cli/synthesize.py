"""The command that makes paired datasets."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cmudrn.cli.train import Streaks
from cmudrn.cli.values import need_positive, need_torch
from cmudrn.errors import UsageError

if TYPE_CHECKING:
    from cmudrn.train.pairs import Weather
    from cmudrn.train.synthesize import Outcome, Synthesis

__all__ = ["register", "synthesize"]

SHOWN_PROBLEMS = 20  # listed at the end; the rest is a count

Clean = Annotated[
    list[Path], typer.Argument(metavar="CLEAN...", help="Clean photographs, and folders with all below them.")
]
Out = Annotated[
    Path, typer.Option("--out", "-o", metavar="OUT", help="Gets clean/, rainy/, snowy/ and manifest.json.")
]
WeatherChoice = Annotated[
    str, typer.Option("--weather", metavar="rain|snow|both", help="What to lay over them.")
]
Seed = Annotated[int, typer.Option(metavar="N", help="Of all chance: equal commands, equal bytes.")]
Severity = Annotated[
    str, typer.Option(metavar="X|A-B", help="0 none, 1 heavy; of a range, each image draws its own.")
]
Scale = Annotated[
    float | None,
    typer.Option(
        metavar="X", help="Size of drops and flakes [default: longer side / 500].", show_default=False
    ),
]
Rain = Annotated[
    str | None,
    typer.Option(
        metavar="NAME,...",
        help="Renderers of rain: physics, straight, slanted [default: physics; with --streaks all three].",
        show_default=False,
    ),
]
Workers = Annotated[int, typer.Option(metavar="N", help="Threads that render and write.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the dataset that is in OUT.")]


def register(app: typer.Typer) -> None:
    """Adds the command to the application."""
    app.command()(synthesize)


def synthesize(
    clean: Clean,
    out: Out,
    weather: WeatherChoice = "both",
    seed: Seed = 0,
    severity: Severity = "0.05-1.15",
    scale: Scale = None,
    rain: Rain = None,
    streaks: Streaks = None,
    workers: Workers = 2,
    overwrite: Overwrite = False,
) -> None:
    """Lay rain and snow over clean photographs: a paired dataset, with a manifest that says how.

    Photographs are never changed. One that cannot be read is reported at the end and the others are done:
    exit code 1. Bad options or paths stop everything before the first: exit code 2.
    """
    need_positive(workers=workers)
    need_torch()
    from cmudrn.train.synthesize import SynthesisJob, open_synthesis

    job = SynthesisJob(
        sources=tuple(clean),
        out=out,
        weathers=parse_weathers(weather),
        seed=seed,
        severity=parse_severity(severity),
        scale=scale,
        rains=tuple(rain.split(",")) if rain is not None else (),
        streaks=streaks,
        workers=workers,
        overwrite=overwrite,
    )
    raise typer.Exit(run(open_synthesis(job, tell=lambda news: typer.echo(news, err=True))))


def run(synthesis: Synthesis) -> int:
    """Renders, with progress; says what was made. Returns the exit code."""
    with progress(len(synthesis.photos)) as advance:
        problems = [outcome.problem for outcome in map(advance, synthesis.run()) if outcome.problem]
    if problems:
        typer.echo("Left out:", err=True)
    for problem in problems[:SHOWN_PROBLEMS]:
        typer.echo(f"  {problem}", err=True)
    if len(problems) > SHOWN_PROBLEMS:
        typer.echo(f"  ... and {len(problems) - SHOWN_PROBLEMS} more", err=True)
    made = len(synthesis.photos) - len(problems)
    pairs = made * len(synthesis.job.weathers)
    typer.echo(
        f"{synthesis.job.out}: {pairs} pairs of {made} photographs, {len(problems)} left out", err=True
    )
    return 1 if problems else 0


def parse_weathers(text: str) -> tuple[Weather, ...]:
    """`rain`, `snow` or `both`. Raises UsageError."""
    from cmudrn.train.pairs import Weather

    choices = {"rain": (Weather.RAIN,), "snow": (Weather.SNOW,), "both": (Weather.RAIN, Weather.SNOW)}
    if text not in choices:
        raise UsageError(f"--weather {text}", fix=f"choose from {', '.join(choices)}")
    return choices[text]


def parse_severity(text: str) -> tuple[float, float]:
    """`0.5`, or `0.2-0.8` for a range. Raises UsageError."""
    low, dash, high = text.partition("-")
    try:
        return float(low), float(high if dash else low)
    except ValueError:
        raise UsageError(
            f"--severity {text}", fix="give a number like 0.5, or a range like 0.2-0.8"
        ) from None


@contextmanager
def progress(total: int) -> Iterator[Callable[[Outcome], Outcome]]:
    """A bar on standard error, where that is a terminal. Yields what passes an outcome on and moves it."""
    if not sys.stderr.isatty():
        yield lambda outcome: outcome
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("photographs"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total)

        def advance(outcome: Outcome) -> Outcome:
            bar.update(task, advance=1)
            return outcome

        yield advance
