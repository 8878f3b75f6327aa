"""TIFF files against their specification: every number of a directory can be a lie."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from functools import partial

from hostile.build import Entry, bomb, tiff
from hostile.case import MIB, RESTORED, Case
from hostile.seeds import XMP

__all__ = ["ANY", "LETTERS", "LONG", "SHORT", "tiffs"]

BYTES, LETTERS, SHORT, LONG, FRACTION, ANY = 1, 2, 3, 4, 5, 7


PLAIN: Mapping[int, Entry] = {
    256: (SHORT, [8]),  # across
    257: (SHORT, [8]),  # down
    258: (SHORT, [8]),  # bits a sample
    259: (SHORT, [1]),  # not compressed
    262: (SHORT, [1]),  # 0 is black
    273: (LONG, [8]),  # where the strips begin
    277: (SHORT, [1]),  # samples a pixel
    278: (SHORT, [8]),  # rows a strip
    279: (LONG, [64]),  # bytes of each strip
}


def _tiff(changes: Mapping[int, Entry | None], data: bytes = bytes(64)) -> bytes:
    """A grey picture of 8 x 8 with other entries; None leaves one out."""
    return tiff({tag: entry for tag, entry in {**PLAIN, **changes}.items() if entry}, data=data)


def _endless_tiff() -> bytes:
    """The only directory is followed by itself."""
    plain = tiff(PLAIN, data=bytes(64))
    at = struct.unpack_from("<I", plain, 4)[0]
    (count,) = struct.unpack_from("<H", plain, at)
    looped = bytearray(plain)
    struct.pack_into("<I", looped, at + 2 + 12 * count, at)
    return bytes(looped)


def _floats(value: float) -> bytes:
    changes = {258: (SHORT, [32]), 279: (LONG, [256]), 339: (SHORT, [3])}
    return _tiff(changes, struct.pack("<f", value) * 64)


def _packed_tiff() -> bytes:
    packed = bomb(2**30)
    return _tiff({259: (SHORT, [8]), 279: (LONG, [len(packed)])}, packed)


def tiffs() -> Iterator[Case]:
    """A directory says where the pixels lie and how many; here it lies."""
    yield Case(
        "no-size.tif", "tiff of 0 x 0", "cannot read", partial(_tiff, {256: (SHORT, [0]), 257: (SHORT, [0])})
    )
    yield Case(
        "promises.tif",
        "tiff that promises 2^32 - 1 squared",
        "cannot read|limit is",
        partial(_tiff, {256: (LONG, [2**32 - 1]), 257: (LONG, [2**32 - 1])}),
    )
    yield Case(
        "long-xmp.tif",
        "tiff with 60 MB of XMP",
        "metadata",
        lambda: _tiff({700: (BYTES, XMP.ljust(60 * MIB))}),
        300,
    )
    yield Case(
        "strip.tif", "tiff of 8 x 8 with a strip of a gigabyte, packed", "cannot read|^$", _packed_tiff
    )
    yield Case(
        "tile.tif",
        "tiff of 8 x 8 in one tile of 60,000 squared",
        "cannot read",
        partial(
            _tiff,
            {
                322: (LONG, [60_000]),
                323: (LONG, [60_000]),
                324: (LONG, [8]),
                325: (LONG, [64]),
                273: None,
                278: None,
                279: None,
            },
        ),
    )
    yield Case(
        "loop.tif", "tiff whose directory is followed by itself", "cannot read|pages|^$", _endless_tiff
    )
    yield Case("pages.tif", "tiff of 20,000 pages", "pages", lambda: tiff(*[PLAIN] * 20_000, data=bytes(64)))
    yield Case(
        "below-itself.tif",
        "tiff whose sub-directory is itself",
        "cannot read|pages|^$",
        partial(_tiff, {330: (LONG, [72])}),
    )
    yield Case("nan.tif", "tiff of NaN", "samples are float|cannot read", partial(_floats, float("nan")))
    yield Case(
        "inf.tif", "tiff of infinities", "samples are float|cannot read", partial(_floats, float("inf"))
    )
    yield Case(
        "strips.tif",
        "tiff of 2^32 - 1 strips",
        "cannot read|^$",
        partial(_tiff, {273: (LONG, [8], 2**32 - 1), 279: (LONG, [64], 2**32 - 1)}),
    )
    yield Case(
        "offset.tif",
        "tiff whose pixels lie beyond its end",
        "cannot read",
        partial(_tiff, {273: (LONG, [2**32 - 16])}),
    )
    yield Case(
        "bytes.tif",
        "tiff with a strip of 2^32 - 1 bytes",
        "cannot read|^$",
        partial(_tiff, {279: (LONG, [2**32 - 1])}),
    )
    yield Case(
        "samples.tif",
        "tiff of 65,535 samples a pixel",
        "cannot read|channels",
        partial(_tiff, {277: (SHORT, [65535])}),
    )
    yield Case(
        "no-samples.tif",
        "tiff of 0 samples a pixel",
        "cannot read|channels",
        partial(_tiff, {277: (SHORT, [0])}),
    )
    for bits in (0, 3, 64, 65535):
        yield Case(
            f"bits-{bits}.tif",
            f"tiff of {bits} bits a sample",
            "cannot read|samples are",
            partial(_tiff, {258: (SHORT, [bits])}),
        )
    yield Case("rows.tif", "tiff of 0 rows a strip", "cannot read", partial(_tiff, {278: (SHORT, [0])}))
    yield Case(
        "packing.tif", "tiff of an unknown compression", "cannot read", partial(_tiff, {259: (SHORT, [4711])})
    )
    yield Case(
        "colours.tif", "tiff of an unknown colour space", "colour space", partial(_tiff, {262: (SHORT, [99])})
    )
    yield Case(
        "no-map.tif", "tiff of a palette that is not there", RESTORED, partial(_tiff, {262: (SHORT, [3])})
    )
    yield Case(
        "orientation.tif",
        "tiff of orientation 4711",
        "cannot read|^$",
        partial(_tiff, {274: (SHORT, [4711])}),
    )
    yield Case(
        "resolution.tif",
        "tiff of 0/0 dots an inch",
        "cannot read|^$",
        partial(_tiff, {282: (FRACTION, bytes(8)), 283: (FRACTION, bytes(8))}),
    )
    yield Case(
        "count.tif",
        "tiff with a text of 2^32 - 1 letters",
        "cannot read|^$",
        partial(_tiff, {270: (LETTERS, b"text", 2**32 - 1)}),
    )
    yield Case(
        "escape.tif",
        "tiff with terminal commands in its description",
        "cannot read|^$",
        partial(_tiff, {270: (LETTERS, b"\x1b]0;owned\x07\x1b[2J\xff\xfe\0")}),
    )
