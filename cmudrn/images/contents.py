"""What a file holds that libvips does not tell: EXIF byte for byte, pages' sizes, frames it passes over."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import BinaryIO

from cmudrn.formats import ImageFormat
from cmudrn.images.chunks import Parts, jpeg_parts, png_parts
from cmudrn.images.exif import exif_of_tiff
from cmudrn.images.ifd import TiffDamaged, read_directory, read_start

__all__ = ["MOST_PAGES", "Contents", "contents_of"]

MOST_PAGES = 10_000  # of one file: more are a slip, or a trap
# What pages must share to be pages of one picture: width, height, bits, photometric kind, channels.
PAGE_TAGS = (256, 257, 258, 262, 277)
SUBFILE_TYPE, REDUCED = 254, 1


@dataclass(frozen=True)
class Contents:
    """What is beside the first picture."""

    parts: Parts = field(default_factory=Parts)
    is_sequence: bool = False  # AVIF and HEIF: a film
    pages_are_copies: bool = False  # TIFF: smaller ones of the first, as pyramids and previews are
    pages_are_alike: bool = True  # TIFF


def contents_of(file: BinaryIO, image_format: ImageFormat) -> Contents:
    """Reads headers alone; what is damaged there is left for the decoder to find."""
    if image_format is ImageFormat.TIFF:
        return _of_tiff(file)
    if image_format is ImageFormat.PNG:
        return Contents(png_parts(file))
    if image_format is ImageFormat.JPEG:
        return Contents(jpeg_parts(file))
    if image_format in (ImageFormat.AVIF, ImageFormat.HEIF):
        file.seek(8)
        return Contents(is_sequence=file.read(4) in (b"avis", b"msf1", b"hevc", b"hevx"))
    return Contents()


def _of_tiff(file: BinaryIO) -> Contents:
    pages: list[tuple[object, ...]] = []
    others_are_copies = True
    try:
        form, offset = read_start(file)
        seen: set[int] = set()
        while offset and offset not in seen and len(pages) < MOST_PAGES:
            seen.add(offset)
            page = read_directory(file, form, offset, lambda tag: tag in (*PAGE_TAGS, SUBFILE_TYPE))
            kind = page.entries.get(SUBFILE_TYPE)
            lowest = b"\0" if kind is None else kind.value[:1] if form.order == "<" else kind.value[-1:]
            others_are_copies &= bool(lowest[0] & REDUCED) or not pages
            pages.append(tuple(page.entries.get(tag) for tag in PAGE_TAGS))
            offset = page.next_offset
    except TiffDamaged:
        pass
    return Contents(
        parts=Parts(exif=exif_of_tiff(file)),
        pages_are_copies=len(pages) > 1 and others_are_copies,
        pages_are_alike=len(set(pages)) <= 1,
    )
