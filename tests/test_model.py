"""The model against DESIGN's numbers and against a plain SciPy re-computation of the equations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.signal import correlate
from torch import Tensor, nn

from cmudrn.errors import UsageError
from cmudrn.model import CMUDRN, DRN, STITCH_POINTS, Fusion, ModelConfig

Array = NDArray[np.float64]


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def random_cmudrn(**config: object) -> CMUDRN:
    torch.manual_seed(0)
    return CMUDRN(ModelConfig(**config)).double().eval()  # type: ignore[arg-type]


@pytest.mark.parametrize(("model", "count"), [(DRN(), 10_595), (Fusion(), 3_635), (CMUDRN(), 24_825)])
def test_parameter_counts_are_the_papers(model: nn.Module, count: int) -> None:
    assert parameters(model) == count


def test_parameters_are_named_as_the_contract_says() -> None:
    names = {name.rsplit(".", 1)[0] for name in DRN().state_dict()}
    assert names == {"conv_in", "block1.conv1", "block1.conv2", "block2.conv1", "block2.conv2", "conv_out"}


class Plain:
    """Eq. 1, 9-10 and DRN written out with SciPy, from a state dict alone."""

    def __init__(self, model: CMUDRN) -> None:
        self.weights = {name: value.numpy() for name, value in model.state_dict().items()}
        self.config = model.config

    def conv(self, name: str, x: Array) -> Array:
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        padded = np.pad(x, ((0, 0), (1, 1), (1, 1)))
        rows = [
            correlate(padded, kernel, mode="valid")[0] + b for kernel, b in zip(weight, bias, strict=True)
        ]
        return np.stack(rows)

    def block(self, name: str, f: Array) -> Array:
        inner = np.maximum(self.conv(f"{name}.conv1", f), 0)
        inner = np.maximum(self.conv(f"{name}.conv2", inner), 0)
        return np.maximum(inner + f, 0)

    def stitch(self, point: str, a: Array, b: Array) -> tuple[Array, Array]:
        alpha = self.config.stitches.get(point, 1.0)
        return alpha * a + (1 - alpha) * b, alpha * b + (1 - alpha) * a

    def both(self, layer: str, pair: tuple[Array, Array]) -> tuple[Array, Array]:
        return self.block(f"rain.{layer}", pair[0]), self.block(f"snow.{layer}", pair[1])

    def __call__(self, y: Array) -> tuple[Array, Array, Array]:
        x = [y, y]
        for _ in range(self.config.inter_loops):
            stems = [
                np.maximum(self.conv(f"{branch}.conv_in", np.concatenate([y, x[i]])), 0)
                for i, branch in enumerate(("rain", "snow"))
            ]
            f = self.stitch("stem", *stems)
            for _ in range(self.config.intra_loops):
                f = self.stitch("block1", *self.both("block1", f))
                f = self.stitch("block2", *self.both("block2", f))
            f = self.stitch("body", *f)
            x = [y + self.conv(f"{branch}.conv_out", f[i]) for i, branch in enumerate(("rain", "snow"))]
        g = np.maximum(self.conv("fusion.conv1", np.concatenate(x)), 0)
        g = np.maximum(self.conv("fusion.conv2", g), 0)
        return self.conv("fusion.conv3", g), x[0], x[1]


@pytest.mark.parametrize("stitches", [{}, {"stem": 0.5, "body": 0.5}, dict.fromkeys(STITCH_POINTS, 0.3)])
@pytest.mark.parametrize(("inter", "intra"), [(1, 1), (2, 3), (3, 2)])
def test_the_equations_hold_against_plain_scipy(inter: int, intra: int, stitches: dict[str, float]) -> None:
    model = random_cmudrn(inter_loops=inter, intra_loops=intra, stitches=stitches)
    y = np.random.default_rng(1).random((3, 7, 9))
    with torch.no_grad():
        restored = model.forward_all(torch.from_numpy(y)[None])
    fused, rain, snow = Plain(model)(y)
    np.testing.assert_allclose(restored.fused[0], fused, atol=1e-12)
    np.testing.assert_allclose(restored.rain_stages[-1][0], rain, atol=1e-12)
    np.testing.assert_allclose(restored.snow_stages[-1][0], snow, atol=1e-12)
    assert len(restored.rain_stages) == len(restored.snow_stages) == inter


def test_alpha_of_one_makes_two_independent_drns() -> None:
    model = random_cmudrn(inter_loops=2, intra_loops=2, stitches=dict.fromkeys(STITCH_POINTS, 1.0))
    y = torch.rand(1, 3, 8, 8, dtype=torch.float64)
    for branch, stages in (("rain", "rain_stages"), ("snow", "snow_stages")):
        alone = DRN(2, 2).double()
        alone.load_state_dict(getattr(model, branch).state_dict())
        assert torch.equal(getattr(model.forward_all(y), stages)[-1], alone(y)[-1])


def test_alpha_of_a_half_gives_both_branches_the_same_features() -> None:
    model = random_cmudrn(inter_loops=2, intra_loops=1, stitches={"body": 0.5})
    model.snow.conv_out.load_state_dict(model.rain.conv_out.state_dict())
    restored = model.forward_all(torch.rand(1, 3, 6, 6, dtype=torch.float64))
    assert torch.equal(restored.rain_stages[-1], restored.snow_stages[-1])


def positive_cmudrn(loops: int) -> CMUDRN:
    model = random_cmudrn(inter_loops=loops, intra_loops=loops)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Small and positive: nothing can cancel, nothing overflows.
            parameter.fill_(0.0 if name.endswith("bias") else 0.01)
    return model


@pytest.mark.parametrize(("loops", "radius_px"), [(1, 9), (2, 23), (3, 45)])  # T (2 + 4T) + 3
def test_a_spot_reaches_the_receptive_radius_and_no_further(loops: int, radius_px: int) -> None:
    size = 2 * radius_px + 5
    spot = torch.zeros(1, 3, size, size, dtype=torch.float64)
    spot[..., size // 2, size // 2] = 1
    with torch.no_grad():
        reached = positive_cmudrn(loops)(spot)[0, 0] > 0
    rows = torch.nonzero(reached.any(dim=1)).flatten()
    columns = torch.nonzero(reached.any(dim=0)).flatten()
    for line in (rows, columns):
        assert (int(line[0]), int(line[-1])) == (size // 2 - radius_px, size // 2 + radius_px)


def test_the_edge_is_padded_with_zeros_so_it_equals_an_image_in_a_black_frame_only_inside() -> None:
    """Beyond R(T) from the edge an image doesn't notice its frame; at the edge it does."""
    model = random_cmudrn(inter_loops=1, intra_loops=1)
    y = torch.rand(1, 3, 24, 24, dtype=torch.float64)
    framed = torch.zeros(1, 3, 44, 44, dtype=torch.float64)
    framed[..., 10:34, 10:34] = y
    with torch.no_grad():
        whole, inside = model(y), model(framed)[..., 10:34, 10:34]
    torch.testing.assert_close(whole[..., 9:-9, 9:-9], inside[..., 9:-9, 9:-9])
    assert not torch.allclose(whole[..., 0, :], inside[..., 0, :])


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 7), (5, 1), (2, 3), (17, 33)])
def test_any_size_is_kept(height: int, width: int) -> None:
    y = torch.rand(2, 3, height, width, dtype=torch.float64)
    assert random_cmudrn()(y).shape == y.shape


def test_loops_may_be_set_on_a_loaded_model() -> None:
    model, y = random_cmudrn(), torch.rand(1, 3, 8, 8, dtype=torch.float64)
    expected = random_cmudrn(inter_loops=2, intra_loops=1)(y)
    model.inter_loops, model.intra_loops = 2, 1
    actual: Tensor = model(y)
    assert torch.equal(actual, expected)


@pytest.mark.parametrize(
    "bad", [{"inter_loops": 0}, {"stitches": {"head": 0.5}}, {"stitches": {"stem": 1.5}}]
)
def test_a_config_that_makes_no_sense_is_refused(bad: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        ModelConfig(**bad)  # type: ignore[arg-type]
