"""What hostcuda captures and replays, through the real cuda-bindings, and what it refuses meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import hostcuda
import numpy as np
import pytest
from hostcuda.build import under_hostcuda
from test_hostcuda import (
    WAIT_S,
    bytes_of,
    context,
    engine_of,
    expected,
    held,
    locked,
    some_batches,
    tiny_graph,
)

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

NON_BLOCKING = 1
GLOBAL, THREAD_LOCAL, RELAXED = range(3)
# CUDA's errors
INVALID_VALUE, INVALID_CONTEXT, ILLEGAL_STATE, LAUNCH_FAILED = 1, 201, 401, 719
UNSUPPORTED, INVALIDATED, WRONG_THREAD = 900, 901, 908


def call(name: str, *arguments: Any) -> tuple[int, Any]:
    """CUDA's error, 0 for none, and what the function gives."""
    from cuda.bindings import driver

    code, *values = getattr(driver, name)(*arguments)
    return int(code), values[0] if values else None


def mode_of(mode: int) -> Any:
    from cuda.bindings import driver

    return driver.CUstreamCaptureMode(mode)


def begin(stream: Any, mode: int = THREAD_LOCAL) -> int:
    return call("cuStreamBeginCapture", stream.handle, mode_of(mode))[0]


def end(stream: Any) -> tuple[int, Any]:
    return call("cuStreamEndCapture", stream.handle)


@contextmanager
def recorded(stream: Any, enqueue: Callable[[], None]) -> Iterator[Callable[[Any], None]]:
    """Launches what was enqueued on a stream."""
    assert begin(stream) == 0
    enqueue()
    code, graph = end(stream)
    assert code == 0
    code, executable = call("cuGraphInstantiate", graph, 0)
    assert code == call("cuGraphDestroy", graph)[0] == 0

    def launch(on: Any) -> None:
        assert call("cuGraphLaunch", executable, on.handle)[0] == 0

    yield launch
    assert call("cuGraphExecDestroy", executable)[0] == 0


# --- what works -------------------------------------------------------------------------------------------


@under_hostcuda(HOSTCUDA_DELAY_US=300)
@context()
def test_a_graph_copies_what_is_in_memory_by_then() -> None:
    stream, memory, sent, received = cuda.Stream(NON_BLOCKING), cuda.mem_alloc(64), locked(1), locked(0)

    def enqueue() -> None:
        cuda.memcpy_htod_async(memory, sent, stream)
        cuda.memset_d8_async(int(memory) + 60, 9, 4, stream)
        cuda.memcpy_dtoh_async(received, memory, stream)

    with recorded(stream, enqueue) as launch:
        assert (received == 0).all()
        assert hostcuda.stats().operations == 0  # recorded, and not run
        for value in range(20):
            sent[:] = value
            launch(stream)
            stream.synchronize()
            assert list(received) == [value] * 60 + [9] * 4
        assert hostcuda.stats().operations == 60
        assert hostcuda.stats().graph_launches == 20
        assert hostcuda.stats().live_graphs == 1
    assert (hostcuda.stats().live_graphs, hostcuda.stats().total_graphs) == (0, 2)


@under_hostcuda()
@context()
def test_launches_of_one_graph_wait_for_each_other_on_whatever_stream() -> None:
    streams, order = [cuda.Stream(NON_BLOCKING) for _ in range(2)], list[str]()
    memory, received = cuda.mem_alloc(64), locked(0)

    def enqueue() -> None:
        cuda.memcpy_dtoh_async(received, memory, streams[0])
        assert hostcuda.enqueue(streams[0].handle, lambda: order.append("graph")) == 0

    with recorded(streams[0], enqueue) as launch:
        assert order == []
        with held(streams[0]):
            launch(streams[0])
            launch(streams[1])
            hostcuda.enqueue(streams[1].handle, lambda: order.append("after both"))
            assert order == []
        for stream in streams:
            stream.synchronize()
    assert order == ["graph", "graph", "after both"]


