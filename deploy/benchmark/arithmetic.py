"""What an image costs, counted from the network's layers; a test compares with the model itself."""

from __future__ import annotations

from cmudrn.checkpoint import TENSOR_SHAPES, NetworkKind

__all__ = ["flops", "values_moved"]

SHAPES = TENSOR_SHAPES[NetworkKind.CMUDRN]


def flops(loops: int, height: int, width: int) -> int:
    """Of one image: two for each multiply-add of the convolutions, 2T (864 + 9216 T + 432) + 3600 a pixel.

    The paper's T = inter = intra. Stitches, sums and ReLU are about 1% more, and are left out.
    """
    return 2 * height * width * sum(times * _taps(layer) for layer, times in _layers(loops).items())


def values_moved(loops: int, height: int, width: int) -> int:
    """Numbers that cross the memory for one image, were each layer's input read and its output written once.

    Without any fusion of layers and without caches, so a good implementation moves fewer.
    """
    return height * width * sum(times * _channels(layer) for layer, times in _layers(loops).items())


def _layers(loops: int) -> dict[str, int]:
    """Every convolution by name, and how often one image passes it."""
    names = [name.removesuffix(".weight") for name in SHAPES if name.endswith(".weight")]
    return {name: _times(name, loops) for name in names}


def _times(layer: str, loops: int) -> int:
    if layer.startswith("fusion."):
        return 1
    return loops * loops if ".block" in layer else loops


def _taps(layer: str) -> int:
    """Multiply-adds for one pixel."""
    outputs, inputs, height, width = SHAPES[f"{layer}.weight"]
    return outputs * inputs * height * width


def _channels(layer: str) -> int:
    outputs, inputs, *_ = SHAPES[f"{layer}.weight"]
    return outputs + inputs
