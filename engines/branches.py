"""The two recursive networks as nodes: side by side, or joined into one of twice the channels.

Both give the same numbers, up to rounding. f stands for a stage's features, y for the degraded image and x
for both branches' estimates, [B, 6, H, W], rain first.

Two rewrites against `cmudrn/model.py` are in both, each exact but for the last bits:
- The ReLU after a residual sum is left out: both summands are >= 0 (the block ends in a ReLU; features come
  from a ReLU, and a stitch with alpha in [0, 1] keeps them so).
- The stitch at the body is folded into conv_out, which nothing but a sum separates from it: one convolution
  of both branches' features, 32 channels, to both images, 6 channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from cmudrn.engines.layout import Branches, Layout
from cmudrn.engines.nodes import Nodes

__all__ = ["Recursion", "build_recursion"]

Array = NDArray[np.float32]
Weights = Mapping[str, Array]
Pair = tuple[str, str]  # names of the rain and the snow branch's tensors
CHANNELS = 16
BRANCHES = ("rain", "snow")
CONVS = ("conv1", "conv2")


class Recursion(Protocol):
    """One stage of both branches."""

    def output(self, name: str, y: str, x: str | None, loops: int) -> str:
        """conv_out of a stage's features, [B, 6, H, W] in y's type, before y is added.

        y: [B, 3, H, W] and x: [B, 6, H, W] in the features' type; x = None: the first stage, where x is y.
        """


def build_recursion(
    nodes: Nodes, weights: Weights, stitches: Mapping[str, float], layout: Layout
) -> Recursion:
    """The one that the layout asks for."""
    if layout.branches is Branches.SEPARATE:
        return SeparateBranches(nodes, weights, stitches, layout)
    return JoinedBranches(nodes, weights, stitches, layout)


class Stem(NamedTuple):
    """conv_in cut along its inputs. weights: [16, 3, 3, 3]; bias: [16]."""

    of_y: Array
    of_x: Array
    bias: Array


def cut_stem(weights: Weights, branch: str) -> Stem:
    weight = weights[f"{branch}.conv_in.weight"]
    return Stem(weight[:, :3], weight[:, 3:], weights[f"{branch}.conv_in.bias"])


def stack(weights: Weights, name: str) -> Array:
    """Both branches' tensors, rain first, one after the other along the first axis."""
    return np.concatenate([weights[f"{branch}.{name}"] for branch in BRANCHES])


def in_blocks(top: tuple[Array, Array], bottom: tuple[Array, Array]) -> Array:
    """[outputs, inputs, ...] of four: outputs one below the other, inputs side by side."""
    return np.concatenate([np.concatenate(row, axis=1) for row in (top, bottom)])


def block_diagonal(rain: Array, snow: Array) -> Array:
    """Both convolutions as one that sees both branches' channels; zeros from one to the other."""
    return in_blocks((rain, np.zeros_like(rain)), (np.zeros_like(snow), snow))


def stitched_conv_out(weights: Weights, alpha: float) -> Array:
    """[6, 32, 3, 3]: conv_out of stitched features, a' = alpha a + (1 - alpha) b, as conv_out of a and b."""
    rain, snow = (weights[f"{branch}.conv_out.weight"] for branch in BRANCHES)
    own, other = np.float32(alpha), np.float32(1 - alpha)
    return in_blocks((own * rain, other * rain), (other * snow, own * snow))


class SeparateBranches:
    """A convolution of 16 channels for each branch."""

    def __init__(self, nodes: Nodes, weights: Weights, stitches: Mapping[str, float], layout: Layout) -> None:
        self.nodes, self.weights, self.stitches, self.layout = nodes, weights, stitches, layout

    def output(self, name: str, y: str, x: str | None, loops: int) -> str:
        f = self.stem(name, y, x)
        for loop in range(1, loops + 1):
            for block in ("block1", "block2"):
                place = f"{name}/{block}/{loop}"
                rain, snow = (
                    self.block(f"{place}/{branch}", f"{branch}.{block}", inner)
                    for branch, inner in zip(BRANCHES, f, strict=True)
                )
                f = self.stitch(place, block, (rain, snow))
        both = self.nodes.add("Concat", f"{name}/body", *f, axis=1)
        weight = stitched_conv_out(self.weights, self.stitches.get("body", 1.0))
        bias = stack(self.weights, "conv_out.bias")
        return self.nodes.conv(f"{name}/conv_out", both, weight, bias, layer="conv_out")

    def stem(self, name: str, y: str, x: str | None) -> Pair:
        images = (y, y) if x is None else self.nodes.split(x, BRANCHES)
        rain, snow = (
            self.nodes.relu(self.conv_in(f"{name}/{branch}/conv_in", branch, y, image, first=x is None))
            for branch, image in zip(BRANCHES, images, strict=True)
        )
        return self.stitch(f"{name}/stem", "stem", (rain, snow))

    def conv_in(self, name: str, branch: str, y: str, x: str, *, first: bool) -> str:
        layer, (of_y, of_x, bias) = f"{branch}.conv_in", cut_stem(self.weights, branch)
        if first and self.layout.first_from_y:
            return self.nodes.conv(name, y, of_y + of_x, bias, layer=f"{layer}.first")
        if self.layout.y_once:
            constant = self.nodes.conv(f"{layer}/y", y, of_y, bias, layer=f"{layer}.y")
            moving = self.nodes.conv(f"{name}/x", x, of_x, None, layer=f"{layer}.x")
            return self.nodes.add("Add", name, moving, constant)
        both = self.nodes.add("Concat", f"{name}/y_x", y, x, axis=1)
        return self.nodes.conv(name, both, np.concatenate([of_y, of_x], axis=1), bias, layer=layer)

    def block(self, place: str, layer: str, f: str) -> str:
        inner = f
        for conv in CONVS:
            tensors = self.weights[f"{layer}.{conv}.weight"], self.weights[f"{layer}.{conv}.bias"]
            inner = self.nodes.relu(
                self.nodes.conv(f"{place}/{conv}", inner, *tensors, layer=f"{layer}.{conv}")
            )
        return self.nodes.add("Add", f"{place}/sum", inner, f)

    def stitch(self, place: str, point: str, f: Pair) -> Pair:
        if point not in self.stitches:
            return f
        alpha, precision = self.stitches[point], self.nodes.types[f[0]]
        own = self.nodes.constant(f"{point}.alpha", alpha, precision)
        other = self.nodes.constant(f"{point}.beta", 1 - alpha, precision)
        mixed = []
        for branch, mine, theirs in (("rain", f[0], f[1]), ("snow", f[1], f[0])):
            a = self.nodes.add("Mul", f"{place}/{branch}/own", mine, own)
            b = self.nodes.add("Mul", f"{place}/{branch}/other", theirs, other)
            mixed.append(self.nodes.add("Add", f"{place}/{branch}/stitched", a, b))
        return mixed[0], mixed[1]


