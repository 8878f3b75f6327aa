"""The training's own convolutions give PyTorch's results and gradients, or step aside."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv2d

from cmudrn.cli.app import main
from cmudrn.errors import EnvironmentMissing, UsageError
from cmudrn.model import CMUDRN, DRN, ModelConfig, ResidualBlock
from cmudrn.train import kernels
from cmudrn.train.kernels import (
    Kernels,
    accelerate,
    blocks16,
    choose_kernels,
    compile_library,
    convolve16,
)
from cmudrn.train.losses import restoration_loss
from cmudrn.train.passes import build_passes
from cmudrn.train.recipe import Network, TrainRecipe

try:
    kernels.load_library()
except EnvironmentMissing as exc:  # pragma: no cover
    pytest.skip(f"{exc}", allow_module_level=True)

# Winograd's F(4x4) rounds about four times as coarsely as a direct sum; a wrong term is off by a hundredth.
TOLERANCE = 2e-5


def distance(a: Tensor, b: Tensor) -> float:
    """Of two tensors, relative to the second's length."""
    return float((a.double() - b).norm() / b.norm().clamp(min=1e-30))


def random_inputs(size: tuple[int, int, int], convolutions: int) -> list[Tensor]:
    """x and a weight and bias for each convolution, float32."""
    torch.manual_seed(1)
    n, height, width = size
    parameters = [(torch.randn(16, 16, 3, 3) / 12, torch.randn(16)) for _ in range(convolutions)]
    return [torch.randn(n, 16, height, width), *(tensor for pair in parameters for tensor in pair)]


def check_against_float64(
    own: Callable[..., Tensor], reference: Callable[..., Tensor], inputs: list[Tensor]
) -> None:
    """Values and all gradients."""
    singles = [tensor.clone().requires_grad_() for tensor in inputs]
    doubles = [tensor.double().requires_grad_() for tensor in inputs]
    got, wanted = own(*singles), reference(*doubles)
    assert distance(got.detach(), wanted.detach()) < TOLERANCE
    to_y = torch.randn_like(got)
    for ours, exact in zip(
        torch.autograd.grad(got, singles, to_y),
        torch.autograd.grad(wanted, doubles, to_y.double()),
        strict=True,
    ):
        assert distance(ours, exact) < TOLERANCE


@pytest.fixture(autouse=True, params=[1, 2, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """Every test at several thread counts: below, at and above the number of images."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


# 1 pixel; less than a tile of 4; sizes that no tile divides; several tiles; a row of 121 tiles. Images fewer
# than threads go through a block row by row, the others image by image.
SIZES = [(1, 1, 1), (1, 3, 2), (2, 13, 17), (5, 20, 32), (1, 5, 481)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("activated", [False, True])
def test_a_convolution_has_the_values_and_gradients_of_float64(
    size: tuple[int, int, int], activated: bool
) -> None:
    def reference(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        y = conv2d(x, weight, bias, padding=1)
        return y.relu() if activated else y

    check_against_float64(partial(convolve16, activated=activated), reference, random_inputs(size, 1))


def blocks(x: Tensor, *parameters: Tensor, loops: int = 1) -> Tensor:
    return blocks16(x, parameters, loops)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("kinds", "loops"), [(1, 1), (2, 1), (2, 3), (1, 2)])
def test_residual_blocks_have_the_values_and_gradients_of_float64(
    size: tuple[int, int, int], kinds: int, loops: int
) -> None:
    def reference(x: Tensor, *parameters: Tensor) -> Tensor:
        for _ in range(loops):
            for first in range(0, 4 * kinds, 4):
                weight1, bias1, weight2, bias2 = parameters[first : first + 4]
                inside = conv2d(x, weight1, bias1, padding=1).relu()
                x = (conv2d(inside, weight2, bias2, padding=1).relu() + x).relu()
        return x

    inputs = random_inputs(size, 2 * kinds)
    if loops * kinds > 1:  # of a chain's many ReLUs none may switch for a rounding: all are open
        inputs = [inputs[0].abs(), *(parameter.abs() / 10 for parameter in inputs[1:])]
    check_against_float64(partial(blocks, loops=loops), reference, inputs)
    with torch.no_grad():  # keeps nothing, and gives the same
        assert torch.equal(
            blocks(*inputs, loops=loops), blocks(inputs[0].requires_grad_(), *inputs[1:], loops=loops)
        )


@pytest.mark.parametrize("network", list(Network))
@pytest.mark.parametrize("points", [(), ("stem", "body"), ("block1",), ("stem", "block2")])
def test_a_training_step_has_the_loss_and_gradients_of_pytorch(
    network: Network, points: tuple[str, ...]
) -> None:
    torch.manual_seed(2)
    rainy, snowy, clean = (torch.rand(2, 3, 24, 20) for _ in range(3))
    recipe = TrainRecipe(network=network, depths=(2,), model=ModelConfig(stitches=dict.fromkeys(points, 0.8)))
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


@pytest.mark.parametrize("name", ["conv1.weight", "conv1.bias", "conv2.weight", "conv2.bias"])
def test_what_is_not_a_number_stays_so(name: str) -> None:
    # A ReLU that made it 0 would train on as if all were well.
    block = ResidualBlock()
    accelerate(block)
    with torch.no_grad():
        block.get_parameter(name).view(-1)[0] = float("nan")
    assert block(torch.rand(2, 16, 8, 8)).isnan().any()


@pytest.mark.parametrize(
    "told",
    [
        {"OMP_NESTED": "true", "OMP_MAX_ACTIVE_LEVELS": "4"},
        {"OMP_NUM_THREADS": "1,4"},  # for regions inside regions
        {"OMP_NUM_THREADS": "3,2", "OMP_MAX_ACTIVE_LEVELS": "2"},
    ],
    ids=str,
)
def test_what_openmp_is_told_changes_nothing(told: dict[str, str], threads: int) -> None:
    code = f"""
import torch
from cmudrn.train.kernels import check_library
torch.set_num_threads({threads})
for _ in range(5):
    check_library.__wrapped__()
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, env=os.environ | told)


@pytest.mark.parametrize(
    ("x", "said"),
    [
        (torch.zeros(1, 16, 8, 8, dtype=torch.float64), "not torch.float64"),
        (torch.zeros(1, 16, 8, 8, dtype=torch.bfloat16), "not torch.bfloat16"),
        (torch.zeros(1, 3, 8, 8), r"not \(1, 3, 8, 8\)"),
        (torch.zeros(16, 8, 8), r"not \(16, 8, 8\)"),
    ],
)
def test_what_would_be_read_past_its_end_is_refused(x: Tensor, said: str) -> None:
    block = ResidualBlock()
    with pytest.raises(TypeError, match=said):
        convolve16(x, block.conv1.weight, torch.zeros(16))
    with pytest.raises(TypeError, match=said):
        blocks16(x, list(block.parameters()))
    with pytest.raises(TypeError, match="pairs of"):
        convolve16(torch.zeros(1, 16, 8, 8), block.conv1.weight[:3], torch.zeros(3))
    for number, loops in ((3, 1), (0, 1), (1, 0)):
        with pytest.raises(TypeError, match="one or two blocks"):
            blocks16(torch.zeros(1, 16, 8, 8), list(block.parameters()) * number, loops)


def test_a_second_derivative_is_refused() -> None:
    x, weight = torch.randn(1, 16, 5, 5), torch.randn(16, 16, 3, 3, requires_grad=True)
    y = convolve16(x, weight, torch.zeros(16)).square().sum()
    (slope,) = torch.autograd.grad(y, weight, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        torch.autograd.backward(slope.sum())


@pytest.mark.parametrize("make", [CMUDRN, DRN])
def test_weights_keep_their_names_and_values(make: type[CMUDRN] | type[DRN]) -> None:
    model = make()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    accelerate(model)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], value) for name, value in before.items())


