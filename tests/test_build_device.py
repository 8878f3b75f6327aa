"""On which GPU an engine is built: TensorRT's own compiler isn't here, but all around it is.

Each body runs in a process of its own, on a CUDA driver in host memory with several devices.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import hostcuda
import pytest
from hostcuda.build import Driver, under_hostcuda

from cmudrn.checkpoint import read_checkpoint
from cmudrn.deploy.tuning.builds import Compiler
from cmudrn.engines.build import Plan
from cmudrn.engines.compile import CompileJob, compile_engines
from cmudrn.engines.flavors import Flavor, Library, open_library
from cmudrn.engines.layers import Layer
from cmudrn.engines.layout import Layout
from cmudrn.engines.manifest import Manifest
from cmudrn.engines.spec import EngineSpec
from cmudrn.engines.store import EngineStore
from cmudrn.errors import BuildError, UsageError

if TYPE_CHECKING:
    import pycuda.driver as cuda
else:
    try:  # in the processes under hostcuda alone
        import pycuda.driver as cuda
    except ImportError:
        cuda = None

SPEC = EngineSpec(loops=1, height=16, width=16)
HALF = frozenset({"Half"})


class Parts:
    """What a compiler holds: it must end while its device is current."""

    ended_on: list[str]

    def __init__(self) -> None:
        self.ended_on = []

    def __del__(self) -> None:
        self.ended_on.append(cuda.Context.get_device().name() if hostcuda.current_depth() else "no device")


@contextmanager
def compiler(error: Exception | None = None) -> Iterator[tuple[list[str], list[str]]]:
    """In TensorRT's place. Yields the devices that were current when it began, and when its parts ended."""
    began: list[str] = []
    ended: list[str] = []

    def build(library: Library, graph: bytes, *others: object) -> Plan:
        parts = Parts()
        parts.ended_on = ended
        began.append(cuda.Context.get_device().name())
        if error:
            raise error
        return Plan(graph, 0.0, [Layer("conv", "CaskConvolution", HALF, HALF, ())], None)

    with patch("cmudrn.engines.build._build", build):
        yield began, ended


def built_on(device: str | None, folder: str) -> Manifest:
    store, library = EngineStore(Path(folder)), open_library(Flavor.TENSORRT)
    job = CompileJob(specs=(SPEC,), device=device, rebuild=True)
    [one] = compile_engines(job, read_checkpoint("default"), library, store)
    if one.error:
        raise one.error
    assert one.manifest
    return one.manifest


@under_hostcuda(HOSTCUDA_DEVICES=3)
def test_an_engine_is_built_on_the_gpu_that_is_told_and_says_so() -> None:
    cuda.init()
    told = {None: 0, "0": 0, "2": 2, cuda.Device(1).pci_bus_id(): 1}
    for device, number in told.items():
        with TemporaryDirectory() as folder, compiler() as (began, ended):
            assert built_on(device, folder).gpu == f"Host memory {number}"
        assert began == ended == [f"Host memory {number}"]
        assert hostcuda.current_depth() == 0
        assert hostcuda.stats().live_contexts == 0


@under_hostcuda(HOSTCUDA_DEVICES=2)
def test_a_build_that_fails_leaves_nothing_of_the_compiler_without_its_gpu() -> None:
    broken = BuildError("no such kernel", fix="none")
    with TemporaryDirectory() as folder, compiler(broken) as (began, ended):
        with pytest.raises(BuildError, match="no such kernel"):
            built_on("1", folder)
        assert began == ended == ["Host memory 1"]
    assert hostcuda.stats().live_contexts == 0


@under_hostcuda(HOSTCUDA_DEVICES=2)
def test_a_gpu_that_is_not_there_is_refused_before_anything_is_built() -> None:
    with TemporaryDirectory() as folder, compiler() as (began, _):
        with pytest.raises(UsageError, match="--device 2: "):
            built_on("2", f"{folder}/store")
        assert not began
        assert not Path(folder, "store").exists()


@under_hostcuda(HOSTCUDA_DEVICES=2)
def test_tune_builds_for_the_gpu_that_it_measures() -> None:
    with TemporaryDirectory() as folder, compiler() as (began, _):
        store, into = EngineStore(Path(folder, "usual")), EngineStore(Path(folder, "own"))
        build: Any = Compiler("default", store, device="1")
        assert build(SPEC, Layout(), into).gpu == "Host memory 1"
    assert began == ["Host memory 1"]


def test_the_command_takes_a_number_or_a_bus_id(driver: Driver, tmp_path: Path) -> None:
    """The stand-in for TensorRT has no compiler, and a wrong device is told before that."""
    small = ["--loops", "1", "--size", "16", "--flavor", "tensorrt", "--store", str(tmp_path / "store")]
    run = driver.run(["-m", "cmudrn", "build-engine", *small, "--device", "7"], {"HOSTCUDA_DEVICES": 2})
    assert run.returncode == 2
    assert "--device 7: " in run.output
    assert "give one of 0 (0000:01:00.0), 1 (0000:02:00.0)" in run.output
