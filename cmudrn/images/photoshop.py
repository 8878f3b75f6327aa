"""Photoshop's resources: a list of named blocks, IPTC among them, and sometimes a small picture."""

from __future__ import annotations

import struct

__all__ = ["without_thumbnails"]

MARK = b"8BIM"
THUMBNAILS = (1033, 1036)
HEAD_BYTES = 6  # the mark and the block's number


def without_thumbnails(resources: bytes) -> bytes:
    """All other blocks as they are; what is no list of blocks comes back unchanged."""
    at = resources.find(MARK)
    if at < 0:
        return resources
    kept = [resources[:at]]
    while resources[at : at + len(MARK)] == MARK and at + 12 <= len(resources):
        (number,) = struct.unpack(">H", resources[at + 4 : at + HEAD_BYTES])
        name_bytes = 1 + resources[at + HEAD_BYTES]
        size_at = at + HEAD_BYTES + name_bytes + name_bytes % 2
        size = int.from_bytes(resources[size_at : size_at + 4], "big")
        stop = size_at + 4 + size + size % 2
        if number not in THUMBNAILS:
            kept.append(resources[at:stop])
        at = stop
    return b"".join([*kept, resources[at:]])
