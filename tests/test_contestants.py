"""What is timed: the model in PyTorch, `infer`'s backends, engines; and the machine's own peaks."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hostcuda.build import under_hostcuda
from numpy.typing import NDArray
from test_manifest import manifest_of
from torch import nn

from cmudrn.checkpoint import load_model, read_checkpoint
from cmudrn.deploy.benchmark import grid, peak
from cmudrn.deploy.benchmark.contestants import (
    Case,
    Conditions,
    Contestant,
    Place,
    open_contestant,
    random_pixels,
)
from cmudrn.deploy.benchmark.grid import BenchmarkPlan, run_benchmark, terms_of
from cmudrn.deploy.benchmark.table import Table
from cmudrn.deploy.benchmark.timing import Effort
from cmudrn.deploy.native.library import is_built
from cmudrn.engines.flavors import Flavor, Library
from cmudrn.engines.graph import typed_graph
from cmudrn.engines.layout import Layout
from cmudrn.engines.spec import Precision
from cmudrn.engines.store import EngineStore
from cmudrn.errors import CheckpointError, EngineError, EnvironmentMissing, UsageError

if TYPE_CHECKING:
    from hostcuda import trt_stand_in as trt
else:
    try:  # in the processes under hostcuda alone
        import tensorrt as trt
    except ImportError:
        trt = None

CASE = Case(1, 16, 16, 1)
CPU = Conditions(device="cpu")


@pytest.mark.parametrize(
    "name",
    [
        "torch",
        "torch-fp16",
        "compile-bf16-nhwc",
        "native",
        "native-bf16",
        "onnx",
        "onnx-gpu",
        "openvino-bf16",
        "tensorrt",
        "tensorrt-stream-fp32",
    ],
)
def test_a_contestants_name_is_read_as_it_is_written(name: str) -> None:
    assert str(Contestant.parse(name)) == name


def test_a_name_without_a_precision_means_the_usual_one() -> None:
    assert Contestant.parse("torch") == Contestant.parse("torch-fp32")
    assert Contestant.parse("tensorrt-stream") == Contestant.parse("tensorrt-stream-fp16")


@pytest.mark.parametrize("name", ["", "ncnn", "onnx-fp16", "tensorrt-nhwc", "torch-int8", "torch fp16"])
def test_contestants_that_there_are_not_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match=f"--backend {name}") as refusal:
        Contestant.parse(name)
    assert "tensorrt-stream" in refusal.value.fix


def test_images_are_normal_random_and_alike_for_equal_cases() -> None:
    pixels = random_pixels(Case(1, 100, 120, 2))
    assert pixels.shape == (2, 100, 120, 3)
    assert pixels.dtype == np.uint8
    assert pixels.mean() == pytest.approx(127.5, abs=1)
    assert pixels.std() == pytest.approx(62, abs=2)  # 64, less what is cut off at black and white
    assert np.array_equal(pixels, random_pixels(Case(1, 100, 120, 2)))
    assert not np.array_equal(pixels[0], pixels[1])


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("torch", torch.float32),
        ("torch-fp16", torch.float16),
        ("torch-bf16-nhwc", torch.bfloat16),
    ],
)
def test_a_run_of_pytorch_is_the_model_in_its_precision_and_memory_format(
    name: str, dtype: torch.dtype
) -> None:
    seen: list[tuple[Any, ...]] = []

    def look(module: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        if type(module).__name__ == "CMUDRN":
            image, weight = given[0], next(module.parameters())
            last = image.is_contiguous(memory_format=torch.channels_last)
            seen.append(
                (tuple(image.shape), image.dtype, weight.dtype, last, torch.is_inference_mode_enabled())
            )

    hook = nn.modules.module.register_module_forward_pre_hook(look)
    try:
        with open_contestant(Contestant.parse(name), Case(2, 12, 20, 3), CPU) as opened:
            assert opened.run() > 0
    finally:
        hook.remove()
    assert seen == [((3, 3, 12, 20), dtype, dtype, name.endswith("nhwc"), True)]


def test_every_size_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch would run all beyond a limit, eight by default, as eager, and say nothing."""
    compiled: list[int] = []

    def compiler(graph: torch.fx.GraphModule, given: list[torch.Tensor]) -> Callable[..., Any]:
        convolutions = [node for node in graph.graph.nodes if "conv" in str(node.target)]
        compiled.append(len(convolutions))
        return graph.forward

    monkeypatch.setattr("torch._dynamo.config.recompile_limit", 1)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=compiler))
    for side in range(8, 11):
        with open_contestant(Contestant.parse("compile"), Case(1, side, side, 1), CPU) as opened:
            assert opened.run() > 0
    assert len(compiled) == 3
    assert all(compiled)


