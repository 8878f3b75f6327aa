"""The GPU backend with CUDA graphs: the real pycuda and cuda-bindings on a CUDA driver in host memory.

Each test's body runs in a process of its own; nothing may be left of what it took, unless it says so.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import hostcuda
import numpy as np
import pytest
from hostcuda.build import Driver, under_hostcuda
from numpy.typing import NDArray
from random_weights import random_checkpoint
from test_tensorrt_backend import SPEC, batches, by_onnx_runtime, engine, equal

from cmudrn.deploy.cuda_graph import find_graph_driver
from cmudrn.deploy.tensorrt import Slot, TensorRTBackend
from cmudrn.engines.graph import typed_graph
from cmudrn.engines.spec import EngineSpec, Pixel, Precision
from cmudrn.engines.store import Engine
from cmudrn.errors import DeviceError

pytest.importorskip("cuda.bindings", reason="CUDA graphs need cuda-bindings")

if TYPE_CHECKING:
    import pycuda.driver as cuda
    from hostcuda import trt_stand_in as trt
else:
    try:  # in the processes under hostcuda alone
        import pycuda.driver as cuda
        import tensorrt as trt
    except ImportError:
        cuda = trt = None

GRAPHS_OF_A_SLOT = 2  # one that was recorded, and goes at once; one that is launched


class Lines(logging.Handler):
    """What is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        logging.getLogger("cmudrn").addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def engine_that(*, waits: bool, tells: bool = False) -> Engine:
    """waits: for its stream in every run, so it cannot be captured. tells: whether it can."""
    return engine(plan=trt.plan(typed_graph(random_checkpoint(), SPEC), waits=waits, tells=tells))


# --- what comes out ---------------------------------------------------------------------------------------


@under_hostcuda(HOSTCUDA_DELAY_US=100)
def test_a_thousand_replayed_batches_equal_onnx_runtimes_bit_for_bit() -> None:
    given = batches(1000, last=3)
    with TensorRTBackend(engine(), graphs=True) as backend:
        assert backend.replays
        assert all(equal(list(backend.stream(iter(given))), by_onnx_runtime(given)))
    assert hostcuda.stats().graph_launches == len(given)


@under_hostcuda(HOSTCUDA_DELAY_US=300)
def test_any_number_of_slots_and_of_images_in_the_last_batch_is_replayed() -> None:
    for slots in (1, 2, 3, 5):
        with TensorRTBackend(engine(), slots=slots) as backend:
            for count, last in ((0, None), (1, 1), (2, 3), (7, 2)):
                given = batches(count, last=last) if count else []
                assert all(equal(list(backend.stream(given)), by_onnx_runtime(given)))


@under_hostcuda(HOSTCUDA_DELAY_US=300)
def test_float32_pixels_are_replayed() -> None:
    spec = EngineSpec(loops=1, height=9, width=7, batch=2, precision=Precision.FP32, pixel=Pixel.FLOAT32)
    given = batches(9, spec)
    with TensorRTBackend(engine(spec)) as backend:
        assert backend.replays
        assert all(equal(list(backend.stream(given)), by_onnx_runtime(given, spec)))


@under_hostcuda(HOSTCUDA_DELAY_US=500)
def test_a_missing_wait_for_a_replay_is_seen() -> None:
    given = batches(30)
    right, whole = by_onnx_runtime(given), Slot.collect

    def without_waiting(slot: Slot) -> NDArray[Any]:
        restored: NDArray[Any] = slot.target.host[: slot.images].copy()
        return restored

    with TensorRTBackend(engine()) as backend:
        assert backend.replays
        Slot.collect = without_waiting  # type: ignore[method-assign,assignment]
        assert not all(equal(list(backend.stream(given)), right))
        Slot.collect = whole  # type: ignore[method-assign]
        assert all(equal(list(backend.stream(given)), right))


