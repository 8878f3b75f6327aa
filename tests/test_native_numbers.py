"""The native kernels give the model's numbers: every instruction set, depth, size and edge of a strip."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from native.library import ISAS, built, need_isa, opened
from native.networks import ALL_POINTS, LAYERS, Configuration, random_images
from native.reference import restored
from numpy.typing import NDArray
from sanitize import Variant

from cmudrn.deploy.backend import PixelBatch
from cmudrn.deploy.native.library import LIBRARY_VARIABLE, NativeSession, usable_isas
from cmudrn.engines.spec import Output, Pixel
from cmudrn.stitches import STITCH_POINTS

FLOAT32_ISAS = ISAS[:-1]
HALF = ISAS[-1]
# The project's bar for float32, except where PyTorch's own misses it tenfold: rounding grows with the depth.
LARGEST = 1e-5
# The root of the mean square, against PyTorch's own: Winograd's F(4x4, 3x3) multiplies by up to 8 on its way,
# and came out at 4 to 7. A wrong term makes a hundred times as much.
TIMES_PYTORCH = 10
LEAST_ERROR = 3e-7  # of float32 images in [0, 1]: a few roundings
TOUCHING = 1e-3  # grey levels: float32 may take a value this near to a border for one beyond it
# bfloat16 has eight bits, and each library rounds elsewhere: ours after Winograd's transform.
TIMES_PYTORCH_HALF = 5.0

Shape = tuple[int, int, int]


def pixels_of(shape: Shape, pixel: Pixel) -> PixelBatch:
    images = random_images(*shape)
    return images if pixel is Pixel.UINT8 else np.divide(images, 255, dtype=np.float32)


def root_mean_square(values: NDArray[np.float64]) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


def check_float32(found: PixelBatch, configuration: Configuration, output: Output) -> None:
    """Against float64, and within what PyTorch's float32 is off by."""
    shape = found.shape[:3]
    exact = restored(configuration, shape)[output]
    by_pytorch = restored(configuration, shape, torch.float32)[output] - exact
    apart = found - exact  # NaN, too, is not within
    assert np.abs(apart).max() <= max(LARGEST, TIMES_PYTORCH * float(np.abs(by_pytorch).max()))
    assert root_mean_square(apart) <= TIMES_PYTORCH * max(root_mean_square(by_pytorch), LEAST_ERROR)


def check_uint8(found: PixelBatch, configuration: Configuration, output: Output) -> None:
    """Rounded half up, and another grey level only where the exact value touches the border between two."""
    levels = restored(configuration, found.shape[:3])[output] * 255
    expected = np.floor(levels + 0.5)
    touching = np.abs(levels + 0.5 - np.round(levels + 0.5)) < TOUCHING
    apart = np.abs(found - expected)
    assert apart.max() <= 1
    assert not apart[~touching].any()


def check(session: NativeSession, configuration: Configuration, shape: Shape, output: Output) -> None:
    """Both pixel types of one image of a session."""
    check_float32(session.restore(pixels_of(shape, Pixel.FLOAT32), output), configuration, output)
    check_uint8(session.restore(pixels_of(shape, Pixel.UINT8), output), configuration, output)


def check_all(configuration: Configuration, isa: str, shapes: list[Shape], threads: int = 1) -> None:
    """Through one session, each output in turn."""
    with opened(configuration, isa, threads) as session:
        for number, shape in enumerate(shapes):
            check(session, configuration, shape, list(Output)[number % 3])


@pytest.fixture(params=FLOAT32_ISAS)
def isa(request: pytest.FixtureRequest) -> str:
    return need_isa(request.param)


@pytest.mark.parametrize("weights", ["random", "shipped"])
@pytest.mark.parametrize("loops", range(1, 8))
def test_at_every_depth_the_image_is_the_models(isa: str, loops: int, weights: str) -> None:
    height, width = {1: (67, 131), 2: (40, 131), 3: (31, 67), 7: (31, 67)}.get(loops, (13, 37))
    configuration = Configuration(loops, loops, (("stem", 0.9), ("body", 0.9)), weights)
    check_all(configuration, isa, [(1, height, width)] * 3 + [(1, 5, 3)], threads=2)


@pytest.mark.parametrize("layer", LAYERS)
def test_each_convolution_alone_has_the_models_numbers(isa: str, layer: str) -> None:
    check_all(Configuration(weights=layer), isa, [(1, 19, 45), (1, 19, 45), (1, 19, 45)])


# Every column that a strip of 32 to 128 pixels may end at, and every remainder of a tile of 4.
@pytest.mark.parametrize(("inter", "intra"), [(1, 1), (2, 2)])
def test_every_width_up_to_two_strips_is_right(isa: str, inter: int, intra: int) -> None:
    step = 1 if intra == 1 else 3
    configuration = Configuration(inter, intra, ALL_POINTS)
    check_all(configuration, isa, [(1, 5, width) for width in range(1, 141, step)], threads=3)


