"""Tiles: they cover the image once, lie flush with its edges, and give what the whole image would."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from random_weights import random_checkpoint

from cmudrn.deploy.backend import Backend, PixelBatch
from cmudrn.deploy.graphs import shipped_graph
from cmudrn.deploy.job import DEFAULT_OVERLAP_PX
from cmudrn.deploy.onnxruntime import OnnxBackend
from cmudrn.deploy.tiling import (
    Restorer,
    TilePlan,
    plan_engine_tiles,
    plan_tiles,
    restore_each,
    restore_pixels,
)
from cmudrn.engines.graph import dynamic_graph
from cmudrn.engines.spec import EngineSpec, Output, Pixel, Precision, receptive_radius
from cmudrn.errors import UsageError
from cmudrn.metrics import psnr_db


@contextmanager
def backend(
    loops: int, pixel: Pixel = Pixel.UINT8, *, shipped: bool = False, output: Output = Output.FUSED
) -> Iterator[OnnxBackend]:
    spec = EngineSpec(loops=loops, height=64, width=64, precision=Precision.FP32, pixel=pixel, output=output)
    graph = (
        shipped_graph(loops, pixel)
        if shipped
        else dynamic_graph(random_checkpoint(), loops=loops, pixel=pixel)
    )
    with OnnxBackend(graph, spec, threads=2) as opened:
        yield opened


def noise(height: int, width: int, dtype: type[np.uint8 | np.uint16] = np.uint8) -> NDArray[np.uint8]:
    high = np.iinfo(dtype).max
    image: NDArray[np.uint8] = np.random.default_rng(5).integers(
        0, high, (height, width, 3), dtype, endpoint=True
    )
    return image


@given(
    height=st.integers(1, 300),
    width=st.integers(1, 300),
    overlap_px=st.integers(0, 20),
    room_px=st.integers(1, 60),
)
@settings(deadline=None)
def test_tiles_cover_every_pixel_once_with_overlap_on_every_inner_side(
    height: int, width: int, overlap_px: int, room_px: int
) -> None:
    tile_px = 2 * overlap_px + room_px
    plan = plan_tiles(height, width, tile_px=tile_px, overlap_px=overlap_px)
    covered = np.zeros((height, width), int)
    for row, column in plan:
        covered[row.kept_start : row.kept_stop, column.kept_start : column.kept_stop] += 1
    assert (covered == 1).all()
    for spans, length in ((plan.rows, height), (plan.columns, width)):
        assert len({span.stop - span.start for span in spans}) == 1
        for span in spans:
            assert 0 <= span.start < span.stop <= length
            assert span.stop - span.start <= tile_px
            assert span.start == 0 or span.kept_start - span.start >= overlap_px
            assert span.stop == length or span.stop - span.kept_stop >= overlap_px


@given(
    height=st.integers(1, 300),
    width=st.integers(1, 300),
    overlap_px=st.integers(0, 20),
    rooms_px=st.tuples(st.integers(1, 60), st.integers(1, 60)),
)
@settings(deadline=None)
def test_an_engines_tiles_have_its_size_and_cover_every_pixel_once(
    height: int, width: int, overlap_px: int, rooms_px: tuple[int, int]
) -> None:
    tile = 2 * overlap_px + rooms_px[0], 2 * overlap_px + rooms_px[1]
    plan = plan_engine_tiles(height, width, tile=tile, overlap_px=overlap_px)
    assert plan
    covered = np.zeros((height, width), int)
    for row, column in plan:
        covered[row.kept, column.kept] += 1
        assert (row.stop - row.start, column.stop - column.start) == tile
    assert (covered == 1).all()
    for spans, length, side in ((plan.rows, height, tile[0]), (plan.columns, width, tile[1])):
        # One tile fewer would not reach.
        assert len(spans) == 1 or (len(spans) - 1) * (side - 2 * overlap_px) + 2 * overlap_px < length
        for span in spans:
            assert span.start >= 0
            assert span.stop <= length or len(spans) == 1
            assert span.start == 0 or span.kept_start - span.start >= overlap_px
            assert span.stop >= length or span.stop - span.kept_stop >= overlap_px


def test_an_engine_that_leaves_nothing_between_overlaps_takes_only_what_fits_whole() -> None:
    assert plan_engine_tiles(32, 20, tile=(32, 32), overlap_px=16)
    assert plan_engine_tiles(33, 20, tile=(32, 32), overlap_px=16) is None


def by_engine_tiles(
    image: NDArray[np.uint8], opened: OnnxBackend, tile: tuple[int, int], overlap_px: int, batch: int = 1
) -> NDArray[np.uint8]:
    def plan(height: int, width: int) -> TilePlan:
        found = plan_engine_tiles(height, width, tile=tile, overlap_px=overlap_px)
        assert found
        return found

    (restored,) = restore_each([image], Restorer(opened, plan, batch))
    return restored.astype(np.uint8)


@pytest.mark.parametrize("loops", [1, 2])
def test_an_engines_tiles_equal_the_whole_too(loops: int) -> None:
    radius_px = receptive_radius(loops)
    image = noise(3 * radius_px + 71, 2 * radius_px + 50)
    with backend(loops) as opened:
        whole = restore_pixels(image, opened, tile_px=10_000, overlap_px=0)
        tile = 2 * radius_px + 20, 2 * radius_px + 50
        assert np.array_equal(by_engine_tiles(image, opened, tile, radius_px, batch=3), whole)


def test_where_an_image_is_smaller_than_the_engine_only_its_edge_differs_from_the_whole() -> None:
    radius_px = receptive_radius(1)
    image = noise(30, 41)
    with backend(1) as opened:
        whole = restore_pixels(image, opened, tile_px=10_000, overlap_px=0)
        padded = by_engine_tiles(image, opened, (64, 41), 0)
    assert np.array_equal(padded[: 30 - radius_px], whole[: 30 - radius_px])
    assert not np.array_equal(padded[-1], whole[-1])
    assert padded.shape == image.shape


def test_images_share_batches_and_come_back_in_order() -> None:
    images = [noise(30, 40), noise(64, 20), noise(40, 30), noise(30, 40) // 2, noise(30, 40) // 3]
    sizes: list[int] = []
    with backend(1) as opened:
        alone = [restore_pixels(image, opened, tile_px=32, overlap_px=9) for image in images]

        class Watched:
            """The backend, with an eye on its batches."""

            def stream(self, batches: Iterable[PixelBatch]) -> Generator[PixelBatch, None, None]:
                for restored in opened.stream(batches):
                    sizes.append(len(restored))
                    yield restored

        restorer = Restorer(
            cast(Backend, Watched()), lambda h, w: plan_tiles(h, w, tile_px=32, overlap_px=9), batch=4
        )
        together = list(restore_each(iter(images), restorer))
    assert all(np.array_equal(one, other) for one, other in zip(alone, together, strict=True))
    assert sizes[-1] == 4  # of the last two images, which have two tiles each


def test_an_image_no_larger_than_a_tile_is_one_tile() -> None:
    assert len(plan_tiles(64, 40, tile_px=64, overlap_px=16)) == 1
    assert len(plan_tiles(65, 40, tile_px=64, overlap_px=16)) == 2


def test_tiles_are_no_larger_than_their_number_needs() -> None:
    plan = plan_tiles(1, 1000, tile_px=512, overlap_px=16)
    # Three tiles of 345 + 32; two of 512 would leave 8 pixels over.
    assert [span.stop - span.start for span in plan.columns] == [355, 355, 355]


@pytest.mark.parametrize(("tile_px", "overlap_px"), [(32, 16), (1, 1), (8, -1)])
def test_overlaps_that_leave_nothing_of_a_tile_are_refused(tile_px: int, overlap_px: int) -> None:
    with pytest.raises(UsageError, match=f"tiles of {tile_px} pixels"):
        plan_tiles(100, 100, tile_px=tile_px, overlap_px=overlap_px)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("pixel", Pixel)
@pytest.mark.parametrize("loops", [1, 2, 3])
def test_with_the_receptive_radius_as_overlap_tiles_equal_the_whole_bit_for_bit(
    loops: int, pixel: Pixel, batch: int
) -> None:
    radius_px = receptive_radius(loops)
    image = noise(2 * radius_px + 71, 3 * radius_px + 50, np.uint8 if pixel is Pixel.UINT8 else np.uint16)
    with backend(loops, pixel) as opened:
        whole = restore_pixels(image, opened, tile_px=10_000, overlap_px=0)
        tiled = restore_pixels(image, opened, tile_px=2 * radius_px + 33, overlap_px=radius_px, batch=batch)
    assert np.array_equal(whole, tiled)
    assert not np.array_equal(whole, image)


def test_without_overlap_the_seams_show() -> None:
    # What the test above would miss if the network looked at single pixels only.
    image = noise(60, 60)
    with backend(2) as opened:
        whole = restore_pixels(image, opened, tile_px=60, overlap_px=0)
        tiled = restore_pixels(image, opened, tile_px=30, overlap_px=0)
    assert not np.array_equal(whole, tiled)


@pytest.mark.parametrize("loops", list(DEFAULT_OVERLAP_PX))
def test_the_default_overlap_keeps_60_db_with_the_shipped_weights(loops: int) -> None:
    # Smooth shapes and a few streaks, as photographs have; noise would be no fair picture.
    overlap_px = DEFAULT_OVERLAP_PX[loops]
    side_px = 2 * overlap_px + 180
    rows, columns = np.mgrid[0:side_px, 0:side_px] / side_px
    smooth = 120 + 80 * np.sin(7 * rows + 3 * columns)[..., None] * np.array([1, 0.8, 0.6])
    smooth[20:-20:2, 100:103] += 60
    smooth[120:123, 20:-20] += 40
    image = np.clip(smooth, 0, 255).astype(np.uint8)
    with backend(loops, shipped=True) as opened:
        whole = restore_pixels(image, opened, tile_px=side_px, overlap_px=0)
        tiled = restore_pixels(image, opened, tile_px=side_px - 60, overlap_px=overlap_px)
    assert psnr_db(whole, tiled) >= 60


@pytest.mark.parametrize("shape", [(1, 1), (1, 200), (200, 1), (3, 3)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_the_smallest_images_go_through(shape: tuple[int, int], dtype: type[np.uint8 | np.uint16]) -> None:
    image = noise(*shape, dtype)
    with backend(1, Pixel.UINT8 if dtype is np.uint8 else Pixel.FLOAT32) as opened:
        restored = restore_pixels(image, opened, tile_px=32, overlap_px=9)
    assert restored.shape == image.shape
    assert restored.dtype == image.dtype


def test_sixteen_bits_agree_with_eight() -> None:
    eight = noise(50, 50)
    with backend(1) as opened:
        expected = restore_pixels(eight, opened, tile_px=64, overlap_px=0)
    with backend(1, Pixel.FLOAT32) as opened:
        sixteen = restore_pixels(eight.astype(np.uint16) * 257, opened, tile_px=64, overlap_px=0)
    assert np.abs(sixteen / 257 - expected).max() < 0.51
    assert len(np.unique(sixteen)) > 1000  # not eight bits in wider clothes


def test_each_output_is_another_image() -> None:
    image = noise(20, 20)
    images = []
    for output in Output:
        with backend(1, output=output) as opened:
            images.append(restore_pixels(image, opened, tile_px=64, overlap_px=0))
    assert not np.array_equal(images[0], images[1])
    assert not np.array_equal(images[1], images[2])
