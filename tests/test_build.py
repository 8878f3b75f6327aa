"""Real builds, by TensorRT-RTX, which needs no GPU for them."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install 'cmudrn[rtx]'")

from random_weights import random_checkpoint

from cmudrn.engines.build import BuildOptions, Plan, build_plan
from cmudrn.engines.callbacks import BuildStep
from cmudrn.engines.flavors import Flavor, Library, open_library
from cmudrn.engines.graph import typed_graph
from cmudrn.engines.layers import check_layers
from cmudrn.engines.layout import Branches, Layout
from cmudrn.engines.spec import EngineSpec, Precision
from cmudrn.errors import BuildError, UsageError

USUAL = EngineSpec(loops=3, height=500, width=500)


@pytest.fixture(scope="module")
def library() -> Library:
    return open_library(Flavor.RTX)


def build(
    library: Library, spec: EngineSpec, layout: Layout | None = None, target: str | None = None
) -> Plan:
    graph = typed_graph(random_checkpoint({"stem": 0.9, "body": 0.9}), spec, layout or Layout())
    return build_plan(library, graph, BuildOptions(target=target))


SIZES = [(128, 128), (720, 1280), (1080, 1920)]
MATRIX = [
    *(dataclasses.replace(USUAL, loops=loops) for loops in range(1, 8)),
    *(
        dataclasses.replace(USUAL, height=height, width=width, batch=batch, precision=precision)
        for height, width in SIZES
        for batch in (1, 8)
        for precision in (Precision.FP16, Precision.FP32)
    ),
    dataclasses.replace(USUAL, precision=Precision.BF16),
]


TARGETS = [None, "sm80", "sm86", "sm89", "sm120", "sm121"]  # in turn; sm75 has no bfloat16
BUILDS = [(spec, TARGETS[i % len(TARGETS)]) for i, spec in enumerate(MATRIX)]


@pytest.mark.parametrize(("spec", "target"), BUILDS, ids=str)
def test_every_convolution_is_fused_with_all_that_follows_it(
    library: Library, spec: EngineSpec, target: str | None
) -> None:
    """Bias and ReLU, and the residual sum of a block's second one: no pass over memory for any of them.

    And the same again gives the same bytes.
    """
    plan = build(library, spec, target=target)
    assert len(plan.data) > 100_000
    assert plan.data == build(library, spec, target=target).data
    summary = check_layers(plan.layers, spec.precision)
    assert summary.share > 0.99
    assert summary.convolving == 2 * spec.loops * (1 + 4 * spec.loops) + spec.loops + 3
    by_node = {node: layer for layer in plan.layers for node in layer.nodes}
    for stage in range(1, spec.loops + 1):
        for loop in range(1, spec.loops + 1):
            for block in (
                f"stage{stage}/block{b}/{loop}/{branch}" for b in (1, 2) for branch in ("rain", "snow")
            ):
                assert by_node[f"{block}/conv1"] is by_node[f"{block}/conv1/relu"]
                second = by_node[f"{block}/conv2"]
                assert second is by_node[f"{block}/conv2/relu"] is by_node[f"{block}/sum"]
        assert by_node[f"stage{stage}/conv_out"] is by_node[f"stage{stage}/x"]
    joined = [layer for layer in plan.layers if sum("/conv" in node for node in layer.nodes) > 4]
    assert not joined  # no layer claims them all, which would make the above mean nothing


@pytest.mark.parametrize("branches", [Branches.GROUPED, Branches.DENSE])
def test_joined_branches_are_half_as_many_layers(library: Library, branches: Branches) -> None:
    separate, joined = (
        check_layers(build(library, USUAL, layout).layers, Precision.FP16).computing
        for layout in (Layout(), Layout(branches=branches))
    )
    assert joined < 0.6 * separate


def test_targets_make_different_plans(library: Library) -> None:
    spec = dataclasses.replace(USUAL, loops=1, height=128, width=128)
    assert build(library, spec, target="sm75").data != build(library, spec, target="sm120").data


def test_an_unknown_target_is_refused_before_anything_is_built(library: Library) -> None:
    with pytest.raises(UsageError, match="--target sm90") as refusal:
        build(library, USUAL, target="sm90")
    assert "sm89" in refusal.value.fix


def small_graph() -> onnx.ModelProto:
    return onnx.load_from_string(
        typed_graph(random_checkpoint(), EngineSpec(loops=1, height=16, width=16), Layout())
    )


def test_a_mistyped_graph_fails_with_the_nodes_name(library: Library) -> None:
    """A convolution of FP16 features with FP32 weights: a strongly typed network doesn't mend it."""
    model = small_graph()
    for tensor in model.graph.initializer:
        if tensor.name == "rain.block1.conv1.weight":
            wider = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(wider, tensor.name))
            assert tensor.data_type == TensorProto.FLOAT
    with pytest.raises(BuildError, match=r"block1/1/rain/conv1"):
        build_plan(library, model.SerializeToString(), BuildOptions())


