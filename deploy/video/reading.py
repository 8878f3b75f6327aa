"""Clips and cameras as frames, upright, with the packets of their other streams between them."""

from __future__ import annotations

import heapq
import math
import struct
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from types import TracebackType
from typing import Any, cast

import av
from av.sidedata.sidedata import Type as SideData

from cmudrn.deploy.video.colour import Colour, Converter
from cmudrn.deploy.video.encoders import Look
from cmudrn.deploy.video.frames import Beside, Frame, Step
from cmudrn.deploy.video.upright import Turn
from cmudrn.errors import ImageError, ImageTooLarge
from cmudrn.wording import counted

__all__ = ["ClipReader", "Mark", "failing_as_image_error", "reason_of"]

USUAL_RATE = Fraction(25)  # of streams that tell none
MICROSECONDS = 1_000_000  # of a container's own times
# Containers whose header says how long they are; the others are as long as what can be read.
WITH_DURATION = ("mp4", "matroska", "avi")
SHORTEST_GAP_S = 0.05  # what may miss at the end besides two frames: encoders round there
FARTHER_BACK_S = (0, 10, 60)  # where a key frame before --start is looked for, then from the clip's begin
DAMAGED = (av.error.InvalidDataError, av.error.EOFError, av.error.UnknownError)  # of one frame
AFTER_END_S = 1.0  # that other streams lag behind in a file


@dataclass(frozen=True)
class Mark:
    """When a frame is shown, in units of its stream's time base."""

    pts: int
    duration: int  # 0: not told


