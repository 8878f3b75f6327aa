"""Which GPU is taken, and what is said where there is none, an old driver, or too little memory.

Most bodies run in a process of their own, on a CUDA driver in host memory.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import hostcuda
import pytest
from hostcuda.build import Driver, under_hostcuda
from test_tensorrt_backend import batches, by_onnx_runtime, engine, equal

from cmudrn.deploy.cuda import open_device
from cmudrn.deploy.tensorrt import TensorRTBackend
from cmudrn.engines.gpu import count_gpus, local_gpu, local_gpus
from cmudrn.engines.spec import EngineSpec, Precision
from cmudrn.errors import CmudrnError, DeviceError, EngineError, EnvironmentMissing, UsageError

if TYPE_CHECKING:
    import pycuda.driver as cuda
else:
    try:  # in the processes under hostcuda alone
        import pycuda.driver as cuda
    except ImportError:
        cuda = None

LARGE = EngineSpec(loops=1, height=256, width=256, batch=8, precision=Precision.FP32)
# MB: 8 x 256 x 256 x 3 bytes in and out, and four times that for each of the stand-in's execution contexts.
LARGE_SLOT_MB = 15


def refusal(*, spec: EngineSpec | None = None, slots: int = 2) -> CmudrnError:
    """Of a backend that doesn't open."""
    built = engine(spec) if spec else engine()
    with pytest.raises(CmudrnError) as refused, TensorRTBackend(built, slots=slots):
        pass
    return refused.value


# --- which one --------------------------------------------------------------------------------------------


@under_hostcuda(HOSTCUDA_DEVICES=3, CUDA_VISIBLE_DEVICES="2,0")
def test_devices_are_numbered_as_cuda_visible_devices_has_it() -> None:
    for wanted, name in (("0", "Host memory 2"), ("1", "Host memory 0")):
        with open_device(wanted) as device:
            assert device.name == name
    for wanted in ("2", "0000:02:00.0"):  # there, and hidden
        with pytest.raises(UsageError, match=f"--device {wanted}") as refused, open_device(wanted):
            pass
        assert "give one of 0 (0000:03:00.0), 1 (0000:01:00.0)" in refused.value.fix


@under_hostcuda(HOSTCUDA_DEVICES=3, CUDA_VISIBLE_DEVICES="2,0")
def test_gpus_are_counted_without_pycuda() -> None:
    assert count_gpus() == 2


@under_hostcuda(HOSTCUDA_DEVICES=0)
def test_a_driver_without_a_gpu_counts_none() -> None:
    assert count_gpus() == 0


@under_hostcuda(HOSTCUDA_DEVICES=2)
def test_numbers_of_no_device_are_refused_in_a_line() -> None:
    for wanted in ("99999999999", "9" * 30, "\u00b2", "\u0661", "1.0", "", "-1", "cpu"):
        with pytest.raises(UsageError, match=f"--device {wanted}: ") as refused:
            local_gpu(wanted)
        assert refused.value.fix == "give one of 0 (0000:01:00.0), 1 (0000:02:00.0)"


@under_hostcuda(HOSTCUDA_DEVICES=2)
def test_the_same_gpu_by_two_names_is_refused() -> None:
    for wanted in (["0", "0000:01:00.0"], ["0", "1", "0"], ["0000:01:00.0", "00"]):
        with pytest.raises(UsageError, match="the same GPU as --device 0") as refused:
            local_gpus(wanted)
        assert "--streams" in refused.value.fix
    assert [gpu.name for gpu in local_gpus(["1", "0"])] == ["Host memory 1", "Host memory 0"]


@under_hostcuda(HOSTCUDA_DEVICES=3, CUDA_VISIBLE_DEVICES="1", HOSTCUDA_DELAY_US=200)
def test_an_engine_runs_on_the_one_device_that_is_visible() -> None:
    given = batches(10)
    for wanted in ("0", "0000:02:00.0"):
        with TensorRTBackend(engine(), device=wanted) as backend:
            assert backend.label == "TensorRT 11.4.0.1 on Host memory 1"
            assert all(equal(list(backend.stream(given)), by_onnx_runtime(given)))
    with pytest.raises(RuntimeError, match="not open"):
        _ = backend.label


@under_hostcuda(HOSTCUDA_DEVICES=2, CUDA_VISIBLE_DEVICES="")
def test_where_all_devices_are_hidden_the_variable_is_named() -> None:
    refused = refusal()
    assert isinstance(refused, EnvironmentMissing)
    assert "no CUDA-capable device" in refused.what
    assert "CUDA_VISIBLE_DEVICES" in refused.fix


