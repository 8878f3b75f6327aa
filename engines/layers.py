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
from cmudrn.errors import BuildError
from cmudrn.wording import listed

__all__ = [
    "Layer",
    "LayerSummary",
    "check_layers",
    "layers_from_inspector",
    "layers_from_log",
    "summarize",
]

# Layers that move or wait and compute nothing, and so have no precision of their own.
IDLE = {"signal", "wait", "noop", "constant", "reformat"}
TYPE_NAMES: Mapping[Precision, frozenset[str]] = {
    Precision.FP16: frozenset({"Half", "FP16"}),
    Precision.BF16: frozenset({"BFloat16", "BF16"}),
    Precision.FP32: frozenset({"Float", "FP32"}),
}
FLOATS = frozenset().union(*TYPE_NAMES.values())
LEAST_SHARE = 0.5  # of the computing layers; at the edges of a small graph some are in float32 by design


@dataclass(frozen=True)
class Layer:
    """One compiled layer."""

    name: str
    kind: str  # TensorRT's own word: correlation, runtime_fusion, kgen, CaskConvolution ...
    types: frozenset[str]  # of the tensors that it reads and writes: Half, Float, UInt8 ...
    constants: frozenset[str]  # types of its weights and other constants
    nodes: tuple[str, ...]  # the graph's nodes that it computes

    @property
    def computes(self) -> bool:
        return self.kind.lower() not in IDLE

    @property
    def convolves(self) -> bool:
        """By TensorRT's words: kinds like CaskConvolution or correlation, fusions named after their parts."""
        said = re.search("[Cc]onv|[Cc]orr", self.kind) or re.search("Conv|Corr", self.name)
        return self.computes and bool(said)

    def in_precision(self, precision: Precision) -> bool:
        """Whether it reads or writes that type; a convolution, whether its weights are of it."""
        # The type of a convolution's own sums is not told; a bias may be float32 beside half weights.
        told = self.constants if self.convolves and self.constants else self.types | self.constants
        return bool(told & TYPE_NAMES[precision])


@dataclass(frozen=True, kw_only=True)
class LayerSummary:
    """Counts of compiled layers."""

    kinds: Mapping[str, int]  # all of them
    computing: int  # those that compute ...
    in_precision: int  # ... and of these, those in the engine's own precision
    convolving: int  # those that convolve; each of them is in the engine's precision, or the build failed

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
        convolving=sum(layer.convolves for layer in computing),
    )


def check_layers(layers: Sequence[Layer], precision: Precision) -> LayerSummary:
    """Counts. Raises BuildError where what was compiled is not of the precision that was asked for.

    Every layer that convolves must be, and half of all that compute.
    """
    summary = summarize(layers, precision)
    if not summary.convolving:
        raise BuildError(
            "the compiler told nothing of its convolutions, so their precision cannot be checked",
            fix="report it with the library's version",
        )
    others = [layer for layer in layers if layer.computes and not layer.in_precision(precision)]
    wrong = [layer.name for layer in others if layer.convolves]
    if wrong or summary.share < LEAST_SHARE:
        raise BuildError(
            f"not an engine in {precision.value}: {len(wrong)} of {summary.convolving} convolutions and "
            f"{len(others)} of {summary.computing} layers are in another precision: "
            f"{listed(wrong or [layer.name for layer in others])}",
            fix="report it with the library's version; --precision fp32 builds without half precision",
        )
    return summary


LINE = re.compile(r"^Name: (?P<name>.*?), LayerType: (?P<kind>[^,]+), (?P<rest>.*)$")
CONSTANTS = re.compile(r"Constants: \[(.*?)\], Outputs: ")
DATATYPE = re.compile(r"Datatype: (\w+)")
NODE = re.compile(r"\[ONNX Layer: ([^\]]+)\]")


def layers_from_log(messages: Sequence[str]) -> list[Layer]:
    """From the messages of a TensorRT-RTX build with detailed profiling verbosity; empty without a table."""
    tables = [message for message in messages if message.startswith("Layers:\n")]
    found = (LINE.match(line) for table in tables for line in table.splitlines())
    return [_from_line(line["name"], line["kind"], line["rest"]) for line in found if line]


def _from_line(name: str, kind: str, rest: str) -> Layer:
    constants = "".join(CONSTANTS.findall(rest))
    return Layer(
        name=name,
        kind=kind,
        types=frozenset(DATATYPE.findall(rest.replace(constants, "") if constants else rest)),
        constants=frozenset(DATATYPE.findall(constants)),
        nodes=tuple(NODE.findall(rest)),
    )


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
            types=_types(layer, "Inputs", "Outputs"),
            constants=_types(layer, "Constants", "Weights", "Bias"),
            nodes=tuple(NODE.findall(str(layer.get("Metadata", "")))),
        )
        for layer in layers
    ]


def _types(layer: Mapping[str, Any], *fields: str) -> frozenset[str]:
    """From "Format/Datatype": "Channel major FP16 format ..." (TensorRT 10), "Datatype" or "Type": "Half"."""
    values = [layer.get(field) or [] for field in fields]
    entries = [entry for value in values for entry in (value if isinstance(value, list) else [value])]
    words = " ".join(
        str(entry.get(key, "")) for entry in entries for key in ("Format/Datatype", "Datatype", "Type")
    )
    known = FLOATS | {"UInt8", "Int32", "Int64", "Bool"}
    return frozenset(re.findall(r"\w+", words)) & known
