"""What a compiler says of its layers, read back."""

from __future__ import annotations

import json

import pytest

from cmudrn.engines.layers import (
    Layer,
    check_layers,
    layers_from_inspector,
    layers_from_log,
    summarize,
)
from cmudrn.engines.spec import Precision
from cmudrn.errors import BuildError

TENSOR = "{{ Name: {}, Dimensions: [1,16,8,8], StrideOrder: [3,0,2,1], Datatype: {}, Format: (NHWC) }}"


def line(name: str, kind: str, read: str, written: str, *nodes: str, weights: str = "") -> str:
    metadata = "".join(f"[ONNX Layer: {node}]" for node in nodes)
    constants = f" {TENSOR.format('w', weights)}" if weights else ""
    return (
        f"Name: {name}, LayerType: {kind}, Inputs: [ {TENSOR.format('a', read)}], Constants: [{constants}], "
        f"Outputs: [ {TENSOR.format('b', written)}], TacticName: , StreamId: 0, Metadata: {metadata}"
    )


def test_the_table_of_a_build_log_is_read_line_by_line() -> None:
    table = "\n".join(
        [
            "Layers:",
            line("cast", "kgen", "UInt8", "Half", "values", "y"),
            "Name: wait1, LayerType: wait, Inputs: [], Constants: [], Outputs: [], TacticName: , Metadata: ",
            line(
                "c", "correlation", "UInt8", "Bool", "stage1/conv_in", "stage1/conv_in/relu", weights="Half"
            ),
            "",
            "I/O Tensors:",
            " Name: image, IOMode: Input, DataType: UInt8",
        ]
    )
    cast, wait, conv = layers_from_log(["Graph construction completed.", table, "Done."])
    assert cast == Layer("cast", "kgen", frozenset({"UInt8", "Half"}), frozenset(), ("values", "y"))
    assert (wait.kind, wait.types, wait.computes) == ("wait", frozenset(), False)
    assert conv == Layer(
        "c",
        "correlation",
        frozenset({"UInt8", "Bool"}),
        frozenset({"Half"}),
        ("stage1/conv_in", "stage1/conv_in/relu"),
    )


def test_a_log_without_a_table_has_no_layers() -> None:
    assert layers_from_log(["Building.", "Done."]) == []


def test_the_inspector_is_read_in_both_of_its_dialects() -> None:
    """TensorRT's documentation shows the first; TensorRT-RTX's own table has the words of the second."""
    text = json.dumps(
        {
            "Layers": [
                {
                    "Name": "conv1 + relu",
                    "LayerType": "CaskConvolution",
                    "Inputs": [
                        {"Name": "x", "Format/Datatype": "Channel major FP16 format where channel % 8"}
                    ],
                    "Outputs": [{"Name": "f", "Format/Datatype": "Row major linear FP32"}],
                    "Weights": {"Type": "Half", "Count": 2304},
                    "Bias": {"Type": "Half", "Count": 16},
                    "Metadata": "[ONNX Layer: conv1]\u001f[ONNX Layer: relu]",
                },
                {"Name": "sum", "LayerType": "kgen", "Inputs": [{"Datatype": "BFloat16"}], "Outputs": []},
            ],
            "Bindings": ["image"],
        }
    )
    conv, added = layers_from_inspector(text)
    assert conv.types == {"FP16", "FP32"}
    assert conv.constants == {"Half"}
    assert conv.nodes == ("conv1", "relu")
    assert conv.in_precision(Precision.FP16)
    assert added.in_precision(Precision.BF16)
    assert not added.in_precision(Precision.FP16)


@pytest.mark.parametrize("text", ['{"Layers": ["conv1", "relu"]}', '{"Layers": []}', "{}", "not JSON"])
def test_an_inspector_that_tells_only_names_is_an_error(text: str) -> None:
    with pytest.raises(ValueError):
        layers_from_inspector(text)


def layer(kind: str, *types: str, weights: str = "", name: str = "layer") -> Layer:
    return Layer(name, kind, frozenset(types), frozenset(filter(None, [weights])), ())


HALF = layer("correlation", "Half", weights="Half")
EDGE = layer("kgen", "UInt8", "Float")
WAIT = layer("wait")


def test_the_share_is_of_the_layers_that_compute() -> None:
    summary = summarize([HALF] * 9 + [EDGE] + [WAIT] * 30, Precision.FP16)
    assert (summary.computing, summary.in_precision, summary.convolving, summary.share) == (10, 9, 9, 0.9)
    assert summary.kinds == {"correlation": 9, "kgen": 1, "wait": 30}


def test_edges_in_float32_are_no_fault() -> None:
    assert check_layers([HALF] * 3 + [EDGE] * 3, Precision.FP16).share == 0.5


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (
            [layer("correlation", "Float", weights="Float", name="c1")],
            "1 of 10 convolutions and 1 of 10 layers",
        ),
        # It reads half, and its weights are float32.
        ([layer("CaskConvolution", "Half", "Float", weights="Float", name="c1")], "1 of 10 convolutions"),
        ([layer("runtime_fusion", "Float", weights="Float", name="__myl_CorrAdd")], "1 of 10 convolutions"),
        ([EDGE] * 10, "0 of 9 convolutions and 10 of 19 layers"),
    ],
)
def test_an_engine_of_another_precision_is_refused(wrong: list[Layer], says: str) -> None:
    with pytest.raises(BuildError, match=says):
        check_layers([HALF] * 9 + wrong, Precision.FP16)


def test_layers_without_any_convolution_prove_nothing() -> None:
    with pytest.raises(BuildError, match="told nothing"):
        check_layers([EDGE, WAIT, layer("kgen", "Half")], Precision.FP16)
