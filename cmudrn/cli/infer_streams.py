"""`cmudrn infer` on what has no end that could be known: standard input, and cameras."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

from cmudrn.cli.infer_telling import note, print_end, write_report
from cmudrn.errors import ImageError, UsageError

if TYPE_CHECKING:
    from cmudrn.deploy.backends import Backends
    from cmudrn.deploy.job import Existing, InferJob
    from cmudrn.deploy.report import ItemResult, JobReport
    from cmudrn.deploy.video.line import Passage
    from cmudrn.deploy.video.options import VideoOptions

__all__ = ["check_files", "is_stream", "of_photographs", "run_stream"]


def is_stream(sources: Sequence[str]) -> bool:
    """Standard input or a camera, which is then the only source. Raises UsageError for more."""
    from cmudrn.deploy.video.names import STANDARD_INPUT, is_live, without_password

    streams = [source for source in sources if source == STANDARD_INPUT or is_live(source)]
    if streams and len(sources) > 1:
        raise UsageError(f"{without_password(streams[0])} and another source", fix="give it alone")
    return bool(streams)


def of_photographs(job: InferJob) -> list[str]:
    """The options given that say nothing about frames."""
    from cmudrn.formats import Encoding

    usual = Encoding()
    told = {
        "--gate": job.gate,
        "--heatmap": job.keep.heatmap,
        "--provenance": job.keep.provenance,
        "--format": job.format is not None,
        "--quality": job.encoding.quality != usual.quality,
        "--png-level": job.encoding.png_level != usual.png_level,
    }
    return [name for name, given in told.items() if given]


def check_files(job: InferJob, video: VideoOptions) -> None:
    """Raises UsageError for what is of streams alone; notes what is of photographs where there are none."""
    from cmudrn.deploy.video.names import is_clip

    if video.raw is not None:
        raise UsageError("--raw-size with files", fix="it is for frames on standard input, SRC -")
    vain = of_photographs(job)
    if vain and all(is_clip(source) and source.is_file() for source in job.sources):
        note(f"note: {', '.join(vain)}: of photographs alone")


def run_stream(
    job: InferJob, video: VideoOptions, source: str, report: JobReport, report_to: str | None
) -> None:
    """Restores until the stream ends, or is ended by Ctrl-C, and tells what became of it."""
    from cmudrn.deploy.backends import Backends
    from cmudrn.deploy.video.names import STANDARD_INPUT

    target = None
    if source == STANDARD_INPUT:
        _check_pipe(job, video, report_to)
    else:
        target = _camera_target(job, video, source)
    with Backends(job, on_note=note) as backends:
        note(str(backends))
        with _frame_counter() as on_frame:
            result = (
                _from_pipe(job, video, backends, on_frame)
                if target is None
                else _from_camera(job, video, source, target, backends, on_frame)
            )
        report.backend = str(backends)
    report.add(result)
    print_end(report)
    if report_to is not None:
        write_report(report, job, [result], report_to)


def _check_pipe(job: InferJob, video: VideoOptions, report_to: str | None) -> None:
    vain = {
        "--start": video.start_s > 0,
        "--end": video.end_s is not None,
        "--codec": video.codec is not None,
        "--crf": video.crf is not None,
        "--strip": job.keep.strip,
    }
    _refuse([name for name, given in vain.items() if given] + _existing(job) + of_photographs(job), "SRC -")
    if job.out is not None:
        raise UsageError(f"-o {job.out} with SRC -: frames go to standard output", fix="leave -o away")
    if report_to == "-":
        raise UsageError("--report - with SRC -: frames go to standard output", fix="--report report.json")
    if sys.stdout.isatty():
        raise UsageError("frames to a terminal", fix="cmudrn infer - | ffmpeg -i - out.mp4")


def _existing(job: InferJob, *but: Existing) -> list[str]:
    """What was told about targets that are there."""
    from cmudrn.deploy.job import Existing

    names = {
        Existing.OVERWRITE: "--overwrite",
        Existing.SKIP: "--skip-existing",
        Existing.RESUME: "--resume",
    }
    return [names[job.existing]] if job.existing in names and job.existing not in but else []


def _refuse(vain: list[str], source: str) -> None:
    """Raises UsageError for options that would do nothing."""
    if vain:
        one = len(vain) == 1
        raise UsageError(
            f"{', '.join(vain)} with {source}: {'does' if one else 'do'} nothing there",
            fix=f"leave {'it' if one else 'them'} away",
        )


def _camera_target(job: InferJob, video: VideoOptions, source: str) -> Path:
    from cmudrn.deploy.job import Existing
    from cmudrn.deploy.video.names import is_clip, need_av, without_password

    video.check_live()
    _refuse(_existing(job, Existing.OVERWRITE) + of_photographs(job), "a camera")
    if job.out is None or not is_clip(job.out) or job.out.is_dir():
        raise UsageError(f"{without_password(source)}: where to?", fix="name a clip: -o out.mp4")
    need_av("a camera")
    if job.out.exists() and job.existing is not Existing.OVERWRITE:
        raise UsageError(f"{job.out} is there already", fix="add --overwrite")
    return job.out


def _from_pipe(
    job: InferJob, video: VideoOptions, backends: Backends, on_frame: Callable[[Passage], None]
) -> ItemResult:
    from cmudrn.deploy.video.pipes import restore_pipe

    # Descriptors of our own: what Python would flush at its end may be closed by then. The source is never
    # closed: a thread may be reading it, and closing would wait for that.
    source = open(0, "rb", closefd=False)  # noqa: SIM115
    with open(1, "wb", buffering=0, closefd=False) as sink:
        try:
            return restore_pipe(
                job, video, backends, source, cast("BinaryIO", sink), on_frame=on_frame, on_note=note
            )
        except ImageError as exc:
            raise UsageError(exc.what, fix=exc.fix) from exc


def _from_camera(
    job: InferJob,
    video: VideoOptions,
    source: str,
    target: Path,
    backends: Backends,
    on_frame: Callable[[Passage], None],
) -> ItemResult:
    from cmudrn.deploy.video.live import restore_live

    with _stopping() as stop:
        return restore_live(job, video, source, target, backends, stop, on_frame=on_frame, on_note=note)


@contextmanager
def _stopping() -> Iterator[threading.Event]:
    """Set by Ctrl-C, or by being asked to end: the usual end of a camera. A second Ctrl-C breaks it off."""
    stop = threading.Event()

    def ask(number: int, frame: object) -> None:
        if stop.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.set()

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _frame_counter() -> Iterator[Callable[[Passage], None]]:
    """Counts frames in one line, on a terminal only."""
    if not sys.stderr.isatty():
        yield lambda passage: None
        return
    from rich.console import Console

    with Console(stderr=True).status("waiting for the first frame") as status:
        yield lambda passage: status.update(
            f"{passage.frames:,} frames" + (f", {passage.dropped:,} dropped" if passage.dropped else "")
        )
