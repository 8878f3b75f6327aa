"""The parts of a PNG or a JPEG that libvips passes over, read as they are."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import BinaryIO

__all__ = ["COLOUR_CHUNKS", "PNG_XMP", "Chunk", "Parts", "jpeg_parts", "png_parts"]

Chunk = tuple[bytes, bytes]  # PNG: name and content; JPEG: marker and content

MOST_BYTES = 1 << 26  # of all that is kept of one file
MOST_PARTS = 1_000_000  # looked at, in a second or two; a PNG of 8 GB has as many
COLOUR_CHUNKS = (b"cICP", b"gAMA", b"cHRM", b"sRGB", b"sBIT", b"mDCV", b"cLLI")  # how numbers mean colours
KEPT_CHUNKS = (*COLOUR_CHUNKS, b"tIME", b"tEXt", b"zTXt", b"iTXt")
PNG_XMP = b"XML:com.adobe.xmp" + bytes(5)  # uncompressed, in no language
RAW_EXIF = b"Raw profile type exif\0"  # ImageMagick's, which libvips reads; written as PNG's own
START_OF_SCAN, END_OF_IMAGE = 0xDA, 0xD9
# Not APP14 (Adobe), which says how pixels are encoded; not APP13 (Photoshop), which is carried
# apart; not APP11, where signatures of the old pixels are (C2PA). The rest is the cameras' own (temperatures,
# motion), and comments.
KEPT_SEGMENTS = {*range(0xE0, 0xEB), 0xEC, 0xEF, 0xFE}
# Carried by libvips; how pixels are encoded; pictures behind this one, which are not written.
LEFT_OUT = (b"ICC_PROFILE\0", b"JFIF\0", b"JFXX\0", b"SPIFF\0", b"MPF\0")
EXIF, XMP = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"


@dataclass(frozen=True)
class Parts:
    """What a file holds beside its pixels."""

    exif: bytes | None = None  # from its byte order on
    xmp: bytes | None = None
    chunks: Sequence[Chunk] = ()  # to be written again
    frames: int = 1  # of an animated PNG
    says_resolution: bool = False  # a PNG


def png_parts(file: BinaryIO) -> Parts:
    """Of a PNG; what is damaged ends the list."""
    exif, xmp, frames, says_resolution = None, None, 1, False
    chunks: list[Chunk] = []
    left = MOST_BYTES
    file.seek(8)
    for _ in range(MOST_PARTS):
        if len(head := file.read(8)) < 8:
            break
        size, name = int.from_bytes(head[:4], "big"), head[4:]
        says_resolution |= name == b"pHYs"
        if name not in (*KEPT_CHUNKS, b"acTL", b"eXIf") or size > left:
            file.seek(size + 4, io.SEEK_CUR)
            continue
        content = file.read(size)
        file.seek(4, io.SEEK_CUR)
        left -= size
        if name == b"acTL":
            frames = max(1, int.from_bytes(content[:4], "big"))
        elif name == b"eXIf":
            exif = content.removeprefix(EXIF)
        elif name == b"iTXt" and content.startswith(PNG_XMP):
            xmp = content.removeprefix(PNG_XMP)
        elif not content.startswith(RAW_EXIF):
            chunks.append((name, content))
    return Parts(exif, xmp, chunks, frames, says_resolution)


def jpeg_parts(file: BinaryIO) -> Parts:
    """Of a JPEG, up to its pixels."""
    exif, xmp = None, None
    chunks: list[Chunk] = []
    left = MOST_BYTES
    file.seek(2)
    for _ in range(MOST_PARTS):
        head = file.read(4)
        if len(head) < 4 or head[0] != 0xFF or head[1] in (START_OF_SCAN, END_OF_IMAGE):
            break
        size = int.from_bytes(head[2:], "big") - 2
        if head[1] not in KEPT_SEGMENTS or size < 0 or size > left:
            file.seek(max(size, 0), io.SEEK_CUR)
            continue
        content = file.read(size)
        left -= size
        if head[1] == 0xE1 and content.startswith(EXIF):
            exif = exif or content.removeprefix(EXIF)
        elif head[1] == 0xE1 and content.startswith(XMP):
            xmp = xmp or content.removeprefix(XMP)
        elif not content.startswith(LEFT_OUT):
            chunks.append((head[1:2], content))
    return Parts(exif, xmp, chunks)