class JoinedBranches:
    """One convolution of 32 channels for both branches, rain first: half the nodes."""

    def __init__(self, nodes: Nodes, weights: Weights, stitches: Mapping[str, float], layout: Layout) -> None:
        self.nodes, self.weights, self.stitches, self.layout = nodes, weights, stitches, layout

    def output(self, name: str, y: str, x: str | None, loops: int) -> str:
        f = self.stitch(name, "stem", self.nodes.relu(self.conv_in(f"{name}/conv_in", y, x)))
        for loop in range(1, loops + 1):
            for block in ("block1", "block2"):
                place = f"{name}/{block}/{loop}"
                f = self.stitch(place, block, self.block(place, block, f))
        weight = stitched_conv_out(self.weights, self.stitches.get("body", 1.0))
        bias = stack(self.weights, "conv_out.bias")
        return self.nodes.conv(f"{name}/conv_out", f, weight, bias, layer="conv_out")

    def conv_in(self, name: str, y: str, x: str | None) -> str:
        rain, snow = (cut_stem(self.weights, branch) for branch in BRANCHES)
        of_y, bias = np.concatenate([rain.of_y, snow.of_y]), np.concatenate([rain.bias, snow.bias])
        if x is None and self.layout.first_from_y:
            whole = of_y + np.concatenate([rain.of_x, snow.of_x])
            return self.nodes.conv(name, y, whole, bias, layer="conv_in.first")
        x = x or self.nodes.add("Concat", "y_y", y, y, axis=1)
        if self.layout.y_once:
            constant = self.nodes.conv("conv_in/y", y, of_y, bias, layer="conv_in.y")
            moving = self.apart(f"{name}/x", x, rain.of_x, snow.of_x, None, layer="conv_in.x")
            return self.nodes.add("Add", name, moving, constant)
        weight = np.concatenate([of_y, block_diagonal(rain.of_x, snow.of_x)], axis=1)
        all_three = self.nodes.add("Concat", f"{name}/y_x", y, x, axis=1)
        return self.nodes.conv(name, all_three, weight, bias, layer="conv_in")

    def block(self, place: str, block: str, f: str) -> str:
        inner = f
        for conv in CONVS:
            layer = f"{block}.{conv}"
            rain, snow = (self.weights[f"{branch}.{layer}.weight"] for branch in BRANCHES)
            bias = stack(self.weights, f"{layer}.bias")
            inner = self.nodes.relu(self.apart(f"{place}/{conv}", inner, rain, snow, bias, layer=layer))
        return self.nodes.add("Add", f"{place}/sum", inner, f)

    def apart(self, name: str, x: str, rain: Array, snow: Array, bias: Array | None, *, layer: str) -> str:
        """Each branch's convolution on its own half of x's channels."""
        if self.layout.branches is Branches.GROUPED:
            return self.nodes.conv(name, x, np.concatenate([rain, snow]), bias, layer=layer, groups=2)
        return self.nodes.conv(name, x, block_diagonal(rain, snow), bias, layer=layer)

    def stitch(self, place: str, point: str, f: str) -> str:
        if point not in self.stitches:
            return f
        own, same = np.float32(self.stitches[point]), np.eye(CHANNELS, dtype=np.float32)
        mixing = in_blocks((own * same, (1 - own) * same), ((1 - own) * same, own * same))[:, :, None, None]
        return self.nodes.conv(f"{place}/{point}/stitched", f, mixing, None, layer=f"{point}.stitch")
