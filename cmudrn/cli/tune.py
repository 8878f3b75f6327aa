"""The command `cmudrn tune`: it parses, calls and prints."""

from __future__ import annotations

import re
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cmudrn.cli.options import StoreFolder, Threads, Weights
from cmudrn.cli.values import need_writable, one_of, parse_depths, parse_sizes
from cmudrn.errors import UsageError
from cmudrn.wording import counted

if TYPE_CHECKING:
    from rich.progress import Progress

    from cmudrn.deploy.machine import Machine
    from cmudrn.deploy.profile import Goal
    from cmudrn.deploy.tuning.frontier import Measured, Quality
    from cmudrn.deploy.tuning.search import TuneJob, Tuner

__all__ = ["register", "tune"]

Fps = Annotated[
    float | None,
    typer.Option(metavar="N", help="Frames a second that a stream brings.", show_default=False),
]
BudgetMs = Annotated[
    float | None,
    typer.Option(
        metavar="MS", help="Or: milliseconds from a lone frame to its restored one.", show_default=False
    ),
]
Size = Annotated[str, typer.Option(metavar="SIDE|HxW", help="Of the frames, height first.")]
Loops = Annotated[str, typer.Option(metavar="N|A-B|A,B", help="Loop counts.")]
BackendNames = Annotated[
    list[str],
    typer.Option(
        "--backend",
        metavar="tensorrt|native|onnx|openvino|torch",
        help="Only these; repeatable [default: all that run here but torch].",
    ),
]
LayoutNames = Annotated[
    list[str],
    typer.Option(
        "--layout",
        metavar="NAME,...",
        help="Only these layouts of the graph, as in build-engine; repeatable [default: looked for].",
    ),
]
Batches = Annotated[str, typer.Option("--batch", metavar="N,...", help="Tiles or frames at once.")]
StreamCounts = Annotated[
    str, typer.Option("--streams", metavar="N,...", help="Batches on their way at once, on a GPU.")
]
Tiles = Annotated[
    str | None,
    typer.Option(
        "--tile",
        metavar="PIXELS,...",
        help="Sides of tiles, on the CPU [default: 2048 of native, else 768; the whole frame; 384].",
        show_default=False,
    ),
]
Device = Annotated[
    str | None,
    typer.Option(
        "--device", metavar="N|PCI|cpu", help="Which GPU; cpu: none [default: the first].", show_default=False
    ),
]
Seconds = Annotated[
    float, typer.Option(metavar="S", help="For each candidate; four times as long for the best.")
]
Build = Annotated[
    bool, typer.Option("--build/--no-build", help="Build engines that the store lacks, to measure them.")
]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out",
        "-o",
        metavar="FILE",
        help="Write the profile there, for `infer --profile`.",
        show_default=False,
    ),
]
All = Annotated[bool, typer.Option("--all", help="Show all that was measured, not the frontier alone.")]
COUNT = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?")


def register(app: typer.Typer) -> None:
    """Adds the command to the application."""
    app.command("tune")(tune)


def tune(
    fps: Fps = None,
    budget_ms: BudgetMs = None,
    size: Size = "720x1280",
    loops: Loops = "1-7",
    backend: BackendNames = [],  # noqa: B006 (Typer copies it)
    layout: LayoutNames = [],  # noqa: B006
    batch: Batches = "1,4",
    streams: StreamCounts = "1-3",
    tile: Tiles = None,
    device: Device = None,
    threads: Threads = None,
    seconds: Seconds = 2.0,
    build: Build = True,
    weights: Weights = "default",
    store: StoreFolder = None,
    out: Out = None,
    show_all: All = False,
) -> int:
    """Find the most loops that this machine restores in time, and how.

    In time is the 99th percentile: with --fps of the time between restored frames of a stream, with
    --budget-ms of the time that a lone frame takes. Exit code 1 where nothing is in time.
    """
    from cmudrn.deploy.job import BackendName
    from cmudrn.deploy.profile import Goal
    from cmudrn.deploy.tuning.candidates import Axes
    from cmudrn.deploy.tuning.frame_timing import Setting
    from cmudrn.deploy.tuning.search import TuneJob
    from cmudrn.engines.layout import Layout

    (height, width), *others = parse_sizes([size])
    if others:
        raise UsageError(f"--size {size}", fix="give one size, such as 720x1280")
    if out is not None:
        need_writable("--out", out)
    job = TuneJob(
        goal=Goal(fps=fps, budget_ms=budget_ms),
        setting=Setting(height=height, width=width, weights=weights, device=device, store=store),
        axes=Axes(
            batches=parse_counts("--batch", batch),
            streams=parse_counts("--streams", streams),
            tiles=() if tile is None else parse_counts("--tile", tile),
            threads=threads,
        ),
        loops=parse_depths(loops),
        backends=tuple(one_of(BackendName, "--backend", name) for name in backend),
        layouts=tuple(Layout.parse(names) for names in layout),
        seconds=seconds,
        build=build,
    )
    return run(job, out, show_all=show_all)


