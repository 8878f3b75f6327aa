"""Graphs for engines: their types, their layouts, and how far half precision is from the model."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, shape_inference
from PIL import Image
from random_weights import random_checkpoint
from test_graph import STITCHES, by_pytorch, random_image, run, unit
from test_layout import LAYOUTS

from cmudrn.checkpoint import load_model, read_checkpoint
from cmudrn.engines.graph import Types, typed_graph
from cmudrn.engines.layout import Branches, Layout
from cmudrn.engines.nodes import TYPES
from cmudrn.engines.spec import EngineSpec, Output, Pixel, Precision
from cmudrn.errors import CheckpointError

SMALL = EngineSpec(loops=2, height=13, width=17, precision=Precision.FP32, pixel=Pixel.FLOAT32)
CONVOLVED = ("Conv", "Relu")  # what a typed graph computes in its precision, beside sums and stitches


def spec(**changes: object) -> EngineSpec:
    return dataclasses.replace(SMALL, **changes)  # type: ignore[arg-type]


def inferred(graph: bytes) -> onnx.ModelProto:
    return shape_inference.infer_shapes(onnx.load_from_string(graph), strict_mode=True, data_prop=True)


def types_of(model: onnx.ModelProto) -> dict[str, int]:
    """Every tensor's element type, as ONNX infers it: not as our code believes."""
    graph = model.graph
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    for value in (*graph.input, *graph.output, *graph.value_info):
        types[value.name] = value.type.tensor_type.elem_type
    return types


