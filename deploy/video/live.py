"""A camera or a stream: restored as far as time suffices; what waited too long is dropped, and counted."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from cmudrn.deploy.backends import Backends
from cmudrn.deploy.job import InferJob
from cmudrn.deploy.report import ItemResult, Status
from cmudrn.deploy.video.clips import outcome
from cmudrn.deploy.video.depths import Depths
from cmudrn.deploy.video.frames import Sink, Step
from cmudrn.deploy.video.line import LineOptions, Passage, run_line
from cmudrn.deploy.video.names import need_av, without_password
from cmudrn.deploy.video.options import VideoOptions
from cmudrn.errors import ImageError

__all__ = ["restore_live"]

WAITING_LIVE = 4  # frames: a sixth of a second of what is seen, at 25 a second
TIMEOUT_S = 10.0  # for a source to begin, and for its next packet


def restore_live(
    job: InferJob,
    options: VideoOptions,
    source: str,
    target: Path,
    backends: Backends,
    stop: threading.Event,
    *,
    on_frame: Callable[[Passage], None] = lambda passage: None,
    on_note: Callable[[str], None] = lambda line: None,
) -> ItemResult:
    """Until `stop` is set, the source ends, or options.end_s are over; the file is whole in each case.

    A source that cannot be opened, or that fails, is a failed result; what came before is written.
    Raises UsageError for a start or raw frames, EnvironmentMissing without PyAV.
    """
    need_av("a camera")
    options.check_live()
    from cmudrn.deploy.video.reading import ClipReader
    from cmudrn.deploy.video.writing import ClipWriter

    address, container_format, settings = _opening(source)
    name = Path(without_password(source))
    result = ItemResult(source=name, target=target, status=Status.RESTORED)
    passage = Passage()
    reader = ClipReader(
        address,
        max_pixels=job.max_pixels,
        end_s=options.end_s,
        container_format=container_format,
        options=settings,
        timeout_s=TIMEOUT_S,
        is_live=True,
    )
    try:
        with reader:
            height, width = reader.size
            result = replace(result, height=height, width=width)
            with (
                ClipWriter(
                    target, reader, options, in_pieces=True, strip=job.keep.strip, on_note=on_note
                ) as sink,
                Depths(job, backends, options.counts(job.loops), on_note=on_note) as depths,
            ):
                problem = _passed(
                    _until(stop, reader.steps()),
                    sink,
                    depths,
                    LineOptions(
                        budget_s=options.budget_s, preview=options.preview, drops=True, waiting=WAITING_LIVE
                    ),
                    passage=passage,
                    frame_bytes=reader.frame_bytes,
                    on_frame=on_frame,
                )
    except (ImageError, OSError) as exc:
        return replace(result, status=Status.FAILED, reason=_said(exc, address))
    problem = problem or reader.problem or ("" if passage.frames else "no frame came through")
    return outcome(result, passage, problem=_said(problem, address))


def _passed(steps: Iterator[Step], sink: Sink, depths: Depths, options: LineOptions, **rest: Any) -> str:
    """Why it ended before its time, in a line; a full disk must not take along what is written."""
    try:
        run_line(steps, sink, depths, options, **rest)
    except (ImageError, OSError) as exc:
        return str(exc)
    return ""


def _said(why: object, address: str) -> str:
    """In a report: the address without its password, and not where it stands before it anyway."""
    name = without_password(address)
    return str(why).replace(address, name).removeprefix(f"{name}: ")


def _opening(source: str) -> tuple[str, str | None, dict[str, str]]:
    """What FFmpeg is told: address, format, options."""
    if source.startswith("/dev/"):
        return source, "v4l2", {}
    if source.startswith("lavfi:"):
        return source.removeprefix("lavfi:"), "lavfi", {}
    # Over UDP, its default, a full network tears frames; over TCP it delays them, and the queue drops.
    return source, None, {"rtsp_transport": "tcp"} if source.startswith("rtsp") else {}


def _until(stop: threading.Event, steps: Iterator[Step]) -> Iterator[Step]:
    for step in steps:
        if stop.is_set():
            return
        yield step
