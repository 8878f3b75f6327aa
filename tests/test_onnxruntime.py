"""The ONNX Runtime backend: which device it takes, and what it says when it cannot."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from random_weights import random_checkpoint

from cmudrn.deploy.graphs import shipped_graph
from cmudrn.deploy.machine import available_cores
from cmudrn.deploy.onnxruntime import ACCELERATORS, CPU, OnnxBackend
from cmudrn.engines.graph import dynamic_graph
from cmudrn.engines.spec import EngineSpec, Pixel, Precision
from cmudrn.errors import EnvironmentMissing, UsageError

SPEC = EngineSpec(loops=1, height=32, width=32, precision=Precision.FP32)


@pytest.fixture(scope="module")
def graph() -> bytes:
    return dynamic_graph(random_checkpoint(), loops=1)


def test_threads_do_not_change_a_bit(graph: bytes) -> None:
    image = np.random.default_rng(0).integers(0, 256, (1, 61, 47, 3), dtype=np.uint8)
    results = []
    for threads in (1, 2, 3):
        with OnnxBackend(graph, SPEC, threads=threads, device="cpu") as backend:
            results.append(next(backend.stream([image])))
    assert np.array_equal(results[0], results[1])
    assert np.array_equal(results[0], results[2])


def test_on_the_cpu_when_told_so(graph: bytes) -> None:
    with OnnxBackend(graph, SPEC, device="cpu") as backend:
        assert backend.taken == (CPU,)
        assert backend.label == f"ONNX Runtime {ort.__version__} on CPU"


def test_what_was_taken_is_what_this_build_has(graph: bytes) -> None:
    with OnnxBackend(graph, SPEC) as backend:
        assert set(backend.taken) <= set(ort.get_available_providers())
        assert backend.taken[-1] == CPU
        assert next(backend.stream([np.zeros((1, 4, 4, 3), np.uint8)])).shape == (1, 4, 4, 3)


@pytest.mark.skipif(
    bool(set(ACCELERATORS) & set(ort.get_available_providers())), reason="this build has a GPU's provider"
)
@pytest.mark.parametrize("action", ["error", "ignore"])
def test_a_provider_that_is_listed_and_does_not_start_is_passed_over_in_silence(
    graph: bytes,
    action: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """What this build doesn't have starts as little as what lacks its driver: by an error, or not at all."""
    asked: list[str] = []
    session = ort.InferenceSession

    def watched(*given: object, **told: object) -> ort.InferenceSession:
        asked.append(told["providers"][0][0])  # type: ignore[index]
        return session(*given, **told)

    monkeypatch.setattr(ort, "get_available_providers", lambda: [*ACCELERATORS, CPU])
    monkeypatch.setattr(ort, "InferenceSession", watched)
    with warnings.catch_warnings():
        warnings.simplefilter(action)  # type: ignore[arg-type]
        with OnnxBackend(graph, SPEC) as backend:
            assert backend.taken == (CPU,)
            assert next(backend.stream([np.zeros((1, 4, 4, 3), np.uint8)])).shape == (1, 4, 4, 3)
    assert asked == [
        "CUDAExecutionProvider",
        "TensorrtExecutionProvider",
        "CoreMLExecutionProvider",
        "DmlExecutionProvider",
        CPU,
    ]
    assert capfd.readouterr() == ("", "")


@pytest.mark.skipif(
    bool(set(ACCELERATORS) & set(ort.get_available_providers())), reason="this build has a GPU's provider"
)
def test_a_gpu_that_was_named_and_has_no_provider_is_missing(graph: bytes) -> None:
    with pytest.raises(EnvironmentMissing, match="--device 3: ONNX Runtime") as caught:
        OnnxBackend(graph, SPEC, device="3").__enter__()
    assert "--device cpu" in caught.value.fix


@pytest.mark.parametrize("device", ["gpu", "cuda:0", "-1", ""])
def test_a_device_that_is_no_number_is_refused(graph: bytes, device: str) -> None:
    with pytest.raises(UsageError, match="takes a number") as caught:
        OnnxBackend(graph, SPEC, device=device)
    assert caught.value.fix == "--device 0, or cpu"


def test_a_damaged_graph_is_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    damaged = tmp_path / "graph.onnx"
    damaged.write_bytes(b"no graph")
    with pytest.raises(EnvironmentMissing, match=r"cannot open the graph.*graph\.onnx"):
        OnnxBackend(damaged, SPEC).__enter__()
    assert capfd.readouterr() == ("", "")


def test_a_depth_that_was_not_shipped_is_named() -> None:
    with pytest.raises(EnvironmentMissing, match=r"default-t8-uint8\.onnx"):
        shipped_graph(8, Pixel.UINT8)


def test_there_is_a_core_to_work_with() -> None:
    assert available_cores() >= 1
