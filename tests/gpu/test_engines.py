"""Real engines on a real GPU, by each flavour that is installed: `make gpu-check`. Skipped without one."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("onnx", reason="graphs need onnx")

from cmudrn.checkpoint import read_checkpoint
from cmudrn.engines.build import BuildOptions, Plan, build_plan, inspect_plan, targets_of
from cmudrn.engines.compile import CompileJob, compile_engines
from cmudrn.engines.flavors import Flavor, Library, open_library
from cmudrn.engines.gpu import Gpu, local_gpu
from cmudrn.engines.graph import typed_graph
from cmudrn.engines.layers import LayerSummary, check_layers
from cmudrn.engines.layout import Layout
from cmudrn.engines.spec import EngineSpec, Precision
from cmudrn.engines.store import EngineStore
from cmudrn.errors import BuildError, EnvironmentMissing


@pytest.fixture(scope="module")
def gpu() -> Gpu:
    try:
        return local_gpu()
    except EnvironmentMissing as missing:
        pytest.skip(str(missing))


@pytest.fixture(scope="module", params=Flavor)
def library(request: pytest.FixtureRequest, gpu: Gpu) -> Library:
    try:
        return open_library(request.param)
    except EnvironmentMissing as missing:
        pytest.skip(str(missing))


def inspected(library: Library, gpu: Gpu, plan: Plan, precision: Precision) -> LayerSummary:
    """By the inspector, on this GPU. TensorRT-RTX doesn't name every GPU among those it builds for."""
    try:
        return check_layers(inspect_plan(library, plan.data), precision)
    except BuildError as refusal:
        if library.flavor is Flavor.RTX and gpu.target not in targets_of(library):
            pytest.skip(f"TensorRT-RTX builds for {targets_of(library)}; on {gpu.target}: {refusal.what}")
        raise


@pytest.mark.parametrize("layout", ["separate", "grouped", "dense", "separate,y-once,first-from-y"])
@pytest.mark.parametrize("loops", [1, 3, 7])
def test_an_engine_builds_and_its_inspector_says_the_precision(
    library: Library, gpu: Gpu, loops: int, layout: str
) -> None:
    spec = EngineSpec(loops=loops, height=500, width=500)
    plan = build_plan(
        library, typed_graph(read_checkpoint("default"), spec, Layout.parse(layout)), BuildOptions()
    )
    found = inspected(library, gpu, plan, Precision.FP16)
    print(f"{library.flavor.value} {library.version}, T = {loops}, {layout}: {plan.seconds:.1f} s, {found}")


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.BF16])
def test_other_precisions_build(library: Library, gpu: Gpu, precision: Precision) -> None:
    spec = EngineSpec(loops=1, height=256, width=256, precision=precision)
    plan = build_plan(library, typed_graph(read_checkpoint("default"), spec), BuildOptions())
    assert inspected(library, gpu, plan, precision).convolving


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
    graph = typed_graph(read_checkpoint("default"), EngineSpec(loops=3, height=500, width=500))
    first = build_plan(library, graph, BuildOptions())
    again = build_plan(library, graph, BuildOptions(), timing_cache=first.timing_cache)
    print(f"first {first.seconds:.1f} s, with its timing cache {again.seconds:.1f} s")
    assert again.seconds < first.seconds