@pytest.mark.parametrize("name", ["native", "onnx"])
def test_a_backends_run_restores_the_batch(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from cmudrn.deploy.native import NativeBackend
    from cmudrn.deploy.onnxruntime import OnnxBackend

    if name == "native" and not is_built():
        pytest.skip("the package has no kernels of its own here: make native")
    backend: Any = {"native": NativeBackend, "onnx": OnnxBackend}[name]
    streamed: list[NDArray[Any]] = []
    whole = backend.stream

    def watched(self: Any, batches: Any) -> Any:
        for restored in whole(self, batches):
            streamed.append(restored)
            yield restored

    monkeypatch.setattr(backend, "stream", watched)
    case = Case(1, 16, 12, 2)
    with open_contestant(Contestant.parse(name), case, CPU) as opened:
        assert opened.run() > 0
    model = load_model("default", loops=1)
    y = torch.from_numpy(random_pixels(case)).permute(0, 3, 1, 2).float() / 255
    with torch.inference_mode():
        right = (model(y).clamp(0, 1) * 255).permute(0, 2, 3, 1).numpy()
    assert len(streamed) == 1
    assert np.abs(streamed[0] - right).max() < 0.51


def test_what_is_not_here_says_so() -> None:
    for name in ("tensorrt", "tensorrt-stream", "onnx-gpu"):
        with (
            pytest.raises(EnvironmentMissing),
            open_contestant(Contestant.parse(name), CASE, Conditions()),
        ):
            pass
    with (
        pytest.raises(EnvironmentMissing, match="--device 7: PyTorch"),
        open_contestant(Contestant.parse("torch"), CASE, Conditions(device="7")),
    ):
        pass
    with (
        pytest.raises(CheckpointError, match="no such weights"),
        open_contestant(Contestant.parse("torch"), CASE, Conditions(weights="none", device="cpu")),
    ):
        pass


def store_with(case: Case, folder: Path) -> tuple[Conditions, str]:
    """An FP16 engine for the default weights, and its key; the stand-in takes a graph as a plan."""
    checkpoint, spec = read_checkpoint("default"), case.spec(Contestant.parse("tensorrt"))
    plan = typed_graph(checkpoint, spec)
    manifest = manifest_of(
        plan, spec, version=trt.__version__, target="sm89", weights_sha256=checkpoint.sha256
    )
    EngineStore(folder).put(plan, manifest)
    return Conditions(store=folder), manifest.key


@under_hostcuda()
def test_an_engines_kernels_are_timed_by_events_and_really_run() -> None:
    from tempfile import TemporaryDirectory

    from cmudrn.deploy.benchmark.engine_timing import KernelTimer, find_engine

    case = Case(1, 16, 16, 2)
    with TemporaryDirectory() as folder:
        conditions, key = store_with(case, Path(folder))
        engine = find_engine(case.spec(Contestant.parse("tensorrt")), conditions, "0")
        with open_contestant(Contestant.parse("tensorrt"), case, conditions) as opened:
            assert (opened.clock, opened.about) == ("device events", key)
            assert 0 < opened.run() < 10
        timer = KernelTimer(engine, slots=1, graphs=False)
        with timer:
            pixels = random_pixels(case)
            [right] = timer.stream([pixels])
            slot = timer._slots[0]
            device = timer._device
            assert device
            with device.current():
                device.cuda.memset_d8_async(slot.target.device, 7, right.nbytes, slot.stream)
                timer.run()
                device.cuda.memcpy_dtoh(slot.target.host, slot.target.device)
            assert np.array_equal(slot.target.host, right)


@under_hostcuda()
def test_an_engines_stream_is_timed_with_its_copies() -> None:
    from tempfile import TemporaryDirectory

    case = Case(1, 16, 16, 2)
    with TemporaryDirectory() as folder:
        conditions, key = store_with(case, Path(folder))
        with open_contestant(Contestant.parse("tensorrt-stream"), case, conditions) as opened:
            assert opened.clock == "wall"
            assert opened.about.startswith(key)
            assert 0 < opened.run() < 10


@under_hostcuda()
def test_a_figure_of_an_engine_that_was_built_anew_is_measured_anew() -> None:
    from tempfile import TemporaryDirectory

    case, names = Case(1, 16, 16, 2), ("tensorrt", "tensorrt-stream")
    with TemporaryDirectory() as folder:
        conditions, key = store_with(case, Path(folder, "store"))
        store = EngineStore(Path(folder, "store"))
        plan = BenchmarkPlan(
            contestants=tuple(map(Contestant.parse, names)),
            cases=(case,),
            effort=Effort(warmup=0, repeats=1),
            conditions=conditions,
        )
        with patch.object(grid, "measure_peak", side_effect=EnvironmentMissing("no peak", fix="none")):
            table = Table.open(Path(folder, "out"), terms_of(conditions))
            list(run_benchmark(plan, table))
            first = dict(table.cells)
            built = store.manifest(key).plan_sha256
            assert [cell.plan for cell in first.values()] == [built[:12]] * 2
            again = Table.open(Path(folder, "out"), terms_of(conditions))
            list(run_benchmark(plan, again))
            assert again.cells == first
            graph = typed_graph(read_checkpoint("default"), store.manifest(key).spec, Layout(y_once=True))
            facts = {"version": trt.__version__, "target": "sm89"}
            weights = read_checkpoint("default").sha256
            spec = store.manifest(key).spec
            store.put(graph, manifest_of(graph, spec, **facts, weights_sha256=weights))
            assert store.manifest(key).plan_sha256 != built
            list(run_benchmark(plan, again))
            now = {cell.plan for cell in Table.open(Path(folder, "out"), terms_of(conditions)).cells.values()}
            assert now == {store.manifest(key).plan_sha256[:12]}
            store.put(b"broken", manifest_of(b"broken", spec, **facts, weights_sha256=weights))
            list(run_benchmark(plan, again))
            assert not again.cells  # none of an engine that isn't there any more
            assert len(again.gaps) == 2


@under_hostcuda()
def test_a_flavour_that_is_broken_does_not_hide_the_engines_of_the_other() -> None:
    from tempfile import TemporaryDirectory

    from cmudrn.deploy.benchmark import engine_timing

    case = Case(1, 16, 16, 2)
    spec = case.spec(Contestant.parse("tensorrt"))
    broken = EnvironmentMissing("cannot import tensorrt_rtx", fix="pip install it")

    def opened(flavor: Flavor | None) -> Library:
        if flavor is not Flavor.TENSORRT:
            raise broken
        return Library(Flavor.TENSORRT, trt, trt.__version__)

    with (
        TemporaryDirectory() as folder,
        patch.object(engine_timing, "installed_flavors", return_value=[Flavor.RTX, Flavor.TENSORRT]),
        patch.object(engine_timing, "open_library", opened),
    ):
        conditions, key = store_with(case, Path(folder))
        assert engine_timing.find_engine(spec, conditions, "0").manifest.key == key
        with pytest.raises(EngineError, match="no engine for T = 2"):
            engine_timing.find_engine(replace(spec, loops=2), conditions, "0")
        with (
            patch.object(engine_timing, "installed_flavors", return_value=[Flavor.RTX]),
            pytest.raises(EnvironmentMissing, match="cannot import tensorrt_rtx"),
        ):
            engine_timing.find_engine(spec, conditions, "0")


@under_hostcuda()
def test_without_an_engine_the_command_that_builds_it_is_told() -> None:
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        conditions, _ = store_with(Case(1, 16, 16, 2), Path(folder))
        with (
            pytest.raises(EngineError, match=r"no engine for T = 2 at 16x16") as refusal,
            open_contestant(Contestant.parse("tensorrt"), Case(2, 16, 16, 2), conditions),
        ):
            pass
        assert "cmudrn build-engine --loops 2 --size 16x16" in refusal.value.fix


def test_peaks_are_those_of_the_library_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peak, "SIDE", dict.fromkeys(Place, 64))
    monkeypatch.setattr(peak, "COPIED_BYTES", dict.fromkeys(Place, 1 << 16))
    found = peak.measure_peak(Place.CPU, Precision.BF16, CPU)
    assert found.flops_per_s > 0
    assert found.bytes_per_s > 0
    assert found.by == f"torch {torch.__version__}"
    monkeypatch.setitem(sys.modules, "torch", None)
    assert peak.measure_peak(Place.CPU, Precision.FP32, CPU).by == f"numpy {np.__version__}"
    with pytest.raises(EnvironmentMissing, match="fp16"):
        peak.measure_peak(Place.CPU, Precision.FP16, CPU)