def parse_counts(option: str, text: str) -> tuple[int, ...]:
    """`4`, `1-3` or `1,4` as counts, in order, each once. Raises UsageError."""
    counts: set[int] = set()
    for part in text.split(","):
        ends = COUNT.fullmatch(part.strip())
        span = range(int(ends[1]), int(ends[2] or ends[1]) + 1) if ends else range(0)
        if not span or span[0] < 1:
            raise UsageError(f"{option} {text}", fix="give counts like 4, 1-3 or 1,4")
        counts |= set(span)
    return tuple(sorted(counts))


def run(job: TuneJob, out: Path | None, *, show_all: bool) -> int:
    """Measures and prints; writes the profile where something is in time."""
    from cmudrn.checkpoint import read_checkpoint
    from cmudrn.deploy.machine import describe_machine
    from cmudrn.deploy.tuning.frontier import nearest, quality_of, recommended
    from cmudrn.deploy.tuning.search import Tuner, described

    machine = describe_machine()
    quality = quality_of(read_checkpoint(job.setting.weights), job.loops)
    typer.echo(f"{machine}\nframes of {job.setting.height}x{job.setting.width}; in time: {job.goal}")
    with progress() as bar, Tuner(job, on_step=bar.step, on_note=note) as tuner:
        points = measure(tuner, bar, quality, show_all=show_all)
        best = recommended(points, job.goal)
        if best is None:
            print_miss(nearest(points, job.goal), job.goal)
            return 1
        typer.echo(f"recommended: {described(best.way)}: {times_of(best, job.goal)}")
        if not best.certified:
            note(f"not certified; before infer takes it: `cmudrn parity-check {best.way.engine}`")
        if out is not None:
            write(out, best, tuner, quality, machine)
    return 0


def measure(tuner: Tuner, bar: Bar, quality: Quality, *, show_all: bool) -> list[Measured]:
    """The frontier; on Ctrl-C what is known of it is printed, too."""
    from cmudrn.deploy.tuning.frontier import Measured, frontier

    goal, ended = tuner.job.goal, False
    measured: list[Measured] = []
    bar.begin(tuner.steps)
    try:
        for one in tuner.run():
            if isinstance(one, Measured):
                measured.append(one)
            else:
                note(f"not measured: {one.what}: {one.error}")
        ended = True
    finally:
        bar.end()
        points = frontier([one for one in measured if one.final or not ended], goal, quality)
        if show_all:
            print_table("search", [one for one in measured if not one.final], goal, quality)
            print_table("measured again, or hopeless", [one for one in measured if one.final], goal, quality)
        print_table("frontier" if ended else "frontier, as far as it is known", points, goal, quality)
        print_legend(quality)
    return points


def write(out: Path, best: Measured, tuner: Tuner, quality: Quality, machine: Machine) -> None:
    """The profile, and its engine into the store, where that was built to be measured."""
    from cmudrn.checkpoint import read_checkpoint
    from cmudrn.deploy.job import CPU, ON_CPU_ALONE, BackendName
    from cmudrn.deploy.native.library import kernels_version
    from cmudrn.deploy.profile import Profile, write_profile
    from cmudrn.engines.spec import Precision

    setting = tuner.job.setting
    if tuner.keep(best.way):
        typer.echo(f"{best.way.engine}: put into the store")
    # Some run on the CPU whichever GPU was named for the others.
    device = setting.device if setting.device == CPU or best.way.backend not in ON_CPU_ALONE else None
    profile = Profile(
        way=replace(best.way, device=device),
        goal=tuner.job.goal,
        height=setting.height,
        width=setting.width,
        weights_sha256=read_checkpoint(setting.weights).sha256,
        quality_db=quality.psnr_db.get(best.way.loops),
        alone=best.alone,
        stream=best.stream,
        machine=machine.to_json(),
        kernels=kernels_version(Precision.FP32) if best.way.backend is BackendName.NATIVE else None,
        made_at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    )
    write_profile(profile, out)
    typer.echo(f"profile: {out}; `cmudrn infer --profile {shlex.quote(str(out))}` goes by it")