class ClipReader(AbstractContextManager["ClipReader"]):
    """An opened clip, or a stream that goes on.

    source: a file's path, or an address. Entering decodes the first frame, and raises ImageError for what is
    no video, has no frames, or is of more than max_pixels. start_s, end_s: from the clip's begin; what is
    before is left out, and times count from there. A live source begins at 0 with its first frame. After
    `steps`, `problem` says in a line what was wrong with the clip.
    """

    def __init__(
        self,
        source: str,
        *,
        max_pixels: int,
        start_s: float = 0.0,
        end_s: float | None = None,
        container_format: str | None = None,
        options: dict[str, str] | None = None,
        timeout_s: float | None = None,
        is_live: bool = False,
    ) -> None:
        self.source, self.problem = source, ""
        self._max_pixels, self._is_live = max_pixels, is_live
        self._start_s, self._end_s = _exact(start_s), None if end_s is None else _exact(end_s)
        self._shift_s = Fraction(0)  # what is taken off all times
        self._opening = (container_format, options, timeout_s)
        self._held: list[Beside] = []  # packets before the first frame
        self._packets_read = self._damaged = 0
        self._doubtful: Any = None  # a packet that is marked as damaged; the last one is cut off
        self._last_pts: int | None = None
        self._last_end_s = -math.inf  # of all streams
        self._decoded: list[int] = []  # timestamps in AVI, which has no others, as a heap

    def __enter__(self) -> ClipReader:
        with ExitStack() as taken:
            with failing_as_image_error(self.source, "read"):
                self.container = taken.enter_context(self._open())
                self.stream = self._video_stream()
                self._begin()
                self._frames = self._decode()
                first = next(self._frames, None)
                while isinstance(first, Beside):
                    self._held.append(first)
                    first = next(self._frames, None)
            if first is None:
                why = self.problem or "there are no frames in it"
                raise ImageError(f"{self.source}: {why}", fix="check --start, or fetch the clip again")
            self._first: av.VideoFrame | None = first
            self._describe(first)
            if self._is_live:
                self._begin_at(self._time_s(first))
            self._taken = taken.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._first = None
        self._taken.close()

    @property
    def others(self) -> list[Any]:
        """The streams beside the frames'."""
        return [stream for stream in self.container.streams if stream is not self.stream]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of frames, upright, in pixels."""
        stored = (self.look.height, self.look.width)
        return (stored[1], stored[0]) if self.turn.swapped else stored

    @property
    def frame_bytes(self) -> int:
        """Of one frame as pixels."""
        return self.look.height * self.look.width * 3 * (1 if self._converter.depth == 8 else 2)

    @property
    def expected_frames(self) -> int:
        """About how many there are, 0 where nobody knows."""
        if self.stream.frames and not self._start_s and self._end_s is None:
            return int(self.stream.frames)
        whole_s = (self.container.duration or 0) / MICROSECONDS
        until_s = min(whole_s, math.inf if self._end_s is None else float(self._end_s))
        return max(0, round((until_s - float(self._start_s)) * float(self.look.rate)))

    def steps(self) -> Iterator[Step]:
        """Frames, upright, and packets of other streams, in the order of the file."""
        yield from self._held
        self._held = []
        count = 0
        first, self._first = self._first, None
        assert first is not None
        frame: av.VideoFrame | Beside | None = first
        while frame is not None:
            if isinstance(frame, Beside):
                yield frame
            elif why := self._changed(frame):
                self.problem = f"broken off after {counted(count, 'frame')}: {why}"
                return
            else:
                with failing_as_image_error(self.source, "read"):
                    pixels = self.turn.upright(self._converter.pixels(frame))
                yield Frame(pixels, self._mark(frame))
                count += 1
            frame = next(self._frames, None)
        if self.problem:
            self.problem = f"broken off after {counted(count, 'frame')}: {self.problem}"
        elif missing_s := self._missing_s():
            about = f" of about {self.expected_frames:,}" if self.expected_frames > count else ""
            self.problem = (
                f"broken off after {counted(count, 'frame')}{about}: its last {missing_s:.1f} s are missing"
            )
        elif self._damaged and not self._is_live:
            self.problem = (
                f"{counted(self._damaged, 'frame')} damaged on the way, and restored as far as decoded"
            )

    def shifted(self, time_base: Fraction) -> int:
        """What is taken off timestamps, so that a part begins at 0."""
        return round(self._shift_s / time_base)

    def _open(self) -> Any:
        container_format, options, timeout_s = self._opening
        # The protocol is said, so that no name is taken for another one: "rain: 1.mp4".
        address = self.source if self._is_live else f"file:{self.source}"
        return av.open(address, "r", format=container_format, options=options or {}, timeout=timeout_s)

    def _video_stream(self) -> av.VideoStream:
        pictures = [
            stream
            for stream in self.container.streams.video
            if not stream.disposition & av.stream.Disposition.attached_pic
        ]
        if not pictures:
            raise ImageError(f"{self.source}: there is no video in it", fix="give a clip with pictures")
        best = self.container.streams.best("video")
        stream: av.VideoStream = best if best in pictures else pictures[0]
        if stream.codec_context is None:
            raise ImageError(f"{self.source}: no decoder for its video", fix="convert it, to H.264 say")
        pixels = stream.codec_context.height * stream.codec_context.width
        if pixels > self._max_pixels:
            raise ImageTooLarge(
                f"{self.source}: frames of {stream.codec_context.width} x {stream.codec_context.height} are "
                f"{pixels:,} pixels, the limit is {self._max_pixels:,}",
                fix="raise --max-pixels if you trust the file",
            )
        stream.thread_type = "AUTO"
        return stream

    def _begin(self) -> None:
        """Where the part to be restored is; to the key frame before it."""
        begin_s = Fraction(self.container.start_time or 0, MICROSECONDS)
        self._from_s = begin_s + self._start_s if self._start_s else Fraction(-(10**12))
        self._until_s = None if self._end_s is None or self._is_live else begin_s + self._end_s
        if self._start_s:
            self._shift_s = self._from_s
            self._seek(begin_s)

    def _seek(self, begin_s: Fraction) -> None:
        """To a key frame before the part. Transport streams list none, so that it may come too late."""
        for back_s in FARTHER_BACK_S:
            at_s = self._from_s - back_s
            if at_s <= begin_s:
                break
            at = int(at_s * MICROSECONDS)
            self.container.seek(at, backward=True)
            if self._comes_in_time():
                self.container.seek(at, backward=True)
                return
        self.container.seek(int((begin_s - 1) * MICROSECONDS), backward=True)

    def _comes_in_time(self) -> bool:
        """The next frame that can be decoded is not after the part's begin."""
        try:
            first = next(self.container.decode(self.stream), None)
        except DAMAGED:  # its key frame was left behind
            return False
        return first is not None and first.pts is not None and self._time_s(first) <= self._from_s

    def _begin_at(self, time_s: Fraction) -> None:
        """A live source's clock has run for days, and its sound may come before its first picture."""
        self._shift_s = self._from_s = time_s
        self._until_s = None if self._end_s is None else time_s + self._end_s
        self._held = [held for held in self._held if self._is_inside(held.packet)]

    def _describe(self, first: av.VideoFrame) -> None:
        matrix = first.side_data.get(cast("Any", SideData.DISPLAYMATRIX))
        numbers = None if matrix is None else struct.unpack("=9i", bytes(cast("bytes", matrix)))
        stream = self.stream
        self.look = Look(
            height=first.height,
            width=first.width,
            codec=stream.codec_context.codec.canonical_name,
            pix_fmt=first.format.name,
            time_base=Fraction(stream.time_base or first.time_base or 1 / USUAL_RATE),
            rate=Fraction(stream.average_rate or stream.guessed_rate or USUAL_RATE),
            colour=Colour.of_frame(first),
            pixel_aspect=Fraction(stream.sample_aspect_ratio) if stream.sample_aspect_ratio else None,
            matrix=numbers,
        )
        self.turn = Turn.of_matrix(numbers)
        self._converter = Converter(self.look.colour, self.look.pix_fmt, first.height, first.width)

    def _decode(self) -> Iterator[av.VideoFrame | Beside]:
        """Frames and packets of the part; ends where the file breaks, and says so in `problem`."""
        is_over = False  # all frames of the part have come; other streams may lag
        try:
            for packet in self.container.demux():
                self._note_end(packet)
                if packet.stream is not self.stream:
                    if self._is_inside(packet):
                        yield Beside(packet)
                elif not is_over:
                    for frame in self._frames_of(packet):
                        if self._is_after(frame):
                            is_over = True
                            break
                        if self._time_s(frame) >= self._from_s:
                            yield frame
                if is_over and self._is_long_after(packet):
                    return
        except av.FFmpegError as exc:
            self.problem = reason_of(exc)

    def _frames_of(self, packet: Any) -> Iterator[av.VideoFrame]:
        """What a packet completes, timestamps in order. Damaged ones are counted and passed by."""
        doubtful, self._doubtful = self._doubtful, None
        if doubtful is not None:
            if not packet.size:  # nothing came after it
                self.problem = "the file ends within a frame"
            else:  # lost on its way, in a transport stream say: decoders conceal that
                self._damaged += 1
                yield from self._decoded_frames(doubtful)
        if packet.size and packet.is_corrupt:
            self._doubtful = packet
        else:
            yield from self._decoded_frames(packet)

    def _decoded_frames(self, packet: Any) -> Iterator[av.VideoFrame]:
        if packet.size and self._is_avi:
            heapq.heappush(self._decoded, packet.dts if packet.dts is not None else self._packets_read)
        self._packets_read += bool(packet.size)
        try:
            frames = packet.decode()
        except DAMAGED:
            self._damaged += 1
            return
        for frame in frames:
            if self._is_avi and self._decoded:
                frame.pts = heapq.heappop(self._decoded)
            self._mend_pts(frame)
            yield frame

    @property
    def _is_avi(self) -> bool:
        """Its timestamps are those of decoding, which frames come out of order of."""
        return bool(self.container.format.name == "avi")

    def _mend_pts(self, frame: av.VideoFrame) -> None:
        """Timestamps that are missing, or not after the last one's, follow it by a frame."""
        last = self._last_pts
        if frame.pts is None or (last is not None and frame.pts <= last):
            rate = self.stream.average_rate or self.stream.guessed_rate or USUAL_RATE
            step = max(1, round(1 / (Fraction(rate) * self._tick_s)))
            if frame.pts is None:
                frame.pts = 0 if last is None else last + step
            elif last is not None:
                frame.pts = last + 1
        self._last_pts = frame.pts

    @property
    def _tick_s(self) -> Fraction:
        return Fraction(self.stream.time_base or 1 / USUAL_RATE)

    def _time_s(self, frame: av.VideoFrame) -> Fraction:
        return (frame.pts or 0) * self._tick_s

    def _is_after(self, frame: av.VideoFrame) -> bool:
        return self._until_s is not None and self._time_s(frame) >= self._until_s

    def _is_inside(self, packet: Any) -> bool:
        if not packet.size or packet.is_corrupt:
            return False
        at = packet.pts if packet.pts is not None else packet.dts
        if at is None:
            return True
        at_s = at * Fraction(packet.time_base)
        return at_s >= self._from_s and (self._until_s is None or at_s < self._until_s)

    def _is_long_after(self, packet: Any) -> bool:
        at = packet.dts if packet.dts is not None else packet.pts
        if at is None or self._until_s is None:
            return False
        return bool(at * Fraction(packet.time_base) > self._until_s + Fraction(AFTER_END_S))

    def _note_end(self, packet: Any) -> None:
        at = packet.pts if packet.pts is not None else packet.dts
        if at is not None and packet.size and not packet.is_corrupt:
            end_s = float((at + (packet.duration or 0)) * Fraction(packet.time_base))
            self._last_end_s = max(self._last_end_s, end_s)

    def _missing_s(self) -> float:
        """Of what the header promised, up to the part's end; 0 where nothing is."""
        container = self.container
        told = any(name in container.format.name for name in WITH_DURATION) and container.duration
        if not told or self._is_live:
            return 0.0
        end_s = ((container.start_time or 0) + container.duration) / MICROSECONDS
        if self._until_s is not None:
            end_s = min(end_s, float(self._until_s))
        missing_s = end_s - self._last_end_s
        return missing_s if missing_s > SHORTEST_GAP_S + 2 / float(self.look.rate) else 0.0

    def _changed(self, frame: av.VideoFrame) -> str:
        look = self.look
        if (frame.height, frame.width) != (look.height, look.width):
            return f"the next frame is {frame.width}x{frame.height}, not {look.width}x{look.height}"
        if frame.format.name != look.pix_fmt:
            return f"the next frame is {frame.format.name}, not {look.pix_fmt}"
        return ""

    def _mark(self, frame: av.VideoFrame) -> Mark:
        assert frame.pts is not None  # mended
        return Mark(frame.pts - self.shifted(self.look.time_base), frame.duration or 0)


def _exact(seconds: float) -> Fraction:
    """As it was written: 0.08 is a little more than two frames of 25 a second else, and cuts one off."""
    return Fraction(seconds).limit_denominator(MICROSECONDS)


def reason_of(error: BaseException) -> str:
    """What FFmpeg says, in a few words."""
    log = getattr(error, "log", None)
    said = log[2].strip() if log else ""
    reason = getattr(error, "strerror", None) or " ".join(str(error).split())
    return f"{reason} ({said})" if said and said != reason else reason


@contextmanager
def failing_as_image_error(source: str, verb: str) -> Iterator[None]:
    """Turns what FFmpeg raises into one line with a way out."""
    try:
        yield
    except av.FFmpegError as exc:
        fix = "check that it is a clip, and whole" if verb == "read" else "check the disk's space, or --codec"
        raise ImageError(f"{source}: cannot {verb}: {reason_of(exc)}", fix=fix) from exc
