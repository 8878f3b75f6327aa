"""Puts into a file what libvips does not write, or not as it was: EXIF byte for byte, PNG's own chunks,
and whether there is a resolution at all.

libvips has encoded the pixels by then; the file's other bytes are moved as far as that takes, no more.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import BinaryIO

from cmudrn.files import write_all
from cmudrn.formats import ImageFormat
from cmudrn.images.chunks import PNG_XMP, Chunk
from cmudrn.images.exif import PREFIX, add_to_tiff
from cmudrn.images.heif_items import put_exif_item
from cmudrn.images.ifd import Entry, read_directory, read_start

__all__ = ["Extras", "put_extras"]

BLOCK_BYTES = 1 << 20
PNG_HEADER_BYTES = 8 + 25  # signature and IHDR
IPTC_TAG, UNDEFINED = 33723, 7
RESOLUTION_UNIT, NO_UNIT = 0x0128, 1
WEBP_HAS_EXIF = 0x08


@dataclass(frozen=True)
class Extras:
    """What a file is to hold beside what libvips writes."""

    exif: bytes | None = None  # from its byte order on
    png_xmp: bytes | None = None  # libvips would compress it, and put it where few look
    tiff_iptc: bytes = b""  # libvips would write a quarter of it
    chunks: Sequence[Chunk] = ()  # of the same format
    resolution: tuple[float, float] | None = None  # pixels a millimetre, across and down


def put_extras(file: BinaryIO, image_format: ImageFormat, extras: Extras) -> None:
    """Into a whole file, open for reading and writing."""
    if image_format is ImageFormat.JPEG:
        _into_jpeg(file, extras)
    elif image_format is ImageFormat.PNG:
        _into_png(file, extras)
    elif image_format is ImageFormat.WEBP and extras.exif:
        _into_webp(file, extras.exif)
    elif image_format is ImageFormat.TIFF:
        if extras.resolution is None:
            _without_unit(file)
        iptc = (
            {IPTC_TAG: Entry(UNDEFINED, len(extras.tiff_iptc), extras.tiff_iptc)} if extras.tiff_iptc else {}
        )
        if extras.exif or iptc:
            add_to_tiff(file, extras.exif, iptc)
    elif image_format in (ImageFormat.AVIF, ImageFormat.HEIF) and extras.exif:
        put_exif_item(file, extras.exif)


def _into_jpeg(file: BinaryIO, extras: Extras) -> None:
    # libvips leaves JFIF's header out where it is not to write EXIF.
    file.seek(2)
    head = b"" if file.read(2) == b"\xff\xe0" else _jfif(extras.resolution)
    at = 2
    if not head:
        at += 2 + int.from_bytes(file.read(2), "big")
    if extras.exif:
        content = PREFIX + extras.exif
        head += _segment(b"\xe1", content)
    head += b"".join(_segment(*chunk) for chunk in extras.chunks)
    _splice(file, at, at, head)


def _segment(marker: bytes, content: bytes) -> bytes:
    return b"\xff" + marker + (len(content) + 2).to_bytes(2, "big") + content


def _jfif(resolution: tuple[float, float] | None) -> bytes:
    unit, density = 0, (1, 1)  # square pixels, of no size told
    if resolution is not None:
        unit = 1  # dots an inch
        across, down = (max(1, min(65_535, round(value * 25.4))) for value in resolution)
        density = (across, down)
    return b"\xff\xe0" + struct.pack(">H5sHBHHBB", 16, b"JFIF\0", 0x0102, unit, *density, 0, 0)


def _into_png(file: BinaryIO, extras: Extras) -> None:
    file.seek(8)
    there, start, physical = set(), 8, None
    while len(head := file.read(8)) == 8 and head[4:] != b"IDAT":
        size = 12 + int.from_bytes(head[:4], "big")
        there.add(head[4:])
        if head[4:] == b"pHYs":
            physical = (start, start + size)
        start = file.seek(start + size)
    if extras.resolution is None and physical is not None:
        _splice(file, *physical, b"")
    chunks = [chunk for chunk in extras.chunks if chunk[0] not in there]
    chunks += [(b"eXIf", extras.exif)] if extras.exif else []
    chunks += [(b"iTXt", PNG_XMP + extras.png_xmp)] if extras.png_xmp else []
    added = b"".join(_png_chunk(*chunk) for chunk in chunks)
    _splice(file, PNG_HEADER_BYTES, PNG_HEADER_BYTES, added)


def _png_chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def _into_webp(file: BinaryIO, exif: bytes) -> None:
    file.seek(12)
    start = 12
    head = file.read(8)
    if head[:4] != b"VP8X":
        _splice(file, 12, 12, _webp_header(file))
        file.seek(12)
        head = file.read(8)
    flags_at = 20
    before = None
    while len(head) == 8:  # EXIF stands before XMP
        if head[:4] == b"XMP ":
            before = start
        size = int.from_bytes(head[4:], "little")
        start = file.seek(start + 8 + size + size % 2)
        head = file.read(8)
    at = start if before is None else before
    _splice(file, at, at, b"EXIF" + struct.pack("<I", len(exif)) + exif + bytes(len(exif) % 2))
    file.seek(flags_at)
    flags = file.read(1)[0] | WEBP_HAS_EXIF
    _write_at(file, flags_at, bytes([flags]))
    _write_at(file, 4, struct.pack("<I", file.seek(0, io.SEEK_END) - 8))


def _webp_header(file: BinaryIO) -> bytes:
    """What a WebP of pixels alone needs to hold anything else; with alpha, libwebp has written it."""
    file.seek(12)
    head = file.read(8 + 10)
    if head[:4] == b"VP8L":
        bits = int.from_bytes(head[9:13], "little")
        width, height, alpha = (bits & 0x3FFF) + 1, ((bits >> 14) & 0x3FFF) + 1, (bits >> 28) & 1
    else:
        width, height, alpha = *(side & 0x3FFF for side in struct.unpack("<HH", head[14:18])), 0
    sides = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return b"VP8X" + struct.pack("<IB3x", 10, alpha << 4) + sides


def _without_unit(file: BinaryIO) -> None:
    """TIFF's resolution is a ratio alone then."""
    form, offset = read_start(file)
    directory = read_directory(file, form, offset, lambda tag: False)
    place = offset + struct.calcsize(form.count)
    for tag in directory.raw:
        if tag == RESOLUTION_UNIT:
            value_at = place + form.entry_bytes - form.inline_bytes
            _write_at(file, value_at, struct.pack(form.order + "H", NO_UNIT))
        place += form.entry_bytes


def _splice(file: BinaryIO, start: int, stop: int, new: bytes) -> None:
    """Puts `new` in the place of these bytes; what comes after moves."""
    by = len(new) - (stop - start)
    size = file.seek(0, io.SEEK_END)
    places = range(stop, size, BLOCK_BYTES)
    for place in reversed(places) if by > 0 else places if by < 0 else ():
        file.seek(place)
        _write_at(file, place + by, file.read(min(BLOCK_BYTES, size - place)))
    if by < 0:
        file.truncate(size + by)
    _write_at(file, start, new)


def _write_at(file: BinaryIO, place: int, content: bytes) -> None:
    file.seek(place)
    write_all(file, content)
