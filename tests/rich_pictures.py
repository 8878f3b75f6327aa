"""Files that bring along all that a file can, made by Pillow and by hand: nothing of ours makes them."""

from __future__ import annotations

import io
import struct
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageCms

HEIGHT, WIDTH = 24, 40
ORIENTATION, MAKE, EXIF_IFD, GPS_IFD, MAKER_NOTE, TAKEN = 0x0112, 0x010F, 0x8769, 0x8825, 0x927C, 0x9003
UNKNOWN, TITLE = 0xABCD, 0x9C9B
XMP = (
    b'<?xpacket begin="\xef\xbb\xbf" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
    b'<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<rdf:Description rdf:about="" xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmp:Rating="4"'
    b' xmlns:photoshop="http://ns.adobe.com/photoshop/1.0/" photoshop:Instructions="one&#xA;two">'
    b'<!-- a comment --><dc:title xmlns:dc="http://purl.org/dc/elements/1.1/"><rdf:Alt>'
    b'<rdf:li xml:lang="x-default">Regen \xc3\xbc</rdf:li></rdf:Alt></dc:title>'
    b'</rdf:Description></rdf:RDF></x:xmpmeta><?xpacket end="w"?>'
)


def noise(*shape: int, dtype: Any = np.uint8) -> Any:
    return np.random.default_rng(7).integers(0, np.iinfo(dtype).max + 1, shape, dtype=dtype)


@cache  # it holds the second in which it was made
def profile() -> bytes:
    return bytes(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())


def small_jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 12), (200, 0, 0)).save(buffer, "JPEG")
    return buffer.getvalue()


def exif_block(*, order: str = ">", orientation: int | None = 6, thumbnail: bytes = b"") -> bytes:
    """From the byte order on, with tags that few programs know, and a note that counts from the start."""
    note = b"MakerNote\0" + bytes(range(90))
    exif = [(MAKER_NOTE, 7, note), (TAKEN, 2, b"2024:02:29 12:34:56\0"), (UNKNOWN, 2, b"nobody knows\0")]
    gps = [(1, 2, b"N\0"), (2, 5, struct.pack(order + "6I", 52, 1, 31, 1, 12345, 1000))]
    first = [(MAKE, 2, "Kamerá\0".encode()), (TITLE, 1, "Schnee".encode("utf-16le"))]
    if orientation is not None:
        first.append((ORIENTATION, 3, struct.pack(order + "H", orientation)))
    first_bytes = directory_bytes([*first, (EXIF_IFD, 4, b"0000"), (GPS_IFD, 4, b"0000")])
    exif_at = 8 + first_bytes
    gps_at = exif_at + directory_bytes(exif)
    second_at = gps_at + directory_bytes(gps)
    first += [(tag, 4, struct.pack(order + "I", at)) for tag, at in ((EXIF_IFD, exif_at), (GPS_IFD, gps_at))]
    block = (b"MM\0*" if order == ">" else b"II*\0") + struct.pack(order + "I", 8)
    block += directory(first, order, 8, following=second_at if thumbnail else 0)
    block += directory(exif, order, exif_at) + directory(gps, order, gps_at)
    if thumbnail:
        second = [(0x0103, 3, struct.pack(order + "H", 6)), (0x0201, 4, b"0000"), (0x0202, 4, b"0000")]
        place = second_at + directory_bytes(second)
        second[1:] = [
            (0x0201, 4, struct.pack(order + "I", place)),
            (0x0202, 4, struct.pack(order + "I", len(thumbnail))),
        ]
        block += directory(second, order, second_at) + thumbnail
    return block


def directory_bytes(entries: list[tuple[int, int, bytes]]) -> int:
    return (
        2
        + 12 * len(entries)
        + 4
        + sum(len(value) + len(value) % 2 for *_, value in entries if len(value) > 4)
    )


def directory(entries: list[tuple[int, int, bytes]], order: str, at: int, following: int = 0) -> bytes:
    rows, values = b"", b""
    place = at + 2 + 12 * len(entries) + 4
    for tag, kind, value in sorted(entries):
        count = len(value) // {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 7: 1}[kind]
        stored = value.ljust(4, b"\0")
        if len(value) > 4:
            stored = struct.pack(order + "I", place + len(values))
            values += value + bytes(len(value) % 2)
        rows += struct.pack(order + "HHI", tag, kind, count) + stored
    return struct.pack(order + "H", len(entries)) + rows + struct.pack(order + "I", following) + values


def save_rich(path: Path, pixels: Any, *, exif: bytes | None = None, **options: Any) -> Path:
    """With EXIF, XMP, ICC profile and 300 dots an inch, as far as Pillow can."""
    block: Any = b"Exif\0\0" + (exif_block() if exif is None else exif)
    if path.suffix == ".tif":  # Pillow's TIFFs take XMP as one more tag
        tags = Image.Exif()
        tags.load(block)
        tags[700] = XMP
        block = tags
    Image.fromarray(pixels).save(path, exif=block, xmp=XMP, icc_profile=profile(), dpi=(300, 300), **options)
    if path.suffix == ".png":
        insert_chunk(path, b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP)
    return path


def insert_chunk(path: Path, name: bytes, content: bytes) -> None:
    start = path.read_bytes()
    chunk = struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
    path.write_bytes(start[:33] + chunk + start[33:])


def exif_in(path: Path) -> bytes | None:
    """As it lies in the file, by Pillow: from the byte order on."""
    with Image.open(path) as opened:
        block = opened.info.get("exif")
    return None if block is None else bytes(block).removeprefix(b"Exif\0\0")


def exif_fields(path: Path) -> dict[str, Any]:
    """By Pillow, of all directories, as far as the block says them."""
    with Image.open(path) as opened:
        exif = opened.getexif()
        return {
            "make": exif.get(MAKE),
            "title": exif.get(TITLE),
            **{f"exif {tag:x}": value for tag, value in exif.get_ifd(EXIF_IFD).items()},
            **{f"gps {tag}": value for tag, value in exif.get_ifd(GPS_IFD).items()},
        }
