"""Broken and hostile files, each with what `cmudrn infer` is to say about it. Made here: no blobs."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Mapping
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
from hostile.case import MIB, RESTORED, Case
from hostile.seeds import XMP, seeds
from hostile.tiffs import ANY, LETTERS, LONG, SHORT, tiffs

__all__ = ["CORPUS", "GROUPS"]


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
    for name in (
        "plain.jpg",
        "marked.jpg",
        "progressive.jpg",
        "deep.png",
        "marked.tif",
        "tiles.tif",
        "alpha.webp",
        "alpha.avif",
    ):
        stem, _, suffix = name.rpartition(".")
        for share in (0.02, 0.3, 0.6, 0.9, 0.97):
            yield Case(
                f"cut-{share}-{stem}.{suffix}",
                f"{suffix} cut short",
                "cannot read|not an image" if name != "marked.tif" else "cannot read|not an image|^$",
                partial(_cut, name, share),
            )
    for name in ("plain.png", "deep.png", "alpha.png"):  # the formats with checksums: any flip is seen
        for share in (0.1, 0.5, 0.9):
            yield Case(
                f"flip-{share}-{name}",
                "png with one byte flipped",
                "cannot read",
                partial(_flipped, name, share),
            )


def _wrong_kind() -> Iterator[Case]:
    yield Case("empty.jpg", "an empty file", "the file is empty", bytes)
    yield Case("one.png", "one byte", "not an image", lambda: b"\x89")
    yield Case("page.jpg", "HTML named .jpg", "not an image", lambda: b"<html><body>404</body></html>")
    yield Case(
        "entities.png",
        "SVG with entities that multiply, named .png",
        "not an image",
        lambda: b'<!DOCTYPE s [<!ENTITY a "aa"><!ENTITY b "&a;&a;">]><svg>&b;</svg>',
    )
    yield Case("script.jpg", "a shell script named .jpg", "not an image", lambda: b"#!/bin/sh\nrm -rf /\n")
    yield Case("png-named.jpg", "PNG named .jpg", RESTORED, lambda: seeds()["plain.png"])
    yield Case("jpeg-named.png", "JPEG named .png", RESTORED, lambda: seeds()["plain.jpg"])
    yield Case(
        "random.avif",
        "AVIF's first bytes, then noise",
        "cannot read",
        lambda: box(b"ftyp", b"avif") + bytes(range(256)) * 16,
    )
    yield Case("zeros.tif", "a megabyte of zeros", "not an image", lambda: bytes(MIB))


def _sizes() -> Iterator[Case]:
    for height, width in ((1, 1), (1, 3000), (3000, 1), (7, 2)):
        yield Case(
            f"thin-{height}x{width}.png", f"{height} x {width} pixels", RESTORED, partial(png, width, height)
        )
    yield Case("no-width.png", "png of 0 x 0", "cannot read", partial(png, 0, 0, b""))
    yield Case("no-height.jpg", "jpeg of height 0", "cannot read", partial(jpeg, 16, 0))
    yield Case(
        "promises.png",
        "png whose header promises 2^31 - 1 squared",
        "cannot read|limit is",
        partial(png, 2**31 - 1, 2**31 - 1, b""),
    )
    yield Case(
        "promises.jpg",
        "jpeg that promises 65,500 squared",
        "limit is",
        lambda: jpeg(16, 16).replace(struct.pack(">HH", 16, 16), struct.pack(">HH", 65500, 65500), 1),
    )
    yield Case(
        "promises.webp",
        "webp that promises 16,383 squared",
        "limit is|cannot read",
        lambda: riff((b"VP8L", b"\x2f\xff\xff\xff\x0f" + bytes(64))),
    )
    yield Case(
        "promises.avif",
        "avif that promises 2^32 - 1 squared",
        "cannot read|limit is",
        lambda: _after("plain.avif", b"ispe", b"\xff" * 8, at=4),
    )
    yield Case(
        "lies.png",
        "png that promises 4,000 squared and ends",
        "cannot read",
        partial(png, 4000, 4000, zlib.compress(bytes(100))),
        100,
    )


def _bombs() -> Iterator[Case]:
    yield Case("bomb.png", "png of 2.5 gigapixels", "limit is", lambda: png(50_000, 50_000, bomb(2**30)))
    yield Case(
        "overfull.png",
        "png of 100 x 100 with a gigabyte of pixels",
        "cannot read|^$",
        lambda: png(100, 100, bomb(2**30)),
    )
    yield Case(
        "profile.png",
        "png with an ICC profile that unpacks to a gigabyte",
        "cannot read|metadata|^$",
        lambda: png(16, 16, before=[_icc(bomb(2**30))]),
    )
    yield Case(
        "text.png",
        "png with a text that unpacks to a gigabyte",
        "cannot read|metadata|^$",
        lambda: png(16, 16, before=[_text(bomb(2**30), packed=True)]),
    )
    yield Case(
        "nested.png",
        "png whose profile is packed, packed",
        RESTORED,
        lambda: png(16, 16, before=[_icc(zlib.compress(bomb(2**30)))]),
    )
    yield Case(
        "long-text.png",
        "png with 60 MB of XMP",
        "MiB of metadata",
        lambda: png(16, 16, before=[_text(XMP.ljust(60 * MIB), packed=False)]),
        130,
    )
    yield Case("long-xmp.webp", "webp with 60 MB of XMP", "metadata", _long_webp, 300)
    yield Case(
        "texts.png",
        "png with 20,000 texts",
        "cannot read|^$",
        lambda: png(16, 16, before=[png_chunk(b"tEXt", b"k%d\0v" % n) for n in range(20_000)]),
    )
    yield Case(
        "scans.jpg",
        "jpeg of a megapixel in 1,000 scans",
        RESTORED,
        partial(jpeg, 1000, 1000, progressive=True, scans=1000),
    )


def _long_webp() -> bytes:
    inside = seeds()["plain.webp"]
    at = inside.index(b"VP8 ")
    frame = (b"VP8 ", inside[at + 8 : at + 8 + struct.unpack_from("<I", inside, at + 4)[0]])
    header = b"\x04\0\0\0" + (43).to_bytes(3, "little") + (29).to_bytes(3, "little")
    return riff((b"VP8X", header), frame, (b"XMP ", XMP.ljust(60 * MIB)))


def _others() -> Iterator[Case]:
    yield Case(
        "chunk.png",
        "png with a chunk of 2^32 - 1 bytes",
        "cannot read",
        lambda: png(8, 8, before=[png_chunk(b"tEXt", b"k\0v", length=2**32 - 1)]),
    )
    yield Case(
        "no-palette.png", "png of a palette that is not there", "cannot read", partial(png, 8, 8, colour=3)
    )
    yield Case("depth.png", "png of 7 bits", "cannot read", partial(png, 8, 8, depth=7))
    yield Case(
        "filter.png",
        "png with an unknown filter",
        "cannot read",
        lambda: png(8, 8, zlib.compress(b"\x09" * 200)),
    )
    yield Case(
        "empty-chunks.png",
        "png with 100,000 empty chunks of pixels",
        "cannot read|^$",
        lambda: png(8, 8, before=[png_chunk(b"IDAT", b"")] * 100_000),
    )
    yield Case(
        "marker.jpg",
        "jpeg with a segment of length 0",
        "cannot read",
        lambda: jpeg(16, 16, app1=[]).replace(b"\xff\xdb\x00\x43", b"\xff\xdb\x00\x00", 1),
    )
    yield Case(
        "long-marker.jpg",
        "jpeg with a segment beyond its end",
        "cannot read",
        lambda: b"\xff\xd8" + segment(0xE1, b"Exif\0\0", length=65535),
    )
    yield Case(
        "no-table.jpg",
        "jpeg without tables",
        RESTORED,
        lambda: jpeg(16, 16).replace(b"\xff\xc4", b"\xff\xfe"),
    )
    yield Case(
        "components.jpg",
        "jpeg of 255 components",
        "cannot read",
        lambda: _after("grey.jpg", b"\xff\xc0", b"\xff", at=7),
    )
    yield Case(
        "exif-loop.jpg",
        "EXIF whose directories lead to each other",
        "cannot read|^$",
        lambda: _exif(
            {0x0112: (SHORT, [1]), 0x8769: (LONG, [8]), 0x8825: (LONG, [8]), 0xA005: (LONG, [8])}, next_at=8
        ),
    )
    yield Case(
        "exif-count.jpg",
        "EXIF with a count of 2^32 - 1",
        "cannot read|^$",
        lambda: _exif({0x010F: (LETTERS, b"abcd", 2**32 - 1), 0x927C: (ANY, b"abcd", 2**31)}),
    )
    yield Case(
        "exif-turn.jpg", "EXIF of orientation 4711", RESTORED, lambda: _exif({0x0112: (SHORT, [4711])})
    )
    yield Case(
        "exif-letters.jpg",
        "EXIF that is no text in any encoding",
        RESTORED,
        lambda: _exif(
            {
                0x010F: (LETTERS, b"\xff\xfe\x80\x1b[2J\x9b31m\0"),
                0x0110: (LETTERS, bytes(range(1, 256)) + b"\0"),
            }
        ),
    )
    yield Case(
        "length.webp",
        "webp whose length is 2^32 - 1",
        "cannot read",
        lambda: riff((b"VP8 ", bytes(64)), length=2**32 - 1),
    )
    yield Case("frames.webp", "webp of 5,000 frames", RESTORED, lambda: _animation(5000))
    yield Case(
        "bytes.avif",
        "avif whose message of error is no text, and would steer a terminal",
        r"could not parse item property '\\xff",
        lambda: seeds()["marked.avif"].replace(b"irot", b"\xff\x1b[m"),
    )
    yield Case(
        "deep-boxes.avif",
        "avif of boxes in boxes, 20,000 deep",
        "cannot read",
        lambda: box(b"ftyp", b"avif", bytes(4), b"avif") + box_tree(20_000),
    )
    yield Case(
        "no-box.avif",
        "avif with a box of length 1",
        "cannot read",
        lambda: box(b"ftyp", b"avif", bytes(4), b"avif") + full_box(b"meta", 0, box(b"hdlr", length=1)),
    )
    yield Case(
        "long-box.avif",
        "avif with a box of 4 GB",
        "cannot read",
        lambda: box(b"ftyp", b"avif", bytes(4), b"avif") + box(b"meta", bytes(64), length=2**32 - 1),
    )
    yield Case(
        "self-grid.avif", "avif made of tiles that are itself", "cannot read", lambda: grid_heif({1: [1, 1]})
    )
    yield Case(
        "ring-grid.avif",
        "avif of two pictures that are made of each other",
        "cannot read",
        lambda: grid_heif({1: [2, 2], 2: [1, 1]}),
    )
    yield Case(
        "deep-grid.avif",
        "avif of grids of grids, 2^30 tiles",
        "cannot read",
        lambda: grid_heif({item: [item + 1] * 2 for item in range(1, 31)} | {31: []}),
    )
    yield Case(
        "large-grid.avif",
        "avif of 256 x 256 tiles",
        "cannot read|limit is",
        lambda: grid_heif({1: [2] * 65535, 2: []}, rows=256, columns=256, width=2**31, height=2**31),
    )


def _animation(count: int) -> bytes:
    inside = seeds()["plain.webp"]
    at = inside.index(b"VP8 ")
    size = struct.unpack_from("<I", inside, at + 4)[0]
    edges = (43).to_bytes(3, "little") + (29).to_bytes(3, "little")
    frame = bytes(6) + edges + (40).to_bytes(3, "little") + b"\0" + inside[at : at + 8 + size + size % 2]
    return riff((b"VP8X", b"\x02\0\0\0" + edges), (b"ANIM", bytes(6)), *[(b"ANMF", frame)] * count)


GROUPS: Mapping[str, tuple[Case, ...]] = {
    "damaged": tuple(_damaged()),
    "not what they are called": tuple(_wrong_kind()),
    "odd sizes": tuple(_sizes()),
    "bombs": tuple(_bombs()),
    "TIFFs against their specification": tuple(tiffs()),
    "others against theirs": tuple(_others()),
}
CORPUS: tuple[Case, ...] = tuple(case for cases in GROUPS.values() for case in cases)
