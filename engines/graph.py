"""Weights to ONNX: the model as one file that needs no torch, built node by node.

Built with onnx's helpers and not by an exporter: the bytes depend on the weights alone and not on a torch
version, every weight is stored once however many loops read it, each node is named after its place in the
paper, every tensor's type is chosen here, and it takes milliseconds (docs/measurements.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cmudrn.checkpoint import Checkpoint, check_tensors
from cmudrn.engines.branches import BRANCHES, build_recursion
from cmudrn.engines.layout import FOR_ONNX_RUNTIME, Layout
from cmudrn.engines.nodes import Dimension, Nodes
from cmudrn.engines.spec import EngineSpec, Output, Pixel, Precision

__all__ = ["Types", "dynamic_graph", "typed_graph"]

PLAIN = Layout()
OUTPUT_NAMES: Mapping[Output, str] = {Output.FUSED: "restored", Output.RAIN: "rain", Output.SNOW: "snow"}


@dataclass(frozen=True, kw_only=True)
class Types:
    """What is computed in which type. At the edges of a graph images are float32, whatever stands here."""

    features: Precision  # both branches' convolutions
    images: Precision  # y, and each stage's x = y + conv_out(f)
    fusion: Precision  # the fusion head's convolutions

    @classmethod
    def of(cls, precision: Precision) -> Types:
        """Those of an engine: convolutions in its precision, images in float32.

        What that brings, and what more of float32 would: docs/measurements.md, "Half precision". It costs an
        addition of 6 channels a stage.
        """
        return cls(features=precision, images=Precision.FP32, fusion=precision)


def dynamic_graph(
    checkpoint: Checkpoint, *, loops: int, pixel: Pixel = Pixel.UINT8, layout: Layout = FOR_ONNX_RUNTIME
) -> bytes:
    """The model at T = loops as a serialized ONNX graph for any batch and size, float32 inside.

    The graph: input `image` [B, H, W, 3], outputs `restored` (fused), `rain`, `snow`, the same shape and
    type. uint8: 0..255, rounded half up. float32: [0, 1], clamped. Equal arguments give equal bytes.
    Raises CheckpointError for tensors that are missing, misshapen or superfluous.
    """
    graph = Graph(checkpoint, loops, Types.of(Precision.FP32), layout, pixel)
    return graph.serialize(["B", "H", "W", 3], OUTPUT_NAMES, {})


def typed_graph(
    checkpoint: Checkpoint, spec: EngineSpec, layout: Layout = PLAIN, *, types: Types | None = None
) -> bytes:
    """The model for one engine as a serialized ONNX graph whose own types say the precision.

    The graph: input `image` and output `restored`, [B, H, W, 3] of the spec's sizes and pixel type; else as
    `dynamic_graph`. types: to measure others than the spec's precision asks for.
    Raises CheckpointError for tensors that don't fit, or that the precision cannot hold.
    """
    graph = Graph(checkpoint, spec.loops, types or Types.of(spec.precision), layout, spec.pixel)
    shape = [spec.batch, spec.height, spec.width, 3]
    return graph.serialize(shape, {spec.output: "restored"}, {"spec": str(spec), "layout": str(layout)})


class Graph:
    """The network from `image` on, up to the images that may be asked for."""

    def __init__(
        self, checkpoint: Checkpoint, loops: int, types: Types, layout: Layout, pixel: Pixel
    ) -> None:
        check_tensors(checkpoint, "weights")
        self.checkpoint, self.loops, self.types, self.pixel = checkpoint, loops, types, pixel
        self.nodes = Nodes()
        self.recursion = build_recursion(self.nodes, checkpoint.tensors, checkpoint.stitches, layout)

    def recur(self) -> str:
        """Both branches' images, [B, 6, H, W]: eq. of DRN, T stages of T loops."""
        nodes, features = self.nodes, self.types.features
        y = nodes.cast(nodes.read_image(self.pixel), self.types.images)
        twice = nodes.add("Concat", "y_twice", y, y, axis=1)
        x: str | None = None
        for stage in range(1, self.loops + 1):
            f_out = self.recursion.output(
                f"stage{stage}", nodes.cast(y, features), x and nodes.cast(x, features), self.loops
            )
            x = nodes.add("Add", f"stage{stage}/x", twice, nodes.cast(f_out, self.types.images))
        assert x is not None
        return x

    def fuse(self, x: str) -> str:
        """g of eq. 9-10: both branches' images as one, [B, 3, H, W]."""
        weights, f = self.checkpoint.tensors, self.nodes.cast(x, self.types.fusion)
        for conv in ("conv1", "conv2", "conv3"):
            layer = f"fusion.{conv}"
            tensors = weights[f"{layer}.weight"], weights[f"{layer}.bias"]
            f = self.nodes.conv(f"fusion/{conv}", f, *tensors, layer=layer)
            f = f if conv == "conv3" else self.nodes.relu(f)
        return f

    def serialize(
        self, shape: Sequence[Dimension], outputs: Mapping[Output, str], metadata: Mapping[str, str]
    ) -> bytes:
        """shape: of input and outputs. outputs: which images, and by which names."""
        x = self.recur()
        for output, name in outputs.items():
            if output is Output.FUSED:
                image = self.fuse(x)
            else:
                image = self.nodes.split(x, BRANCHES)[BRANCHES.index(output.value)]
            self.nodes.write_image(name, image, self.pixel)
        about = {"loops": str(self.loops), "weights_sha256": self.checkpoint.sha256, **metadata}
        return self.nodes.serialize(shape, self.pixel, list(outputs.values()), about)
