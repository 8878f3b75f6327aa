"""EXIF blocks: kept byte for byte, but for what a restored picture would make a lie of.

libvips would pass them through libexif, which drops tags that it does not know, cuts what is not ASCII, adds
tags of its own and moves the maker's note, in which places are counted from the block's start. So they
travel past it: a value is changed in its place, and what is added stands at the end.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Mapping
from typing import BinaryIO

from cmudrn.images.ifd import (
    VALUE_BYTES,
    Directory,
    Entry,
    Form,
    TiffDamaged,
    in_order,
    lay_out,
    read_directory,
    read_start,
)

__all__ = [
    "add_to_tiff",
    "exif_of_tiff",
    "orientation_in",
    "with_orientation",
    "without_prefix",
    "without_thumbnail",
]

PREFIX = b"Exif\0\0"
ORIENTATION, SHORT = 0x0112, 3
THUMBNAILS = ((0x0201, 0x0202), (273, 279))  # where it lies and how long it is: as a JPEG, as plain pixels
# Of TIFF's tags those that say how its pixels lie, and what libvips carries itself: XMP, IPTC, ICC and the
# like. All others, as the camera's name, a map's coordinates or a microscope's notes, go along.
OF_STORAGE = frozenset(
    {*range(254, 267), *range(273, 285), *range(288, 292), 292, 293, 296, 297, 301, 317, *range(320, 326)}
    | {*range(326, 329), 330, *range(332, 335), *range(337, 344), 347, *range(512, 522), 529, 530, 531, 532}
    | {700, 33723, 34377, 34675}
)
OFFSET_KINDS_ALONE = (13, 18)  # values that are places in their file: they would lead nowhere


def without_prefix(block: bytes) -> bytes:
    """As PNG has it: from the byte order on."""
    return block.removeprefix(PREFIX)


def orientation_in(block: bytes | None) -> int:
    """What the block says; 1 where it says nothing."""
    try:
        form, offset = _block_start(block or b"")
        directory = read_directory(io.BytesIO(block or b""), form, offset, lambda tag: tag == ORIENTATION)
    except TiffDamaged:
        return 1
    return _number(directory, ORIENTATION, form) or 1


def with_orientation(block: bytes | None, orientation: int) -> bytes | None:
    """The block that says so; None where there was none and 1 goes without saying.

    A block that cannot be read comes back as it is.
    """
    if block is None:
        if orientation == 1:
            return None
        entry = Entry(SHORT, 1, struct.pack("<H", orientation))
        return b"II*\0\x08\0\0\0" + lay_out(Directory({ORIENTATION: entry}), Form(), 8)
    try:
        form, offset = _block_start(block)
        directory = read_directory(io.BytesIO(block), form, offset, lambda tag: False)
    except TiffDamaged:
        return block
    value = struct.pack(form.order + "H", orientation)
    row = struct.pack(form.order + "HHI", ORIENTATION, SHORT, 1) + value + b"\0\0"
    if ORIENTATION in directory.raw:
        tag = struct.pack(form.order + "H", ORIENTATION)
        place = offset + struct.calcsize(form.count)
        while block[place : place + 2] != tag:
            place += form.entry_bytes
        return block[:place] + row + block[place + len(row) :]
    if orientation == 1:
        return block
    block += bytes(len(block) % 2)  # no room between the others: the directory moves to the end, alone
    again = lay_out(
        Directory(),
        form,
        len(block),
        as_they_are={**directory.raw, ORIENTATION: row},
        next_offset=directory.next_offset,
    )
    return block[:4] + struct.pack(form.offset, len(block)) + block[8:] + again


def without_thumbnail(block: bytes) -> bytes:
    """The block without the small picture in it, which shows what was there before.

    Its bytes are cut off where they are the last, else set to zero; all others stay where they are.
    """
    file = io.BytesIO(block)
    try:
        form, offset = _block_start(block)
        first = read_directory(file, form, offset, lambda tag: False)
        if not first.next_offset:
            return block
        second = read_directory(file, form, first.next_offset, lambda tag: True)
    except TiffDamaged:
        return block
    changed = bytearray(block)
    pointer = offset + struct.calcsize(form.count) + len(first.raw) * form.entry_bytes
    changed[pointer : pointer + form.inline_bytes] = bytes(form.inline_bytes)
    taken = _spans(first, form)
    for place, size in ((_number(second, tag, form) for tag in pair) for pair in THUMBNAILS):
        # In a damaged block it may lie over what is to be kept.
        if not size or any(start < place + size and place < stop for start, stop in taken):
            continue
        changed[place : place + size] = b"" if place + size >= len(changed) else bytes(size)
    return bytes(changed)


def exif_of_tiff(file: BinaryIO) -> bytes | None:
    """A block of what a TIFF file holds: the tags of its first page that do not say how its pixels lie."""
    try:
        form, offset = read_start(file)
        directory = _carried(read_directory(file, form, offset, lambda tag: tag not in OF_STORAGE))
    except TiffDamaged:
        return None
    if not directory.entries and not directory.children:
        return None
    plain = Form(form.order)
    mark = b"II*\0" if form.order == "<" else b"MM\0*"
    return mark + struct.pack(plain.offset, 8) + lay_out(directory, plain, 8)


def add_to_tiff(file: BinaryIO, block: bytes | None, others: Mapping[int, Entry]) -> None:
    """Gives the first page of a TIFF file other tags, and those of a block, but for what it has already.

    The first directory is laid out anew at the end, the old one is left behind: some hundred bytes.
    """
    form, offset = read_start(file)
    there = read_directory(file, form, offset, lambda tag: False)
    added = Directory() if block is None else _of_block(block, form)
    entries = {tag: one for tag, one in {**added.entries, **others}.items() if tag not in there.raw}
    added = Directory(entries, added.children)
    end = file.seek(0, io.SEEK_END)
    at = end + end % 2
    laid = lay_out(added, form, at, as_they_are=there.raw, next_offset=there.next_offset)
    file.write(bytes(end % 2) + laid)
    file.seek(8 if form.big else 4)
    file.write(struct.pack(form.offset, at))


def _block_start(block: bytes) -> tuple[Form, int]:
    form, offset = read_start(io.BytesIO(block))
    if form.big:
        raise TiffDamaged("EXIF has no BigTIFF")
    return form, offset


def _of_block(block: bytes, form: Form) -> Directory:
    """What a TIFF takes of it, as that writes its numbers; nothing of what cannot be read."""
    try:
        own_form, offset = _block_start(block)
        directory = read_directory(io.BytesIO(block), own_form, offset, lambda tag: tag not in OF_STORAGE)
    except TiffDamaged:
        return Directory()
    return in_order(_carried(directory), own_form, form)


def _carried(directory: Directory) -> Directory:
    entries = {tag: one for tag, one in directory.entries.items() if one.kind not in OFFSET_KINDS_ALONE}
    return Directory(entries, directory.children)


def _number(directory: Directory, tag: int, form: Form) -> int:
    """The one number that a tag says, else 0."""
    entry = directory.entries.get(tag)
    if entry is None or entry.count != 1:
        return 0
    return int.from_bytes(entry.value, "little" if form.order == "<" else "big")


def _spans(directory: Directory, form: Form) -> list[tuple[int, int]]:
    """From where to where the values lie that do not stand in the entries themselves."""
    spans = []
    for row in directory.raw.values():
        _, kind, count, place = struct.unpack(form.order + "HHII", row)
        size = VALUE_BYTES.get(kind, 0) * count
        spans += [(place, place + size)] if size > form.inline_bytes else []
    for child in directory.children.values():
        spans += _spans(child, form)
    return spans
