"""Images of any size through a backend, in tiles that overlap and lie flush with the image's edges.

A tile shows the network `overlap_px` more than what is kept of it, on each side where the image goes on.
An image's own edge needs none: there the tile's edge is the image's, with the same zero padding. So with
overlap_px >= receptive_radius(loops) every kept pixel is what the whole image would give.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import cast

import numpy as np
from numpy.typing import NDArray

from cmudrn.deploy.backend import Backend, PixelBatch
from cmudrn.errors import UsageError
from cmudrn.images import Pixels

__all__ = ["Span", "TilePlan", "plan_tiles", "restore_pixels"]

UINT16_PEAK = np.float32(65535)


@dataclass(frozen=True)
class Span:
    """One tile along one axis, in pixels of the image: what it shows and what is kept of it."""

    start: int
    stop: int
    kept_start: int
    kept_stop: int


@dataclass(frozen=True)
class TilePlan:
    """Tiles of one size, the product of rows and columns; what is kept of them covers the image once."""

    rows: tuple[Span, ...]
    columns: tuple[Span, ...]

    def __iter__(self) -> Iterator[tuple[Span, Span]]:
        return ((row, column) for row in self.rows for column in self.columns)

    def __len__(self) -> int:
        return len(self.rows) * len(self.columns)


def plan_tiles(height: int, width: int, *, tile_px: int, overlap_px: int) -> TilePlan:
    """As few tiles as cover the image, and no larger than these need to be; at most tile_px a side.

    Raises UsageError where nothing would be left of a tile between its overlaps.
    """
    if 2 * overlap_px >= tile_px or overlap_px < 0:
        raise UsageError(
            f"tiles of {tile_px} pixels with overlaps of {overlap_px}",
            fix=f"give tiles of {2 * overlap_px + 1} pixels or more, or less overlap",
        )
    return TilePlan(_spans(height, tile_px, overlap_px), _spans(width, tile_px, overlap_px))


def _spans(length: int, tile_px: int, overlap_px: int) -> tuple[Span, ...]:
    if length <= tile_px:
        return (Span(0, length, 0, length),)
    shared = 2 * overlap_px
    count = -(-(length - shared) // (tile_px - shared))
    step = -(-(length - shared) // count)
    size = step + shared
    starts = [min(i * step, length - size) for i in range(count)]  # the last lies flush
    seams = [0, *(start + size - overlap_px for start in starts[:-1]), length]
    return tuple(Span(start, start + size, seams[i], seams[i + 1]) for i, start in enumerate(starts))


def restore_pixels(
    pixels: Pixels, backend: Backend, *, tile_px: int, overlap_px: int, batch: int = 1
) -> Pixels:
    """The image restored, same shape and dtype; `pixels` is left as it is.

    pixels: [H, W, 3], uint8 for a backend of uint8 pixels, uint16 for one of float32.
    batch: tiles at once. Memory: the image twice, and what the backend needs for one batch.
    """
    plan = plan_tiles(*pixels.shape[:2], tile_px=tile_px, overlap_px=overlap_px)
    restored = np.empty_like(pixels)
    places = iter(plan)
    for tiles in backend.stream(_batches(pixels, plan, batch)):
        for tile, (row, column) in zip(tiles, islice(places, len(tiles)), strict=True):
            kept = tile[
                row.kept_start - row.start : row.kept_stop - row.start,
                column.kept_start - column.start : column.kept_stop - column.start,
            ]
            restored[row.kept_start : row.kept_stop, column.kept_start : column.kept_stop] = (
                _to_uint16(kept) if pixels.dtype == np.uint16 else kept
            )
    return restored


def _batches(pixels: Pixels, plan: TilePlan, batch: int) -> Iterator[PixelBatch]:
    places = iter(plan)
    while some := list(islice(places, batch)):
        tiles = np.stack([pixels[row.start : row.stop, column.start : column.stop] for row, column in some])
        yield _to_float(tiles) if tiles.dtype == np.uint16 else cast("NDArray[np.uint8]", tiles)


def _to_float(tiles: NDArray[np.generic]) -> NDArray[np.float32]:
    """0..65535 to [0, 1]: 16-bit photographs go through the float32 graph, so that no bit is lost."""
    return np.asarray(tiles.astype(np.float32) / UINT16_PEAK)


def _to_uint16(image: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Rounded half up, as the graph rounds to uint8; float32 has the bits for it."""
    return np.asarray(image * UINT16_PEAK + np.float32(0.5)).astype(np.uint16)
