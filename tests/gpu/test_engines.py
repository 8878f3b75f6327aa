"""Real engines on a real GPU, by each flavour that is installed: `make gpu-check`. Skipped without one."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("onnx", reason="graphs need onnx")

from cmudrn.checkpoint import read_checkpoint
from cmudrn.engines.build import BuildOptions, build_plan, inspect_plan
from cmudrn.engines.compile import CompileJob, compile_engines
from cmudrn.engines.flavors import Flavor, Library
from cmudrn.engines.gpu import Gpu
from cmudrn.engines.graph import typed_graph
from cmudrn.engines.layers import check_layers
from cmudrn.engines.layout import Layout
from cmudrn.engines.spec import EngineSpec, Precision
from cmudrn.engines.store import EngineStore


# T = 2 has all that more loops have: a first stage and a later one. Deeper engines, `make gpu-check` builds.
@pytest.mark.parametrize("layout", ["separate", "grouped", "dense", "separate,y-once,first-from-y"])
def test_an_engine_builds_in_every_layout_and_its_inspector_says_the_precision(
    library: Library, layout: str
) -> None:
    spec = EngineSpec(loops=2, height=500, width=500)
    graph = typed_graph(read_checkpoint("default"), spec, Layout.parse(layout))
    plan = build_plan(library, graph, BuildOptions())
    found = check_layers(inspect_plan(library, plan.data), Precision.FP16)
    print(f"{library.flavor.label} {library.version}, {layout}: {plan.seconds:.1f} s, {found}")


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.BF16])
def test_other_precisions_build(library: Library, gpu: Gpu, precision: Precision) -> None:
    if precision is Precision.BF16 and int(gpu.target.removeprefix("sm")) < 80:
        pytest.skip(f"{gpu.target} has no bfloat16")
    spec = EngineSpec(loops=1, height=256, width=256, precision=precision)
    plan = build_plan(library, typed_graph(read_checkpoint("default"), spec), BuildOptions())
    assert check_layers(inspect_plan(library, plan.data), precision).convolving


def test_engines_go_into_the_store_under_this_gpus_name(library: Library, gpu: Gpu, tmp_path: Path) -> None:
    store, spec = EngineStore(tmp_path), EngineSpec(loops=1, height=256, width=256)
    [built] = compile_engines(CompileJob(specs=(spec,)), read_checkpoint("default"), library, store)
    assert built.manifest is not None
    assert store.verify(built.key) == built.manifest
    if library.flavor is Flavor.TENSORRT:
        assert built.manifest.target == gpu.target
        assert store.timing_cache(gpu.name, library.version)


def test_what_was_timed_once_is_not_timed_again(library: Library) -> None:
    if library.flavor is not Flavor.TENSORRT:
        pytest.skip("TensorRT-RTX has no timing cache of this kind")
    graph = typed_graph(read_checkpoint("default"), EngineSpec(loops=2, height=500, width=500))
    first = build_plan(library, graph, BuildOptions())
    again = build_plan(library, graph, BuildOptions(), timing_cache=first.timing_cache)
    print(f"first {first.seconds:.1f} s, with its timing cache {again.seconds:.1f} s")
    assert again.seconds < first.seconds
