"""The weights as an ONNX graph: the model's numbers, its size, its contract."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray
from random_weights import random_checkpoint

from cmudrn.checkpoint import Checkpoint, read_checkpoint
from cmudrn.deploy.graphs import shipped_graph_path
from cmudrn.engines.graph import dynamic_graph
from cmudrn.engines.spec import Pixel
from cmudrn.errors import CheckpointError
from cmudrn.model import CMUDRN, ModelConfig

STITCHES: list[dict[str, float]] = [
    {"stem": 0.5, "body": 0.5},  # the default: both shared
    {"stem": 0.5},
    {"body": 0.5},
    {},
    {"stem": 0.3, "block1": 0.5, "block2": 0.8, "body": 0.1},
    {"stem": 1.0, "body": 0.0},
]


def run(graph: bytes, image: NDArray[np.uint8] | NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    session = ort.InferenceSession(graph, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"image": image}), strict=True))


def by_pytorch(checkpoint: Checkpoint, loops: int, image: NDArray[np.float32]) -> dict[str, torch.Tensor]:
    """fused and both branches in float64, [B, H, W, 3], not clamped."""
    model = CMUDRN(ModelConfig(inter_loops=loops, intra_loops=loops, stitches=checkpoint.stitches)).double()
    model.load_state_dict({name: torch.from_numpy(array) for name, array in checkpoint.tensors.items()})
    with torch.inference_mode():
        images = model.forward_all(torch.from_numpy(image).double().permute(0, 3, 1, 2))
    found = {"restored": images.fused, "rain": images.rain_stages[-1], "snow": images.snow_stages[-1]}
    return {name: value.permute(0, 2, 3, 1) for name, value in found.items()}


def random_image(*shape: int) -> NDArray[np.uint8]:
    return np.random.default_rng(7).integers(0, 256, (*shape, 3), dtype=np.uint8)


def unit(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    return np.divide(image, 255, dtype=np.float32)


@pytest.mark.parametrize("stitches", STITCHES, ids=str)
@pytest.mark.parametrize("loops", [1, 3])
def test_the_float32_graph_equals_the_model(stitches: dict[str, float], loops: int) -> None:
    checkpoint = random_checkpoint(stitches)
    image = unit(random_image(2, 13, 17))
    expected = by_pytorch(checkpoint, loops, image)
    found = run(dynamic_graph(checkpoint, loops=loops, pixel=Pixel.FLOAT32), image)
    assert found.keys() == expected.keys()
    for name in expected:
        assert np.abs(found[name] - expected[name].clamp(0, 1).numpy()).max() < 2e-5


@pytest.mark.parametrize("loops", [1, 2, 3, 7])
def test_the_uint8_graph_rounds_the_models_output_half_up(loops: int) -> None:
    checkpoint = random_checkpoint()
    image = random_image(1, 24, 20)
    exact = by_pytorch(checkpoint, loops, unit(image))
    for name, found in run(dynamic_graph(checkpoint, loops=loops), image).items():
        levels = exact[name].clamp(0, 1).numpy() * 255
        assert found.dtype == np.uint8
        # Half a grey level, and what float32 may add where a value lies between two.
        assert np.abs(found - levels).max() < 0.5 + 1e-2


def grey_checkpoint(value: float) -> Checkpoint:
    """Weights whose fused output is `value` everywhere."""
    zeros = {name: np.zeros_like(tensor) for name, tensor in random_checkpoint().tensors.items()}
    zeros["fusion.conv3.bias"] = np.full(3, value, np.float32)
    return dataclasses.replace(random_checkpoint(), tensors=zeros)


@pytest.mark.parametrize(
    ("value", "level"),
    [(-3.0, 0), (0.49 / 255, 0), (0.5 / 255, 1), (2.5 / 255, 3), (254.6 / 255, 255), (9.0, 255)],
)
def test_levels_are_clamped_and_rounded_half_up(value: float, level: int) -> None:
    graph = dynamic_graph(grey_checkpoint(value), loops=1)
    assert (run(graph, random_image(1, 3, 3))["restored"] == level).all()


def test_float32_outputs_are_clamped() -> None:
    image = np.zeros((1, 3, 3, 3), np.float32)
    assert (
        run(dynamic_graph(grey_checkpoint(7), loops=1, pixel=Pixel.FLOAT32), image)["restored"] == 1
    ).all()


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 9), (3, 8, 2), (1, 31, 64)])
def test_one_graph_takes_any_batch_and_size(shape: tuple[int, int, int]) -> None:
    for image in run(dynamic_graph(random_checkpoint(), loops=2), random_image(*shape)).values():
        assert image.shape == (*shape, 3)


def test_images_of_a_batch_do_not_touch_each_other() -> None:
    graph = dynamic_graph(random_checkpoint(), loops=1)
    images = random_image(3, 16, 16)
    together = run(graph, images)["restored"]
    for image, restored in zip(images, together, strict=True):
        assert (run(graph, image[None])["restored"][0] == restored).all()


@pytest.mark.parametrize("loops", range(1, 8))
def test_weights_are_stored_once_and_nodes_grow_with_the_loops(loops: int) -> None:
    model = onnx.load_from_string(dynamic_graph(random_checkpoint(), loops=loops))
    stored = sum(int(np.prod(tensor.dims)) for tensor in model.graph.initializer)
    # All 24,825; conv_out and conv_in with zeros or the stitch from branch to branch, 864 each; the stitch at
    # the stem as 32x32 factors; the four constants 0, 1, 255 and 0.5.
    assert stored == 24_825 + 2 * 864 + 1024 + 4
    # A stage: two blocks of five nodes, T times, and a few around them.
    assert len(model.graph.node) == loops * (10 * loops + 6) + 26
    assert len({node.name for node in model.graph.node}) == len(model.graph.node)


def test_equal_weights_give_equal_bytes() -> None:
    assert dynamic_graph(random_checkpoint(), loops=2) == dynamic_graph(random_checkpoint(), loops=2)


def test_weights_that_do_not_fit_are_named() -> None:
    tensors = random_checkpoint().tensors
    tensors["rain.conv_in.weight"] = tensors["rain.conv_in.weight"][:, :3]
    broken = dataclasses.replace(random_checkpoint(), tensors=tensors)
    with pytest.raises(CheckpointError, match=r"rain\.conv_in\.weight has shape \(16, 3, 3, 3\)"):
        dynamic_graph(broken, loops=1)


@pytest.mark.parametrize("stitches", [{"stem": 1.5}, {"block1": -0.3}, {"nowhere": 0.5}])
def test_stitches_that_the_model_refuses_make_no_graph(stitches: dict[str, float]) -> None:
    """Without the ReLU after a residual sum the graph would be another function."""
    with pytest.raises(CheckpointError, match=next(iter(stitches))):
        dynamic_graph(random_checkpoint(stitches), loops=1)


@pytest.mark.parametrize("pixel", Pixel)
@pytest.mark.parametrize("loops", range(1, 8))
def test_the_shipped_graphs_are_those_of_the_shipped_weights(loops: int, pixel: Pixel) -> None:
    graph = dynamic_graph(read_checkpoint("default"), loops=loops, pixel=pixel)
    assert shipped_graph_path(loops, pixel).read_bytes() == graph, "run `make graphs`"


@pytest.mark.parametrize("loops", [1, 3, 7])
def test_the_shipped_graphs_restore_as_pytorch_does(loops: int) -> None:
    image = random_image(1, 40, 40) // 2 + np.uint8(60)
    exact = by_pytorch(read_checkpoint("default"), loops, unit(image))["restored"]
    found = run(shipped_graph_path(loops, Pixel.UINT8).read_bytes(), image)["restored"]
    assert np.abs(found - exact.clamp(0, 1).numpy() * 255).max() < 0.5 + 1e-2
