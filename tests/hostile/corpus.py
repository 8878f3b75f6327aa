"""Broken and hostile files, each with what `cmudrn infer` is to say about it. Made here: no blobs."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from hostile.build import (
    Entry,
    bomb,
    box,
    box_tree,
    full_box,
    grid_heif,
    jpeg,
    png,
    png_chunk,
    riff,
    segment,
    tiff,
)
from hostile.seeds import XMP, seeds

__all__ = ["CORPUS", "MAX_PIXELS", "Case"]

MAX_PIXELS = 20_000_000  # as --max-pixels is given with it: what is allowed is decoded, and must be quick
RESTORED = ""  # strange, and sound
MIB = 2**20
BYTES, LETTERS, SHORT, LONG, FRACTION, ANY = 1, 2, 3, 4, 5, 7


@dataclass(frozen=True, kw_only=True)
class Case:
    """One file."""

    name: str
    what: str  # for people
    make: Callable[[], bytes]
    says: str  # a pattern of the reason; RESTORED: it is restored
    peak_mib: int = 60  # memory that reading it may take, beyond what the process had


def _tiff(**changes: Entry | None) -> bytes:
    """A grey picture of 8 x 8 with other entries: t256 is the tag of the width; None leaves it out."""
    entries: dict[int, Entry] = {
        256: (SHORT, [8]),
        257: (SHORT, [8]),
        258: (SHORT, [8]),
        259: (SHORT, [1]),
        262: (SHORT, [1]),
        273: (LONG, [8]),
        277: (SHORT, [1]),
        278: (SHORT, [8]),
        279: (LONG, [64]),
    }
    for name, entry in changes.items():
        if entry is None:
            del entries[int(name[1:])]
        else:
            entries[int(name[1:])] = entry
    return tiff(entries, data=bytes(64))


def _endless_tiff() -> bytes:
    """The only directory is followed by itself."""
    plain = _tiff()
    at = struct.unpack_from("<I", plain, 4)[0]
    (count,) = struct.unpack_from("<H", plain, at)
    looped = bytearray(plain)
    struct.pack_into("<I", looped, at + 2 + 12 * count, at)
    return bytes(looped)


def _floats(value: float) -> bytes:
    raw = struct.pack("<f", value) * 64
    entries: dict[int, Entry] = {
        256: (SHORT, [8]),
        257: (SHORT, [8]),
        258: (SHORT, [32]),
        259: (SHORT, [1]),
        262: (SHORT, [1]),
        273: (LONG, [8]),
        277: (SHORT, [1]),
        278: (SHORT, [8]),
        279: (LONG, [256]),
        339: (SHORT, [3]),
    }
    return tiff(entries, data=raw)


def _many_pages(count: int) -> bytes:
    page: dict[int, Entry] = {
        256: (SHORT, [8]),
        257: (SHORT, [8]),
        258: (SHORT, [8]),
        262: (SHORT, [1]),
        273: (LONG, [8]),
        279: (LONG, [64]),
    }
    return tiff(*[page] * count, data=bytes(64))


def _exif(directory: dict[int, Entry], next_at: int | None = None) -> bytes:
    return jpeg(16, 16, app1=[b"Exif\0\0" + tiff(directory, next_at=next_at)])


def _icc(profile: bytes) -> bytes:
    return png_chunk(b"iCCP", b"p\0\0" + profile)


def _text(data: bytes, *, packed: bool) -> bytes:
    return png_chunk(b"iTXt", b"XML:com.adobe.xmp\0" + bytes([packed]) + b"\0\0\0" + data)


def _after(name: str, old: bytes, new: bytes, *, at: int = 0) -> bytes:
    """A sound file, `at` bytes behind its first `old` overwritten."""
    content = bytearray(seeds()[name])
    place = content.index(old) + len(old) + at
    content[place : place + len(new)] = new
    return bytes(content)


def _cut(name: str, share: float) -> bytes:
    content = seeds()[name]
    return content[: max(1, int(len(content) * share))]


def _flipped(name: str, share: float) -> bytes:
    content = bytearray(seeds()[name])
    content[int(len(content) * share)] ^= 0x5A
    return bytes(content)


def _damaged() -> Iterator[Case]:
    for name in ("plain.jpg", "marked.jpg", "progressive.jpg", "deep.png", "marked.tif", "tiles.tif", "alpha.webp", "alpha.avif"):
        stem, _, suffix = name.rpartition(".")
        for share in (0.02, 0.3, 0.6, 0.9, 0.97):
            yield Case(
                name=f"cut-{share}-{stem}.{suffix}",
                what=f"{suffix} cut after {share:.0%} of it",
                make=partial(_cut, name, share),
                says="cannot read|not an image",
            )
    for name in ("plain.png", "deep.png", "alpha.png"):  # the formats with checksums: any flip is seen
        for share in (0.1, 0.5, 0.9):
            yield Case(
                name=f"flip-{share}-{name}",
                what="png with one byte flipped",
                make=partial(_flipped, name, share),
                says="cannot read",
            )


def _wrong_kind() -> Iterator[Case]:
    yield Case(name="empty.jpg", what="an empty file", make=bytes, says="the file is empty")
    yield Case(name="one.png", what="one byte", make=lambda: b"\x89", says="not an image")
    yield Case(name="page.jpg", what="HTML named .jpg", make=lambda: b"<html><body>404</body></html>", says="not an image")
    yield Case(
        name="entities.png",
        what="SVG with entities that multiply, named .png",
        make=lambda: b'<!DOCTYPE s [<!ENTITY a "aa"><!ENTITY b "&a;&a;">]><svg>&b;</svg>',
        says="not an image",
    )
    yield Case(name="script.jpg", what="a shell script named .jpg", make=lambda: b"#!/bin/sh\nrm -rf /\n", says="not an image")
    yield Case(name="png-named.jpg", what="PNG named .jpg", make=lambda: seeds()["plain.png"], says=RESTORED)
    yield Case(name="jpeg-named.png", what="JPEG named .png", make=lambda: seeds()["plain.jpg"], says=RESTORED)
    yield Case(name="random.avif", what="AVIF's first bytes, then noise", make=lambda: box(b"ftyp", b"avif") + bytes(range(256)) * 16, says="cannot read")
    yield Case(name="zeros.tif", what="a megabyte of zeros", make=lambda: bytes(MIB), says="not an image")


def _sizes() -> Iterator[Case]:
    for height, width in ((1, 1), (1, 3000), (3000, 1), (7, 2)):
        yield Case(name=f"thin-{height}x{width}.png", what=f"{height} x {width} pixels", make=partial(png, width, height), says=RESTORED)
    yield Case(name="no-width.png", what="png of 0 x 0", make=partial(png, 0, 0, b""), says="cannot read")
    yield Case(name="no-height.jpg", what="jpeg of height 0", make=partial(jpeg, 16, 0), says="cannot read")
    yield Case(name="no-size.tif", what="tiff of 0 x 0", make=partial(_tiff, t256=(SHORT, [0]), t257=(SHORT, [0])), says="cannot read")
    yield Case(name="promises.png", what="png whose header promises 2^31 - 1 squared", make=partial(png, 2**31 - 1, 2**31 - 1, b""), says="cannot read|limit is")
    yield Case(name="promises.tif", what="tiff that promises 2^32 - 1 squared", make=partial(_tiff, t256=(LONG, [2**32 - 1]), t257=(LONG, [2**32 - 1])), says="cannot read|limit is")
    yield Case(name="promises.jpg", what="jpeg that promises 65,500 squared", make=lambda: jpeg(16, 16).replace(struct.pack(">HH", 16, 16), struct.pack(">HH", 65500, 65500), 1), says="limit is")
    yield Case(name="promises.webp", what="webp that promises 16,383 squared", make=lambda: riff((b"VP8L", b"\x2f\xff\xff\xff\x0f" + bytes(64))), says="limit is|cannot read")
    yield Case(name="promises.avif", what="avif that promises 2^32 - 1 squared", make=lambda: _after("plain.avif", b"ispe", b"\xff" * 8, at=4), says="cannot read|limit is")
    yield Case(name="lies.png", what="png that promises 4,000 squared and ends", make=partial(png, 4000, 4000, zlib.compress(bytes(100))), says="cannot read", peak_mib=100)


def _bombs() -> Iterator[Case]:
    yield Case(name="bomb.png", what="png of 2.5 gigapixels, its pixels in 7 MB", make=lambda: png(50_000, 50_000, bomb(2**30)), says="limit is")
    yield Case(name="overfull.png", what="png of 100 x 100 with a gigabyte of pixels", make=lambda: png(100, 100, bomb(2**30)), says="cannot read|^$")
    yield Case(name="profile.png", what="png with an ICC profile that unpacks to a gigabyte", make=lambda: png(16, 16, before=[_icc(bomb(2**30))]), says="cannot read|metadata|^$")
    yield Case(name="text.png", what="png with a text that unpacks to a gigabyte", make=lambda: png(16, 16, before=[_text(bomb(2**30), packed=True)]), says="cannot read|metadata|^$")
    yield Case(name="nested.png", what="png whose profile is packed, packed", make=lambda: png(16, 16, before=[_icc(zlib.compress(bomb(2**30)))]), says=RESTORED)
    yield Case(name="long-text.png", what="png with 60 MB of XMP", make=lambda: png(16, 16, before=[_text(XMP.ljust(60 * MIB), packed=False)]), says=RESTORED, peak_mib=100)
    yield Case(name="long-xmp.tif", what="tiff with 60 MB of XMP", make=lambda: _tiff(t700=(BYTES, XMP.ljust(60 * MIB))), says="cannot read", peak_mib=100)
    yield Case(name="long-xmp.webp", what="webp with 60 MB of XMP", make=lambda: _long_webp(), says="metadata", peak_mib=300)
    yield Case(name="texts.png", what="png with 20,000 texts", make=lambda: png(16, 16, before=[png_chunk(b"tEXt", b"k%d\0v" % n) for n in range(20_000)]), says="cannot read|^$")
    yield Case(name="strip.tif", what="tiff of 8 x 8 with a strip of a gigabyte, packed", make=lambda: _packed_tiff(), says="cannot read|^$")
    yield Case(name="tile.tif", what="tiff of 8 x 8 in one tile of 60,000 squared", make=partial(_tiff, t322=(LONG, [60_000]), t323=(LONG, [60_000]), t324=(LONG, [8]), t325=(LONG, [64]), t273=None, t278=None, t279=None), says="cannot read")
    yield Case(name="scans.jpg", what="jpeg of a megapixel in 1,000 scans", make=partial(jpeg, 1000, 1000, progressive=True, scans=1000), says=RESTORED)


def _long_webp() -> bytes:
    inside = seeds()["plain.webp"]
    at = inside.index(b"VP8 ")
    frame = (b"VP8 ", inside[at + 8 : at + 8 + struct.unpack_from("<I", inside, at + 4)[0]])
    header = b"\x04\0\0\0" + (43).to_bytes(3, "little") + (29).to_bytes(3, "little")
    return riff((b"VP8X", header), frame, (b"XMP ", XMP.ljust(60 * MIB)))


def _packed_tiff() -> bytes:
    packed = bomb(2**30)
    return tiff(
        {
            256: (SHORT, [8]),
            257: (SHORT, [8]),
            258: (SHORT, [8]),
            259: (SHORT, [8]),
            262: (SHORT, [1]),
            273: (LONG, [8]),
            277: (SHORT, [1]),
            278: (SHORT, [8]),
            279: (LONG, [len(packed)]),
        },
        data=packed,
    )


def _tiffs() -> Iterator[Case]:
    yield Case(name="loop.tif", what="tiff whose directory is followed by itself", make=_endless_tiff, says="cannot read|pages|^$")
    yield Case(name="pages.tif", what="tiff of 20,000 pages", make=partial(_many_pages, 20_000), says="pages")
    yield Case(name="below-itself.tif", what="tiff whose sub-directory is itself", make=partial(_tiff, t330=(LONG, [72])), says="cannot read|pages|^$")
    yield Case(name="nan.tif", what="tiff of NaN", make=partial(_floats, float("nan")), says="samples are float|cannot read")
    yield Case(name="inf.tif", what="tiff of infinities", make=partial(_floats, float("inf")), says="samples are float|cannot read")
    yield Case(name="strips.tif", what="tiff of 2^32 - 1 strips", make=partial(_tiff, t273=(LONG, [8], 2**32 - 1), t279=(LONG, [64], 2**32 - 1)), says="cannot read|^$")
    yield Case(name="offset.tif", what="tiff whose pixels lie beyond its end", make=partial(_tiff, t273=(LONG, [2**32 - 16])), says="cannot read")
    yield Case(name="bytes.tif", what="tiff with a strip of 2^32 - 1 bytes", make=partial(_tiff, t279=(LONG, [2**32 - 1])), says="cannot read|^$")
    yield Case(name="samples.tif", what="tiff of 65,535 samples a pixel", make=partial(_tiff, t277=(SHORT, [65535])), says="cannot read|channels")
    yield Case(name="no-samples.tif", what="tiff of 0 samples a pixel", make=partial(_tiff, t277=(SHORT, [0])), says="cannot read|channels")
    for bits in (0, 3, 64, 65535):
        yield Case(name=f"bits-{bits}.tif", what=f"tiff of {bits} bits a sample", make=partial(_tiff, t258=(SHORT, [bits])), says="cannot read|samples are")
    yield Case(name="rows.tif", what="tiff of 0 rows a strip", make=partial(_tiff, t278=(SHORT, [0])), says="cannot read")
    yield Case(name="packing.tif", what="tiff of an unknown compression", make=partial(_tiff, t259=(SHORT, [4711])), says="cannot read")
    yield Case(name="colours.tif", what="tiff of an unknown colour space", make=partial(_tiff, t262=(SHORT, [99])), says="colour space")
    yield Case(name="no-map.tif", what="tiff of a palette that is not there", make=partial(_tiff, t262=(SHORT, [3])), says=RESTORED)
    yield Case(name="orientation.tif", what="tiff of orientation 4711", make=partial(_tiff, t274=(SHORT, [4711])), says="cannot read|^$")
    yield Case(name="resolution.tif", what="tiff of 0/0 dots an inch", make=partial(_tiff, t282=(FRACTION, bytes(8)), t283=(FRACTION, bytes(8))), says="cannot read|^$")
    yield Case(name="count.tif", what="tiff with a text of 2^32 - 1 letters", make=partial(_tiff, t270=(LETTERS, b"text", 2**32 - 1)), says="cannot read|^$")
    yield Case(name="escape.tif", what="tiff with terminal commands in its description", make=partial(_tiff, t270=(LETTERS, b"\x1b]0;owned\x07\x1b[2J\xff\xfe\0")), says="cannot read|^$")


def _others() -> Iterator[Case]:
    yield Case(name="chunk.png", what="png with a chunk of 2^32 - 1 bytes", make=lambda: png(8, 8, before=[png_chunk(b"tEXt", b"k\0v", length=2**32 - 1)]), says="cannot read")
    yield Case(name="no-palette.png", what="png of a palette that is not there", make=partial(png, 8, 8, colour=3), says="cannot read")
    yield Case(name="depth.png", what="png of 7 bits", make=partial(png, 8, 8, depth=7), says="cannot read")
    yield Case(name="filter.png", what="png with an unknown filter", make=lambda: png(8, 8, zlib.compress(b"\x09" * 200)), says="cannot read")
    yield Case(name="empty-chunks.png", what="png with 100,000 empty chunks of pixels", make=lambda: png(8, 8, before=[png_chunk(b"IDAT", b"")] * 100_000), says="cannot read|^$")
    yield Case(name="marker.jpg", what="jpeg with a segment of length 0", make=lambda: jpeg(16, 16, app1=[]).replace(b"\xff\xdb\x00\x43", b"\xff\xdb\x00\x00", 1), says="cannot read")
    yield Case(name="long-marker.jpg", what="jpeg with a segment beyond its end", make=lambda: b"\xff\xd8" + segment(0xE1, b"Exif\0\0", length=65535), says="cannot read")
    yield Case(name="no-table.jpg", what="jpeg without tables", make=lambda: jpeg(16, 16).replace(b"\xff\xc4", b"\xff\xfe"), says=RESTORED)
    yield Case(name="components.jpg", what="jpeg of 255 components", make=lambda: _after("grey.jpg", b"\xff\xc0", b"\xff", at=7), says="cannot read")
    yield Case(name="exif-loop.jpg", what="EXIF whose directories lead to each other", make=lambda: _exif({0x0112: (SHORT, [1]), 0x8769: (LONG, [8]), 0x8825: (LONG, [8]), 0xA005: (LONG, [8])}, next_at=8), says="cannot read|^$")
    yield Case(name="exif-count.jpg", what="EXIF with a count of 2^32 - 1", make=lambda: _exif({0x010F: (LETTERS, b"abcd", 2**32 - 1), 0x927C: (ANY, b"abcd", 2**31)}), says="cannot read|^$")
    yield Case(name="exif-turn.jpg", what="EXIF of orientation 4711", make=lambda: _exif({0x0112: (SHORT, [4711])}), says=RESTORED)
    yield Case(name="exif-letters.jpg", what="EXIF that is no text in any encoding", make=lambda: _exif({0x010F: (LETTERS, b"\xff\xfe\x80\x1b[2J\x9b31m\0"), 0x0110: (LETTERS, bytes(range(1, 256)) + b"\0")}), says=RESTORED)
    yield Case(name="length.webp", what="webp whose length is 2^32 - 1", make=lambda: riff((b"VP8 ", bytes(64)), length=2**32 - 1), says="cannot read")
    yield Case(name="frames.webp", what="webp of 5,000 frames", make=lambda: _animation(5000), says="pages|cannot read")
    yield Case(name="deep-boxes.avif", what="avif of boxes in boxes, 20,000 deep", make=lambda: box(b"ftyp", b"avif", bytes(4), b"avif") + box_tree(20_000), says="cannot read")
    yield Case(name="no-box.avif", what="avif with a box of length 1", make=lambda: box(b"ftyp", b"avif", bytes(4), b"avif") + full_box(b"meta", 0, box(b"hdlr", length=1)), says="cannot read")
    yield Case(name="long-box.avif", what="avif with a box of 4 GB", make=lambda: box(b"ftyp", b"avif", bytes(4), b"avif") + box(b"meta", bytes(64), length=2**32 - 1), says="cannot read")
    yield Case(name="self-grid.avif", what="avif made of tiles that are itself", make=lambda: grid_heif({1: [1, 1]}), says="cannot read")
    yield Case(name="ring-grid.avif", what="avif of two pictures that are made of each other", make=lambda: grid_heif({1: [2, 2], 2: [1, 1]}), says="cannot read")
    yield Case(name="deep-grid.avif", what="avif of grids of grids, 2^30 tiles", make=lambda: grid_heif({item: [item + 1] * 2 for item in range(1, 31)} | {31: []}), says="cannot read")
    yield Case(name="large-grid.avif", what="avif of 256 x 256 tiles", make=lambda: grid_heif({1: [2] * 65535, 2: []}, rows=256, columns=256, width=2**31, height=2**31), says="cannot read|limit is")


def _animation(count: int) -> bytes:
    inside = seeds()["plain.webp"]
    at = inside.index(b"VP8 ")
    size = struct.unpack_from("<I", inside, at + 4)[0]
    edges = (43).to_bytes(3, "little") + (29).to_bytes(3, "little")
    frame = bytes(6) + edges + (40).to_bytes(3, "little") + b"\0" + inside[at : at + 8 + size + size % 2]
    return riff((b"VP8X", b"\x02\0\0\0" + edges), (b"ANIM", bytes(6)), *[(b"ANMF", frame)] * count)


CORPUS: tuple[Case, ...] = (*_damaged(), *_wrong_kind(), *_sizes(), *_bombs(), *_tiffs(), *_others())
