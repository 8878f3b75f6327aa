"""A decoded picture, and what its header tells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from cmudrn.errors import ImageError
from cmudrn.formats import ImageFormat
from cmudrn.images.chunks import Chunk

__all__ = ["Header", "Metadata", "Picture", "Pixels"]

# [H, W, 3], or [P, H, W, 3] of a picture of several pages; of alpha, the same without the 3.
Pixels: TypeAlias = "NDArray[np.uint8 | np.uint16]"
Metadata: TypeAlias = "Mapping[str, bytes | str | int | Sequence[int]]"  # libvips' field names


@dataclass(frozen=True)
class Header:
    """What the start of a file tells: its size, in pixels, upright."""

    path: Path
    height: int  # of one page, which are all equal
    width: int
    pages: int = 1  # or frames

    @property
    def pixels(self) -> int:
        """Of all pages."""
        return self.pages * self.height * self.width


@dataclass(frozen=True, eq=False)
class Picture:
    """One decoded picture, upright, with all that is needed to write it back."""

    pixels: Pixels  # RGB, C-contiguous, uint8 or uint16, the full range of the type
    alpha: Pixels | None  # same dtype; never changed
    format: ImageFormat  # of the file it came from
    is_grey: bool  # three equal channels, to be written as one
    orientation: int  # EXIF, 1 to 8: how the file holds it
    resolution: tuple[float, float] | None  # pixels a millimetre, as libvips counts: across, down
    metadata: Metadata  # what libvips carries
    exif: bytes | None = None  # byte for byte, from its byte order on
    chunks: Sequence[Chunk] = ()  # of a PNG or JPEG, and for no other format
    modified_ns: int | None = None  # the file's time, since 1970

    @property
    def pages(self) -> int:
        """How many pages or frames."""
        return 1 if self.pixels.ndim == 3 else len(self.pixels)

    def with_pixels(self, restored: NDArray[Any]) -> Picture:
        """The same picture with other pixels.

        restored: shape and dtype of `pixels`, else ImageError.
        """
        if restored.shape != self.pixels.shape or restored.dtype != self.pixels.dtype:
            raise ImageError(
                f"restored pixels are {restored.shape} {restored.dtype}, "
                f"the picture is {self.pixels.shape} {self.pixels.dtype}",
                fix="restore at the same size and bit depth",
            )
        return replace(self, pixels=np.ascontiguousarray(restored))
