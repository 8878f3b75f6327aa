"""Read and write photographs without losing what is not pixels.

A picture stands upright while it is with us: rain falls down, and the network is not rotation-invariant.
It goes back into the file as it lay there, under the same orientation tag. libvips decodes and encodes the
pixels; the format of an input is told by its first bytes. ICC profile, XMP, IPTC and resolution travel
through libvips, EXIF beside it, byte for byte, as far as the output format holds them (docs/fidelity.md).
"""

from __future__ import annotations

import pyvips

from cmudrn.images.change_map import drawing_change_map, is_change_map, write_change_map
from cmudrn.images.contents import MOST_PAGES
from cmudrn.images.picture import Header, Picture, Pixels
from cmudrn.images.provenance import Provenance
from cmudrn.images.reading import DEFAULT_MAX_PIXELS, read_header, read_picture
from cmudrn.images.writing import Keeping, need_room, write_picture

__all__ = [
    "DEFAULT_MAX_PIXELS",
    "MOST_PAGES",
    "Header",
    "Keeping",
    "Picture",
    "Pixels",
    "Provenance",
    "drawing_change_map",
    "is_change_map",
    "need_room",
    "read_header",
    "read_picture",
    "write_change_map",
    "write_picture",
]

# Every picture is used once: libvips' cache of operations would only hold memory through a long job.
pyvips.cache_set_max(0)
# One libvips thread a picture: the pipeline runs several pictures side by side, beside the inference.
if hasattr(pyvips, "concurrency_set"):  # pyvips 3.2; before it, the environment's VIPS_CONCURRENCY says
    pyvips.concurrency_set(1)
