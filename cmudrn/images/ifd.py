"""The directories of TIFF files, and of EXIF blocks, which are TIFF files without pixels.

Reads and lays out; knows four tags that lead to further directories, and nothing of what the others mean.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import BinaryIO

import numpy as np

__all__ = [
    "EXIF_TAG",
    "GPS_TAG",
    "Directory",
    "Entry",
    "Form",
    "TiffDamaged",
    "in_order",
    "lay_out",
    "read_directory",
    "read_start",
]

EXIF_TAG, GPS_TAG, INTEROP_TAG = 0x8769, 0x8825, 0xA005
# Which directories a directory may lead to. No way leads back, so that a cycle in a file is none here.
CHILDREN: Mapping[int | None, tuple[int, ...]] = {None: (EXIF_TAG, GPS_TAG), EXIF_TAG: (INTEROP_TAG,)}
# Bytes of one value, by TIFF's kinds: BYTE, ASCII, SHORT, LONG, RATIONAL and so on; 16 to 18 are BigTIFF's.
VALUE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
VALUE_BYTES |= {16: 8, 17: 8, 18: 8, 129: 1}
RATIONALS = (5, 10)  # two numbers of four bytes
LONG, LONG8 = 4, 16
OFFSET_KINDS = (LONG, 13, LONG8, 18)
MOST_ENTRIES = 4096
MOST_VALUE_BYTES = 1 << 24  # a maker note with a preview in it has a few hundred thousand


class TiffDamaged(ValueError):
    """These bytes are no TIFF, or end before they should."""


@dataclass(frozen=True)
class Form:
    """How a file writes its numbers."""

    order: str = "<"  # as `struct` has it
    big: bool = False  # BigTIFF: offsets of eight bytes

    @property
    def count(self) -> str:
        return self.order + ("Q" if self.big else "H")

    @property
    def offset(self) -> str:
        return self.order + ("Q" if self.big else "I")

    @property
    def entry_bytes(self) -> int:
        return 20 if self.big else 12

    @property
    def inline_bytes(self) -> int:
        return 8 if self.big else 4


@dataclass(frozen=True)
class Entry:
    """One tag's values, as the bytes that they are in their file's order."""

    kind: int
    count: int
    value: bytes


@dataclass(frozen=True)
class Directory:
    """Tags, directories below, and where the next page's stands (0: none)."""

    entries: Mapping[int, Entry] = field(default_factory=dict)
    children: Mapping[int, Directory] = field(default_factory=dict)
    next_offset: int = 0
    raw: Mapping[int, bytes] = field(default_factory=dict)  # every entry as it lies there, wanted or not


def read_start(file: BinaryIO) -> tuple[Form, int]:
    """How the file writes numbers, and where its first directory stands. Raises TiffDamaged."""
    file.seek(0)
    start = file.read(16)
    order = {b"II": "<", b"MM": ">"}.get(start[:2])
    if order is None or len(start) < 8:
        raise TiffDamaged("no TIFF header")
    (version,) = struct.unpack(order + "H", start[2:4])
    if version == 42:
        return Form(order), struct.unpack(order + "I", start[4:8])[0]
    if version == 43 and len(start) == 16:
        return Form(order, big=True), struct.unpack(order + "Q", start[8:16])[0]
    raise TiffDamaged("no TIFF header")


def read_directory(
    file: BinaryIO, form: Form, offset: int, wanted: Callable[[int], bool], *, of: int | None = None
) -> Directory:
    """The directory at that place with those below it; `of`: the tag that led there.

    wanted: of tags whose values are read. A value that lies beyond the file, or of no known kind, is left
    out, for it cannot be carried anywhere. Raises TiffDamaged where the directory itself is not whole.
    """
    _seek(file, offset)
    (count,) = _unpacked(file, form.count)
    if count > MOST_ENTRIES:
        raise TiffDamaged(f"a directory of {count} entries")
    rows = file.read(count * form.entry_bytes)
    if len(rows) < count * form.entry_bytes:
        raise TiffDamaged("a directory beyond the end")
    (next_offset,) = _unpacked(file, form.offset)
    entries: dict[int, Entry] = {}
    children: dict[int, Directory] = {}
    raw: dict[int, bytes] = {}
    for start in range(0, len(rows), form.entry_bytes):
        row = rows[start : start + form.entry_bytes]
        tag, kind = struct.unpack(form.order + "HH", row[:4])
        raw[tag] = row
        if tag in CHILDREN.get(of, ()):
            child = _child(file, form, row, kind, wanted, tag)
            children |= {} if child is None else {tag: child}
        elif wanted(tag) and (entry := _entry(file, form, row, kind)):
            entries[tag] = entry
    return Directory(entries, children, next_offset, raw)


