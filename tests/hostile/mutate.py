"""A sound file made unsound: some of it at any byte, some where its format has lengths, counts and sizes."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Sequence
from random import Random

__all__ = ["mutated"]

ODD_BYTES = (0, 1, 0x7F, 0x80, 0xFE, 0xFF)
ODD_SHORTS = (0, 1, 2, 7, 0x7FFF, 0x8000, 0xFFFF)
ODD_LONGS = (0, 1, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFF0, 0xFFFFFFFF)
Mutation = Callable[[bytearray, Random], None]


def mutated(files: Sequence[bytes], random: Random) -> bytes:
    """One of the files with one to six changes, sometimes joined with another one."""
    content = bytearray(random.choice(files))
    if random.random() < 0.05:
        other = random.choice(files)
        content[random.randrange(len(content)) :] = other[random.randrange(len(other)) :]
    by_format = _by_format(bytes(content[:12]))
    for _ in range(random.choice((1, 1, 1, 2, 3, 6))):
        if not content:
            break
        change = by_format if by_format and random.random() < 0.6 else random.choice(ANYWHERE)
        change(content, random)
    return bytes(content)


def _by_format(start: bytes) -> Mutation | None:
    if start.startswith(b"\x89PNG"):
        return _png
    if start.startswith(b"\xff\xd8"):
        return _jpeg
    if start[:2] in (b"II", b"MM"):
        return _tiff
    if start.startswith(b"RIFF"):
        return _webp
    return _boxes if start[4:8] == b"ftyp" else None


def _flip_bit(content: bytearray, random: Random) -> None:
    content[random.randrange(len(content))] ^= 1 << random.randrange(8)


def _odd_byte(content: bytearray, random: Random) -> None:
    content[random.randrange(len(content))] = random.choice(ODD_BYTES)


def _odd_number(content: bytearray, random: Random) -> None:
    _put(content, random.randrange(len(content)), random, big_endian=random.random() < 0.5)


def _cut(content: bytearray, random: Random) -> None:
    del content[random.randrange(len(content)) :]


def _drop(content: bytearray, random: Random) -> None:
    start = random.randrange(len(content))
    del content[start : start + random.choice((1, 2, 4, 16, 64))]


def _repeat(content: bytearray, random: Random) -> None:
    start = random.randrange(len(content))
    piece = content[start : start + random.choice((1, 4, 16, 64))]
    content[start:start] = piece * random.choice((1, 2, 50))


def _noise(content: bytearray, random: Random) -> None:
    start = random.randrange(len(content))
    piece = random.randbytes(random.choice((1, 4, 16)))
    content[start : start + len(piece)] = piece


ANYWHERE: tuple[Mutation, ...] = (_flip_bit, _flip_bit, _odd_byte, _odd_number, _cut, _drop, _repeat, _noise)


def _put(content: bytearray, at: int, random: Random, *, big_endian: bool) -> None:
    """A number that somebody may not have thought of, in two or four bytes."""
    order = ">" if big_endian else "<"
    layout, numbers = random.choice((("H", ODD_SHORTS), ("I", ODD_LONGS)))
    number = random.choice(numbers)
    piece = struct.pack(order + layout, number)[: max(0, len(content) - at)]
    content[at : at + len(piece)] = piece


def _png(content: bytearray, random: Random) -> None:
    """A change in one chunk, its checksum right again: libpng looks no further else."""
    chunks, at = [], 8
    while at + 12 <= len(content):
        length = int.from_bytes(content[at : at + 4], "big")
        if at + 12 + length > len(content):
            break
        chunks.append((at, length))
        at += 12 + length
    if not chunks:
        return
    at, length = random.choice(chunks)
    kind, data = bytes(content[at + 4 : at + 8]), bytearray(content[at + 8 : at + 8 + length])
    if data:
        unpacked = kind == b"IDAT" and random.random() < 0.7
        try:
            data = bytearray(zlib.decompress(data)) if unpacked else data
        except zlib.error:
            unpacked = False
        if data:
            random.choice(ANYWHERE)(data, random)
        data = bytearray(zlib.compress(data)) if unpacked else data
    chunk = len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")
    content[at : at + 12 + length] = random.choice((chunk, chunk, chunk, chunk * 2, b""))


def _jpeg(content: bytearray, random: Random) -> None:
    """A change in the head of one segment, where lengths, sizes and tables are; or in its EXIF block."""
    starts = [
        at for at in range(len(content) - 9) if content[at] == 0xFF and content[at + 1] not in (0, 0xFF)
    ]
    exif = content.find(b"Exif\0\0")
    if exif >= 0 and random.random() < 0.3:
        end = min(len(content), exif + 6 + 512)
        block = content[exif + 6 : end]
        _tiff(block, random)
        content[exif + 6 : end] = block
    elif starts:
        at = random.choice(starts)
        if random.random() < 0.15:
            content[at + 1] = random.randrange(0xC0, 0xFF)
        else:
            _put(content, min(len(content) - 1, at + random.randrange(2, 12)), random, big_endian=True)


def _tiff(content: bytearray, random: Random) -> None:
    """Tag, type, count or value of one entry of a directory, or where the next one lies."""
    if len(content) < 8:
        return
    order, big = (">", True) if content[:2] == b"MM" else ("<", False)
    wide = bytes(content[2:4]) in (b"+\0", b"\0+")  # BigTIFF
    at = struct.unpack_from(order + "Q", content, 8)[0] if wide and len(content) >= 16 else 0
    at = at if wide else struct.unpack_from(order + "I", content, 4)[0]
    head, size = (8, 20) if wide else (2, 12)
    if at + head > len(content):
        return
    count = struct.unpack_from(order + ("Q" if wide else "H"), content, at)[0]
    entry = at + head + size * random.randrange(max(1, min(count, 64)))
    if random.random() < 0.1:
        entry, field = at + head + size * min(count, 64), 0  # the link to the next directory
    else:
        field = random.choice((0, 2, 4, size - (8 if wide else 4), size - (8 if wide else 4)))
    if entry + field < len(content):
        if random.random() < 0.2 and entry + field + 4 <= len(content):
            struct.pack_into(
                order + "I", content, entry + field, random.choice((at, entry, 8, len(content) - 1))
            )
        else:
            _put(content, entry + field, random, big_endian=big)


def _webp(content: bytearray, random: Random) -> None:
    """The length of a chunk, or the first bytes of what is in it: sizes, and what follows."""
    places = [
        at
        for kind in (b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ICCP", b"EXIF", b"XMP ")
        if (at := content.find(kind)) >= 0
    ]
    if places:
        at = random.choice(places) + random.choice((4, 8, 8, 10, 12, 14))
        if at < len(content):
            _put(content, at, random, big_endian=False)


def _boxes(content: bytearray, random: Random) -> None:
    """The length or the first bytes of one box; boxes are found by their names, in whatever box they are."""
    names: tuple[bytes, ...] = (
        b"ftyp",
        b"meta",
        b"hdlr",
        b"pitm",
        b"iloc",
        b"iinf",
        b"infe",
        b"iref",
        b"ipco",
        b"ispe",
        b"pixi",
        b"av1C",
    )
    names += (b"ipma", b"colr", b"auxC", b"mdat", b"iprp")
    places = [at for name in names if (at := content.find(name)) >= 4]
    if places:
        at = random.choice(places) + random.choice((-4, 4, 6, 8, 10, 12, 14, 16, 20))
        if 0 <= at < len(content):
            _put(content, at, random, big_endian=True)