@pytest.fixture(scope="module")
def photos() -> NDArray[np.uint8]:
    """The middles of three real ones, 96x96: those in which half precision loses the most, of the six."""
    middles = []
    for name in ("oakland-zoo-otters-rain", "beacon-street-sunset-rain", "lake-sherburne-snow"):
        with Image.open(Path(__file__).parents[1] / "examples" / "weather" / f"{name}.jpg") as picture:
            pixels = np.asarray(picture.convert("RGB"))
        top, left = ((side - 96) // 2 for side in pixels.shape[:2])
        middles.append(pixels[top : top + 96, left : left + 96])
    return np.stack(middles)


@pytest.mark.parametrize("stitches", STITCHES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_every_layout_equals_the_model(layout: Layout, stitches: dict[str, float]) -> None:
    checkpoint = random_checkpoint(stitches)
    image = unit(random_image(1, 13, 17))
    exact = by_pytorch(checkpoint, 2, image)
    for output, name in ((Output.FUSED, "restored"), (Output.RAIN, "rain"), (Output.SNOW, "snow")):
        found = run(typed_graph(checkpoint, spec(output=output), layout), image)["restored"]
        assert np.abs(found - exact[name].clamp(0, 1).numpy()).max() < 2e-5


@pytest.mark.parametrize("precision", Precision)
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_the_graphs_own_types_say_the_precision(precision: Precision, layout: Layout) -> None:
    model = inferred(typed_graph(random_checkpoint(), spec(precision=precision, pixel=Pixel.UINT8), layout))
    types = types_of(model)
    for node in model.graph.node:
        if node.op_type in CONVOLVED:
            assert {types[name] for name in (*node.input, *node.output)} == {TYPES[precision]}, node.name
        if node.op_type == "Add" and node.name.endswith("/x"):  # y + conv_out(f)
            assert {types[name] for name in (*node.input, *node.output)} == {TensorProto.FLOAT}, node.name
    edges = types["image"], types["restored"]
    assert edges == (TensorProto.UINT8, TensorProto.UINT8)


@pytest.mark.parametrize("pixel", Pixel)
def test_shapes_are_fixed_and_uint8_is_seen_by_casts_alone(pixel: Pixel) -> None:
    """TensorRT takes uint8 at a network's edges only, next to a cast."""
    model = inferred(typed_graph(random_checkpoint(), spec(batch=3, pixel=pixel, precision=Precision.FP16)))
    for value in (*model.graph.input, *model.graph.output):
        assert [size.dim_value for size in value.type.tensor_type.shape.dim] == [3, 13, 17, 3]
    types = types_of(model)
    touching = {
        node.op_type
        for node in model.graph.node
        if TensorProto.UINT8 in {types[name] for name in (*node.input, *node.output)}
    }
    assert touching == ({"Cast"} if pixel is Pixel.UINT8 else set())


@pytest.mark.parametrize("loops", range(1, 8))
@pytest.mark.parametrize(
    ("branches", "square", "each", "ends"), [(Branches.SEPARATE, 20, 18, 15), (Branches.GROUPED, 10, 8, 17)]
)
def test_nodes_grow_with_the_loops_and_weights_do_not(
    loops: int, branches: Branches, square: int, each: int, ends: int
) -> None:
    asked = spec(loops=loops, pixel=Pixel.UINT8, precision=Precision.FP16)
    graph = typed_graph(random_checkpoint(), asked, Layout(branches=branches))
    model = onnx.load_from_string(graph)
    assert len(model.graph.node) == square * loops**2 + each * loops + ends
    stored = sum(math.prod(tensor.dims) for tensor in model.graph.initializer)
    assert stored < 24_825 * 1.2  # half as much again would be a layer stored twice


def test_the_papers_constants_are_computed_once() -> None:
    """y-once: one convolution of y a branch for all stages; first-from-y: one of 3 channels in stage 1."""
    model = onnx.load_from_string(
        typed_graph(random_checkpoint(), spec(loops=4), Layout.parse("separate,y-once,first-from-y"))
    )
    channels = {tensor.name: tensor.dims[1] for tensor in model.graph.initializer if len(tensor.dims) == 4}
    stems = [node for node in model.graph.node if "conv_in" in node.name and node.op_type == "Conv"]
    of_y = [node.name for node in stems if ".conv_in.y." in node.input[1]]
    assert of_y == ["rain.conv_in/y", "snow.conv_in/y"]
    assert [node.name for node in stems if ".first." in node.input[1]] == [
        "stage1/rain/conv_in",
        "stage1/snow/conv_in",
    ]
    assert {channels[node.input[1]] for node in stems} == {3}


def errors(types: Types | None, loops: int, photos: NDArray[np.uint8]) -> list[float]:
    """Mean squares of the FP16 graph of the shipped weights against the model, photograph by photograph."""
    checkpoint, images = read_checkpoint("default"), unit(photos)
    fp16 = spec(loops=loops, height=96, width=96, precision=Precision.FP16)
    graph = typed_graph(checkpoint, fp16, types=types)
    with torch.inference_mode():
        restored = load_model(loops=loops)(torch.from_numpy(images).permute(0, 3, 1, 2))
    exact = restored.clamp(0, 1).permute(0, 2, 3, 1).numpy()
    found = [run(graph, image[None])["restored"][0] for image in images]
    return [float(((one - other) ** 2).mean()) for one, other in zip(found, exact, strict=True)]


# At 6 and 7 loops these weights answer a change of 72 dB in the input with one of 60 and less, and so they do
# to rounding: docs/measurements.md, "Half precision".
LEAST_DB = {1: 60, 2: 60, 3: 60, 4: 60, 5: 60, 6: 55, 7: 55}


@pytest.mark.parametrize("loops", LEAST_DB)
def test_fp16_lies_close_to_the_model(loops: int, photos: NDArray[np.uint8]) -> None:
    """The worst of real photographs, before rounding to grey levels; every intermediate result is in half."""
    worst = max(errors(None, loops, photos))
    assert worst > 1e-12  # it did round
    assert -10 * math.log10(worst) >= LEAST_DB[loops]


@pytest.mark.parametrize("extreme", ["black", "white", "checkerboard", "stripes", "noise", "red"])
def test_fp16_never_overflows(extreme: str) -> None:
    rows, columns = np.indices((48, 48))
    patterns = {
        "black": np.zeros((48, 48)),
        "white": np.ones((48, 48)),
        "checkerboard": (rows + columns) % 2,
        "stripes": rows // 3 % 2,
        "noise": np.random.default_rng(0).integers(0, 2, (48, 48)),
        "red": np.ones((48, 48)),
    }
    image = np.repeat(patterns[extreme].astype(np.uint8)[None, ..., None] * 255, 3, axis=3)
    if extreme == "red":
        image[..., 1:] = 0
    checkpoint = read_checkpoint("default")
    size = {"height": 48, "width": 48, "precision": Precision.FP16}
    # The branches' own images, not clamped to 0..1 before the fusion head, are where it would begin.
    for output in (Output.RAIN, Output.FUSED):
        graph = onnx.load_from_string(typed_graph(checkpoint, spec(loops=7, output=output, **size)))
        watched = [node.output[0] for node in graph.graph.node if node.op_type in ("Conv", "Add")]
        graph.graph.output.extend(onnx.ValueInfoProto(name=name) for name in watched)
        for name, values in run(graph.SerializeToString(), unit(image)).items():
            assert np.isfinite(values).all(), name
            assert np.abs(values).max() < 65504 / 16, name  # four bits from the largest half


@pytest.mark.parametrize("loops", [1, 3])
def test_the_image_path_is_float32_for_a_reason(loops: int, photos: NDArray[np.uint8]) -> None:
    half = Precision.FP16
    all_half = errors(Types(features=half, images=half, fusion=half), loops, photos)
    assert sum(errors(None, loops, photos)) < 0.97 * sum(all_half)


def test_bfloat16_weights_are_rounded_as_pytorch_rounds() -> None:
    checkpoint = random_checkpoint()
    name = "rain.block1.conv1.weight"
    checkpoint.tensors[name].flat[:4] = [1.00390625, 1.01171875, -1.00390625, 3.0e38]  # ties, and a large one
    graph = onnx.load_from_string(typed_graph(checkpoint, spec(precision=Precision.BF16)))
    stored = next(tensor for tensor in graph.graph.initializer if tensor.name == name)
    expected = torch.from_numpy(checkpoint.tensors[name]).bfloat16().view(torch.int16).numpy()
    assert stored.data_type == TensorProto.BFLOAT16
    assert (np.frombuffer(stored.raw_data, "<i2").reshape(expected.shape) == expected).all()


def test_weights_too_large_for_half_precision_are_named() -> None:
    checkpoint = random_checkpoint()
    checkpoint.tensors["snow.conv_in.bias"][3] = 1e6
    with pytest.raises(CheckpointError, match=r"snow\.conv_in\.bias: 1e\+06 is too large for fp16"):
        typed_graph(checkpoint, spec(precision=Precision.FP16))


def test_equal_arguments_give_equal_bytes_and_the_file_says_what_it_is() -> None:
    asked = EngineSpec(loops=2, height=8, width=9, batch=4, output=Output.SNOW)
    layout = Layout.parse("dense,y-once")
    graph = typed_graph(random_checkpoint(), asked, layout)
    assert graph == typed_graph(random_checkpoint(), asked, layout)
    told = {entry.key: entry.value for entry in onnx.load_from_string(graph).metadata_props}
    assert told == {
        "loops": "2",
        "weights_sha256": "",
        "spec": "t2-8x9-b4-fp16-uint8-snow",
        "layout": "dense,y-once",
    }