def test_an_operator_that_the_parser_does_not_know_is_named(library: Library) -> None:
    model = small_graph()
    node = next(node for node in model.graph.node if node.op_type == "Clip")
    node.op_type, node.domain = "Clamp2", "our.own"
    with pytest.raises(BuildError, match=r"restored/clamped \(Clamp2\)"):
        build_plan(library, model.SerializeToString(), BuildOptions())


def test_what_is_no_graph_is_refused(library: Library) -> None:
    with pytest.raises(BuildError, match="refused"):
        build_plan(library, b"no graph", BuildOptions())


def test_a_graph_of_another_precision_is_found_out(library: Library) -> None:
    """As TensorRT 11 would build it, and say nothing, from a graph whose types are not what was asked for."""
    plan = build(library, dataclasses.replace(USUAL, loops=1, precision=Precision.FP32))
    with pytest.raises(BuildError, match=r"not an engine in fp16: (\d+) of \1 convolutions"):
        check_layers(plan.layers, Precision.FP16)


def test_steps_are_told_from_beginning_to_end(library: Library) -> None:
    steps: list[BuildStep] = []
    graph = typed_graph(random_checkpoint(), dataclasses.replace(USUAL, loops=1), Layout())
    build_plan(library, graph, BuildOptions(), on_step=steps.append)
    outer = steps[0].phase
    counts = [step.done for step in steps if step.phase == outer]
    assert counts == sorted(counts)
    assert steps[-1] == BuildStep(outer, steps[0].of, steps[0].of)
    assert all(0 <= step.done <= step.of for step in steps)


def test_what_a_listener_raises_ends_the_build_and_is_raised(library: Library) -> None:
    def on_step(step: BuildStep) -> None:
        raise ZeroDivisionError("of the listener")

    graph = typed_graph(random_checkpoint(), dataclasses.replace(USUAL, loops=1), Layout())
    with pytest.raises(ZeroDivisionError, match="of the listener"):
        build_plan(library, graph, BuildOptions(), on_step=on_step)


def test_what_the_compiler_cannot_build_is_told_with_a_way_out(library: Library) -> None:
    """bfloat16 for a GPU that has none."""
    bf16 = dataclasses.replace(USUAL, loops=1, precision=Precision.BF16)
    with pytest.raises(BuildError, match="built nothing: ") as refusal:
        build(library, bf16, target="sm75")
    assert "--precision" in refusal.value.fix


def test_options_reach_the_builder(library: Library) -> None:
    spec = dataclasses.replace(USUAL, loops=1, height=64, width=64)
    graph = typed_graph(random_checkpoint(), spec, Layout())
    options = BuildOptions(optimization_level=0, workspace_mb=64)
    assert check_layers(build_plan(library, graph, options).layers, Precision.FP16)


@pytest.mark.parametrize(
    "wrong", [{"optimization_level": 6}, {"optimization_level": -1}, {"workspace_mb": 0}]
)
def test_options_out_of_range_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(UsageError):
        BuildOptions(**wrong)  # type: ignore[arg-type]


CANCELLED = """
import os, signal, time
from random_weights import random_checkpoint
from cmudrn.engines.build import BuildOptions, build_plan
from cmudrn.engines.flavors import Flavor, open_library
from cmudrn.engines.graph import typed_graph
from cmudrn.engines.layers import check_layers
from cmudrn.engines.layout import Layout
from cmudrn.engines.spec import EngineSpec

library = open_library(Flavor.RTX)
graph = typed_graph(random_checkpoint(), EngineSpec(loops=7, height=500, width=500), Layout())
steps = []

def on_step(step):
    steps.append(step)
    if len(steps) == 10:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(2)  # the other thread's turn, on a busy machine

try:
    build_plan(library, graph, BuildOptions(), on_step=on_step)
except KeyboardInterrupt:
    print("cancelled", len(steps))
"""


def test_ctrl_c_cancels_a_build_in_the_middle() -> None:
    """In a process of its own; the whole build has over a thousand steps."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run(
        [sys.executable, "-c", CANCELLED], env=environment, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")
    word, steps = done.stdout.split()
    assert word == "cancelled"
    assert int(steps) < 200