@pytest.mark.parametrize(("inter", "intra"), [(1, 1), (2, 2)])
def test_every_height_is_right(isa: str, inter: int, intra: int) -> None:
    step = 1 if intra == 1 else 3
    configuration = Configuration(inter, intra, ALL_POINTS)
    check_all(configuration, isa, [(1, height, 6) for height in range(1, 70, step)], threads=3)


# A layer's tiles lie one pixel up and left of the one before's: 29 pixels at 7 loops.
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 40), (1, 33, 2), (1, 9, 28), (1, 29, 33)])
def test_images_smaller_than_the_shift_of_all_layers_are_right(isa: str, shape: Shape) -> None:
    check_all(Configuration(1, 7, ALL_POINTS), isa, [shape] * 3, threads=2)


@pytest.mark.parametrize(("inter", "intra"), [(1, 4), (4, 1), (2, 3), (5, 2)])
def test_outer_and_inner_loops_are_counted_apart(isa: str, inter: int, intra: int) -> None:
    check_all(Configuration(inter, intra, ALL_POINTS), isa, [(1, 14, 39), (2, 6, 7)])


@pytest.mark.parametrize(
    "stitches",
    [(), *(((point, 0.3),) for point in STITCH_POINTS), ALL_POINTS, (("stem", 0.0), ("body", 0.5))],
    ids=str,
)
def test_stitches_stand_where_they_are_told(isa: str, stitches: tuple[tuple[str, float], ...]) -> None:
    shapes = [(1, 11, 70), (1, 11, 70), (1, 11, 70)]
    check_all(Configuration(2, 2, stitches), isa, shapes, threads=2)


@pytest.mark.parametrize("threads", range(1, 9))
def test_any_number_of_threads_gives_the_models_numbers(isa: str, threads: int) -> None:
    check_all(Configuration(2, 1, ALL_POINTS), isa, [(1, 67, 131), (1, 21, 97), (3, 4, 66)], threads)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_is_asked_for_is_right(isa: str, data: st.DataObject) -> None:
    inter, intra = data.draw(st.tuples(st.integers(1, 4), st.integers(1, 4)), label="inter, intra")
    alphas = data.draw(st.dictionaries(st.sampled_from(STITCH_POINTS), st.floats(0, 1)), label="stitches")
    configuration = Configuration(inter, intra, tuple(sorted(alphas.items())))
    most = 9000 // (inter * intra)  # pixels
    batch, height = data.draw(st.tuples(st.integers(1, 3), st.integers(1, 40)), label="batch, height")
    width = data.draw(st.integers(1, max(1, min(140, most // (batch * height)))), label="width")
    threads, output = data.draw(
        st.tuples(st.integers(1, 8), st.sampled_from(Output)), label="threads, output"
    )
    with opened(configuration, isa, threads) as session:
        check(session, configuration, (batch, height, width), output)


@pytest.mark.parametrize("weights", ["random", "shipped"])
@pytest.mark.parametrize("loops", [1, 2, 3, 5, 7])
def test_bfloat16_is_as_good_as_pytorchs(loops: int, weights: str) -> None:
    need_isa(HALF)
    configuration = Configuration(loops, loops, (("stem", 0.9), ("body", 0.9)), weights)
    shape = (1, 31, 67) if loops <= 3 else (1, 13, 37)
    exact, half = restored(configuration, shape), restored(configuration, shape, torch.bfloat16)
    with opened(configuration, HALF, threads=2) as session:
        for output in Output:
            found = session.restore(pixels_of(shape, Pixel.FLOAT32), output)
            by_pytorch = root_mean_square(half[output] - exact[output])
            assert root_mean_square(found - exact[output]) <= TIMES_PYTORCH_HALF * by_pytorch
            levels = session.restore(pixels_of(shape, Pixel.UINT8), output)
            assert np.array_equal(levels, np.floor(found * np.float32(255) + np.float32(0.5)))


def test_halos_from_the_wrong_row_would_be_seen_here(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a fault planted in strip.hpp: a strip takes its left neighbour's columns from a row off."""
    planted = built("driver.cpp", Variant("planted", ("-DCMUDRN_PLANT_HALO_BUG",)), tmp_path_factory)
    monkeypatch.setenv(LIBRARY_VARIABLE, str(planted.library))
    configuration = Configuration(2, 1, ALL_POINTS)
    strips = [isa for isa in usable_isas() if isa != "direct"]
    assert strips
    for isa in strips:
        with opened(configuration, isa) as session:
            check(session, configuration, (1, 21, 20), Output.FUSED)  # one strip has no neighbour
            for output in Output:
                for pixel, compare in ((Pixel.FLOAT32, check_float32), (Pixel.UINT8, check_uint8)):
                    found = session.restore(pixels_of((1, 21, 140), pixel), output)
                    with pytest.raises(AssertionError):
                        compare(found, configuration, output)
