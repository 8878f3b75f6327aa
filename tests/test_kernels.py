"""The training's own convolutions give PyTorch's results and gradients, or step aside."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv2d

from cmudrn.cli.app import main
from cmudrn.errors import EnvironmentMissing, UsageError
from cmudrn.model import CMUDRN, DRN
from cmudrn.train import kernels
from cmudrn.train.kernels import Kernels, accelerate, choose_kernels, compile_library, convolve16
from cmudrn.train.losses import restoration_loss
from cmudrn.train.passes import build_passes
from cmudrn.train.recipe import Network, TrainRecipe

try:
    kernels.load_library()
except EnvironmentMissing as exc:  # pragma: no cover
    pytest.skip(f"{exc}", allow_module_level=True)

# Winograd's F(4x4) rounds about four times as coarsely as a direct sum; a wrong term is off by a hundredth.
TOLERANCE = 2e-5


def reference(x: Tensor, weight: Tensor, bias: Tensor, skip: Tensor | None, activated: bool) -> Tensor:
    y = conv2d(x, weight, bias, padding=1)
    if skip is not None:
        return (y.relu() + skip).relu()
    return y.relu() if activated else y


def distance(a: Tensor, b: Tensor) -> float:
    """Of two tensors, relative to the second's length."""
    return float((a.double() - b).norm() / b.norm().clamp(min=1e-30))


# 1 pixel; less than a tile of 4; sizes that no tile divides; several tiles and images; a row of 121 tiles.
@pytest.mark.parametrize("size", [(1, 1, 1), (1, 3, 2), (2, 13, 17), (3, 48, 32), (1, 5, 481)])
@pytest.mark.parametrize("mode", ["linear", "relu", "residual"])
def test_values_and_gradients_are_those_of_float64(size: tuple[int, int, int], mode: str) -> None:
    torch.manual_seed(1)
    n, height, width = size
    x, skip, to_y = (torch.randn(n, 16, height, width) for _ in range(3))
    weight, bias = torch.randn(16, 16, 3, 3) / 12, torch.randn(16)
    inputs = [t.requires_grad_() for t in ([x, weight, bias] + ([skip] if mode == "residual" else []))]
    own = convolve16(x, weight, bias, skip=skip if mode == "residual" else None, activated=mode == "relu")
    exact_inputs = [t.detach().double().requires_grad_() for t in inputs]
    exact_skip = exact_inputs[3] if mode == "residual" else None
    exact = reference(*exact_inputs[:3], exact_skip, mode == "relu")
    assert distance(own.detach(), exact.detach()) < TOLERANCE
    for got, wanted in zip(
        torch.autograd.grad(own, inputs, to_y),
        torch.autograd.grad(exact, exact_inputs, to_y.double()),
        strict=True,
    ):
        assert distance(got, wanted) < TOLERANCE


@pytest.mark.parametrize("network", list(Network))
def test_a_training_step_has_the_loss_and_gradients_of_pytorch(network: Network) -> None:
    torch.manual_seed(2)
    rainy, snowy, clean = (torch.rand(2, 3, 24, 20) for _ in range(3))
    recipe = TrainRecipe(network=network, depths=(2,))
    results = []
    for chosen in (Kernels.TORCH, Kernels.WINOGRAD):
        passes = build_passes(recipe, chosen)
        passes.model.inter_loops = passes.model.intra_loops = 2
        loss = restoration_loss(passes(rainy, snowy), clean, recipe.loss).total
        gradients = torch.autograd.grad(loss, list(passes.model.parameters()))
        results.append((loss.detach(), torch.cat([g.flatten() for g in gradients])))
    (loss, gradient), (own_loss, own_gradient) = results
    assert abs(own_loss - loss) < 1e-5 * loss
    assert (
        distance(own_gradient, gradient.double()) < 1e-3
    )  # a ReLU may switch where its input is a rounding off 0


@pytest.mark.parametrize("make", [CMUDRN, DRN])
def test_weights_keep_their_names_and_values(make: type[CMUDRN] | type[DRN]) -> None:
    model = make()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    accelerate(model)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_equal_inputs_give_equal_bytes_at_equal_thread_counts() -> None:
    torch.manual_seed(3)
    x, to_y = torch.randn(2, 16, 40, 40), torch.randn(2, 16, 40, 40)
    weight, bias = (torch.randn(16, 16, 3, 3) / 12).requires_grad_(), torch.randn(16).requires_grad_()
    runs = [
        torch.autograd.grad(convolve16(x, weight, bias, activated=True), [weight, bias], to_y)
        for _ in range(3)
    ]
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(run, runs[0], strict=True))


def test_an_input_that_needs_no_gradient_costs_none() -> None:
    x = torch.randn(1, 16, 9, 9)
    weight = torch.randn(16, 16, 3, 3, requires_grad=True)
    convolve16(x, weight, torch.zeros(16)).sum().backward()
    assert x.grad is None
    assert weight.grad is not None


def test_what_was_compiled_for_this_processor_is_taken_again(tmp_path: Path) -> None:
    library = compile_library(tmp_path)
    made = library.stat().st_mtime_ns
    assert compile_library(tmp_path) == library
    assert library.stat().st_mtime_ns == made
    assert list(tmp_path.iterdir()) == [library]  # no scratch is left


@pytest.mark.parametrize("compiler", ["/no/such/compiler", "false"])
def test_without_a_working_compiler_pytorch_does_the_work(
    compiler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", compiler)
    monkeypatch.setattr(kernels, "user_cache_path", lambda _: tmp_path)
    kernels.load_library.cache_clear()
    try:
        assert choose_kernels(Kernels.AUTO, device="cpu", bfloat16=False) is Kernels.TORCH
        with pytest.raises(EnvironmentMissing, match="did not compile") as caught:
            choose_kernels(Kernels.WINOGRAD, device="cpu", bfloat16=False)
        assert "--kernels torch" in caught.value.fix
    finally:
        kernels.load_library.cache_clear()


@pytest.mark.parametrize(("device", "bfloat16"), [("cuda", False), ("cpu", True)])
def test_on_a_gpu_and_in_bfloat16_pytorch_does_the_work(device: str, bfloat16: bool) -> None:
    assert choose_kernels(Kernels.AUTO, device=device, bfloat16=bfloat16) is Kernels.TORCH
    with pytest.raises(UsageError, match="float32 on a CPU"):
        choose_kernels(Kernels.WINOGRAD, device=device, bfloat16=bfloat16)


def test_unknown_kernels_are_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(tmp_path), "--streaks", str(tmp_path), "--kernels", "fast"]) == 2
    assert "choose from auto, winograd, torch" in capsys.readouterr().err
