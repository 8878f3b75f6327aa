"""What became of the graph: the compiled layers, from an inspector or from a build's log.

TensorRT's EngineInspector gives JSON. TensorRT-RTX cannot inspect where there is no GPU, but its builder's
verbose log holds the same in a table, `Layers:`, a line a layer.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cmudrn.engines.spec import Precision

__all__ = ["Layer", "LayerSummary", "layers_from_inspector", "layers_from_log", "summarize"]

# Layers that move or wait and compute nothing, and so have no precision.
IDLE = {"signal", "wait", "noop", "constant"}
TYPE_NAMES: Mapping[Precision, tuple[str, ...]] = {
    Precision.FP16: ("Half", "FP16"),
    Precision.BF16: ("BFloat16", "BF16"),
    Precision.FP32: ("Float", "FP32"),
}


@dataclass(frozen=True)
class Layer:
    """One compiled layer."""

    name: str
    kind: str  # TensorRT's own word: correlation, runtime_fusion, kgen, CaskConvolution ...
    types: frozenset[str]  # of the tensors and constants that it reads and writes: Half, Float, UInt8 ...
    nodes: tuple[str, ...]  # the graph's nodes that it computes

    @property
    def computes(self) -> bool:
        return self.kind.lower() not in IDLE

    def in_precision(self, precision: Precision) -> bool:
        """Whether it reads or writes any tensor of that type."""
        return bool(self.types & set(TYPE_NAMES[precision]))


@dataclass(frozen=True, kw_only=True)
class LayerSummary:
    """Counts of compiled layers."""

    kinds: Mapping[str, int]  # all of them
    computing: int  # those that compute ...
    in_precision: int  # ... and of these, those that read or write the engine's own precision

    @property
    def share(self) -> float:
        """Of the computing layers, those in the engine's precision: 0 to 1."""
        return self.in_precision / self.computing if self.computing else 0.0


def summarize(layers: Sequence[Layer], precision: Precision) -> LayerSummary:
    """Counts, by the precision that was asked for."""
    computing = [layer for layer in layers if layer.computes]
    return LayerSummary(
        kinds=dict(sorted(Counter(layer.kind for layer in layers).items())),
        computing=len(computing),
        in_precision=sum(layer.in_precision(precision) for layer in computing),
    )


LINE = re.compile(r"^Name: (?P<name>.*?), LayerType: (?P<kind>[^,]+), (?P<rest>.*)$")
DATATYPE = re.compile(r"Datatype: (\w+)")
NODE = re.compile(r"\[ONNX Layer: ([^\]]+)\]")


def layers_from_log(messages: Sequence[str]) -> list[Layer]:
    """From the messages of a TensorRT-RTX build with detailed profiling verbosity; empty without a table."""
    tables = [message for message in messages if message.startswith("Layers:\n")]
    found = (LINE.match(line) for table in tables for line in table.splitlines())
    return [
        Layer(
            name=line["name"],
            kind=line["kind"],
            types=frozenset(DATATYPE.findall(line["rest"])),
            nodes=tuple(NODE.findall(line["rest"])),
        )
        for line in found
        if line
    ]


def layers_from_inspector(text: str) -> list[Layer]:
    """From IEngineInspector.get_engine_information as JSON, of an engine with detailed verbosity.

    Raises ValueError for text that holds no such layers: without the verbosity they are bare names.
    """
    layers = json.loads(text).get("Layers", [])
    if not layers or not all(isinstance(layer, dict) for layer in layers):
        raise ValueError("the inspector tells no more than names")
    return [
        Layer(
            name=str(layer.get("Name", "")),
            kind=str(layer.get("LayerType", "")),
            types=frozenset(_types(layer)),
            nodes=tuple(NODE.findall(str(layer.get("Metadata", "")))),
        )
        for layer in layers
    ]


def _types(layer: Mapping[str, Any]) -> set[str]:
    """From "Format/Datatype": "Channel major FP16 format ..." (TensorRT 10), or from "Datatype": "Half"."""
    tensors = [tensor for side in ("Inputs", "Outputs", "Constants") for tensor in layer.get(side, [])]
    words = " ".join(str(tensor.get("Datatype", tensor.get("Format/Datatype", ""))) for tensor in tensors)
    known = {name for names in TYPE_NAMES.values() for name in names} | {"UInt8", "Int32", "Int64", "Bool"}
    return {word for word in re.findall(r"\w+", words) if word in known}