@under_hostcuda(HOSTCUDA_DELAY_US=500)
def test_an_event_that_does_not_stand_behind_its_replay_is_seen() -> None:
    given = batches(30)
    right = by_onnx_runtime(given)

    def hasty(slot: Slot, batch: NDArray[Any]) -> None:
        assert slot.graph
        slot.images, slot.source.host[: len(batch)] = len(batch), batch
        slot.done.record(slot.stream)
        slot.graph.launch()

    whole = Slot.submit
    with TensorRTBackend(engine()) as backend:
        Slot.submit = hasty  # type: ignore[method-assign,assignment]
        assert not all(equal(list(backend.stream(given)), right))
        Slot.submit = whole  # type: ignore[method-assign]
        assert all(equal(list(backend.stream(given)), right))


# --- how it goes ------------------------------------------------------------------------------------------


@under_hostcuda()
def test_neither_memory_nor_a_graph_is_made_after_the_start() -> None:
    with TensorRTBackend(engine(), slots=3) as backend:
        assert hostcuda.stats().live_graphs == 3
        assert hostcuda.stats().total_graphs == 3 * GRAPHS_OF_A_SLOT
        hostcuda.mark()
        list(backend.stream(batches(50)))
        list(backend.stream(batches(5)))
        assert hostcuda.stats().allocations_since_mark == 0
        assert hostcuda.stats().total_graphs == 3 * GRAPHS_OF_A_SLOT
    assert hostcuda.stats().live_graphs == 0


@under_hostcuda(HOSTCUDA_DELAY_US=300)
def test_without_graphs_none_is_made() -> None:
    given = batches(20, last=1)
    with TensorRTBackend(engine(), graphs=False) as backend:
        assert not backend.replays
        assert all(equal(list(backend.stream(given)), by_onnx_runtime(given)))
    assert hostcuda.stats().total_graphs == hostcuda.stats().graph_launches == 0


@under_hostcuda(HOSTCUDA_DELAY_US=300)
def test_without_cuda_bindings_all_works_and_nothing_is_said() -> None:
    sys.modules["cuda.bindings"] = None  # type: ignore[assignment]
    given, logged = batches(20, last=1), Lines()
    with TensorRTBackend(engine()) as backend:
        assert not backend.replays
        assert all(equal(list(backend.stream(given)), by_onnx_runtime(given)))
    assert hostcuda.stats().total_graphs == 0
    assert not logged.lines


@under_hostcuda(HOSTCUDA_DELAY_US=300, faults=True)
def test_an_engine_that_cannot_be_captured_runs_without_and_says_so_once() -> None:
    given, logged = batches(20, last=1), Lines()
    with TensorRTBackend(engine_that(waits=True), slots=3) as backend:
        assert not backend.replays
        assert hostcuda.stats().live_graphs == 0
        assert all(equal(list(backend.stream(given)), by_onnx_runtime(given)))
    (line,) = logged.lines
    assert "runs without CUDA graphs" in line
    assert "operation not permitted when stream is capturing" in line
    assert hostcuda.stats().faults == 1  # the capture's
    assert hostcuda.stats().left == hostcuda.stats().graph_launches == 0


@under_hostcuda(HOSTCUDA_DELAY_US=300)
def test_an_engine_whose_library_says_that_it_cannot_be_captured_is_not() -> None:
    """TensorRT-RTX says so."""
    given, logged = batches(20, last=1), Lines()
    right = by_onnx_runtime(given)
    for waits in (True, False):
        with TensorRTBackend(engine_that(waits=waits, tells=True)) as backend:
            assert backend.replays is not waits
            assert all(equal(list(backend.stream(given)), right))
    (line,) = logged.lines
    assert "the library says" in line


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize(
    "call", ["cuStreamBeginCapture_v2", "cuStreamEndCapture", "cuGraphInstantiateWithFlags"]
)
def test_what_cuda_refuses_of_a_graph_costs_only_the_graph(driver: Driver, call: str, number: int) -> None:
    run = driver.run_body(__name__, "graphs_that_are_refused", {"HOSTCUDA_FAIL": f"{call}:{number}"})
    assert run.returncode == 0, run.output
    assert run.stats.faults == 0, run.last_fault
    assert run.stats.left == 0, run.stats


@under_hostcuda()
def graphs_that_are_refused() -> None:
    given, logged = batches(20), Lines()
    with TensorRTBackend(engine()) as backend:
        assert not backend.replays
        assert all(equal(list(backend.stream(given)), by_onnx_runtime(given)))
    assert len(logged.lines) == 1


