"""YUV4MPEG2, as `ffmpeg -f yuv4mpegpipe` writes and reads it: a header line, then frames of planes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import BinaryIO

from cmudrn.errors import ImageError, ImageTooLarge

__all__ = ["Y4mFrame", "Y4mHeader", "read_frames", "read_header"]

MAGIC = b"YUV4MPEG2"
FRAME = b"FRAME"
LONGEST_LINE = 1024  # bytes; real ones have about 80


@dataclass(frozen=True)
class Layout:
    """How the planes of one colour space lie."""

    pix_fmt: str  # FFmpeg's name
    chroma_height: int  # lines of luma for one of chroma
    chroma_width: int
    sample_bytes: int = 1


LAYOUTS: Mapping[str, Layout] = {
    **{name: Layout("yuv420p", 2, 2) for name in ("420", "420jpeg", "420mpeg2", "420paldv")},
    "422": Layout("yuv422p", 1, 2),
    "444": Layout("yuv444p", 1, 1),
    "420p10": Layout("yuv420p10le", 2, 2, 2),
    "422p10": Layout("yuv422p10le", 1, 2, 2),
    "444p10": Layout("yuv444p10le", 1, 1, 2),
}
USUAL = "420"  # where the header names none


@dataclass(frozen=True)
class Y4mHeader:
    """The first line. What is not of the size stays as it is, and is written again."""

    height: int
    width: int
    parameters: tuple[str, ...]  # the others, each with its letter: F25:1, Ip, A1:1, C420jpeg, X...

    @property
    def layout(self) -> Layout:
        """Of the planes."""
        return LAYOUTS[_value(self.parameters, "C") or USUAL]

    @property
    def has_full_range(self) -> bool:
        """Black is 0 and not 16; so are only frames that say it."""
        return "XCOLORRANGE=FULL" in self.parameters

    @property
    def plane_sizes(self) -> tuple[tuple[int, int], ...]:
        """Height and bytes a line of Y, U and V."""
        layout = self.layout
        chroma = (-(-self.height // layout.chroma_height), -(-self.width // layout.chroma_width))
        return tuple(
            (height, width * layout.sample_bytes)
            for height, width in ((self.height, self.width), chroma, chroma)
        )

    @property
    def frame_bytes(self) -> int:
        """Of all planes of one frame."""
        return sum(height * line_bytes for height, line_bytes in self.plane_sizes)

    def with_width(self, width: int) -> Y4mHeader:
        """The same, for wider frames."""
        return replace(self, width=width)

    def line(self) -> bytes:
        """As it is written."""
        words = (f"W{self.width}", f"H{self.height}", *self.parameters)
        return MAGIC + b" " + " ".join(words).encode("ascii") + b"\n"


@dataclass(frozen=True, eq=False)
class Y4mFrame:
    """The planes of one frame, one after the other, and the line before them."""

    line: bytes
    planes: bytes


def read_header(stream: BinaryIO, *, max_pixels: int) -> Y4mHeader:
    """The first line. Raises ImageError where it isn't Y4M, or of a kind that is not read."""
    line = stream.readline(LONGEST_LINE)
    if line.split(b" ")[0].rstrip(b"\n") != MAGIC or not line.endswith(b"\n"):
        raise ImageError(
            "standard input: neither Y4M nor told to be raw" if line else "standard input: nothing comes",
            fix="ffmpeg -i ... -f yuv4mpegpipe -, or --raw-size 1280x720 for raw frames",
        )
    words = line.decode("ascii", "replace").split()[1:]
    sizes = [_value(words, letter) or "" for letter in "HW"]
    if not all(size.isascii() and size.isdecimal() and 0 < len(size) <= 9 and int(size) for size in sizes):
        raise ImageError("standard input: a Y4M header without a size", fix="it needs W and H")
    height, width = map(int, sizes)
    if height * width > max_pixels:
        raise ImageTooLarge(
            f"standard input: {width} x {height} is {height * width:,} pixels, the limit is {max_pixels:,}",
            fix="raise --max-pixels if you trust the source",
        )
    colours = _value(words, "C")
    if colours is not None and colours not in LAYOUTS:
        raise ImageError(
            f"standard input: Y4M frames of colour space {colours}",
            fix="ffmpeg ... -pix_fmt yuv420p -f yuv4mpegpipe -; what is read: " + ", ".join(LAYOUTS),
        )
    return Y4mHeader(height, width, tuple(word for word in words if word[0] not in "WH"))


def read_frames(stream: BinaryIO, header: Y4mHeader) -> Iterator[Y4mFrame]:
    """Frame after frame. Raises ImageError where one is cut off, or something else stands in its place."""
    count = 0
    while line := stream.readline(LONGEST_LINE):
        if not line.startswith(FRAME) or not line.endswith(b"\n"):
            raise ImageError(f"standard input: after {count} frames no other one begins")
        planes = stream.read(header.frame_bytes)
        if len(planes) < header.frame_bytes:
            raise ImageError(f"standard input: ends in the middle of frame {count + 1}")
        yield Y4mFrame(line, planes)
        count += 1


def _value(words: tuple[str, ...] | list[str], letter: str) -> str | None:
    """What stands after a letter; None without."""
    return next((word[1:] for word in words if word[0] == letter), None)
