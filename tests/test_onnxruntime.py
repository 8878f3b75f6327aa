"""The ONNX Runtime backend: what it promises and what it says when it cannot."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from random_weights import random_checkpoint

from cmudrn.deploy.onnxruntime import OnnxBackend, available_cores, shipped_graph
from cmudrn.engines.graph import dynamic_graph
from cmudrn.engines.spec import EngineSpec, Pixel, Precision
from cmudrn.errors import EnvironmentMissing, ImageError

SPEC = EngineSpec(loops=1, height=32, width=32, precision=Precision.FP32)


@pytest.fixture(scope="module")
def graph() -> bytes:
    return dynamic_graph(random_checkpoint(), loops=1)


def test_batches_come_back_in_order_whatever_their_shapes(graph: bytes) -> None:
    rng = np.random.default_rng(0)
    batches = [
        rng.integers(0, 256, shape, dtype=np.uint8) for shape in ((1, 8, 9, 3), (3, 8, 9, 3), (1, 30, 4, 3))
    ]
    with OnnxBackend(graph, SPEC) as backend:
        together = list(backend.stream(batches))
        alone = [next(backend.stream([batch])) for batch in batches]
    assert [restored.shape for restored in together] == [batch.shape for batch in batches]
    assert all(np.array_equal(a, b) for a, b in zip(together, alone, strict=True))


def test_a_view_of_a_larger_image_is_as_good_as_a_copy(graph: bytes) -> None:
    image = np.random.default_rng(0).integers(0, 256, (1, 40, 40, 3), dtype=np.uint8)
    view = image[:, ::2, 5:20]
    with OnnxBackend(graph, SPEC) as backend:
        of_view, of_copy = backend.stream([view, view.copy()])
    assert np.array_equal(of_view, of_copy)


def test_threads_do_not_change_a_bit(graph: bytes) -> None:
    image = np.random.default_rng(0).integers(0, 256, (1, 61, 47, 3), dtype=np.uint8)
    results = []
    for threads in (1, 2, 3):
        with OnnxBackend(graph, SPEC, threads=threads) as backend:
            results.append(next(backend.stream([image])))
    assert np.array_equal(results[0], results[1])
    assert np.array_equal(results[0], results[2])


def test_it_can_be_opened_again(graph: bytes) -> None:
    backend = OnnxBackend(graph, SPEC)
    for _ in range(2):
        with backend:
            assert next(backend.stream([np.zeros((1, 4, 4, 3), np.uint8)])).shape == (1, 4, 4, 3)


def test_a_backend_that_is_not_open_says_so(graph: bytes) -> None:
    with pytest.raises(RuntimeError, match="not open"):
        next(OnnxBackend(graph, SPEC).stream([np.zeros((1, 4, 4, 3), np.uint8)]))


def test_what_the_graph_refuses_is_an_image_error(graph: bytes) -> None:
    with OnnxBackend(graph, SPEC) as backend, pytest.raises(ImageError, match="ONNX Runtime") as caught:
        next(backend.stream([np.zeros((1, 4, 4, 4), np.uint8)]))
    assert "\n" not in str(caught.value)


def test_a_damaged_graph_is_named(tmp_path: Path) -> None:
    damaged = tmp_path / "graph.onnx"
    damaged.write_bytes(b"no graph")
    with pytest.raises(EnvironmentMissing, match=r"cannot open the graph.*graph\.onnx"):
        OnnxBackend(damaged, SPEC).__enter__()


def test_a_depth_that_was_not_shipped_is_named() -> None:
    with pytest.raises(EnvironmentMissing, match=r"default-t8-uint8\.onnx"):
        shipped_graph(8, Pixel.UINT8)


def test_there_is_a_core_to_work_with() -> None:
    assert available_cores() >= 1
