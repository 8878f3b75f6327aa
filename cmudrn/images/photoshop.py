"""Photoshop's resources: a list of numbered blocks, IPTC among them, and sometimes a small picture.

A JPEG holds the list under a mark of its own; a TIFF holds it, and IPTC once more beside it. libvips passes
on what it finds under one name, so that the one's would be rubbish in the other.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping

__all__ = ["IPTC_FIELD", "JPEG_MARK", "RESOURCES_FIELD", "iptc_in", "resources_in"]

JPEG_MARK = b"Photoshop 3.0\0"
BLOCK_MARK = b"8BIM"
IPTC = 1028
THUMBNAILS = (1033, 1036)  # of what was there before
IPTC_FIELD, RESOURCES_FIELD = "iptc-data", "photoshop-data"  # libvips' names


def resources_in(fields: Mapping[str, object]) -> bytes:
    """The list as it is in libvips' fields of either kind of file, without its thumbnails; empty without."""
    iptc, resources = fields.get(IPTC_FIELD), fields.get(RESOURCES_FIELD)
    blocks = b""
    if isinstance(resources, bytes):
        blocks = resources
    elif isinstance(iptc, bytes) and iptc.startswith(JPEG_MARK):
        blocks = iptc.removeprefix(JPEG_MARK)
    kept = [(number, block) for number, block in _blocks(blocks) if number not in THUMBNAILS]
    has_iptc = any(number == IPTC for number, _ in kept)
    if isinstance(iptc, bytes) and not iptc.startswith(JPEG_MARK) and not has_iptc:
        kept.append((IPTC, _block(IPTC, iptc)))
    return b"".join(block for _, block in kept)


def iptc_in(resources: bytes) -> bytes:
    """The block that a TIFF holds once more; empty without."""
    return next((_content(block) for number, block in _blocks(resources) if number == IPTC), b"")


def _blocks(resources: bytes) -> Iterator[tuple[int, bytes]]:
    """Numbers, and the blocks whole; ends where the list is no more."""
    at = 0
    while resources[at : at + 4] == BLOCK_MARK and at + 12 <= len(resources):
        (number,) = struct.unpack(">H", resources[at + 4 : at + 6])
        size_at = _size_at(resources, at)
        size = int.from_bytes(resources[size_at : size_at + 4], "big")
        stop = size_at + 4 + size + size % 2
        yield number, resources[at:stop]
        at = stop


def _size_at(block: bytes, at: int = 0) -> int:
    name_bytes = 1 + block[at + 6]
    return at + 6 + name_bytes + name_bytes % 2


def _content(block: bytes) -> bytes:
    at = _size_at(block)
    return block[at + 4 : at + 4 + int.from_bytes(block[at : at + 4], "big")]


def _block(number: int, content: bytes) -> bytes:
    head = BLOCK_MARK + struct.pack(">HHI", number, 0, len(content))
    return head + content + bytes(len(content) % 2)
