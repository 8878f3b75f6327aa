"""What an engine or a graph is for: one frozen value, checked when it is made."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from cmudrn.errors import UsageError

__all__ = ["MOST", "EngineSpec", "Output", "Pixel", "Precision", "receptive_radius"]


# A slip of the hand: nodes grow with the square of the loops, memory with all else.
MOST = {"loops": 32, "height": 1_000_000, "width": 1_000_000, "batch": 1024}


class Precision(str, Enum):
    """Of the graph's own types."""

    FP16 = "fp16"
    FP32 = "fp32"
    BF16 = "bf16"


class Pixel(str, Enum):
    """Of input and output: uint8 in 0..255, or float32 in [0, 1]."""

    UINT8 = "uint8"
    FLOAT32 = "float32"


class Output(str, Enum):
    """Which image: the fusion head's, or one branch's alone."""

    FUSED = "fused"
    RAIN = "rain"
    SNOW = "snow"


@dataclass(frozen=True, kw_only=True)
class EngineSpec:
    """The model's depth, the shape, and the types of one engine. Raises UsageError beyond MOST."""

    loops: int  # T: inter = intra = T
    height: int  # pixels
    width: int  # pixels
    batch: int = 1
    precision: Precision = Precision.FP16
    pixel: Pixel = Pixel.UINT8
    output: Output = Output.FUSED

    def __post_init__(self) -> None:
        for name, most in MOST.items():
            if not 1 <= getattr(self, name) <= most:
                raise UsageError(f"{name} = {getattr(self, name)}", fix=f"give 1 to {most:,}")

    def __str__(self) -> str:
        """Such as t3-500x500-b8-fp16-uint8; height before width. A branch's own image: -rain or -snow."""
        parts = [
            f"t{self.loops}",
            f"{self.height}x{self.width}",
            f"b{self.batch}",
            self.precision.value,
            self.pixel.value,
        ]
        return "-".join(parts if self.output is Output.FUSED else [*parts, self.output.value])


def receptive_radius(loops: int) -> int:
    """How far, in pixels, an input pixel reaches into the output at T loops: T (2 + 4T) + 3."""
    return loops * (2 + 4 * loops) + 3
