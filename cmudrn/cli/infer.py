"""`cmudrn infer`: parses, calls and prints."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from cmudrn.cli.infer_options import (
    Batch,
    Format,
    GateConfidence,
    GateOn,
    Heatmap,
    InFlight,
    Loops,
    MaxPixels,
    Out,
    OutputChoice,
    Overlap,
    Overwrite,
    PngLevel,
    PrecisionName,
    ProfileFile,
    Provenance,
    Quality,
    Report,
    Resume,
    SkipExisting,
    Sources,
    Strip,
    Tile,
)
from cmudrn.cli.options import (
    AllowUnverified,
    BackendChoice,
    CudaGraphs,
    Devices,
    StoreFolder,
    Streams,
    Threads,
    Weights,
)
from cmudrn.cli.values import one_of
from cmudrn.errors import UsageError
from cmudrn.wording import printable

if TYPE_CHECKING:
    from cmudrn.deploy.job import Existing, InferJob
    from cmudrn.deploy.profile import Way
    from cmudrn.deploy.report import JobReport
    from cmudrn.deploy.run import Run
    from cmudrn.formats import Encoding

__all__ = ["infer", "register"]


def register(app: typer.Typer) -> None:
    """Adds the commands to the application."""
    app.command("infer")(infer)


def infer(
    context: typer.Context,
    sources: Sources,
    out: Out = None,
    profile: ProfileFile = None,
    loops: Loops = 3,
    output: OutputChoice = "fused",
    precision: PrecisionName = None,
    backend: BackendChoice = "auto",
    device: Devices = [],  # noqa: B006 (Typer makes a new one)
    streams: Streams = 2,
    cuda_graphs: CudaGraphs = True,
    threads: Threads = None,
    allow_unverified: AllowUnverified = False,
    store: StoreFolder = None,
    tile: Tile = None,
    overlap: Overlap = None,
    batch: Batch = None,
    overwrite: Overwrite = False,
    skip_existing: SkipExisting = False,
    resume: Resume = False,
    image_format: Format = None,
    quality: Quality = None,
    png_level: PngLevel = None,
    max_pixels: MaxPixels = None,
    strip: Strip = False,
    provenance: Provenance = False,
    heatmap: Heatmap = False,
    in_flight: InFlight = None,
    weights: Weights = "default",
    gate: GateOn = False,
    gate_confidence: GateConfidence = None,
    report_to: Report = None,
) -> None:
    """Restore photographs taken in rain or snow.

    Sources are never changed. A file that cannot be read is reported at the end and the others are done:
    exit code 1. Bad options or paths stop everything before the first image: exit code 2.
    """
    from cmudrn.deploy.job import DEFAULT_IN_FLIGHT_PX, BackendName, BackendOptions, InferJob
    from cmudrn.deploy.keep_options import KeepOptions
    from cmudrn.deploy.profile import Way
    from cmudrn.deploy.report import JobReport
    from cmudrn.engines.spec import Output, Precision
    from cmudrn.formats import ImageFormat
    from cmudrn.images import DEFAULT_MAX_PIXELS

    way = Way(
        loops=loops,
        backend=one_of(BackendName, "--backend", backend),
        batch=batch,
        streams=streams,
        tile_px=tile,
        threads=threads,
    )
    if profile is not None:
        way = _by_profile(profile, way, context, weights)
    job = InferJob(
        sources=tuple(sources),
        out=out,
        loops=way.loops,
        output=one_of(Output, "--output", output),
        precision=None
        if precision is None
        else one_of(Precision, "--precision", precision, offered=(Precision.FP32, Precision.BF16)),
        tile_px=way.tile_px,
        overlap_px=overlap,
        batch=way.batch,
        layout=way.layout,
        backend=BackendOptions(
            name=way.backend,
            devices=tuple(device) or ((way.device,) if way.device else ()),
            streams=way.streams,
            cuda_graphs=cuda_graphs,
            threads=way.threads,
            allow_unverified=allow_unverified,
            store=store,
            engine=way.engine,
        ),
        existing=_existing(overwrite, skip_existing, resume),
        format=None if image_format is None else one_of(ImageFormat, "--format", image_format),
        encoding=_encoding(quality, png_level),
        max_pixels=DEFAULT_MAX_PIXELS if max_pixels is None else max_pixels,
        keep=KeepOptions(strip=strip, provenance=provenance, heatmap=heatmap),
        in_flight_px=DEFAULT_IN_FLIGHT_PX if in_flight is None else int(1e6 * in_flight),
        weights=weights,
        gate=gate,
        gate_confidence=gate_confidence,
    )
    _check_report_path(report_to)
    _note_other_depth(job)
    report = JobReport()
    _run(job, report, report_to)
    raise typer.Exit(report.exit_code)


def _by_profile(path: Path, options: Way, context: typer.Context, weights: str) -> Way:
    """The options with what the profile says in the place of those that were not given."""
    from cmudrn.deploy.profile import read_profile
    from cmudrn.deploy.profile_use import way_by_profile

    # By name: older versions of Typer have click's enum, newer ones their own.
    sources = {name: context.get_parameter_source(name) for name in context.params}
    told = {name for name, source in sources.items() if source and source.name == "COMMANDLINE"}
    way, notes = way_by_profile(read_profile(path), options, told, weights=weights)
    for line in notes:
        _note(f"note: {line}")
    return way


def _run(job: InferJob, report: JobReport, report_to: str | None) -> None:
    from cmudrn.deploy.backends import Backends
    from cmudrn.deploy.gate import open_gate
    from cmudrn.deploy.pipeline import restore_images
    from cmudrn.deploy.run import Run

    with (
        Run(job, on_note=_note) as run,
        Backends(job, images=run.total, on_note=_note) as backends,
        open_gate(job) as gate,
    ):
        run.begin(backends)
        report.backend = str(backends)
        _note(report.backend)
        try:
            with (
                closing(restore_images(job, run.items(), backends, gate)) as results,
                _progress(run.total, report) as show,
            ):
                for result in results:
                    run.record(result)
                    report.add(result)
                    show()
            report.gone = run.gone()
        finally:  # also of a job that was broken off: what is written is written
            _print_end(report)
            if report_to is not None:
                _write_report(report, job, run, report_to)


def _note(line: str) -> None:
    typer.echo(printable(line), err=True)


def _existing(overwrite: bool, skip_existing: bool, resume: bool) -> Existing:
    from cmudrn.deploy.job import Existing

    ways = {
        "--overwrite": (overwrite, Existing.OVERWRITE),
        "--skip-existing": (skip_existing, Existing.SKIP),
        "--resume": (resume, Existing.RESUME),
    }
    given = [name for name, (told, _) in ways.items() if told]
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given)} contradict each other", fix="give one of them")
    return ways[given[0]][1] if given else Existing.REFUSE


def _encoding(quality: int | None, png_level: int | None) -> Encoding:
    from cmudrn.formats import Encoding

    told = {"quality": quality, "png_level": png_level}
    return Encoding(**{name: value for name, value in told.items() if value is not None})


def _note_other_depth(job: InferJob) -> None:
    """Weights fit the depths they were trained for; that is said, not left to be found out."""
    from cmudrn.checkpoint import read_checkpoint

    depths = read_checkpoint(job.weights).depths
    if job.loops not in depths:
        trained = ",".join(map(str, depths))
        typer.echo(
            f"note: these weights were trained with --loops {trained}, and restore worse at {job.loops}",
            err=True,
        )


def _check_report_path(report_to: str | None) -> None:
    """A report that could not be written is found out before the first image, not after the last."""
    if report_to in (None, "-"):
        return
    path = Path(str(report_to))
    if (
        path.is_dir()
        or not path.parent.is_dir()
        or not os.access(path if path.exists() else path.parent, os.W_OK)
    ):
        raise UsageError(
            f"--report {path}: cannot be written", fix="name a file in a folder that is there, or -"
        )


def _write_report(report: JobReport, job: InferJob, run: Run, report_to: str) -> None:
    """The items come from the ledger one by one: a hundred thousand of them need not fit into memory."""
    from cmudrn.checkpoint import read_checkpoint
    from cmudrn.deploy.report import report_lines

    sha256 = read_checkpoint(job.weights).sha256
    settings = {
        **{"loops": job.loops, "output": job.output.value},
        **{"weights": job.weights, "weights_sha256": sha256},
    }
    items = ({**result.to_json(), "weights_sha256": sha256} for result in run.results())
    with ExitStack() as taken:
        file = sys.stdout if report_to == "-" else taken.enter_context(open(report_to, "w", encoding="utf-8"))  # noqa: PTH123
        for line in report_lines({"settings": settings, **report.to_json()}, items):
            file.write(line)


def _print_end(report: JobReport) -> None:
    """To the standard error, as all that is said here: the standard output is the report's."""
    for what, lines in (("Done anew:", report.redone_lines()), ("Not restored:", report.failure_lines())):
        if lines:
            _note(what)
        for line in lines:
            _note(f"  {line}")
    if report.gone:
        _note(report.gone_line())
    _note(report.summary())


@contextmanager
def _progress(total: int, report: JobReport) -> Iterator[Callable[[], None]]:
    """A bar with images/s and the time left, on a terminal only; gives what to call after each image."""
    if not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("- images/s", total=total)
        yield lambda: progress.update(task, advance=1, description=f"{report.images_per_s:.1f} images/s")