@pytest.mark.parametrize(("own", "convolutions"), [(convolve16, 1), (blocks, 2), (blocks, 4)])
def test_equal_inputs_give_equal_bytes(own: Callable[..., Tensor], convolutions: int) -> None:
    inputs = [tensor.requires_grad_() for tensor in random_inputs((3, 40, 40), convolutions)]
    runs = [torch.autograd.grad(own(*inputs).square().sum(), inputs) for _ in range(3)]
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(run, runs[0], strict=True))


def test_an_input_that_needs_no_gradient_costs_none() -> None:
    x = torch.randn(1, 16, 9, 9)
    weight = torch.randn(16, 16, 3, 3, requires_grad=True)
    (to_weight,) = torch.autograd.grad(convolve16(x, weight, torch.zeros(16)).sum(), [weight])
    assert to_weight.abs().sum() > 0


def test_what_was_compiled_for_this_processor_is_taken_again(tmp_path: Path) -> None:
    library = compile_library(tmp_path)
    made = library.stat().st_mtime_ns
    assert compile_library(tmp_path) == library
    assert library.stat().st_mtime_ns == made
    assert list(tmp_path.iterdir()) == [library]  # no scratch is left


@pytest.mark.parametrize("compiler", ["/no/such/compiler", "false", "false gcc"])
def test_without_a_working_compiler_pytorch_does_the_work(
    compiler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", compiler)
    monkeypatch.setenv("CMUDRN_CACHE", str(tmp_path))
    kernels.load_library.cache_clear()
    kernels.check_library.cache_clear()
    try:
        assert choose_kernels(Kernels.AUTO, device="cpu", bfloat16=False) is Kernels.TORCH
        with pytest.raises(EnvironmentMissing, match="did not compile") as caught:
            choose_kernels(Kernels.WINOGRAD, device="cpu", bfloat16=False)
        assert "--kernels torch" in caught.value.fix
    finally:
        kernels.load_library.cache_clear()
        kernels.check_library.cache_clear()


def test_a_library_that_computes_wrongly_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong:
        """The real library, but its last block returns what the first was given."""

        def __getattr__(self, name: str) -> object:
            return getattr(real, name)

        def cmudrn_blocks_forward(self, x: int, _: int, kept: list[int], *numbers: int) -> None:
            _, count, n, height, width = numbers
            plane = n * height * width * 64
            ctypes.memmove(kept[count - 1] + plane, x, plane)

    real = kernels.load_library()
    monkeypatch.setattr(kernels, "load_library", Wrong)
    kernels.check_library.cache_clear()
    try:
        assert choose_kernels(Kernels.AUTO, device="cpu", bfloat16=False) is Kernels.TORCH
        with pytest.raises(EnvironmentMissing, match="wrong results"):
            choose_kernels(Kernels.WINOGRAD, device="cpu", bfloat16=False)
    finally:
        kernels.check_library.cache_clear()


@pytest.mark.parametrize(("device", "bfloat16"), [("cuda", False), ("cpu", True)])
def test_on_a_gpu_and_in_bfloat16_pytorch_does_the_work(device: str, bfloat16: bool) -> None:
    assert choose_kernels(Kernels.AUTO, device=device, bfloat16=bfloat16) is Kernels.TORCH
    with pytest.raises(UsageError, match="float32 on a CPU"):
        choose_kernels(Kernels.WINOGRAD, device=device, bfloat16=bfloat16)


def test_unknown_kernels_are_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(tmp_path), "--streaks", str(tmp_path), "--kernels", "fast"]) == 2
    assert "choose from auto, winograd, torch" in capsys.readouterr().err
