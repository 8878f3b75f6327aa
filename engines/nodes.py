"""An ONNX graph under construction, node by node, each tensor of a known type."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from cmudrn.engines.spec import Pixel, Precision
from cmudrn.errors import CheckpointError

__all__ = ["Dimension", "Nodes"]

Dimension = int | str  # fixed, or the name of one that is left open

OPSET, IR_VERSION = 18, 8  # read by ONNX Runtime 1.14 and later, TensorRT 10 and later
BF16_OPSET, BF16_IR_VERSION = 22, 10  # the first in which a convolution may be bfloat16
TYPES = {
    Precision.FP32: TensorProto.FLOAT,
    Precision.FP16: TensorProto.FLOAT16,
    Precision.BF16: TensorProto.BFLOAT16,
}
PIXEL_TYPES = {Pixel.UINT8: TensorProto.UINT8, Pixel.FLOAT32: TensorProto.FLOAT}


class Nodes:
    """Every method adds nodes, once for each name, and returns the name of what they give."""

    def __init__(self) -> None:
        self.nodes: dict[str, onnx.NodeProto] = {}
        self.constants: dict[str, onnx.TensorProto] = {}
        self.types: dict[str, Precision] = {}

    def add(
        self, kind: str, name: str, *inputs: str, into: Precision | None = None, **attributes: Any
    ) -> str:
        """One node with one output, named alike. into: the output's type; None: that of the first input."""
        if name not in self.nodes:
            self.nodes[name] = helper.make_node(kind, list(inputs), [name], name=name, **attributes)
            self.types[name] = self.types[inputs[0]] if into is None else into
        return name

    def constant(self, name: str, value: Any, precision: Precision) -> str:
        """Stored once, however many nodes read it. Raises CheckpointError where the type cannot hold it."""
        if name not in self.constants:
            array = np.asarray(value, np.float32)
            raw = _bits(array, precision, name).tobytes()
            self.constants[name] = helper.make_tensor(name, TYPES[precision], array.shape, raw, raw=True)
            self.types[name] = precision
        return name

    def cast(self, x: str, precision: Precision) -> str:
        """x itself where it has the type already."""
        if self.types[x] is precision:
            return x
        return self.add("Cast", f"{x}/{precision.value}", x, into=precision, to=TYPES[precision])

    def conv(
        self,
        name: str,
        x: str,
        weight: NDArray[np.float32],
        bias: NDArray[np.float32] | None,
        *,
        layer: str,
        groups: int = 1,
    ) -> str:
        """A convolution that keeps the image's size, in x's type.

        weight: [outputs, inputs / groups, k, k]. layer: names the weights, which all convolutions of that
        layer share.
        """
        stored = [self.constant(f"{layer}.weight", weight, self.types[x])]
        if bias is not None:
            stored.append(self.constant(f"{layer}.bias", bias, self.types[x]))
        side = weight.shape[-1]
        return self.add(
            "Conv", name, x, *stored, kernel_shape=[side, side], pads=[side // 2] * 4, group=groups
        )

    def relu(self, x: str) -> str:
        return self.add("Relu", f"{x}/relu", x)

    def split(self, x: str, parts: Sequence[str]) -> list[str]:
        """x: [B, C, H, W] cut along C into equal parts, named after x and them."""
        name, names = f"{x}/split", [f"{x}/{part}" for part in parts]
        if name not in self.nodes:
            self.nodes[name] = helper.make_node(
                "Split", [x], names, axis=1, num_outputs=len(names), name=name
            )
            self.types.update(dict.fromkeys(names, self.types[x]))
        return names

    def read_image(self, pixel: Pixel) -> str:
        """`image`, [B, H, W, 3], as [B, 3, H, W] float32 in [0, 1]."""
        # Cast first: TensorRT takes uint8 at the edge of a network, and nowhere inside.
        values = "image"
        if pixel is Pixel.UINT8:
            values = self.add("Cast", "values", values, into=Precision.FP32, to=TensorProto.FLOAT)
        planes = self.add("Transpose", "planes", values, into=Precision.FP32, perm=[0, 3, 1, 2])
        if pixel is Pixel.FLOAT32:
            return planes
        return self.add("Div", "y", planes, self.constant("peak", 255.0, Precision.FP32))

    def write_image(self, name: str, image: str, pixel: Pixel) -> None:
        """image, [B, 3, H, W] of any type, as the output `name`, [B, H, W, 3]: clamped; uint8: half up."""
        fp32 = Precision.FP32
        limits = self.constant("zero", 0.0, fp32), self.constant("one", 1.0, fp32)
        planes = self.add("Clip", f"{name}/clamped", self.cast(image, fp32), *limits)
        if pixel is Pixel.FLOAT32:
            self.add("Transpose", name, planes, perm=[0, 2, 3, 1])
            return
        scaled = self.add("Mul", f"{name}/scaled", planes, self.constant("peak", 255.0, fp32))
        lifted = self.add("Add", f"{name}/lifted", scaled, self.constant("half", 0.5, fp32))
        values = self.add("Transpose", f"{name}/values", lifted, perm=[0, 2, 3, 1])
        # Casting cuts, and cutting x + 0.5 rounds x half up.
        self.add("Cast", name, values, to=TensorProto.UINT8)

    def serialize(
        self,
        shape: Sequence[Dimension],
        pixel: Pixel,
        outputs: Sequence[str],
        metadata: Mapping[str, str],
    ) -> bytes:
        """The graph from `image` to `outputs`, all of one shape, as bytes that depend on nothing else."""
        image, *restored = (
            helper.make_tensor_value_info(name, PIXEL_TYPES[pixel], list(shape))
            for name in ("image", *outputs)
        )
        graph = helper.make_graph(
            list(self.nodes.values()), "cmudrn", [image], restored, list(self.constants.values())
        )
        bf16 = Precision.BF16 in self.types.values()
        model = helper.make_model(
            graph,
            producer_name="cmudrn",
            opset_imports=[helper.make_opsetid("", BF16_OPSET if bf16 else OPSET)],
            ir_version=BF16_IR_VERSION if bf16 else IR_VERSION,
        )
        helper.set_model_props(model, dict(metadata))
        onnx.checker.check_model(model, full_check=True)
        return bytes(model.SerializeToString(deterministic=True))


def _bits(array: NDArray[np.float32], precision: Precision, name: str) -> NDArray[Any]:
    """The array in its type, little-endian; bfloat16 as its 16 bits, rounded to the nearest, ties to even."""
    if precision is Precision.FP32:
        return array.astype("<f4")
    if precision is Precision.FP16:
        with np.errstate(over="ignore"):
            half = array.astype("<f2")
        if not np.isfinite(half).all():
            raise CheckpointError(
                f"{name}: {np.abs(array).max():g} is too large for fp16", fix="use --precision bf16 or fp32"
            )
        return half
    bits: NDArray[np.uint32] = array.astype("<f4").view("<u4")
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("<u2")