@under_hostcuda(faults=True)
@context()
def test_an_engines_run_can_be_captured_after_its_first_one() -> None:
    """In which TensorRT sets things up."""
    batches = some_batches(20)
    right = expected(batches)
    engine, log = engine_of(tiny_graph())
    execution, stream = engine.create_execution_context(), cuda.Stream(NON_BLOCKING)
    image, output = cuda.mem_alloc(batches[0].nbytes), cuda.mem_alloc(batches[0].nbytes)
    assert execution.set_tensor_address("image", int(image))
    assert execution.set_tensor_address("restored", int(output))

    assert begin(stream) == 0
    assert not execution.execute_async_v3(stream.handle)
    assert "operation not permitted when stream is capturing" in log[-1]
    assert end(stream) == (INVALIDATED, None)

    cuda.memcpy_htod(image, batches[0])
    assert execution.execute_async_v3(stream.handle)
    stream.synchronize()
    with recorded(stream, lambda: execution.execute_async_v3(stream.handle)) as launch:
        for batch, restored in zip(batches, right, strict=True):
            cuda.memcpy_htod(image, batch)
            launch(stream)
            stream.synchronize()
            assert np.array_equal(bytes_of(output, batch.nbytes), restored.ravel())


@under_hostcuda(faults=True)
@context()
def test_an_engine_that_waits_for_its_stream_cannot_be_captured() -> None:
    engine, log = engine_of(trt.plan(tiny_graph(), waits=True))
    execution, stream, memory = (
        engine.create_execution_context(),
        cuda.Stream(NON_BLOCKING),
        cuda.mem_alloc(4096),
    )
    assert execution.set_tensor_address("image", int(memory))
    assert execution.set_tensor_address("restored", int(memory) + 2048)
    assert execution.execute_async_v3(stream.handle)
    stream.synchronize()
    assert begin(stream) == 0
    assert not execution.execute_async_v3(stream.handle)
    assert "operation not permitted when stream is capturing" in log[-1]
    assert end(stream) == (INVALIDATED, None)
    assert execution.execute_async_v3(stream.handle)


@under_hostcuda(faults=True)
def test_a_graph_does_not_outlive_its_execution_context() -> None:
    @context()
    def replayed() -> None:
        engine, _ = engine_of(tiny_graph())
        execution, stream = engine.create_execution_context(), cuda.Stream(NON_BLOCKING)
        memory = cuda.mem_alloc(4096)
        assert execution.set_tensor_address("image", int(memory))
        assert execution.set_tensor_address("restored", int(memory) + 2048)
        assert execution.execute_async_v3(stream.handle)
        stream.synchronize()
        assert begin(stream) == 0
        assert execution.execute_async_v3(stream.handle)
        code, graph = end(stream)
        code, executable = call("cuGraphInstantiate", graph, 0)
        del execution
        assert call("cuGraphLaunch", executable, stream.handle)[0] == code == 0
        with pytest.raises(cuda.Error, match="unspecified launch failure"):
            stream.synchronize()
        assert "KeyError" in hostcuda.last_fault()
        # What frees does so in a broken context too, and tells what broke it.
        assert call("cuGraphExecDestroy", executable)[0] == call("cuGraphDestroy", graph)[0] == LAUNCH_FAILED
        assert hostcuda.stats().live_graphs == 0

    replayed()


# --- what is refused --------------------------------------------------------------------------------------