# --- no driver, or an old one -----------------------------------------------------------------------------


@under_hostcuda(HOSTCUDA_VERSION=11080)
def test_a_driver_older_than_pycudas_cuda_is_named_with_both_versions() -> None:
    refused = refusal()
    assert isinstance(refused, EnvironmentMissing)
    assert f"driver is for CUDA 11.8, pycuda for CUDA {cuda.get_version()[0]}" in refused.what
    assert "install a newer driver" in refused.fix
    assert hostcuda.stats().live_contexts == 0


@under_hostcuda(HOSTCUDA_TENSORRT_CUDA=99)
def test_a_driver_older_than_tensorrts_cuda_is_told_in_tensorrts_words() -> None:
    """Its runtime then is none, which pybind11 makes a TypeError of."""
    refused = refusal()
    assert isinstance(refused, EnvironmentMissing)
    assert "CUDA initialization failure with error: 35" in refused.what
    assert "install a newer NVIDIA driver" in refused.fix


def test_without_a_driver_its_library_and_the_way_to_it_are_named(driver: Driver, tmp_path: Path) -> None:
    """libcuda.so.1 is an empty file here, also on a machine that has a driver."""
    (tmp_path / "libcuda.so.1").touch()
    code = """
from cmudrn.deploy.cuda import open_device
from cmudrn.errors import EnvironmentMissing
try:
    with open_device():
        pass
except EnvironmentMissing as missing:
    print(missing.what, missing.fix, sep="\\n")
"""
    environment = {**driver.environment({}), "LD_LIBRARY_PATH": str(tmp_path)}
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    what, fix = run.stdout.splitlines()
    assert "libcuda.so.1" in what
    assert "install the NVIDIA driver" in fix


# --- too little memory ------------------------------------------------------------------------------------


@pytest.mark.parametrize("slots", [1, 3])
@pytest.mark.parametrize("memory_mb", [2, 8])
def test_out_of_memory_tells_what_was_asked_and_what_is_free(
    driver: Driver, memory_mb: int, slots: int
) -> None:
    """2 MB hold one buffer, 8 MB both but no execution context, whose lack TensorRT only logs."""
    settings = {"HOSTCUDA_MEMORY_MB": memory_mb, "CMUDRN_TEST_SLOTS": slots}
    run = driver.run_body(__name__, "opening_without_room", settings)
    assert run.returncode == 0, run.output
    assert run.stats.left == run.stats.faults == 0, (run.stats, run.last_fault)


@under_hostcuda()
def opening_without_room() -> None:
    memory_mb, slots = int(os.environ["HOSTCUDA_MEMORY_MB"]), int(os.environ["CMUDRN_TEST_SLOTS"])
    refused = refusal(spec=LARGE, slots=slots)
    assert isinstance(refused, DeviceError)
    free_mb = memory_mb - {2: 2, 8: 4}[memory_mb]  # buffers of 1.5 MB, and an engine of some kB
    asked = f"{free_mb} of {memory_mb} MB are free, {slots * LARGE_SLOT_MB} MB were asked for"
    assert asked in refused.what, refused.what
    assert {2: "cuMemAlloc failed", 8: "no execution context"}[memory_mb] in refused.what
    assert "smaller batch" in refused.fix


@under_hostcuda(HOSTCUDA_FAIL="cuMemAlloc_v2:1")
def test_an_engine_that_itself_finds_no_room_is_no_wrong_engine() -> None:
    refused = refusal()
    assert isinstance(refused, DeviceError)
    assert "1024 of 1024 MB are free, 1 MB were asked for" in refused.what
    assert "out of memory" in refused.what.split("asked for")[1]  # TensorRT's own words
    assert "smaller batch" in refused.fix


@under_hostcuda(HOSTCUDA_FAIL="hostcuda_enqueue:1")
def test_a_run_that_tensorrt_refuses_keeps_its_words() -> None:
    words = r"enqueueV3: Error Code 1: Cuda Runtime \(CUDA error 719"
    with pytest.raises(DeviceError, match=words), TensorRTBackend(engine(), graphs=False) as backend:
        list(backend.stream(batches(1)))


@under_hostcuda()
def test_an_engine_that_is_none_is_still_that() -> None:
    with pytest.raises(EngineError, match="Magic tag"), TensorRTBackend(engine(plan=b"no plan")):
        pass
