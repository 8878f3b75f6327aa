"""Frames from standard input to standard output, so that ffmpeg can stand before and behind: raw, or Y4M.

Raw frames need nothing but numpy; Y4M's planes become RGB and back by PyAV.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import numpy as np

from cmudrn.deploy.backends import Backends
from cmudrn.deploy.job import InferJob
from cmudrn.deploy.report import ItemResult, Status
from cmudrn.deploy.video.clips import outcome, waiting_frames
from cmudrn.deploy.video.depths import Depths
from cmudrn.deploy.video.frames import Frame, Sink, Step
from cmudrn.deploy.video.line import LineOptions, Passage, run_line
from cmudrn.deploy.video.names import STANDARD_INPUT, need_av
from cmudrn.deploy.video.options import RawFrames, RawOrder, VideoOptions
from cmudrn.errors import ImageError, UsageError
from cmudrn.files import write_all
from cmudrn.images import Pixels
from cmudrn.wording import counted

__all__ = ["restore_pipe"]


def restore_pipe(
    job: InferJob,
    options: VideoOptions,
    backends: Backends,
    source: BinaryIO,
    sink: BinaryIO,
    *,
    on_frame: Callable[[Passage], None] = lambda passage: None,
    on_note: Callable[[str], None] = lambda line: None,
) -> ItemResult:
    """All frames of a stream, to one of the same kind. A stream that breaks off is a failed result.

    source, sink: blocking, bytes. A thread may still be reading when this returns, or writing when it
    raises: close neither, for that waits for it.
    Raises ImageError where the stream is of no kind that is read, EnvironmentMissing without PyAV for Y4M.
    """
    name = Path(STANDARD_INPUT)
    result = ItemResult(source=name, target=name, status=Status.RESTORED)
    ends = _raw(options.raw, source, sink, job) if options.raw else _y4m(source, sink, job, options)
    result = replace(result, height=ends.height, width=ends.width)
    passage = Passage()
    try:
        with Depths(job, backends, options.counts(job.loops), on_note=on_note) as depths:
            write_all(sink, ends.head)  # at once: of an empty stream, too
            run_line(
                ends.steps,
                ends,
                depths,
                LineOptions(
                    budget_s=options.budget_s,
                    preview=options.preview,
                    waiting=waiting_frames(depths, ends.height, ends.width, job.in_flight_px),
                    joins=False,
                ),
                passage=passage,
                frame_bytes=ends.frame_bytes,
                on_frame=on_frame,
            )
    except BrokenPipeError:
        done = counted(passage.frames, "frame")
        return outcome(result, passage, problem=f"standard output was closed by its reader after {done}")
    except (ImageError, OSError) as exc:
        return outcome(result, passage, problem=str(exc))
    return outcome(result, passage)


class _Ends(Sink):
    """Both ends of the pipe: frames come, and go the way they came."""

    def __init__(
        self,
        height: int,
        width: int,
        frame_bytes: int,
        steps: Iterator[Step],
        write: Callable[[Step], None],
        head: bytes = b"",
    ) -> None:
        self.height, self.width, self.frame_bytes, self.steps = height, width, frame_bytes, steps
        self.head = head  # what stands before the first frame
        self._write = write

    def write(self, step: Step) -> None:
        self._write(step)


def _raw(raw: RawFrames, source: BinaryIO, sink: BinaryIO, job: InferJob) -> _Ends:
    height, width = raw.height, raw.width
    if height * width > job.max_pixels:
        raise UsageError(f"--raw-size {width}x{height} is more than --max-pixels", fix="raise --max-pixels")
    size_bytes = height * width * 3

    def ordered(pixels: Pixels) -> Pixels:
        return pixels if raw.order is RawOrder.RGB else np.ascontiguousarray(pixels[..., ::-1])

    def steps() -> Iterator[Step]:
        count = 0
        while data := source.read(size_bytes):
            if len(data) < size_bytes:
                raise ImageError(f"standard input ends within frame {count + 1}", fix="check --raw-size")
            yield Frame(ordered(np.frombuffer(data, np.uint8).reshape(height, width, 3)), None)
            count += 1

    def write(step: Step) -> None:
        if isinstance(step, Frame):
            write_all(sink, ordered(step.pixels).data.cast("B"))

    return _Ends(height, width, size_bytes, steps(), write)


def _y4m(source: BinaryIO, sink: BinaryIO, job: InferJob, options: VideoOptions) -> _Ends:
    from cmudrn.deploy.video.y4m import read_frames, read_header

    header = read_header(source, max_pixels=job.max_pixels)
    need_av("Y4M on standard input")
    from cmudrn.deploy.video.planes import PlaneConverter

    incoming = PlaneConverter(header)
    shown = header.with_width(2 * header.width) if options.preview else header
    outgoing = PlaneConverter(shown)

    def steps() -> Iterator[Step]:
        for frame in read_frames(source, header):
            yield Frame(incoming.pixels(frame.planes), frame.line)

    def write(step: Step) -> None:
        if isinstance(step, Frame):
            write_all(sink, step.mark + outgoing.planes(step.pixels))

    frame_bytes = header.height * header.width * 6
    return _Ends(header.height, header.width, frame_bytes, steps(), write, shown.line())
