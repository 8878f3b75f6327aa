"""`cmudrn infer`: parses, calls and prints."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from cmudrn.cli.infer_options import (
    Batch,
    Format,
    Loops,
    MaxPixels,
    Out,
    OutputChoice,
    Overlap,
    Overwrite,
    PrecisionName,
    ProfileFile,
    Report,
    SkipExisting,
    Sources,
    Tile,
)
from cmudrn.cli.infer_streams import is_stream, run_stream
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
from cmudrn.cli.video_options import (
    Adaptive,
    ClipEnd,
    ClipStart,
    Codec,
    Crf,
    Fps,
    MinLoops,
    Preview,
    RawFormat,
    RawSize,
    video_options,
)
from cmudrn.errors import UsageError

if TYPE_CHECKING:
    from rich.progress import Progress

    from cmudrn.deploy.job import Existing, InferJob
    from cmudrn.deploy.profile import Way
    from cmudrn.deploy.report import JobReport
    from cmudrn.deploy.video.options import VideoOptions

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
    image_format: Format = None,
    max_pixels: MaxPixels = None,
    weights: Weights = "default",
    report_to: Report = None,
    codec: Codec = None,
    crf: Crf = None,
    start: ClipStart = None,
    end: ClipEnd = None,
    preview: Preview = False,
    fps: Fps = None,
    adaptive: Adaptive = False,
    min_loops: MinLoops = 1,
    raw_size: RawSize = None,
    raw_format: RawFormat = "rgb24",
) -> None:
    """Restore photographs and clips taken in rain or snow.

    Sources are never changed. A file that cannot be read is reported at the end and the others are done:
    exit code 1. Bad options or paths stop everything before the first image: exit code 2.
    """
    from cmudrn.deploy.job import BackendName, BackendOptions, InferJob
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
        sources=tuple(map(Path, sources)),
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
        existing=_existing(overwrite, skip_existing),
        format=None if image_format is None else one_of(ImageFormat, "--format", image_format),
        max_pixels=DEFAULT_MAX_PIXELS if max_pixels is None else max_pixels,
        weights=weights,
    )
    video = video_options(
        codec=codec,
        crf=crf,
        start=start,
        end=end,
        preview=preview,
        fps=fps,
        adaptive=adaptive,
        min_loops=min_loops,
        raw_size=raw_size,
        raw_format=raw_format,
    )
    video.counts(job.loops)  # refuses what contradicts the job
    _check_report_path(report_to)
    _note_other_depth(job)
    report = JobReport(keep_items=report_to is not None)
    try:
        if is_stream(sources):
            run_stream(job, video, sources[0], report, report_to)
        else:
            _run(job, video, report)
    finally:  # also of a job that was broken off: what is written is written
        if report.begun:
            _print_end(report)
            if report_to is not None:
                _write_report(report, job, report_to)
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


def _run(job: InferJob, video: VideoOptions, report: JobReport) -> None:
    from cmudrn.deploy.backends import Backends
    from cmudrn.deploy.sources import check_sources
    from cmudrn.deploy.video.depths import MANY
    from cmudrn.deploy.video.mixed import restore_items
    from cmudrn.deploy.video.names import is_clip, need_av

    total = check_sources(job)
    clips = [source for source in job.sources if is_clip(source) and source.is_file()]
    if clips:
        need_av(str(clips[0]))
    with (
        Backends(job, images=MANY if clips else total, on_note=_note) as backends,
        _progress(total, report) as show,
        closing(restore_items(job, video, backends, on_frame=show.frame, on_note=_note)) as results,
    ):
        report.backend = str(backends)
        _note(report.backend)
        for result in results:
            report.add(result)
            show.item()


def _note(line: str) -> None:
    typer.echo(line, err=True)


def _existing(overwrite: bool, skip_existing: bool) -> Existing:
    from cmudrn.deploy.job import Existing

    if overwrite and skip_existing:
        raise UsageError("--overwrite and --skip-existing contradict each other", fix="give one of the two")
    if overwrite:
        return Existing.OVERWRITE
    return Existing.SKIP if skip_existing else Existing.REFUSE


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


def _write_report(report: JobReport, job: InferJob, report_to: str) -> None:
    settings = {"loops": job.loops, "output": job.output.value, "weights": job.weights}
    text = json.dumps({"settings": settings, **report.to_json()}, indent=2)
    if report_to == "-":
        typer.echo(text)
    else:
        Path(report_to).write_text(text + "\n", encoding="utf-8")


def _print_end(report: JobReport) -> None:
    """To the standard error, as all that is said here: the standard output is the report's."""
    lines = report.failure_lines()
    if lines:
        typer.echo("Not restored:", err=True)
    for line in lines:
        typer.echo(f"  {line}", err=True)
    typer.echo(report.summary(), err=True)
    for line in report.loop_lines():
        typer.echo(line, err=True)


class _Silent:
    """No terminal: nothing is shown."""

    def item(self) -> None:
        """One more is done."""

    def frame(self, clip: Path, done: int, of: int) -> None:
        """Another frame of a clip is done."""


class _Bar(_Silent):
    """One line with images/s, or a clip's frames, and the time left."""

    def __init__(self, progress: Progress, total: int, report: JobReport) -> None:
        self._progress, self._report = progress, report
        self._task = progress.add_task("- images/s", total=total)

    def item(self) -> None:
        rate = f"{self._report.images_per_s:.1f} images/s"
        self._progress.update(self._task, advance=1, description=rate)

    def frame(self, clip: Path, done: int, of: int) -> None:
        about = f" of {of:,}" if of else ""
        self._progress.update(self._task, description=f"{clip.name}: frame {done:,}{about}")


@contextmanager
def _progress(total: int, report: JobReport) -> Iterator[_Silent]:
    """What to tell of each image and frame; a bar on a terminal only."""
    if not sys.stderr.isatty():
        yield _Silent()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        yield _Bar(progress, total, report)
