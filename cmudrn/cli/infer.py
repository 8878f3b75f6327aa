"""`cmudrn infer`: parses, calls and prints."""

from __future__ import annotations

from contextlib import closing
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
from cmudrn.cli.infer_streams import check_files, is_stream, run_stream
from cmudrn.cli.infer_telling import check_report_path, note, print_end, progress, write_report
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
from cmudrn.errors import CmudrnError, UsageError

if TYPE_CHECKING:
    from cmudrn.deploy.job import Existing, InferJob
    from cmudrn.deploy.profile import Way
    from cmudrn.deploy.report import JobReport
    from cmudrn.deploy.run import Run
    from cmudrn.deploy.video.options import VideoOptions
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
    from cmudrn.deploy.job import DEFAULT_IN_FLIGHT_PX, BackendName, BackendOptions, InferJob
    from cmudrn.deploy.keep_options import KeepOptions
    from cmudrn.deploy.profile import Way
    from cmudrn.deploy.report import JobReport
    from cmudrn.deploy.video.clips import check_codec
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
        existing=_existing(overwrite, skip_existing, resume),
        format=None if image_format is None else one_of(ImageFormat, "--format", image_format),
        encoding=_encoding(quality, png_level),
        max_pixels=DEFAULT_MAX_PIXELS if max_pixels is None else max_pixels,
        keep=KeepOptions(strip=strip, provenance=provenance, heatmap=heatmap),
        in_flight_px=DEFAULT_IN_FLIGHT_PX if in_flight is None else _pixels("--in-flight", in_flight),
        weights=weights,
        gate=gate,
        gate_confidence=gate_confidence,
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
    check_codec(video)
    check_report_path(report_to)
    _note_other_depth(job)
    report = JobReport()
    if is_stream(sources):
        run_stream(job, video, sources[0], report, report_to)
    else:
        check_files(job, video)
        _run(job, video, report, report_to)
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
        note(f"note: {line}")
    return way


def _run(job: InferJob, video: VideoOptions, report: JobReport, report_to: str | None) -> None:
    from cmudrn.deploy.backends import Backends
    from cmudrn.deploy.decoding import Decoders
    from cmudrn.deploy.gate import open_gate, read_numbers
    from cmudrn.deploy.run import Run
    from cmudrn.deploy.video.depths import MANY
    from cmudrn.deploy.video.mixed import restore_items
    from cmudrn.deploy.video.names import is_clip, need_av

    clips = [source for source in job.sources if is_clip(source) and source.is_file()]
    if clips:
        need_av(str(clips[0]))
    numbers = read_numbers(job.weights) if job.gate else None  # refused before anything is touched
    with (
        Run(job, also={"video": video, "gate_numbers": numbers}, on_note=note) as run,
        Decoders() as decoders,  # starts while the backends are opened
        open_gate(job) as gate,
        Backends(job, images=MANY if clips else run.total, on_note=note) as backends,
    ):
        run.begin(backends)
        report.backend = str(backends)
        report.gate_confidence = gate.least if gate else None
        note(report.backend)
        try:
            with (
                progress(run.total, report) as show,
                closing(
                    restore_items(
                        job, video, run.items(), backends, gate, decoders, on_frame=show.frame, on_note=note
                    )
                ) as results,
            ):
                for result in results:
                    run.record(result)
                    report.add(result)
                    show.item()
            report.gone = run.gone()
        except BaseException:  # what is written is written, and told
            print_end(report)
            try:
                _write_report(report, job, run, report_to)
            except CmudrnError as exc:
                note(str(exc))
            raise
        print_end(report)
        _write_report(report, job, run, report_to)


def _write_report(report: JobReport, job: InferJob, run: Run, report_to: str | None) -> None:
    if report_to is not None:
        write_report(report, job, run.results(), report_to)


def _pixels(option: str, megapixels: float) -> int:
    if not 1e-6 <= megapixels < float("inf"):  # NaN neither
        raise UsageError(f"{option} {megapixels:g}", fix="give megapixels, such as 64")
    return int(1e6 * megapixels)


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
        note(f"note: these weights were trained with --loops {trained}, and restore worse at {job.loops}")
