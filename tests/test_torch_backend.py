"""The PyTorch backend: what it leaves as it was in the process, and what it says when it cannot."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from random_weights import random_checkpoint
from test_graph import random_image

from cmudrn.checkpoint import NetworkKind
from cmudrn.deploy.torch import TorchBackend
from cmudrn.engines.spec import EngineSpec, Precision
from cmudrn.errors import CheckpointError, EnvironmentMissing, ImageError, UsageError

SPEC = EngineSpec(loops=1, height=32, width=32, precision=Precision.FP32)
CHECKPOINT = random_checkpoint()


def convolutions_precision() -> Any:
    """cuDNN's, as a process may set it; from PyTorch 2.9 on it has a place of its own."""
    cudnn: Any = torch.backends.cudnn
    return cudnn.conv.fp32_precision if hasattr(cudnn, "conv") else cudnn.allow_tf32


def test_threads_and_tf32_are_other_ones_only_while_a_batch_is_restored() -> None:
    before = torch.get_num_threads(), convolutions_precision()
    assert before[1] in (
        "tf32",
        True,
    )  # PyTorch's default: were it another, the end of this would say nothing
    seen = []
    hook = torch.nn.modules.module.register_module_forward_pre_hook(
        lambda module, given: seen.append((torch.get_num_threads(), convolutions_precision()))
    )
    try:
        with TorchBackend(CHECKPOINT, SPEC, threads=before[0] + 1) as backend:
            for _ in backend.stream([random_image(1, 9, 9)] * 2):
                assert (torch.get_num_threads(), convolutions_precision()) == before
            assert set(seen) <= {(before[0] + 1, "ieee"), (before[0] + 1, False)}
            assert seen
    finally:
        hook.remove()
    assert (torch.get_num_threads(), convolutions_precision()) == before


def test_a_batch_that_fails_leaves_them_as_they_were() -> None:
    before = torch.get_num_threads(), convolutions_precision()

    def refuse(module: torch.nn.Module, given: Any) -> None:
        raise RuntimeError("no kernel\nfor this")

    hook = torch.nn.modules.module.register_module_forward_pre_hook(refuse)
    try:
        with (
            TorchBackend(CHECKPOINT, SPEC, threads=before[0] + 1) as backend,
            pytest.raises(ImageError, match="PyTorch: no kernel for this"),
        ):
            next(backend.stream([random_image(1, 9, 9)]))
    finally:
        hook.remove()
    assert (torch.get_num_threads(), convolutions_precision()) == before


def test_the_restored_batch_needs_no_gradient_and_the_weights_stay() -> None:
    weights = {name: tensor.copy() for name, tensor in CHECKPOINT.tensors.items()}
    with TorchBackend(CHECKPOINT, SPEC) as backend:
        assert isinstance(next(backend.stream([random_image(1, 9, 9)])), np.ndarray)
    assert all(np.array_equal(CHECKPOINT.tensors[name], tensor) for name, tensor in weights.items())


@pytest.mark.parametrize("precision", [Precision.FP16, Precision.BF16])
def test_it_is_the_reference_and_in_float32_alone(precision: Precision) -> None:
    with pytest.raises(UsageError, match=f"PyTorch in {precision.value}"):
        TorchBackend(CHECKPOINT, replace(SPEC, precision=precision))


@pytest.mark.parametrize("device", ["tpu", "cuda:", "cuda:one", "0", ""])
def test_what_is_no_device_is_refused(device: str) -> None:
    with pytest.raises(UsageError, match="PyTorch on") as caught:
        TorchBackend(CHECKPOINT, SPEC, device=device)
    assert "cuda:0" in caught.value.fix


def test_a_gpu_that_is_not_there_is_named() -> None:
    absent = f"cuda:{torch.cuda.device_count()}"
    with pytest.raises(
        EnvironmentMissing, match=f"{absent}: PyTorch .* sees {torch.cuda.device_count()} GPU"
    ) as caught:
        TorchBackend(CHECKPOINT, SPEC, device=absent).__enter__()
    assert "--device cpu" in caught.value.fix


def test_without_pytorch_the_way_to_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(EnvironmentMissing) as caught:
        TorchBackend(CHECKPOINT, SPEC).__enter__()
    assert caught.value.fix == "pip install 'cmudrn[train]'"


def test_weights_of_another_network_are_refused() -> None:
    with pytest.raises(CheckpointError, match="weights of a drn"):
        TorchBackend(replace(CHECKPOINT, network=NetworkKind.DRN), SPEC).__enter__()