@under_hostcuda()
def test_a_driver_without_a_function_is_an_error_like_cudas() -> None:
    """An older one: cuda-bindings then raises something of its own."""
    cuda.init()
    graphs = find_graph_driver(cuda)
    assert graphs
    with pytest.raises(cuda.Error, match="cuGraphUpload is not found"):
        graphs.call("cuGraphUpload", 0, 0)


@under_hostcuda()
def test_other_threads_use_the_device_while_a_slot_is_captured() -> None:
    """As PyTorch would, in the same process: memory of its own, and the default stream."""
    cuda.init()
    primary, wells, whole = cuda.Device(0).retain_primary_context(), list[bool](), Slot._enqueue

    def elsewhere() -> None:
        primary.push()
        memory, read = cuda.mem_alloc(64), np.empty(64, np.uint8)
        cuda.memset_d8(memory, 7, 64)
        cuda.memcpy_dtoh(read, memory)
        memory.free()
        cuda.Context.pop()
        wells.append(bool((read == 7).all()))

    def in_company(slot: Slot) -> None:
        whole(slot)
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()

    Slot._enqueue = in_company  # type: ignore[method-assign,assignment]
    with TensorRTBackend(engine()) as backend:
        assert backend.replays
    primary.detach()
    hostcuda.library().cuCtxPopCurrent_v2(None)  # pycuda leaves it current
    assert wells == [True] * 4  # two slots, each warmed up and captured


# --- what goes wrong --------------------------------------------------------------------------------------


@under_hostcuda(HOSTCUDA_DELAY_US=2000)
def test_a_consumer_that_leaves_replays_early_leaves_nothing_behind() -> None:
    given = batches(20)
    right = by_onnx_runtime(given)
    with TensorRTBackend(engine()) as backend:
        for stop in (0, 1, 5):
            restored = backend.stream(given)
            assert all(equal([next(restored) for _ in range(stop)], right[:stop]))
            restored.close()
        assert all(equal(list(backend.stream(given)), right))
        half = backend.stream(given)
        next(half)  # and the backend is closed in mid-stream


@pytest.mark.parametrize("error", ["OSError", "KeyboardInterrupt"])
def test_a_source_that_fails_leaves_nothing_behind(driver: Driver, error: str) -> None:
    run = driver.run_body(
        __name__, "source_that_fails", {"HOSTCUDA_DELAY_US": 1000, "CMUDRN_TEST_ERROR": error}
    )
    assert run.returncode == 0, run.output
    assert run.stats.left == run.stats.faults == 0, run.stats


@under_hostcuda()
def source_that_fails() -> None:
    import builtins
    import os

    error: type[BaseException] = getattr(builtins, os.environ["CMUDRN_TEST_ERROR"])

    def failing() -> Iterator[NDArray[Any]]:
        yield from batches(3)
        raise error("of the source")

    with TensorRTBackend(engine()) as backend:
        with pytest.raises(error, match="of the source"):
            list(backend.stream(failing()))
        given = batches(4)
        assert all(equal(list(backend.stream(given)), by_onnx_runtime(given)))


# The first of these come while the slots are warmed up and captured, the others while batches are replayed.
@pytest.mark.parametrize(
    "failing",
    [
        "run:1",
        "cuMemcpyHtoDAsync_v2:1",
        "hostcuda_enqueue:2",
        "cuMemcpyDtoHAsync_v2:4",
        "cuStreamSynchronize:3",
        "cuGraphLaunch:1",
        "cuGraphLaunch:7",
        "cuEventRecord:3",
        "cuEventSynchronize:2",
        "run:19",
        "run:40",
    ],
)
def test_whatever_fails_on_the_device_is_an_error_of_ours_and_no_graph_stays(
    driver: Driver, failing: str
) -> None:
    run = driver.run_body(__name__, "replays_that_fail", {"HOSTCUDA_FAIL": failing})
    assert run.returncode == 0, (run.last_fault, run.output)
    live = {name: value for name, value in run.stats._asdict().items() if name.startswith("live")}
    assert not any(live.values()), live


@under_hostcuda()
def replays_that_fail() -> None:
    with pytest.raises(DeviceError) as failure, TensorRTBackend(engine()) as backend:
        list(backend.stream(batches(30)))
    assert failure.value.fix