def note(line: str) -> None:
    """For people, beside what was asked for."""
    typer.echo(line, err=True)


def times_of(one: Measured, goal: Goal) -> str:
    """What decides, in words."""
    spread = one.of_goal(goal)
    return (
        f"{in_ms(spread.p99_s)} ms a frame at the 99th percentile of {counted(spread.runs, 'run')}, "
        f"{in_ms(goal.budget_s)} ms allowed"
    )


def print_miss(one: Measured | None, goal: Goal) -> None:
    """What to say where nothing is in time."""
    from cmudrn.deploy.tuning.search import described

    if one is None:
        note("nothing could be measured")
        return
    note(f"nothing is in time; the nearest is {described(one.way)}: {times_of(one, goal)}")
    note("  -> give smaller frames, a larger budget, or a GPU; no profile is written")


def print_table(title: str, rows: Sequence[Measured], goal: Goal, quality: Quality) -> None:
    """A row for each; milliseconds a frame."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="", box=None, pad_edge=False)
    with_engines = any(one.way.engine for one in rows)
    spread = ("median, ms", "99th", "runs")
    for name in ("loops", "PSNR"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("backend", "layout"):
        table.add_column(name, no_wrap=True)
    for name in (
        "tiles",
        "batch",
        "streams",
        *(f"{kind}\n{name}" for kind in ("alone", "stream") for name in spread),
    ):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("in time", no_wrap=True)
    if with_engines:
        table.add_column("engine", no_wrap=True)
    for one in rows:
        table.add_row(*cells(one, goal, quality))
    # Whole lines, which a narrow terminal wraps: a key is there to be copied.
    Console(highlight=False, width=240, file=sys.stdout).print(table)


def cells(one: Measured, goal: Goal, quality: Quality) -> list[str]:
    """Of a row; the engine is last, and left out where there is none."""
    way, psnr_db = one.way, quality.psnr_db.get(one.way.loops)
    spreads = [
        text
        for spread in (one.alone, one.stream)
        for text in (in_ms(spread.median_s), in_ms(spread.p99_s), str(spread.runs))
    ]
    engine = [] if way.engine is None else [way.engine + ("" if one.certified else " (not certified)")]
    return [
        str(way.loops),
        "" if psnr_db is None else f"{psnr_db:.2f}",
        way.backend.value,
        "" if way.layout is None else str(way.layout),
        str(way.tile_px or ""),
        str(way.batch or ""),
        str(way.streams) if way.engine is not None else "",
        *spreads,
        "yes" if one.meets(goal) else "no",
        *engine,
    ]


def print_legend(quality: Quality) -> None:
    """What the columns are."""
    if quality.psnr_db:
        typer.echo(f"PSNR: dB, RGB, mean over {', '.join(quality.protocols)} (the weights' own figures)")
    else:
        typer.echo(
            "the weights have no figures for all of these loop counts: their quality is not known, and the "
            "count stands for it"
        )
    typer.echo("99th: percentile; of 100 runs and fewer that is the slowest")


def in_ms(seconds: float) -> str:
    """Three digits."""
    return f"{seconds * 1e3:.3g}" if seconds < 1 else f"{seconds * 1e3:.0f}"


class Bar:
    """A bar on the standard error where that is a terminal: what is measured, and how far all is."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("starting", total=None)

    def begin(self, steps: int) -> None:
        self._progress.update(self._task, total=steps)

    def step(self, done: int, what: str) -> None:
        """As Tuner's on_step."""
        self._progress.update(self._task, completed=done, description=what)

    def end(self) -> None:
        """Before tables are printed."""
        self._progress.stop()


@contextmanager
def progress() -> Iterator[Bar]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        yield Bar(bar)