def lay_out(
    directory: Directory,
    form: Form,
    at: int,
    *,
    as_they_are: Mapping[int, bytes] | None = None,
    next_offset: int = 0,
) -> bytes:
    """The bytes of a directory that is to stand at the offset `at`, with those below it and all values.

    as_they_are: further entries of the same file, whose values lie elsewhere in it.
    """
    kept = as_they_are or {}
    tags = sorted({*directory.entries, *directory.children, *kept})
    rows, body = bytearray(), bytearray()
    head_bytes = struct.calcsize(form.count) + len(tags) * form.entry_bytes + form.inline_bytes
    for tag in tags:
        if tag in kept:
            rows += kept[tag]
            continue
        body += bytes(len(body) % 2)  # values begin at even places
        place = at + head_bytes + len(body)
        if tag in directory.children:
            body += lay_out(directory.children[tag], form, place)
            kind, count, value = (LONG8 if form.big else LONG), 1, struct.pack(form.offset, place)
        else:
            entry = directory.entries[tag]
            kind, count, value = entry.kind, entry.count, entry.value
            if len(value) > form.inline_bytes:
                body += value
                value = struct.pack(form.offset, place)
        rows += struct.pack(form.order + "HH", tag, kind) + struct.pack(form.offset, count)
        rows += value.ljust(form.inline_bytes, b"\0")
    return struct.pack(form.count, len(tags)) + rows + struct.pack(form.offset, next_offset) + body


def in_order(directory: Directory, source: Form, target: Form) -> Directory:
    """The same values in another file's order of bytes. Bytes of unknown meaning (UNDEFINED) stay."""
    if source.order == target.order:
        return directory
    return Directory(
        {tag: _swapped(entry) for tag, entry in directory.entries.items()},
        {tag: in_order(child, source, target) for tag, child in directory.children.items()},
    )


def _swapped(entry: Entry) -> Entry:
    unit = 4 if entry.kind in RATIONALS else VALUE_BYTES[entry.kind]
    value = np.frombuffer(entry.value, np.dtype(f"u{unit}")).byteswap().tobytes()
    return Entry(entry.kind, entry.count, value)


def _child(
    file: BinaryIO, form: Form, row: bytes, kind: int, wanted: Callable[[int], bool], tag: int
) -> Directory | None:
    pointer = _entry(file, form, row, kind) if kind in OFFSET_KINDS else None
    if pointer is None:
        return None
    offset = int.from_bytes(pointer.value, "little" if form.order == "<" else "big")
    try:
        return read_directory(file, form, offset, wanted, of=tag)
    except TiffDamaged:
        return None


def _entry(file: BinaryIO, form: Form, row: bytes, kind: int) -> Entry | None:
    (count,) = struct.unpack(form.offset, row[4 : 4 + form.inline_bytes])
    size = VALUE_BYTES.get(kind, 0) * count
    if not size or size > MOST_VALUE_BYTES:
        return None
    value = row[-form.inline_bytes :][:size]
    if size > form.inline_bytes:
        try:
            _seek(file, struct.unpack(form.offset, row[-form.inline_bytes :])[0])
        except TiffDamaged:
            return None
        value = file.read(size)
    return Entry(kind, count, value) if len(value) == size else None


def _seek(file: BinaryIO, offset: int) -> None:
    """Places beyond the end are refused here: the system takes some, and fails at others."""
    if offset >= file.seek(0, io.SEEK_END):
        raise TiffDamaged("a place beyond the end")
    file.seek(offset)


def _unpacked(file: BinaryIO, layout: str) -> tuple[int, ...]:
    content = file.read(struct.calcsize(layout))
    if len(content) < struct.calcsize(layout):
        raise TiffDamaged("a directory beyond the end")
    return struct.unpack(layout, content)
