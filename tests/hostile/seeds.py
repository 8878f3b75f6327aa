"""Small sound files, one for each way through a decoder: the seeds of the fuzzer and of the corpus."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import pyvips

from hostile.build import tiff

__all__ = ["seeds"]

HEIGHT, WIDTH = 30, 44
XMP = b"<x:xmpmeta xmlns:x='adobe:ns:meta/'><rdf:RDF/></x:xmpmeta>"
# Maker, orientation, resolution, an EXIF directory with its exposure time: what a camera's file has.
EXIF = b"Exif\0\0" + tiff(
    {0x010F: (2, b"A camera maker\0"), 0x0112: (3, [6]), 0x011A: (4, [300]), 0x8769: (4, [8])}, data=bytes(8)
)


@cache
def seeds() -> Mapping[str, bytes]:
    """Name with suffix -> the file."""
    colour, grey = _photo(3), _photo(1)
    deep = (colour.cast("ushort") * 257).cast("ushort").copy(interpretation="rgb16")
    alpha = colour.bandjoin(grey)
    ink = colour.icc_transform("cmyk", input_profile="srgb")
    marked = colour.copy()
    for name, value in {
        "exif-data": EXIF,
        "xmp-data": XMP,
        "icc-profile-data": bytes(pyvips.Operation.call("profile_load", "srgb")),
    }.items():
        marked.set_type(pyvips.GValue.blob_type, name, value)
    return {
        "plain.jpg": colour.jpegsave_buffer(),
        "marked.jpg": marked.jpegsave_buffer(),
        "progressive.jpg": colour.jpegsave_buffer(interlace=True, optimize_coding=True),
        "grey.jpg": grey.jpegsave_buffer(),
        "ink.jpg": ink.jpegsave_buffer(keep="none"),
        "restart.jpg": colour.jpegsave_buffer(restart_interval=2, subsample_mode="off"),
        "plain.png": colour.pngsave_buffer(),
        "marked.png": marked.pngsave_buffer(),
        "deep.png": deep.pngsave_buffer(interlace=True),
        "alpha.png": alpha.pngsave_buffer(filter="all"),
        "palette.png": colour.pngsave_buffer(palette=True, bitdepth=4),
        "bits.png": grey.pngsave_buffer(bitdepth=1),
        "plain.tif": colour.tiffsave_buffer(),
        "marked.tif": marked.tiffsave_buffer(compression="deflate", predictor="horizontal"),
        "deep.tif": deep.tiffsave_buffer(compression="lzw", predictor="horizontal", bigtiff=True),
        "tiles.tif": alpha.tiffsave_buffer(tile=True, tile_width=16, tile_height=16, compression="deflate"),
        "jpeg.tif": colour.tiffsave_buffer(compression="jpeg", tile=True, tile_width=16, tile_height=16),
        "fax.tif": grey.tiffsave_buffer(compression="ccittfax4", bitdepth=1),
        "packed.tif": grey.tiffsave_buffer(compression="packbits"),
        "small.tif": grey.tiffsave_buffer(compression="none", bitdepth=4),
        "plain.webp": colour.webpsave_buffer(),
        "marked.webp": marked.webpsave_buffer(lossless=True),
        "alpha.webp": alpha.webpsave_buffer(),
        "plain.avif": colour.heifsave_buffer(compression="av1", effort=0),
        "marked.avif": marked.heifsave_buffer(compression="av1", effort=0, bitdepth=10),
        "alpha.avif": alpha.heifsave_buffer(compression="av1", effort=0, lossless=True),
    }


def _photo(bands: int) -> Any:
    """Smooth with some noise: every coder has something to do, and files stay at a few kilobytes."""
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH]
    waves = [
        120 + 60 * np.sin(rows / (4 + band)) + 40 * np.cos(columns / (7 - band)) for band in range(bands)
    ]
    noise = np.random.default_rng(8).normal(0, 4, (HEIGHT, WIDTH, bands))
    pixels = np.clip(np.dstack(waves) + noise, 0, 255).astype(np.uint8)
    return pyvips.Image.new_from_array(pixels).copy(interpretation="srgb" if bands == 3 else "b-w")
