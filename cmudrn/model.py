"""CMUDRN, the model of arXiv 2211.08290: two recursive networks that share features, and a fusion head.

Images are RGB in [0, 1], [B, 3, H, W], any H, W >= 1. Every convolution is 3x3, stride 1, zero padding 1,
with bias, so an image keeps its size. C = 16 channels inside.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from cmudrn.errors import UsageError
from cmudrn.stitches import STITCH_POINTS, check_stitches

__all__ = [
    "CMUDRN",
    "DRN",
    "PAPER_STITCHES",
    "STITCH_POINTS",
    "CrossStitch",
    "Fusion",
    "ModelConfig",
    "Restored",
]

CHANNELS = 16
PAPER_STITCHES: Mapping[str, float] = {"stem": 0.5, "body": 0.5}  # its alpha; its points are not told


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """What the weights alone don't say: the depth and the stitches. Checks itself."""

    inter_loops: int = 3  # stages: times that x is fed back beside y
    intra_loops: int = 3  # times that the two residual blocks run in a stage
    # Point: alpha. The points and 0.9 are measured (docs/measurements.md).
    stitches: Mapping[str, float] = field(default_factory=lambda: {"stem": 0.9, "body": 0.9})

    def __post_init__(self) -> None:
        for name in ("inter_loops", "intra_loops"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} = {getattr(self, name)}", fix="give 1 or more; 3 is the default")
        check_stitches(self.stitches)


def conv(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel_size=3, padding=1)


class ResidualBlock(nn.Module):
    """f -> ReLU(B(f) + f), B = conv, ReLU, conv, ReLU (the second ReLU stands before the sum)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = conv(CHANNELS, CHANNELS)
        self.conv2 = conv(CHANNELS, CHANNELS)

    def forward(self, f: Tensor) -> Tensor:
        return relu(relu(self.conv2(relu(self.conv1(f)))) + f)


class DRN(nn.Module):
    """Dual recursive network (Cai et al., ICIP 2019): 10,595 parameters, shared by all stages and loops."""

    def __init__(self, inter_loops: int = 3, intra_loops: int = 3) -> None:
        super().__init__()
        self.inter_loops, self.intra_loops = inter_loops, intra_loops
        self.conv_in = conv(6, CHANNELS)
        self.block1 = ResidualBlock()
        self.block2 = ResidualBlock()
        self.conv_out = conv(CHANNELS, 3)

    def stem(self, y: Tensor, x: Tensor) -> Tensor:
        """y: the degraded image, x: the estimate so far, [B, 3, H, W]. Returns features [B, C, H, W]."""
        return relu(self.conv_in(torch.cat([y, x], dim=1)))

    def recur(self, f: Tensor, loops: int) -> Tensor:
        """f: [B, C, H, W]. Returns the same shape: both blocks, `loops` times."""
        for _ in range(loops):
            f = self.block2(self.block1(f))
        return f

    def forward(self, y: Tensor) -> list[Tensor]:
        """y: [B, 3, H, W], the degraded image. Returns every stage's x, shaped alike; the last counts."""
        x, stages = y, []
        for _ in range(self.inter_loops):
            f = self.recur(self.stem(y, x), self.intra_loops)
            x = y + self.conv_out(f)
            stages.append(x)
        return stages


class CrossStitch(nn.Module):
    """Share features between two tasks (Misra et al. 2016, eq. 1).

    a, b: [B, C, H, W], one float dtype. Returns the pair mixed, same shape and dtype.
    alpha = 1 keeps them apart; alpha = 0.5 makes them equal.
    """

    def __init__(self, alpha: float = 0.5) -> None:
        super().__init__()
        self.alpha = alpha

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        mixed_a = self.alpha * a + (1 - self.alpha) * b
        mixed_b = self.alpha * b + (1 - self.alpha) * a
        return mixed_a, mixed_b


class Fusion(nn.Module):
    """g of eq. 9-10: makes one image of the two branches' images; 3,635 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = conv(6, CHANNELS)
        self.conv2 = conv(CHANNELS, CHANNELS)
        self.conv3 = conv(CHANNELS, 3)

    def forward(self, x_rain: Tensor, x_snow: Tensor) -> Tensor:
        f = relu(self.conv1(torch.cat([x_rain, x_snow], dim=1)))
        return self.conv3(relu(self.conv2(f)))  # type: ignore[no-any-return]


class Restored(NamedTuple):
    """All that a pass makes, [B, 3, H, W] each, not clamped."""

    fused: Tensor
    rain_stages: list[Tensor]  # the last is the rain branch's image
    snow_stages: list[Tensor]

    def to_float(self) -> Restored:
        """All in float32: after a pass in lower precision, so that losses are not."""
        stages = ([x.float() for x in branch] for branch in self[1:])
        return Restored(self.fused.float(), *stages)


class CMUDRN(nn.Module):
    """The unified network: DRN_rain + DRN_snow + cross-stitches + fusion; 24,825 parameters.

    `inter_loops` and `intra_loops` may be set on a loaded model: no weight depends on them.
    """

    def __init__(self, config: ModelConfig | None = None) -> None:
        super().__init__()
        config = config or ModelConfig()
        self.inter_loops, self.intra_loops = config.inter_loops, config.intra_loops
        self.rain = DRN()
        self.snow = DRN()
        self.fusion = Fusion()
        self.stitches = nn.ModuleDict({point: CrossStitch(alpha) for point, alpha in config.stitches.items()})
        self.alphas = dict(config.stitches)

    @property
    def config(self) -> ModelConfig:
        return ModelConfig(inter_loops=self.inter_loops, intra_loops=self.intra_loops, stitches=self.alphas)

    def stitch(self, point: str, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        return self.stitches[point](a, b) if point in self.stitches else (a, b)

    def recur(self, f_rain: Tensor, f_snow: Tensor) -> tuple[Tensor, Tensor]:
        """f_rain, f_snow: [B, C, H, W]. Returns the same shapes: the inner recursion in both branches."""
        rain, snow = self.rain, self.snow
        for _ in range(self.intra_loops):
            f_rain, f_snow = self.stitch("block1", rain.block1(f_rain), snow.block1(f_snow))
            f_rain, f_snow = self.stitch("block2", rain.block2(f_rain), snow.block2(f_snow))
        return f_rain, f_snow

    def forward_all(self, y: Tensor) -> Restored:
        """y: [B, 3, H, W], the degraded image. Returns the fused image and every stage of both branches."""
        rain, snow = self.rain, self.snow
        x_rain = x_snow = y
        rain_stages, snow_stages = [], []
        for _ in range(self.inter_loops):
            f_rain, f_snow = self.stitch("stem", rain.stem(y, x_rain), snow.stem(y, x_snow))
            f_rain, f_snow = self.stitch("body", *self.recur(f_rain, f_snow))
            x_rain, x_snow = y + rain.conv_out(f_rain), y + snow.conv_out(f_snow)
            rain_stages.append(x_rain)
            snow_stages.append(x_snow)
        return Restored(self.fusion(x_rain, x_snow), rain_stages, snow_stages)

    def forward(self, y: Tensor) -> Tensor:
        """y: [B, 3, H, W] in [0, 1]. Returns the restored image, the same shape; not clamped."""
        return self.forward_all(y).fused
