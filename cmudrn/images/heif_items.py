"""The one thing that is changed in an AVIF or HEIF file: where its EXIF block stands.

libheif has written a block of its own making by then (`iinf` names the item, `iloc` tells its place). The
true one goes to the end of the file, and `iloc` is set to it; nothing else moves.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from typing import BinaryIO

__all__ = ["put_exif_item"]

MOST_META_BYTES = 1 << 24


def put_exif_item(file: BinaryIO, exif: bytes) -> bool:
    """Whether the file has an EXIF item that could be set to this block."""
    found = _find(_whole(file), b"meta")
    if found is None or found[1] - found[0] > MOST_META_BYTES:
        return False
    start, stop = found
    file.seek(start)
    meta = bytearray(file.read(stop - start))
    item = _exif_item(meta)
    place = None if item is None else _extent(meta, item)
    if place is None:
        return False
    length_at, base = place
    content = struct.pack(">I", 0) + exif  # how many bytes stand before the block itself: none
    end = file.seek(0, io.SEEK_END)
    file.write(struct.pack(">I4s", len(content) + 8, b"mdat") + content)
    file.seek(start + length_at - 4)
    file.write(struct.pack(">II", end + 8 - base, len(content)))
    return True


def _whole(file: BinaryIO) -> Iterator[tuple[bytes, int, int]]:
    """Names of the outer boxes, and from where to where their contents are."""
    start, size = 0, file.seek(0, io.SEEK_END)
    while start + 16 <= size:
        file.seek(start)
        head = file.read(16)
        length, skip = int.from_bytes(head[:4], "big"), 8
        if length == 1:
            length, skip = int.from_bytes(head[8:], "big"), 16
        if length < skip:
            return
        yield head[4:8], start + skip, start + length
        start += length


def _boxes(content: bytes | bytearray, start: int) -> Iterator[tuple[bytes, int, int]]:
    while start + 8 <= len(content):
        length = int.from_bytes(content[start : start + 4], "big")
        if length < 8:
            return
        yield bytes(content[start + 4 : start + 8]), start + 8, start + length
        start += length


def _find(boxes: Iterator[tuple[bytes, int, int]], name: bytes) -> tuple[int, int] | None:
    return next(((start, stop) for found, start, stop in boxes if found == name), None)


def _exif_item(meta: bytearray) -> int | None:
    """The number of the item of that type; `meta` begins with its version and flags."""
    found = _find(_boxes(meta, 4), b"iinf")
    if found is None:
        return None
    start, stop = found
    entries = start + (6 if meta[start] == 0 else 8)
    for name, at, _ in _boxes(meta[:stop], entries):
        wide = meta[at] == 3  # the version says how many bytes the number has
        number = int.from_bytes(meta[at + 4 : at + (8 if wide else 6)], "big")
        kind_at = at + (10 if wide else 8)
        if name == b"infe" and meta[kind_at : kind_at + 4] == b"Exif":
            return number
    return None


def _extent(meta: bytearray, item: int) -> tuple[int, int] | None:
    """Where in `meta` the length of the item stands, its offset before it; and what is added to that.

    None where they have other than four bytes, or the item lies in several parts.
    """
    found = _find(_boxes(meta, 4), b"iloc")
    if found is None:
        return None
    at, version = found[0] + 4, meta[found[0]]
    sizes = (meta[at] >> 4, meta[at] & 15, meta[at + 1] >> 4, meta[at + 1] & 15 if version else 0)
    offset_bytes, length_bytes, base_bytes, index_bytes = sizes
    if (offset_bytes, length_bytes) != (4, 4) or version > 2:
        return None
    number_bytes = 4 if version == 2 else 2
    count = int.from_bytes(meta[at + 2 : at + 2 + number_bytes], "big")
    at += 2 + number_bytes
    for _ in range(count):
        number = int.from_bytes(meta[at : at + number_bytes], "big")
        at += number_bytes
        in_file = not version or meta[at + 1] & 15 == 0  # else it lies in `meta` itself
        at += (2 if version else 0) + 2
        base = int.from_bytes(meta[at : at + base_bytes], "big")
        parts = int.from_bytes(meta[at + base_bytes : at + base_bytes + 2], "big")
        at += base_bytes + 2
        if number == item:
            return (at + index_bytes + 4, base) if parts == 1 and in_file else None
        at += parts * (index_bytes + 8)
    return None
