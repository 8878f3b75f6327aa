"""Clips of a job, one after the other, each from its file to its file."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from cmudrn.deploy.backends import Backends
from cmudrn.deploy.failures import FAILURES, failed, raise_for_full_disk
from cmudrn.deploy.fingerprint import Stamp, fingerprint_of
from cmudrn.deploy.job import Existing, InferJob
from cmudrn.deploy.report import ItemResult, Status
from cmudrn.deploy.sources import Item
from cmudrn.deploy.video.depths import Depths
from cmudrn.deploy.video.line import LineOptions, Passage, run_line
from cmudrn.deploy.video.names import need_av
from cmudrn.deploy.video.options import VideoOptions
from cmudrn.errors import EnvironmentMissing

__all__ = ["FrameNews", "check_codec", "outcome", "restore_clips", "waiting_frames"]

FrameNews = Callable[[Path, int, int], None]  # a clip, how many of its frames are done, and of about how many
LEAST_WAITING = 2


def check_codec(options: VideoOptions) -> None:
    """Raises UsageError for an encoder that is not there, as far as that can be known: with PyAV."""
    if options.codec and find_spec("av"):
        from cmudrn.deploy.video.encoders import encoder_told

        encoder_told(options.codec)


def restore_clips(
    job: InferJob,
    options: VideoOptions,
    items: Iterable[Item],
    backends: Backends,
    *,
    on_frame: FrameNews = lambda clip, done, of: None,
    on_note: Callable[[str], None] = lambda line: None,
) -> Generator[ItemResult, None, None]:
    """Restores clips, yielding each one's result as it ends.

    A clip that cannot be read is a failed result, and the others go on. So is one that breaks off: what
    came before is written. Anything else is raised here; a full disk as CmudrnError.
    """
    with Depths(job, backends, options.counts(job.loops), on_note=on_note) as depths:
        for item in items:
            yield _restored(job, options, item, depths, on_frame, on_note)


def _restored(
    job: InferJob,
    options: VideoOptions,
    item: Item,
    depths: Depths,
    on_frame: FrameNews,
    on_note: Callable[[str], None],
) -> ItemResult:
    result = ItemResult(source=item.source, target=item.target, status=Status.RESTORED)
    if item.problem:
        return replace(result, status=Status.FAILED, reason=item.problem)
    try:
        if item.done is not None:
            if not (changed := item.done.changed()):
                return item.done
            result = replace(result, anew=changed)
        elif job.existing is Existing.SKIP and item.target.exists():
            return replace(result, status=Status.SKIPPED)
        need_av("a clip")
        stamp = Stamp.of(item.source)
        result = _pass(job, options, result, depths, on_frame, on_note)
        read, written = fingerprint_of(item.source, since=stamp), fingerprint_of(item.target)
        return replace(result, read=read, written=written, restored_by=depths.label)
    except EnvironmentMissing as exc:
        return replace(result, status=Status.FAILED, reason=str(exc))
    except FAILURES as exc:
        raise_for_full_disk(item.target, exc)
        return failed(result, exc)


def _pass(
    job: InferJob,
    options: VideoOptions,
    result: ItemResult,
    depths: Depths,
    on_frame: FrameNews,
    on_note: Callable[[str], None],
) -> ItemResult:
    from cmudrn.deploy.video.reading import ClipReader
    from cmudrn.deploy.video.writing import ClipWriter

    source = ClipReader(
        str(result.source), max_pixels=job.max_pixels, start_s=options.start_s, end_s=options.end_s
    )
    passage = Passage()
    with source:
        height, width = source.size
        result = replace(result, height=height, width=width)
        of = source.expected_frames
        kept = None if job.keep.strip else result.source.stat().st_mtime_ns
        with ClipWriter(
            result.target, source, options, strip=job.keep.strip, modified_ns=kept, on_note=on_note
        ) as sink:
            run_line(
                source.steps(),
                sink,
                depths,
                LineOptions(
                    budget_s=options.budget_s,
                    preview=options.preview,
                    waiting=waiting_frames(depths, height, width, job.in_flight_px),
                ),
                passage=passage,
                frame_bytes=source.frame_bytes,
                on_frame=lambda passage: on_frame(result.source, passage.frames, of),
            )
            since = time.perf_counter()
        passage.encode_s += time.perf_counter() - since
    return outcome(result, passage, problem=source.problem)


def outcome(result: ItemResult, passage: Passage, *, problem: str = "") -> ItemResult:
    """With what has passed. problem: why that is not all; what passed is written all the same."""
    return replace(
        result,
        status=Status.FAILED if problem else Status.RESTORED,
        reason=problem,
        frames=passage.frames,
        dropped=passage.dropped,
        frames_by_loops=dict(sorted(passage.by_loops.items())),
        decode_s=passage.decode_s,
        restore_s=passage.restore_s,
        encode_s=passage.encode_s,
    )


def waiting_frames(depths: Depths, height: int, width: int, in_flight_px: int) -> int:
    """Before the network and behind it, each: what batches want, as far as memory is not the price."""
    return max(LEAST_WAITING, min(depths.most_at_once, in_flight_px // (2 * height * width)))
