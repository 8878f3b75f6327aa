"""The formats as their specifications lay them out, for files that no encoder would write."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping, Sequence

__all__ = [
    "bomb",
    "box",
    "box_tree",
    "full_box",
    "grid_heif",
    "jpeg",
    "png",
    "png_chunk",
    "riff",
    "segment",
    "tiff",
]

PNG_START = b"\x89PNG\r\n\x1a\n"
TIFF_SIZES = {
    1: 1,
    2: 1,
    3: 2,
    4: 4,
    5: 8,
    7: 1,
}  # bytes of one value: bytes, letters, 16 and 32 bits, fractions
Values = Sequence[int] | bytes
Entry = tuple[int, Values] | tuple[int, Values, int]  # type, values, and a count that lies


def bomb(size: int) -> bytes:
    """`size` zeros, rounded up to a megabyte, in a zlib stream of a thousandth; the checksum is right."""
    megabytes = -(-size // 2**20)
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = packer.compress(bytes(2**20)) + packer.flush(zlib.Z_FULL_FLUSH)  # may be repeated as it is
    # Adler-32 of n zeros: the first sum stays 1, the second counts them.
    check = (megabytes * 2**20 % 65521) << 16 | 1
    return b"\x78\xda" + block * megabytes + b"\x03\x00" + check.to_bytes(4, "big")


def png_chunk(kind: bytes, data: bytes, *, length: int | None = None) -> bytes:
    """One chunk with the right checksum, and a length that may lie."""
    size = len(data) if length is None else length
    return size.to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


def png(
    width: int,
    height: int,
    pixels: bytes | None = None,
    *,
    depth: int = 8,
    colour: int = 2,
    interlace: int = 0,
    before: Sequence[bytes] = (),
) -> bytes:
    """pixels: a zlib stream, None for a sound black picture. before: chunks between IHDR and IDAT."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace)
    if pixels is None:
        channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
        pixels = zlib.compress(bytes(height * (1 + (width * channels * depth + 7) // 8)))
    body = [png_chunk(b"IHDR", header), *before, png_chunk(b"IDAT", pixels), png_chunk(b"IEND", b"")]
    return PNG_START + b"".join(body)


def tiff(
    *directories: Mapping[int, Entry], next_at: int | None = None, data: bytes = b"", big_endian: bool = False
) -> bytes:
    """Directories by tag; `data` lies at byte 8. next_at: where the last one says that another follows."""
    order = ">" if big_endian else "<"
    content = bytearray((b"MM\0*" if big_endian else b"II*\0") + bytes(4) + data)
    link = 4
    for directory in directories:
        content += bytes(len(content) % 2)
        struct.pack_into(f"{order}I", content, link, len(content))
        entries, beside = [], bytearray()
        start = len(content) + 2 + 12 * len(directory) + 4
        for tag, (kind, values, *lie) in sorted(directory.items()):
            letter = {1: "B", 3: "H", 4: "I"}.get(kind)
            raw = (
                values if isinstance(values, bytes) else struct.pack(f"{order}{len(values)}{letter}", *values)
            )
            count = lie[0] if lie else len(raw) // TIFF_SIZES[kind]
            if len(raw) > 4:
                place = struct.pack(f"{order}I", start + len(beside))
                beside += raw + bytes(len(raw) % 2)
            else:
                place = raw.ljust(4, b"\0")
            entries.append(struct.pack(f"{order}HHI", tag, kind, count) + place)
        content += struct.pack(f"{order}H", len(entries)) + b"".join(entries)
        link = len(content)
        content += bytes(4) + beside
    if next_at is not None:
        struct.pack_into(f"{order}I", content, link, next_at)
    return bytes(content)


def segment(marker: int, data: bytes, *, length: int | None = None) -> bytes:
    """One JPEG segment with a length that may lie."""
    return bytes([0xFF, marker]) + (len(data) + 2 if length is None else length).to_bytes(2, "big") + data


def jpeg(
    width: int, height: int, *, app1: Sequence[bytes] = (), scans: int = 1, progressive: bool = False
) -> bytes:
    """A grey picture of no texture at all. scans: of a progressive one, the first included."""
    one_code = bytes([1, *[0] * 15])  # a Huffman table of one code: a single 0 bit
    parts = [b"\xff\xd8", *(segment(0xE1, data) for data in app1)]
    parts.append(segment(0xDB, bytes([0, *[1] * 64])))
    parts.append(
        segment(0xC2 if progressive else 0xC0, struct.pack(">BHHB", 8, height, width, 1) + b"\x01\x11\x00")
    )
    # DC: no difference. AC: the end of this block, or, where progressive, of this one and 16,383 more.
    parts.append(segment(0xC4, b"\x00" + one_code + b"\x00"))
    parts.append(segment(0xC4, b"\x10" + one_code + (b"\xe0" if progressive else b"\x00")))
    blocks = -(-width // 8) * -(-height // 8)
    spectrum = b"\x00\x00\x00" if progressive else b"\x00\x3f\x00"
    bits = blocks if progressive else 2 * blocks
    parts.append(segment(0xDA, b"\x01\x01\x00" + spectrum) + bytes(-(-bits // 8)))
    runs = segment(0xDA, b"\x01\x01\x00\x01\x3f\x00") + bytes(-(-15 * -(-blocks // 16384) // 8))
    return b"".join(parts) + runs * (scans - 1) + b"\xff\xd9"


def riff(*chunks: tuple[bytes, bytes], length: int | None = None) -> bytes:
    """A WebP file of these chunks."""
    body = b"".join(
        kind + struct.pack("<I", len(data)) + data + bytes(len(data) % 2) for kind, data in chunks
    )
    return b"RIFF" + struct.pack("<I", len(body) + 4 if length is None else length) + b"WEBP" + body


def box(kind: bytes, *content: bytes, length: int | None = None) -> bytes:
    """One box of an ISO file, with a length that may lie."""
    data = b"".join(content)
    return struct.pack(">I", len(data) + 8 if length is None else length) + kind + data


def full_box(kind: bytes, version: int, *content: bytes) -> bytes:
    """A box with a version."""
    return box(kind, bytes([version, 0, 0, 0]), *content)


def box_tree(depth: int, kind: bytes = b"meta") -> bytes:
    """Boxes in boxes."""
    content = b""
    for _ in range(depth):
        content = full_box(kind, 0, content)
    return content


def grid_heif(
    references: Mapping[int, Sequence[int]],
    *,
    rows: int = 2,
    columns: int = 1,
    width: int = 64,
    height: int = 64,
) -> bytes:
    """An AVIF file of nothing but grids: item -> the items it is made of."""
    items = sorted(references)
    entries = [full_box(b"infe", 2, struct.pack(">HH", item, 0), b"grid\0") for item in items]
    names = full_box(b"iinf", 0, struct.pack(">H", len(items)), *entries)
    links = full_box(
        b"iref",
        0,
        *(
            box(b"dimg", struct.pack(f">HH{len(tiles)}H", item, len(tiles), *tiles))
            for item, tiles in references.items()
            if tiles
        ),
    )
    grid = struct.pack(">BBBBII", 0, 1, rows - 1, columns - 1, width, height)
    places = full_box(
        b"iloc",
        1,
        b"\x44\x00" + struct.pack(">H", len(items)),
        *(struct.pack(">HHHHII", item, 1, 0, 1, 0, len(grid)) for item in items),
    )
    sizes = full_box(b"ispe", 0, struct.pack(">II", width, height))
    owners = full_box(
        b"ipma", 0, struct.pack(">I", len(items)), *(struct.pack(">HBB", item, 1, 1) for item in items)
    )
    meta = full_box(
        b"meta",
        0,
        full_box(b"hdlr", 0, bytes(4), b"pict", bytes(13)),
        full_box(b"pitm", 0, struct.pack(">H", items[0])),
        places,
        names,
        links,
        box(b"iprp", box(b"ipco", sizes), owners),
        box(b"idat", grid),
    )
    return box(b"ftyp", b"avif", bytes(4), b"mif1avif") + meta
