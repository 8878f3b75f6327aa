"""Decoded frames as RGB pixels and back, by libswscale, with the frame's own matrix and range.

Eight bits become uint8, more become uint16. Matrix and range are said to libswscale each time: what it would
assume else is BT.601 of limited range for all. Its own defaults for speed, which round coarsely and halve the
chroma of RGB, are not taken.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, cast

import av
import numpy as np
from av.video.format import VideoFormat
from av.video.reformatter import ColorRange, VideoReformatter

from cmudrn.errors import ImageError
from cmudrn.images import Pixels

__all__ = ["Colour", "Converter", "depth_of", "has_alpha"]

UNSPECIFIED = 2  # of primaries, transfer and matrix, as FFmpeg and H.273 number them
BT709, BT601 = 1, 6
MATRICES = {1: 1, 4: 4, 5: 5, 6: 5, 7: 7, 9: 9}  # H.273's number: libswscale's
# libswscale's flags, as swscale.h numbers them: PyAV 17 knows them not by name, and takes numbers.
BICUBIC, FULL_CHR_H_INT, FULL_CHR_H_INP, ACCURATE_RND = 0x4, 0x2000, 0x4000, 0x40000
EXACT = BICUBIC | FULL_CHR_H_INT | FULL_CHR_H_INP | ACCURATE_RND
LARGEST_SD = (576, 1024)  # height and width: above, players take frames that say nothing for BT.709
UINT16_PEAK = 65535


@dataclass(frozen=True)
class Colour:
    """The tags of a stream, by H.273's numbers; range as FFmpeg's: 0 unspecified, 1 limited, 2 full."""

    range: int = 0
    primaries: int = UNSPECIFIED
    transfer: int = UNSPECIFIED
    matrix: int = UNSPECIFIED

    @classmethod
    def of_frame(cls, frame: av.VideoFrame) -> Colour:
        """What a decoded frame is tagged with."""
        return cls(frame.color_range, frame.color_primaries, frame.color_trc, frame.colorspace)

    def for_yuv(self, height: int, width: int) -> Colour:
        """Tags for frames that were RGB and are to be written as YUV: these must be said."""
        if self.matrix not in (0, UNSPECIFIED):
            return self
        is_large = height > LARGEST_SD[0] or width > LARGEST_SD[1]
        return replace(self, range=1, matrix=BT709 if is_large else BT601)

    def conversion(self, pix_fmt: str, height: int, width: int) -> tuple[int, ColorRange]:
        """libswscale's matrix, and the range, of frames of this format. Raises ImageError."""
        matrix = self.for_yuv(height, width).matrix if self.matrix == UNSPECIFIED else self.matrix
        if matrix not in MATRICES and not VideoFormat(pix_fmt).is_rgb:
            raise ImageError(
                f"frames of colour matrix {matrix} (H.273), which is not read",
                fix="convert the clip to BT.601, BT.709 or BT.2020 with constant luminance off",
            )
        is_full = self.range == ColorRange.JPEG or pix_fmt.startswith("yuvj")
        return MATRICES.get(matrix, BT709), ColorRange.JPEG if is_full else ColorRange.MPEG


class Converter:
    """Between frames of one kind and pixels. Keep one for each direction and thread."""

    def __init__(self, colour: Colour, pix_fmt: str, height: int, width: int) -> None:
        self.pix_fmt, self.depth = pix_fmt, depth_of(pix_fmt)
        self._is_rgb = VideoFormat(pix_fmt).is_rgb
        self._matrix, self._range = colour.conversion(pix_fmt, height, width)
        self._rgb = "rgb24" if self.depth == 8 else "rgb48le"
        self._reformatter = VideoReformatter()

    def pixels(self, frame: av.VideoFrame) -> Pixels:
        """[H, W, 3], the full range of uint8 or uint16."""
        told: dict[str, Any] = {}
        if not self._is_rgb:
            told = {"src_colorspace": self._matrix, "src_color_range": self._range}
        rgb = self._reformatter.reformat(
            frame, format=self._rgb, interpolation=EXACT, threads=1, dst_color_range=ColorRange.JPEG, **told
        )
        pixels = cast("Pixels", rgb.to_ndarray())
        return pixels if self.depth == 8 else _stretched(pixels, UINT16_PEAK / self._white)

    def frame(self, pixels: Pixels) -> av.VideoFrame:
        """A new frame of these pixels, without a timestamp."""
        if pixels.dtype == np.uint16:
            pixels = _stretched(pixels, self._white / UINT16_PEAK)
        rgb = av.VideoFrame.from_ndarray(cast("Any", np.ascontiguousarray(pixels)), format=self._rgb)
        rgb.color_range = ColorRange.JPEG
        told: dict[str, Any] = {"dst_color_range": ColorRange.JPEG}
        if not self._is_rgb:
            told = {"dst_colorspace": self._matrix, "dst_color_range": self._range}
        return self._reformatter.reformat(
            rgb, format=self.pix_fmt, interpolation=EXACT, threads=1, src_color_range=ColorRange.JPEG, **told
        )

    @property
    def _white(self) -> float:
        """Of libswscale's 16-bit RGB: it shifts where it ought to scale."""
        if self._range == ColorRange.MPEG and not self._is_rgb:
            return 255 << 8
        return ((1 << self.depth) - 1) << (16 - self.depth)


def depth_of(pix_fmt: str) -> int:
    """Bits of a sample."""
    return max(component.bits for component in VideoFormat(pix_fmt).components)


def has_alpha(pix_fmt: str) -> bool:
    """Whether there is transparency."""
    return any(component.is_alpha for component in VideoFormat(pix_fmt).components)


def _stretched(pixels: Pixels, factor: float) -> Pixels:
    if factor == 1:
        return pixels
    stretched = np.minimum(pixels * np.float32(factor) + np.float32(0.5), np.float32(UINT16_PEAK))
    return np.asarray(stretched.astype(np.uint16))
