"""What a compiler says of its layers, read back."""

from __future__ import annotations

import json

import pytest

from cmudrn.engines.build import check_layers
from cmudrn.engines.layers import Layer, layers_from_inspector, layers_from_log, summarize
from cmudrn.engines.spec import Precision
from cmudrn.errors import BuildError

TENSOR = "{{ Name: {}, Dimensions: [1,16,8,8], StrideOrder: [3,0,2,1], Datatype: {}, Format: (NHWC) }}"


def line(name: str, kind: str, read: str, written: str, *nodes: str) -> str:
    metadata = "".join(f"[ONNX Layer: {node}]" for node in nodes)
    return (
        f"Name: {name}, LayerType: {kind}, Inputs: [ {TENSOR.format('a', read)}], Constants: [], "
        f"Outputs: [ {TENSOR.format('b', written)}], TacticName: , StreamId: 0, Metadata: {metadata}"
    )


def test_the_table_of_a_build_log_is_read_line_by_line() -> None:
    table = "\n".join(
        [
            "Layers:",
            line("cast", "kgen", "UInt8", "Half", "values", "y"),
            "Name: wait1, LayerType: wait, Inputs: [], Constants: [], Outputs: [], TacticName: , Metadata: ",
            line("conv", "correlation", "Half", "Half", "stage1/conv_in", "stage1/conv_in/relu"),
            "",
            "I/O Tensors:",
            " Name: image, IOMode: Input, DataType: UInt8",
        ]
    )
    cast, wait, conv = layers_from_log(["Graph construction completed.", table, "Done."])
    assert cast == Layer("cast", "kgen", frozenset({"UInt8", "Half"}), ("values", "y"))
    assert (wait.kind, wait.types, wait.computes) == ("wait", frozenset(), False)
    assert conv.nodes == ("stage1/conv_in", "stage1/conv_in/relu")


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
                    "Metadata": "[ONNX Layer: conv1]\u001f[ONNX Layer: relu]",
                },
                {"Name": "sum", "LayerType": "kgen", "Inputs": [{"Datatype": "BFloat16"}], "Outputs": []},
            ],
            "Bindings": ["image"],
        }
    )
    conv, added = layers_from_inspector(text)
    assert conv.types == {"FP16", "FP32"}
    assert conv.nodes == ("conv1", "relu")
    assert conv.in_precision(Precision.FP16)
    assert added.in_precision(Precision.BF16)
    assert not added.in_precision(Precision.FP16)


@pytest.mark.parametrize("text", ['{"Layers": ["conv1", "relu"]}', '{"Layers": []}', "{}", "not JSON"])
def test_an_inspector_that_tells_only_names_is_an_error(text: str) -> None:
    with pytest.raises(ValueError):
        layers_from_inspector(text)


def layers(half: int, single: int, idle: int = 0) -> list[Layer]:
    kinds = [("Half", "correlation")] * half + [("Float", "correlation")] * single + [("", "signal")] * idle
    return [Layer(f"layer{i}", kind, frozenset({word}), ()) for i, (word, kind) in enumerate(kinds)]


def test_the_share_is_of_the_layers_that_compute() -> None:
    summary = summarize(layers(9, 1, idle=30), Precision.FP16)
    assert (summary.computing, summary.in_precision, summary.share) == (10, 9, 0.9)
    assert summary.kinds == {"correlation": 10, "signal": 30}


def test_an_engine_of_another_precision_is_refused() -> None:
    assert check_layers(layers(9, 1), Precision.FP16).share == 0.9
    with pytest.raises(BuildError, match=r"only 80% of the layers compute in fp16.*layer8; layer9"):
        check_layers(layers(8, 2), Precision.FP16)
    with pytest.raises(BuildError, match="only 0%"):
        check_layers(layers(10, 0), Precision.BF16)
    with pytest.raises(BuildError, match="told nothing"):
        check_layers(layers(0, 0, idle=3), Precision.FP16)
