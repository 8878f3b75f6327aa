"""A map of what was changed in a picture: a PNG whose palette index is the change, in grey levels.

The colours are for people, the index for programs. It is absolute, so that maps of two pictures compare.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from cmudrn.errors import ImageError
from cmudrn.files import replacing, write_all
from cmudrn.images.failures import failing_as_image_error
from cmudrn.images.picture import Picture, Pixels

__all__ = ["BRIGHTEST_LEVEL", "drawing_change_map", "is_change_map", "write_change_map"]

BRIGHTEST_LEVEL = 64  # of 255: rain and snow change few pixels by more, and less would be lost in the dark
# matplotlib's inferno at eleven even steps (van der Walt and Smith, CC0): black is unchanged, and a step of
# the index looks as large everywhere, in print without colours too.
INFERNO: tuple[int, ...] = (
    0x000004,
    0x160B39,
    0x420A68,
    0x6A176E,
    0x932667,
    0xBC3754,
    0xDD513A,
    0xF37819,
    0xFCA50A,
)
INFERNO += (0xF6D746, 0xFCFFA4)
TITLE = "cmudrn heatmap"
STRIP_ROWS = 64
FASTEST = 1  # zlib: half a second for 10 megapixels; at its usual 6 it is 3 to 8
SIGNATURE = b"\x89PNG\r\n\x1a\n"
TITLE_AT = 8 + 25  # the title is the first chunk after the header
PALETTED = 3  # PNG's colour type


def write_change_map(before: Pixels, after: Picture, path: Path) -> None:
    """Write a map, whole or not at all: see `drawing_change_map`."""
    with drawing_change_map(before, after, path):
        pass


@contextmanager
def drawing_change_map(before: Pixels, after: Picture, path: Path) -> Iterator[None]:
    """The map of a picture that was restored, upright; takes its name when what is done meanwhile went well.

    before: the pixels that were, of the shape and dtype of those that are. Pages stand one below the other.
    A pixel's change is the largest of its three channels', of a grey picture the grey's; in levels of 8 bits,
    rounded. What an encoder changes besides is not in it. Raises ImageError for another shape, a full disk.
    """
    if before.shape != after.pixels.shape or before.dtype != after.pixels.dtype:
        raise ImageError(f"{path}: the two pictures differ in size or depth", fix="compare like with like")
    width = before.shape[-2]
    rows = before.reshape(-1, width, 3), after.pixels.reshape(-1, width, 3)
    header = struct.pack(">IIBBBBB", width, len(rows[0]), 8, PALETTED, 0, 0, 0)
    with replacing(path, durable=False) as file:
        with failing_as_image_error(path, "write"):
            _draw(file, header, _changes(*rows, is_grey=after.is_grey))
        yield


def _draw(file: BinaryIO, header: bytes, changes: Iterable[NDArray[np.uint8]]) -> None:
    write_all(file, SIGNATURE)
    _chunk(file, b"IHDR", header)
    for name, text in _texts():
        _chunk(file, b"tEXt", name.encode() + b"\0" + text.encode("latin-1"))
    _chunk(file, b"PLTE", _palette().tobytes())
    packer = zlib.compressobj(FASTEST)
    for levels in changes:
        unfiltered = np.pad(levels, ((0, 0), (1, 0)))  # each row begins with its filter: none
        if packed := packer.compress(unfiltered.tobytes()):
            _chunk(file, b"IDAT", packed)
    _chunk(file, b"IDAT", packer.flush())
    _chunk(file, b"IEND", b"")


def is_change_map(path: Path) -> bool:
    """Whether the file is such a map; by its content, for a photograph may have such a name."""
    try:
        with path.open("rb") as file:
            start = file.read(TITLE_AT + 64)
    except OSError:
        return False
    return start.startswith(SIGNATURE) and start[TITLE_AT + 4 :].startswith(b"tEXtTitle\0" + TITLE.encode())


def _changes(before: Pixels, after: Pixels, *, is_grey: bool) -> Iterator[NDArray[np.uint8]]:
    """Strip for strip, so that no second picture is in memory."""
    for start in range(0, len(before), STRIP_ROWS):
        old, new = (one[start : start + STRIP_ROWS] for one in (before, after))
        if is_grey:
            new = np.rint(new.mean(axis=2, keepdims=True)).astype(new.dtype)
        change = np.maximum(old, new) - np.minimum(old, new)  # which no unsigned number is too small for
        # Channel by channel: numpy's maximum along an axis of three takes many times as long.
        largest = np.maximum(np.maximum(change[..., 0], change[..., 1]), change[..., 2])
        yield largest if largest.dtype == np.uint8 else np.rint(largest / 257).astype(np.uint8)


def _palette() -> NDArray[np.uint8]:
    """[256, 3]: even steps of inferno up to the brightest level, which stands for all above it too."""
    anchors = np.array([[colour >> 16, colour >> 8 & 255, colour & 255] for colour in INFERNO], np.float64)
    places = np.minimum(np.arange(256) / BRIGHTEST_LEVEL, 1) * (len(anchors) - 1)
    channels = [np.interp(places, np.arange(len(anchors)), anchors[:, channel]) for channel in range(3)]
    return np.asarray(np.rint(np.stack(channels, axis=1)).astype(np.uint8))


def _texts() -> Iterator[tuple[str, str]]:
    yield "Title", TITLE
    yield (
        "Description",
        "Largest change of a pixel's channels by cmudrn, in grey levels of 255: the palette index is it. "
        f"Colours run from black, unchanged, to yellow, {BRIGHTEST_LEVEL} levels or more.",
    )
    yield "cmudrn:BrightestLevel", str(BRIGHTEST_LEVEL)


def _chunk(file: BinaryIO, name: bytes, content: bytes) -> None:
    write_all(
        file, struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
    )