@under_hostcuda(faults=True)
@context()
def test_whoever_waits_for_a_stream_that_captures_spoils_the_capture() -> None:
    stream, event, other = cuda.Stream(NON_BLOCKING), cuda.Event(), cuda.Stream(NON_BLOCKING)
    event.record(other)
    spoilers: dict[str, Callable[[], object]] = {
        "not permitted when stream is capturing": stream.synchronize,
        "operation not permitted": stream.is_done,
        "operation not": cuda.Context.synchronize,
        "dependency created on uncaptured work": lambda: stream.wait_for_event(event),
        "operation not supported": lambda: event.record(stream),  # CUDA could, hostcuda can't
    }
    for words, spoil in spoilers.items():
        assert begin(stream) == 0
        with pytest.raises(cuda.Error, match=words):
            spoil()
        with pytest.raises(cuda.Error, match="previous error during capture"):
            stream.synchronize()
        assert end(stream) == (INVALIDATED, None)
        stream.synchronize()  # usable again
    assert hostcuda.stats().live_graphs == 0


@under_hostcuda(faults=True)
@context()
def test_copies_are_checked_when_they_are_captured() -> None:
    stream, memory, plain = cuda.Stream(NON_BLOCKING), cuda.mem_alloc(64), np.zeros(64, np.uint8)
    wrong: dict[str, Callable[[], object]] = {
        "isn't page-locked": lambda: cuda.memcpy_htod_async(memory, plain, stream),
        "out of bounds": lambda: cuda.memset_d8_async(memory, 0, 65, stream),
    }
    for reason, enqueue in wrong.items():
        assert begin(stream) == 0
        with pytest.raises(cuda.Error, match="invalid argument"):
            enqueue()
        assert reason in hostcuda.last_fault()
        assert end(stream) == (INVALIDATED, None)


@under_hostcuda(faults=True)
@context()
def test_memory_is_neither_taken_nor_freed_by_the_thread_that_captures() -> None:
    stream, memory, event = cuda.Stream(NON_BLOCKING), cuda.mem_alloc(64), cuda.Event()
    for unsafe in (
        lambda: cuda.mem_alloc(64),
        lambda: bytes_of(memory),
        lambda: locked(0),
        event.synchronize,
    ):
        assert begin(stream) == 0
        with pytest.raises(cuda.Error, match="not permitted when stream is capturing"):
            unsafe()
        assert end(stream) == (INVALIDATED, None)
    assert begin(stream, RELAXED) == 0
    cuda.mem_alloc(64).free()
    code, graph = end(stream)
    assert code == call("cuGraphDestroy", graph)[0] == 0


@under_hostcuda(faults=True)
@context()
def test_the_mode_says_whether_other_threads_are_held_back_too() -> None:
    primary, stream, results = cuda.Context.get_current(), cuda.Stream(NON_BLOCKING), list[str]()

    def elsewhere() -> None:
        primary.push()
        try:
            cuda.mem_alloc(64).free()
            results.append("well")
        except cuda.Error as exc:
            results.append(str(exc))
        cuda.Context.pop()

    for mode, ended in ((THREAD_LOCAL, 0), (GLOBAL, INVALIDATED)):
        assert begin(stream, mode) == 0
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join(WAIT_S)
        code, graph = end(stream)
        assert code == ended
        if graph:
            assert call("cuGraphDestroy", graph)[0] == 0
    assert results[0] == "well"
    assert "not permitted when stream is capturing" in results[1]


@under_hostcuda(faults=True)
@context()
def test_the_default_stream_is_barred_while_a_stream_captures_that_it_waits_for() -> None:
    blocking, free, memory = cuda.Stream(), cuda.Stream(NON_BLOCKING), cuda.mem_alloc(64)
    assert begin(blocking, RELAXED) == 0
    with pytest.raises(cuda.Error, match="make the legacy stream depend on a capturing"):
        cuda.memset_d8_async(memory, 1, 64)
    assert end(blocking) == (INVALIDATED, None)
    assert begin(free, RELAXED) == 0
    cuda.memset_d8_async(memory, 1, 64)
    code, graph = end(free)
    assert code == call("cuGraphDestroy", graph)[0] == 0
    assert (bytes_of(memory) == 1).all()


