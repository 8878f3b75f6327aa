"""Images of any size through a backend, in tiles that overlap and lie flush with the image's edges.

A tile shows the network `overlap_px` more than what is kept of it, on each side where the image goes on.
An image's own edge needs none: there the tile's edge is the image's, with the same zero padding. So with
overlap_px >= receptive_radius(loops) every kept pixel is what the whole image would give. An image that is
smaller than an engine is the exception: it goes on as its own mirror image there, which is cut off again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise, product
from typing import cast

import numpy as np
from numpy.typing import NDArray

from cmudrn.deploy.backend import Backend, PixelBatch
from cmudrn.errors import UsageError
from cmudrn.images import Pixels

__all__ = [
    "Restorer",
    "Span",
    "TilePlan",
    "plan_engine_tiles",
    "plan_tiles",
    "restore_each",
    "restore_pixels",
]

UINT16_PEAK = np.float32(65535)


@dataclass(frozen=True)
class Span:
    """One tile along one axis, in pixels of the image: what it shows and what is kept of it."""

    start: int
    stop: int  # beyond the image where the tile is larger
    kept_start: int
    kept_stop: int

    @property
    def kept(self) -> slice:
        """In the image."""
        return slice(self.kept_start, self.kept_stop)

    @property
    def kept_of_tile(self) -> slice:
        """In the tile."""
        return slice(self.kept_start - self.start, self.kept_stop - self.start)


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


def plan_engine_tiles(height: int, width: int, *, tile: tuple[int, int], overlap_px: int) -> TilePlan | None:
    """As few tiles of exactly that height and width as cover the image, evenly laid, as an engine wants them.

    None where the image is larger than a tile, and nothing would be left of a tile between its overlaps.
    """
    rows, columns = (
        _engine_spans(length, side, overlap_px) for length, side in zip((height, width), tile, strict=True)
    )
    return TilePlan(rows, columns) if rows and columns else None


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


def _engine_spans(length: int, tile_px: int, overlap_px: int) -> tuple[Span, ...]:
    if length <= tile_px:
        return (Span(0, tile_px, 0, length),)
    shared = 2 * overlap_px
    if shared >= tile_px:
        return ()
    count = -(-(length - shared) // (tile_px - shared))
    starts = [i * (length - tile_px) // (count - 1) for i in range(count)]
    # In the middle of what neighbours share: that is more than twice the overlap, as tiles don't shrink.
    seams = [(before + tile_px + start) // 2 for before, start in pairwise(starts)]
    bounds = [0, *seams, length]
    return tuple(Span(start, start + tile_px, bounds[i], bounds[i + 1]) for i, start in enumerate(starts))


@dataclass(frozen=True)
class Restorer:
    """An opened backend, and how images are cut for it."""

    backend: Backend
    plan: Callable[[int, int], TilePlan]  # of an image's height and width
    batch: int = 1  # tiles at once


def restore_pixels(
    pixels: Pixels, backend: Backend, *, tile_px: int, overlap_px: int, batch: int = 1
) -> Pixels:
    """One image in tiles of any size, as `restore_each` does it."""

    def plan(height: int, width: int) -> TilePlan:
        return plan_tiles(height, width, tile_px=tile_px, overlap_px=overlap_px)

    (restored,) = restore_each([pixels], Restorer(backend, plan, batch))
    return restored


def restore_each(images: Iterable[Pixels], restorer: Restorer) -> Generator[Pixels, None, None]:
    """Each image restored, in order, same shape and dtype; the given ones are left as they are.

    images: [H, W, 3], uint8 for a backend of uint8 pixels, uint16 for one of float32; or [P, H, W, 3], pages
    of which none sees another one's pixels. They are drawn as the
    backend reads ahead, and tiles of several fill a batch together. Memory: each image twice from its first
    tile to its last, and what the backend needs.
    """
    begun: deque[_Canvas] = deque()
    with closing(restorer.backend.stream(_batches(images, restorer, begun))) as stream:
        for batch in stream:
            for tile in batch:
                begun[0].put(tile)
                if begun[0].whole:
                    yield begun.popleft().restored


class _Canvas:
    """An image whose tiles come back one after the other."""

    def __init__(self, pixels: Pixels, plan: TilePlan) -> None:
        self.restored = np.empty_like(pixels)
        self._plan = plan
        pages = (-1, *pixels.shape[-3:])
        self._pages, self._restored_pages = pixels.reshape(pages), self.restored.reshape(pages)
        self._waiting = deque((page, *spans) for page in self._restored_pages for spans in plan)

    @property
    def whole(self) -> bool:
        return not self._waiting

    def tiles(self) -> Iterator[NDArray[np.generic]]:
        for page, (row, column) in product(self._pages, self._plan):
            tile = page[row.start : row.stop, column.start : column.stop]
            missing = [
                (0, span.stop - span.start - shown)
                for span, shown in zip((row, column), tile.shape, strict=False)
            ]
            # Zeros would be a dark frame to the network, which sees features beyond an edge, not zeros.
            yield np.pad(tile, (*missing, (0, 0)), mode="symmetric") if any(map(any, missing)) else tile

    def put(self, tile: NDArray[np.generic]) -> None:
        page, row, column = self._waiting.popleft()
        kept = tile[row.kept_of_tile, column.kept_of_tile]
        if self.restored.dtype == np.uint16:
            kept = _to_uint16(cast("NDArray[np.float32]", kept))
        page[row.kept, column.kept] = kept


def _batches(images: Iterable[Pixels], restorer: Restorer, begun: deque[_Canvas]) -> Iterator[PixelBatch]:
    some: list[NDArray[np.generic]] = []
    for pixels in images:
        canvas = _Canvas(pixels, restorer.plan(*pixels.shape[-3:-1]))
        begun.append(canvas)
        for tile in canvas.tiles():
            if some and (tile.shape, tile.dtype) != (some[0].shape, some[0].dtype):
                yield _batch(some)
                some = []
            some.append(tile)
            if len(some) == restorer.batch:
                yield _batch(some)
                some = []
    if some:
        yield _batch(some)


def _batch(tiles: list[NDArray[np.generic]]) -> PixelBatch:
    """16-bit photographs go through float32 pixels, so that no bit is lost."""
    batch = np.stack(tiles)
    return _to_float(batch) if batch.dtype == np.uint16 else cast("NDArray[np.uint8]", batch)


def _to_float(tiles: NDArray[np.generic]) -> NDArray[np.float32]:
    """0..65535 to [0, 1]."""
    return np.asarray(tiles.astype(np.float32) / UINT16_PEAK)


def _to_uint16(image: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Rounded half up, as the graph rounds to uint8; float32 has the bits for it."""
    return np.asarray(image * UINT16_PEAK + np.float32(0.5)).astype(np.uint16)
