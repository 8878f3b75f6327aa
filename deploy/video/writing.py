"""Clips as files: whole or not at all, all streams in their order, only the frames encoded anew."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import av

from cmudrn.deploy.video.colour import Converter
from cmudrn.deploy.video.encoders import EncoderPlan, container_takes, plan_encoder
from cmudrn.deploy.video.frames import Beside, Step
from cmudrn.deploy.video.names import MUXERS
from cmudrn.deploy.video.options import VideoOptions
from cmudrn.deploy.video.reading import ClipReader, Mark, failing_as_image_error
from cmudrn.errors import ImageError
from cmudrn.files import replacing

__all__ = ["ClipWriter"]

NEEDED = ("audio", "subtitle")  # a clip without them is another clip; data of cameras is let go, and said so
OF_THE_FILE = frozenset({"major_brand", "minor_version", "compatible_brands", "encoder", "duration"})
MOST_REORDERED = 4  # frames that an encoder decodes before one that is shown earlier, at most
FARTHEST_AHEAD = 1 << 31  # ticks that MP4 holds between decoding a frame and showing it
PIECE_S = 2  # between key frames where a file must be readable without its end
# An MP4 that is readable up to where the power went.
AT_ONCE = {"flush_packets": "1"}
# delay_moov: with an empty one there is no edit list, and the first frame would stand at 0.
IN_PIECES = {"movflags": "+frag_keyframe+delay_moov+default_base_moof"}


class ClipWriter(AbstractContextManager["ClipWriter"]):
    """A file beside its final name, which it takes when the `with` block ends well.

    Entering raises ImageError or UsageError for what the container cannot hold. in_pieces: readable up to
    its last key frame, even where it was never ended. strip: leaves out what says where, when and by whom it
    was taken: metadata but for languages, chapters, further pictures and data. modified_ns: the file's time,
    since the epoch; None: now. on_note: gets a line for each stream that is left out.
    """

    def __init__(
        self,
        target: Path,
        source: ClipReader,
        options: VideoOptions,
        *,
        in_pieces: bool = False,
        strip: bool = False,
        modified_ns: int | None = None,
        on_note: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._target, self._source, self._options = target, source, options
        self._in_pieces, self._strip, self._modified_ns = in_pieces, strip, modified_ns
        self._on_note = on_note
        self._last_dts: int | None = None
        self._copies: dict[int, Any] = {}  # streams of the target by the source's index

    def __enter__(self) -> ClipWriter:
        source, muxer = self._source, MUXERS[self._target.suffix.lower()]
        look = source.look.doubled(not source.turn.swapped) if self._options.preview else source.look
        plan = plan_encoder(look, self._options, muxer)
        if self._in_pieces:
            key_frames = {"g": str(max(1, round(look.rate * PIECE_S)))}
            plan = replace(plan, options={**plan.options, **key_frames})
        copied = self._copied(muxer)
        self._target.parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as taken:
            # FFmpeg opens it by the hidden name: the bytes don't pass through Python, and it may seek.
            file = taken.enter_context(replacing(self._target))
            if self._modified_ns is not None:  # once all is written, before it takes its name
                taken.callback(os.utime, file.name, ns=(time.time_ns(), self._modified_ns))
            with failing_as_image_error(str(self._target), "write"):
                container = av.open(
                    f"file:{file.name}", "w", format=muxer, options=self._muxer_options(plan, muxer)
                )
                taken.push(self._ending(container))
                self._add_streams(container, plan, copied)
                container.start_encoding()
            self._container, self._plan = container, plan
            self._converter = Converter(plan.colour, plan.pix_fmt, look.height, look.width)
            self._taken = taken.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        return self._taken.__exit__(kind, error, trace)

    def write(self, step: Step) -> None:
        """A frame to encode, or a packet to copy. Raises ImageError."""
        with failing_as_image_error(str(self._target), "write"):
            if isinstance(step, Beside):
                self._copy(step.packet)
                return
            mark: Mark = step.mark
            frame = self._converter.frame(self._source.turn.stored(step.pixels))
            frame.pts, frame.time_base = mark.pts, self._plan.look.time_base
            if mark.duration:
                frame.duration = mark.duration
            self._mux(self._container, self._stream.encode(frame))

    def _ending(self, container: Any) -> Any:
        """What is done with it at the end of the block: the rest is encoded where all went well."""

        def end(kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
            try:
                if kind is None:
                    self._finish(container)
            finally:
                _close_quietly(container)

        return end

    def _finish(self, container: Any) -> None:
        """What the encoder still holds, and the container's end."""
        try:
            with failing_as_image_error(str(self._target), "write"):
                self._mux(container, self._stream.encode(None))
                container.close()
        except ImageError as exc:
            if not self._in_pieces:
                raise
            self._on_note(f"note: {exc}")

    def _muxer_options(self, plan: EncoderPlan, muxer: str) -> dict[str, str]:
        options = plan.muxer_options(muxer)
        if not self._in_pieces:
            return options
        return options | AT_ONCE | (IN_PIECES if muxer in ("mp4", "mov") else {})

    def _copied(self, muxer: str) -> list[Any]:
        """Streams that the container holds. Raises ImageError for one that would be missed."""
        copied = []
        for stream in self._source.others:
            if self._strip and not _is_sound_or_text(stream):
                continue
            if container_takes(stream, muxer):
                copied.append(stream)
                continue
            codec = stream.codec_context.name if stream.codec_context else "unknown"
            what = f"{self._target}: {muxer} cannot hold stream {stream.index}, {stream.type} ({codec})"
            if stream.type in NEEDED:
                raise ImageError(what, fix="give the source's own suffix, or .mkv")
            self._on_note(f"note: {what}; it is left out")
        return copied

    def _add_streams(self, container: Any, plan: EncoderPlan, copied: list[Any]) -> None:
        source = self._source
        for stream in sorted([source.stream, *copied], key=lambda one: one.index):
            if stream is source.stream:
                ours = self._stream = plan.add_to(container)
            else:
                ours = self._copies[stream.index] = container.add_stream_from_template(stream)
                ours.time_base = stream.time_base
            ours.metadata.update(_languages(stream.metadata) if self._strip else _kept(stream.metadata))
            ours.disposition = stream.disposition
        if self._strip:
            return
        container.metadata.update(_kept(source.container.metadata))
        if not self._options.start_s and self._options.end_s is None:
            container.set_chapters(source.container.chapters())

    def _mux(self, container: Any, packets: list[Any]) -> None:
        for packet in packets:
            # x265 leaves them unset where a clip has fewer frames than it looks ahead.
            is_set = packet.dts is not None and 0 <= packet.pts - packet.dts < FARTHEST_AHEAD
            if not is_set:
                packet.dts = packet.pts - MOST_REORDERED if self._last_dts is None else self._last_dts + 1
            self._last_dts = packet.dts
            container.mux(packet)

    def _copy(self, packet: Any) -> None:
        ours = self._copies.get(packet.stream.index)
        if ours is None:
            return
        shift = self._source.shifted(Fraction(packet.time_base))
        if shift:
            packet.pts = None if packet.pts is None else packet.pts - shift
            packet.dts = None if packet.dts is None else packet.dts - shift
        packet.stream = ours
        self._container.mux(packet)


def _is_sound_or_text(stream: Any) -> bool:
    """What belongs to the clip, as shown; other streams are thumbnails, tracks of positions, or files."""
    return stream.type in NEEDED


def _languages(metadata: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in metadata.items() if name.lower() == "language"}


def _kept(metadata: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in metadata.items() if name.lower() not in OF_THE_FILE}


def _close_quietly(container: Any) -> None:
    """Of a file that is thrown away, or that was closed before."""
    try:
        container.close()
    except (av.FFmpegError, ValueError):
        return