@under_hostcuda(faults=True)
@context()
def test_a_capture_begins_and_ends_once_on_one_stream_in_one_thread() -> None:
    stream, codes = cuda.Stream(NON_BLOCKING), list[int]()
    primary = cuda.Context.get_current()

    def elsewhere() -> None:
        primary.push()
        codes.append(end(stream)[0])
        cuda.Context.pop()

    assert end(stream) == (ILLEGAL_STATE, None)
    assert call("cuStreamBeginCapture", 0, mode_of(THREAD_LOCAL))[0] == UNSUPPORTED  # the default stream
    assert begin(stream) == 0
    assert begin(stream) == ILLEGAL_STATE
    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join(WAIT_S)
    assert codes == [WRONG_THREAD]
    code, graph = end(stream)
    assert code == call("cuGraphDestroy", graph)[0] == 0
    assert call("cuGraphDestroy", graph)[0] == INVALID_VALUE  # again
    assert call("cuGraphInstantiate", graph, 0)[0] == INVALID_VALUE
    assert "destroyed" in hostcuda.last_fault()


@under_hostcuda(faults=True, HOSTCUDA_DEVICES=2)
@context(0)
def test_a_graph_is_launched_in_its_own_context_on_a_stream_that_does_not_capture() -> None:
    @context(1)
    def on_the_second() -> None:
        own = cuda.Stream(NON_BLOCKING)
        assert call("cuGraphLaunch", executable, own.handle)[0] == INVALID_CONTEXT

    stream = cuda.Stream(NON_BLOCKING)
    assert begin(stream) == 0
    executable = call("cuGraphInstantiate", graph := end(stream)[1], 0)[1]
    on_the_second()
    assert begin(stream) == 0
    assert call("cuGraphLaunch", executable, stream.handle)[0]
    assert end(stream) == (INVALIDATED, None)
    for destroy, what in (("cuGraphExecDestroy", executable), ("cuGraphDestroy", graph)):
        assert call(destroy, what)[0] == 0
    assert call("cuGraphLaunch", executable, stream.handle)[0] == INVALID_VALUE
    assert "destroyed" in hostcuda.last_fault()


@under_hostcuda(faults=True)
def test_a_graph_on_freed_memory_breaks_the_context_when_it_runs() -> None:
    @context()
    def broken() -> None:
        stream, memory = cuda.Stream(NON_BLOCKING), cuda.mem_alloc(64)
        with recorded(stream, lambda: cuda.memset_d8_async(memory, 1, 64, stream)) as launch:
            launch(stream)
            stream.synchronize()
        assert begin(stream) == 0
        cuda.memset_d8_async(memory, 1, 64, stream)
        graph = end(stream)[1]
        executable = call("cuGraphInstantiate", graph, 0)[1]
        memory.free()
        assert call("cuGraphLaunch", executable, stream.handle)[0] == 0
        with pytest.raises(cuda.Error, match="illegal memory access"):
            stream.synchronize()
        assert "it was freed" in hostcuda.last_fault()
        for destroy, what in (("cuGraphExecDestroy", executable), ("cuGraphDestroy", graph)):
            assert call(destroy, what)[0] != 0

    broken()


@under_hostcuda(leaks=True)
def test_graphs_that_a_context_still_holds_at_its_end_were_leaked() -> None:
    @context()
    def leaky() -> None:
        stream = cuda.Stream(NON_BLOCKING)
        assert begin(stream) == 0
        graph = end(stream)[1]
        assert call("cuGraphInstantiate", graph, 0)[0] == 0
        assert (
            hostcuda.stats().live_graphs == hostcuda.stats().left - 2 == 2
        )  # a stream and the context beside

    leaky()
    assert hostcuda.stats().leaks == hostcuda.stats().left == 2


@under_hostcuda()
def test_a_function_that_the_driver_has_not_is_an_error_of_cuda_bindings() -> None:
    with pytest.raises(RuntimeError, match="cuGraphUpload is not found"):
        call("cuGraphUpload", 0, 0)
