"""Y4M's planes as RGB pixels and back."""

from __future__ import annotations

from typing import cast

import av
import numpy as np
from numpy.typing import NDArray

from cmudrn.deploy.video.colour import Colour, Converter
from cmudrn.deploy.video.y4m import Y4mHeader
from cmudrn.images import Pixels

__all__ = ["PlaneConverter"]

FULL = 2  # FFmpeg's number of the range


class PlaneConverter:
    """Of one header's frames. Y4M names no matrix: BT.601, or BT.709 for large ones, as in players."""

    def __init__(self, header: Y4mHeader) -> None:
        self._header = header
        colour = Colour(range=FULL if header.has_full_range else 1)
        self._converter = Converter(colour, header.layout.pix_fmt, header.height, header.width)

    def pixels(self, planes: bytes) -> Pixels:
        """[H, W, 3]: uint8, or uint16 where a sample has more than 8 bits."""
        frame = av.VideoFrame(self._header.width, self._header.height, self._header.layout.pix_fmt)
        begin = 0
        for plane, (height, line_bytes) in zip(frame.planes, self._header.plane_sizes, strict=True):
            lines = np.frombuffer(planes, np.uint8, height * line_bytes, begin).reshape(height, line_bytes)
            _lines_of(plane)[:height, :line_bytes] = lines
            begin += height * line_bytes
        return self._converter.pixels(frame)

    def planes(self, pixels: Pixels) -> bytes:
        """The inverse."""
        frame = self._converter.frame(pixels)
        return b"".join(
            _lines_of(plane)[:height, :line_bytes].tobytes()
            for plane, (height, line_bytes) in zip(frame.planes, self._header.plane_sizes, strict=True)
        )


def _lines_of(plane: av.video.plane.VideoPlane) -> NDArray[np.uint8]:
    """[lines, bytes of a line, padding included]; a view."""
    lines = np.frombuffer(cast("memoryview[int]", plane), np.uint8)
    return lines[: plane.height * plane.line_size].reshape(plane.height, plane.line_size)
