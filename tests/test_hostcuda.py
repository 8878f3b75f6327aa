"""The CUDA driver in host memory is as strict as a GPU is careless, and the stand-in for TensorRT with it.

Each test's body runs in a process of its own, in which the real pycuda is bound to hostcuda.
"""

from __future__ import annotations

import ctypes
import gc
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hostcuda
import numpy as np
import pytest
from hostcuda.build import SOURCES, Driver, under_hostcuda
from numpy.typing import NDArray
from random_weights import random_checkpoint

from cmudrn.engines.graph import typed_graph
from cmudrn.engines.spec import EngineSpec, Pixel, Precision

if TYPE_CHECKING:
    import pycuda.driver as cuda
    from hostcuda import trt_stand_in as trt
else:
    try:  # in the processes under hostcuda alone
        import pycuda.driver as cuda
        import tensorrt as trt
    except ImportError:
        cuda = trt = None

POISON = 0xCB  # new memory
UNDEFINED = 0xA5  # an engine's output, until it is there
WAIT_S = 30  # longer than anything lasts
SHAPE = (2, 12, 16, 3)  # of a batch


@contextmanager
def context(device: int = 0) -> Iterator[Any]:
    """A device's primary context, current. Around a function it sees the variables go first, as they must."""
    cuda.init()
    depth = hostcuda.current_depth()
    primary = cuda.Device(device).retain_primary_context()
    primary.push()
    try:
        yield primary
    finally:
        gc.collect()
        cuda.Context.pop()
        primary.detach()
        # To detach it, pycuda 2026.1 pushes it once more, and leaves it there.
        assert hostcuda.current_depth() == depth + 1
        assert hostcuda.library().cuCtxPopCurrent_v2(None) == 0


@contextmanager
def held(stream: Any = None) -> Iterator[None]:
    """Nothing that is enqueued inside runs before the end. Without a stream, on the default one."""
    gate = threading.Event()
    assert hostcuda.enqueue(stream.handle if stream else 0, lambda: wait(gate)) == 0
    try:
        yield
    finally:
        gate.set()


def wait(gate: threading.Event) -> None:
    assert gate.wait(WAIT_S)


def locked(value: int, count: int = 64) -> NDArray[np.uint8]:
    """Page-locked bytes."""
    memory: NDArray[np.uint8] = cuda.pagelocked_empty(count, np.uint8)
    memory[:] = value
    return memory


def bytes_of(memory: Any, count: int = 64) -> NDArray[np.uint8]:
    """Device memory, after everything before it on all streams."""
    read = np.empty(count, np.uint8)
    cuda.memcpy_dtoh(read, memory)
    return read


@contextmanager
def refused(error: str, fault: str) -> Iterator[None]:
    """CUDA says this, and hostcuda why."""
    before = hostcuda.stats().faults
    with pytest.raises(cuda.Error, match=error):
        yield
    assert hostcuda.stats().faults == before + 1
    assert fault in hostcuda.last_fault()


# --- what works -------------------------------------------------------------------------------------------


@under_hostcuda()
def test_pycuda_finds_a_device_and_all_it_asks_of_it() -> None:
    cuda.init()
    device = cuda.Device(0)
    assert cuda.Device.count() == 1
    assert device.name() == "Host memory 0"
    assert device.compute_capability() == (8, 9)
    assert device.total_memory() == 1 << 30
    assert cuda.Device(device.pci_bus_id()) == device
    assert device.get_attribute(cuda.device_attribute.UNIFIED_ADDRESSING) == 1
    assert device.get_attributes()[cuda.device_attribute.COMPUTE_CAPABILITY_MINOR] == 9
    assert cuda.get_driver_version() == 13000


@under_hostcuda(HOSTCUDA_DELAY_US=50)
@context()
def test_what_is_copied_there_comes_back() -> None:
    stream, sent, received = cuda.Stream(), locked(7), locked(0)
    first, second = cuda.mem_alloc(64), cuda.mem_alloc(64)
    assert (bytes_of(first) == POISON).all()
    cuda.memcpy_htod_async(first, sent, stream)
    cuda.memcpy_dtod_async(second, first, 64, stream)
    cuda.memset_d8_async(int(second) + 32, 9, 32, stream)
    cuda.memcpy_dtoh_async(received, second, stream)
    stream.synchronize()
    assert list(received) == [7] * 32 + [9] * 32
    cuda.memcpy_htod(first, np.arange(64, dtype=np.uint8))
    cuda.memset_d8(int(first) + 60, 1, 4)
    assert list(bytes_of(first)) == [*range(60), 1, 1, 1, 1]
    assert cuda.mem_get_info() == ((1 << 30) - 128, 1 << 30)


@under_hostcuda(HOSTCUDA_DELAY_US=300)
@context()
def test_a_stream_keeps_its_order() -> None:
    stream, memory = cuda.Stream(), cuda.mem_alloc(64)
    for number in range(100):
        cuda.memset_d8_async(memory, number, 64, stream)
    stream.synchronize()
    assert (bytes_of(memory) == 99).all()


@under_hostcuda()
@context()
def test_streams_run_at_the_same_time() -> None:
    both = threading.Barrier(2)
    streams = [cuda.Stream(), cuda.Stream()]
    for stream in streams:
        assert hostcuda.enqueue(stream.handle, lambda: void(both.wait(WAIT_S))) == 0
    cuda.Context.synchronize()
    assert not both.broken


def void(_: object) -> None:
    pass


@under_hostcuda()
@context()
def test_an_event_holds_a_stream_until_it_is_reached() -> None:
    writer, reader, done = cuda.Stream(), cuda.Stream(), cuda.Event()
    memory, unordered, ordered = cuda.mem_alloc(64), locked(0), locked(0)
    with held(writer):
        cuda.memset_d8_async(memory, 5, 64, writer)
        done.record(writer)
        cuda.memcpy_dtoh_async(unordered, memory, reader)
        reader.synchronize()
        reader.wait_for_event(done)
        cuda.memcpy_dtoh_async(ordered, memory, reader)
        assert not done.query()
        assert not reader.is_done()
    reader.synchronize()
    assert done.query()
    assert (unordered == POISON).all()  # the missing wait
    assert (ordered == 5).all()


@under_hostcuda()
@context()
def test_who_reads_before_synchronising_reads_what_was_there() -> None:
    stream, memory, received, sent = cuda.Stream(), cuda.mem_alloc(64), locked(1), locked(2)
    with held(stream):
        cuda.memcpy_htod_async(memory, sent, stream)
        cuda.memcpy_dtoh_async(received, memory, stream)
        assert (received == 1).all()
        sent[:] = 3  # too early: the copy reads it when it runs
    stream.synchronize()
    assert (received == 3).all()


@under_hostcuda()
@context()
def test_the_default_stream_and_the_others_wait_for_each_other() -> None:
    stream, free, memory = cuda.Stream(), cuda.Stream(1), cuda.mem_alloc(64)  # 1: non-blocking
    with held(stream):
        cuda.memset_d8(memory, 4, 64)  # on the default stream, which nobody waits for
        cuda.memset_d8_async(memory, 6, 32, free)
        free.synchronize()
    assert (bytes_of(memory) == 4).all()
    with held():
        cuda.memset_d8(memory, 5, 64)
        cuda.memset_d8_async(memory, 7, 32, stream)
        free.synchronize()
        time.sleep(0.02)  # enough for what should wait, and doesn't
    assert list(bytes_of(memory)) == [7] * 32 + [5] * 32


@under_hostcuda(HOSTCUDA_DELAY_US=0)
@context()
def test_events_tell_the_time_between_them() -> None:
    stream, start, end = cuda.Stream(), cuda.Event(), cuda.Event()
    assert start.query()  # never recorded: nothing to wait for
    start.record(stream)
    hostcuda.enqueue(stream.handle, lambda: void(threading.Event().wait(0.02)))
    end.record(stream).synchronize()
    assert 20 <= start.time_till(end) == end.time_since(start) < 10_000


@under_hostcuda(HOSTCUDA_DEVICES=3, CUDA_VISIBLE_DEVICES="2,0,7,1")
def test_devices_are_chosen_and_numbered_by_cuda_visible_devices() -> None:
    cuda.init()
    assert [cuda.Device(i).name() for i in range(cuda.Device.count())] == ["Host memory 2", "Host memory 0"]
    assert cuda.Device("0000:03:00.0") == cuda.Device(0)
    with pytest.raises(cuda.LogicError, match="invalid device ordinal"):
        cuda.Device("0000:02:00.0")


@under_hostcuda(HOSTCUDA_DEVICES=0)
def test_without_a_device_nothing_starts() -> None:
    with pytest.raises(cuda.RuntimeError, match="no CUDA-capable device"):
        cuda.init()


@under_hostcuda()
def test_a_second_user_of_the_primary_context_keeps_it_alive() -> None:
    other = hostcuda.library()  # as torch would, in the same process
    handle = ctypes.c_void_p()
    with context() as primary:
        assert other.cuDevicePrimaryCtxRetain(ctypes.byref(handle), 0) == 0
        assert handle.value == primary.handle
        memory = cuda.mem_alloc(64)
        memory.free()
    assert hostcuda.stats().live_contexts == 1
    assert other.cuDevicePrimaryCtxRelease_v2(0) == 0
    assert hostcuda.stats().live_contexts == 0


# --- what is refused --------------------------------------------------------------------------------------


@under_hostcuda(faults=True)
@context()
def test_copies_that_cannot_be_right_are_refused() -> None:
    stream, memory, pinned = cuda.Stream(), cuda.mem_alloc(64), locked(0)
    plain = np.zeros(64, np.uint8)
    with refused("invalid argument", "isn't page-locked"):
        cuda.memcpy_htod_async(memory, plain, stream)
    with refused("invalid argument", "isn't page-locked"):
        cuda.memcpy_dtoh_async(plain, memory, stream)
    with refused("invalid argument", "out of bounds: 64 bytes from 1 on"):
        cuda.memcpy_htod_async(int(memory) + 1, pinned, stream)
    with refused("invalid argument", "out of bounds: 65 bytes from 0 on"):
        cuda.memset_d8_async(memory, 0, 65, stream)
    with refused("invalid argument", "no device memory"):
        cuda.memcpy_dtoh(plain, int(memory) + 64)
    with refused("invalid argument", "page-locked, not on a device"):
        cuda.memset_d8_async(pinned.ctypes.data, 0, 64, stream)
    freed = int(memory)
    memory.free()
    with refused("invalid argument", "it was freed"):
        cuda.memcpy_htod_async(freed, pinned, stream)
    assert hostcuda.library().cuMemFree_v2(ctypes.c_uint64(freed)) == 1
    assert "was freed before" in hostcuda.last_fault()


@under_hostcuda()
@context()
def test_registered_memory_counts_as_page_locked() -> None:
    # Not by pycuda 2026.1's register_host_memory: with numpy 2 it ends the process.
    library, plain, address = hostcuda.library(), np.full(64, 8, np.uint8), ctypes.c_void_p()
    stream, memory = cuda.Stream(), cuda.mem_alloc(64)
    address.value = plain.ctypes.data
    assert library.cuMemHostRegister_v2(address, ctypes.c_size_t(64), 0) == 0
    assert library.cuMemHostRegister_v2(address, ctypes.c_size_t(1), 0) == 712  # already
    cuda.memcpy_htod_async(memory, plain, stream)
    stream.synchronize()
    assert (bytes_of(memory) == 8).all()
    assert library.cuMemHostUnregister(address) == 0


@under_hostcuda(faults=True)
def test_without_a_current_context_nothing_goes() -> None:
    with pytest.raises(cuda.Error, match="initialization error"):
        cuda.Device(0)
    cuda.init()
    with refused("invalid device context", "no current context"):
        cuda.mem_alloc(64)
    with context() as primary:
        ended: list[str] = []

        def elsewhere() -> None:
            with refused("invalid device context", "no current context"):
                cuda.mem_alloc(64)
            primary.push()
            cuda.mem_alloc(64).free()
            cuda.Context.pop()
            ended.append("well")

        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join(WAIT_S)
        assert ended == ["well"]


@under_hostcuda(faults=True, HOSTCUDA_DEVICES=2)
@context(0)
def test_nothing_is_used_under_another_context() -> None:
    @context(1)
    def on_the_second() -> None:
        own = cuda.Stream()
        assert cuda.mem_get_info() == (1 << 30, 1 << 30)
        with refused("invalid resource handle", "a stream of another context"):
            stream.synchronize()
        with refused("invalid resource handle", "an event of another context"):
            event.record(own)
        with refused("invalid argument", "device memory of another context"):
            cuda.memset_d8_async(memory, 0, 64, own)
        own.wait_for_event(event)  # CUDA allows that
        own.synchronize()

    stream, event, memory = cuda.Stream(), cuda.Event(), cuda.mem_alloc(64)
    on_the_second()


@under_hostcuda(faults=True)
@context()
def test_a_handle_that_was_destroyed_is_never_anothers() -> None:
    old = cuda.Stream()
    handle = old.handle
    del old
    kept = cuda.Stream()
    assert hostcuda.enqueue(handle, lambda: None) == 400
    assert "destroyed" in hostcuda.last_fault()
    kept.synchronize()


@under_hostcuda(faults=True)
def test_memory_freed_under_a_queued_copy_breaks_the_context() -> None:
    @context()
    def broken() -> None:
        stream, memory, pinned = cuda.Stream(), cuda.mem_alloc(64), locked(0)
        with held(stream):
            cuda.memcpy_htod_async(memory, pinned, stream)
            memory.free()
        with refused("illegal memory access", "it was freed"):
            stream.synchronize()
        for call in (lambda: cuda.mem_alloc(64), cuda.Stream, cuda.Event, cuda.Context.synchronize):
            with pytest.raises(cuda.Error, match="illegal memory access"):
                call()

    broken()
    with context():  # a new one is whole
        cuda.mem_alloc(64).free()


@under_hostcuda(faults=True, leaks=True)
@context()
def test_memory_freed_under_a_running_operation_breaks_the_context() -> None:
    stream, memory = cuda.Stream(), cuda.mem_alloc(64)
    started, freed, address = threading.Event(), threading.Event(), int(memory)

    def use() -> None:
        assert hostcuda.library().hostcuda_check_range(address, 64) == 0
        started.set()
        wait(freed)

    hostcuda.enqueue(stream.handle, use)
    wait(started)
    memory.free()
    freed.set()
    with pytest.raises(cuda.Error, match="illegal memory access"):
        stream.synchronize()
    assert "freed while an operation ran" in hostcuda.last_fault()


@under_hostcuda(faults=True)
def test_writes_beside_memory_and_after_its_end_are_found() -> None:
    with context():
        memory = cuda.mem_alloc(64)
        ctypes.memset(int(memory) + 64, 1, 1)
        memory.free()
        assert "written outside" in hostcuda.last_fault()
    with context():
        memory = cuda.mem_alloc(64)
        address = int(memory)
        memory.free()
        assert ctypes.string_at(address, 64) == b"\xdd" * 64
        ctypes.memset(address, 1, 1)
        assert hostcuda.stats().faults == 2
        assert "written after it was freed" in hostcuda.last_fault()


@under_hostcuda(leaks=True)
def test_what_a_context_still_holds_at_its_end_was_leaked() -> None:
    with context():
        kept = cuda.Stream(), cuda.Event(), cuda.mem_alloc(64), locked(0)
        assert hostcuda.stats()[:6] == (64, 1, 64, 1, 1, 1)
    assert len(kept) == hostcuda.stats().leaks == hostcuda.stats().left
    assert not any(hostcuda.stats()[:7])


@under_hostcuda(faults=True)
def test_a_context_is_not_released_under_its_own_work() -> None:
    with context():
        stream, gate = cuda.Stream(), threading.Event()
        hostcuda.enqueue(stream.handle, lambda: wait(gate))
        del stream
    assert "released with work" in hostcuda.last_fault()
    gate.set()


@under_hostcuda(HOSTCUDA_MEMORY_MB=1)
@context()
def test_device_memory_ends_where_it_was_told_to() -> None:
    half = cuda.mem_alloc(1 << 19)
    with pytest.raises(cuda.MemoryError):
        cuda.mem_alloc((1 << 19) + 1)
    other = cuda.mem_alloc(1 << 19)
    assert cuda.mem_get_info() == (0, 1 << 20)
    hostcuda.mark()
    half.free()
    other.free()
    cuda.mem_alloc(1 << 20).free()
    assert hostcuda.stats().allocations_since_mark == 1
    assert hostcuda.stats().peak_device_bytes == 1 << 20


@under_hostcuda(HOSTCUDA_FAIL="cuMemAlloc_v2:2,cuMemAlloc_v2:3,cuMemHostAlloc:1,cuMemHostAlloc:2,run:2")
@context()
def test_failures_come_where_they_are_ordered() -> None:
    stream, memory = cuda.Stream(), cuda.mem_alloc(8)
    with pytest.raises(cuda.MemoryError):
        cuda.mem_alloc(8)  # pycuda collects garbage and tries once more
    with pytest.raises(cuda.MemoryError):
        locked(0)
    cuda.memset_d8_async(memory, 0, 8, stream)
    stream.synchronize()
    cuda.memset_d8_async(memory, 0, 8, stream)
    with pytest.raises(cuda.Error, match="illegal memory access"):
        stream.synchronize()


@under_hostcuda(
    HOSTCUDA_FAIL="cuStreamCreate:1,cuEventCreate:1,cuMemcpyDtoHAsync_v2:2,cuDevicePrimaryCtxRetain:2"
)
def test_every_call_can_be_made_to_fail() -> None:
    @context()
    def failing() -> None:
        for create in (cuda.Stream, cuda.Event):
            with pytest.raises(cuda.MemoryError):
                create()
        stream, memory, pinned = cuda.Stream(), cuda.mem_alloc(64), locked(0)
        cuda.memcpy_dtoh_async(pinned, memory, stream)
        with pytest.raises(cuda.Error, match="unspecified launch failure"):
            cuda.memcpy_dtoh_async(pinned, memory, stream)
        with pytest.raises(cuda.Error, match="unspecified launch failure"):
            stream.synchronize()

    failing()
    with pytest.raises(cuda.MemoryError):
        cuda.Device(0).retain_primary_context()


@under_hostcuda()
def test_the_rest_of_the_driver_says_that_it_is_not_supported() -> None:
    cuda.init()
    with pytest.raises(cuda.Error, match="operation not supported"):
        cuda.Device(0).make_context()
    with context(), pytest.raises(cuda.Error, match="operation not supported"):
        cuda.module_from_buffer(b"")


def test_a_process_leaves_its_counts_behind(driver: Driver) -> None:
    code = "import hostcuda, pycuda.driver as cuda; cuda.init(); print(tuple(hostcuda.stats()))"
    run = driver.run(["-c", code + "; cuda.mem_alloc(1)"])
    assert run.returncode == 1
    assert run.process.stdout.strip() == str(tuple(run.stats._replace(faults=0)))
    assert "no current context" in run.last_fault


def test_every_signature_is_the_one_in_cudas_own_header(driver: Driver) -> None:
    header = Path("/usr/local/cuda/include/cuda.h")
    compiler = shutil.which("cc")
    if not header.is_file() or compiler is None:
        pytest.skip(f"no {header}")
    sources = sorted(set(SOURCES.glob("*.c")) - {SOURCES / "unsupported.c"})
    flags = ["-std=c11", "-fsyntax-only", "-DHOSTCUDA_WITH_CUDA_H", f"-I{header.parent}"]
    subprocess.run([compiler, *flags, *sources], check=True)


# --- the stand-in for TensorRT ----------------------------------------------------------------------------


def tiny_graph(pixel: Pixel = Pixel.UINT8) -> bytes:
    batch, height, width, _ = SHAPE
    spec = EngineSpec(loops=1, height=height, width=width, batch=batch, precision=Precision.FP32, pixel=pixel)
    return typed_graph(random_checkpoint(), spec)


def engine_of(plan: bytes) -> tuple[Any, list[str]]:
    """An engine, None where the plan was refused, and what the log says."""
    log: list[str] = []

    class Keeper(trt.ILogger):
        def log(self, severity: trt.Severity, msg: str) -> None:
            log.append(f"{severity.name}: {msg}")

    return trt.Runtime(Keeper()).deserialize_cuda_engine(plan), log


def some_batches(count: int) -> list[NDArray[np.uint8]]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, SHAPE, np.uint8) for _ in range(count)]


def expected(batches: list[NDArray[np.uint8]]) -> list[NDArray[np.uint8]]:
    import onnxruntime as ort

    session = ort.InferenceSession(tiny_graph(), providers=["CPUExecutionProvider"])
    return [session.run(["restored"], {"image": batch})[0] for batch in batches]


WAITS = ("copied in", "input free", "computed", "output free", "copied out")


def through_three_streams(
    batches: list[NDArray[np.uint8]], *, without: str | None = None
) -> list[NDArray[np.uint8]]:
    """All batches through one input and one output on the device: each of the waits is needed."""
    engine, _ = engine_of(tiny_graph())
    execution = engine.create_execution_context()
    streams = {step: cuda.Stream() for step in ("in", "compute", "out")}
    events = {wait: cuda.Event(cuda.event_flags.DISABLE_TIMING) for wait in WAITS}
    device_in, device_out = cuda.mem_alloc(batches[0].nbytes), cuda.mem_alloc(batches[0].nbytes)
    assert execution.set_tensor_address("image", int(device_in))
    assert execution.set_tensor_address("restored", int(device_out))
    sent = [cuda.pagelocked_empty(batch.shape, np.uint8) for batch in batches]
    received = [cuda.pagelocked_empty(batch.shape, np.uint8) for batch in batches]

    def after(stream: str, event: str) -> None:
        if event != without:
            streams[stream].wait_for_event(events[event])

    for batch, source, target in zip(batches, sent, received, strict=True):
        source[...] = batch
        after("in", "input free")
        cuda.memcpy_htod_async(device_in, source, streams["in"])
        events["copied in"].record(streams["in"])
        after("compute", "copied in")
        after("compute", "output free")
        assert execution.execute_async_v3(streams["compute"].handle)
        events["input free"].record(streams["compute"])
        events["computed"].record(streams["compute"])
        after("out", "computed")
        cuda.memcpy_dtoh_async(target, device_out, streams["out"])
        events["output free"].record(streams["out"])
        events["copied out"].record(streams["out"])
    if without != "copied out":
        events["copied out"].synchronize()
    restored = [target.copy() for target in received]
    cuda.Context.synchronize()
    return restored


def equal(batches: list[NDArray[np.uint8]], others: list[NDArray[np.uint8]]) -> list[bool]:
    return [np.array_equal(one, other) for one, other in zip(batches, others, strict=True)]


@under_hostcuda(HOSTCUDA_DELAY_US=500)
@context()
def test_an_engine_gives_onnx_runtimes_bytes() -> None:
    batches = some_batches(50)
    assert all(equal(through_three_streams(batches), expected(batches)))


@under_hostcuda(HOSTCUDA_DELAY_US=300)
@context()
def test_each_missing_wait_shows_in_the_result() -> None:
    batches = some_batches(25)
    right = expected(batches)
    for missing in WAITS:
        tries = (through_three_streams(batches, without=missing) for _ in range(20))
        assert not all(all(equal(restored, right)) for restored in tries), missing
    assert all(equal(through_three_streams(batches), right))


@under_hostcuda()
@context()
def test_an_engine_tells_its_tensors() -> None:
    engine, log = engine_of(tiny_graph(Pixel.FLOAT32))
    names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    assert names == ["image", "restored"]
    assert engine.get_tensor_mode("image") is trt.TensorIOMode.INPUT
    assert engine.get_tensor_mode("restored") is trt.TensorIOMode.OUTPUT
    assert tuple(engine.get_tensor_shape("restored")) == SHAPE
    assert trt.nptype(engine.get_tensor_dtype("image")) is np.float32
    before = hostcuda.stats().live_device_bytes
    execution = engine.create_execution_context()
    assert hostcuda.stats().live_device_bytes == before + engine.device_memory_size_v2
    del execution
    assert hostcuda.stats().live_device_bytes == before
    assert not log


@under_hostcuda(HOSTCUDA_CAPABILITY=8.6)
@context()
def test_plans_of_others_are_refused_with_a_reason() -> None:
    graph = tiny_graph()
    for plan, reason in (
        (b"no plan", "Magic tag does not match"),
        (graph[:100], "Magic tag does not match"),
        (trt.plan(graph, version="10.9.0.34"), "Serialized Engine Version: 10.9.0.34"),
        (trt.plan(graph, capability="8.9"), "expecting compute 8.6 got compute 8.9"),
    ):
        engine, log = engine_of(plan)
        assert engine is None
        assert len(log) == 1
        assert log[0].startswith("ERROR: ")
        assert reason in log[0]
    assert engine_of(trt.plan(graph, capability="8.6"))[0] is not None


@under_hostcuda(HOSTCUDA_FAIL="hostcuda_enqueue:1")
@context()
def test_a_run_that_cannot_be_enqueued_is_told() -> None:
    engine, log = engine_of(tiny_graph())
    execution, stream, memory = (
        engine.create_execution_context(),
        cuda.Stream(),
        cuda.mem_alloc(1024),
    )
    assert not execution.execute_async_v3(stream.handle)
    assert "no address is set for ['image', 'restored']" in log[-1]
    assert not execution.set_tensor_address("picture", int(memory))
    assert not execution.set_tensor_address("image", int(memory) + 1)
    assert execution.set_tensor_address("image", int(memory))
    assert execution.set_tensor_address("restored", int(memory))
    assert not execution.execute_async_v3(stream.handle)  # HOSTCUDA_FAIL
    assert "CUDA error 719" in log[-1]


@under_hostcuda(faults=True, HOSTCUDA_MEMORY_MB=1)
@context()
def test_an_engine_needs_its_memory() -> None:
    engine, log = engine_of(tiny_graph())
    rest = cuda.mem_alloc(cuda.mem_get_info()[0])
    assert engine.create_execution_context() is None
    assert "CUDA error 2" in log[-1]
    rest.free()
    execution, stream = engine.create_execution_context(), cuda.Stream()
    memory = cuda.mem_alloc(100)  # too small
    assert execution.set_tensor_address("image", int(memory))
    assert execution.set_tensor_address("restored", int(memory))
    assert execution.execute_async_v3(stream.handle)
    with refused("illegal memory access", "out of bounds"):
        stream.synchronize()


@under_hostcuda()
@context()
def test_an_input_is_read_until_the_run_ends() -> None:
    batch, other = some_batches(2)
    engine, _ = engine_of(tiny_graph())
    execution, stream, session = engine.create_execution_context(), cuda.Stream(), engine._session
    image, output = cuda.mem_alloc(batch.nbytes), cuda.mem_alloc(batch.nbytes)

    class Overtaken:
        """The next batch comes too early: while this one is computed."""

        def run(self, *arguments: Any) -> Any:
            ctypes.memmove(int(image), other.ctypes.data, other.nbytes)
            return session.run(*arguments)

    engine._session = Overtaken()
    cuda.memcpy_htod(image, batch)
    assert execution.set_tensor_address("image", int(image))
    assert execution.set_tensor_address("restored", int(output))
    assert execution.execute_async_v3(stream.handle)
    stream.synchronize()
    assert np.array_equal(bytes_of(output, batch.nbytes), expected([other])[0].ravel())


@under_hostcuda()
@context()
def test_one_execution_context_cannot_run_twice_at_once() -> None:
    batch = some_batches(1)[0]
    engine, _ = engine_of(tiny_graph())
    execution, streams = engine.create_execution_context(), [cuda.Stream(), cuda.Stream()]
    image, outputs = cuda.mem_alloc(batch.nbytes), [cuda.mem_alloc(batch.nbytes) for _ in streams]
    cuda.memcpy_htod(image, batch)
    assert execution.set_tensor_address("image", int(image))

    def collide() -> bool:
        for stream, output in zip(streams, outputs, strict=True):
            assert execution.set_tensor_address("restored", int(output))
            assert execution.execute_async_v3(stream.handle)
        cuda.Context.synchronize()
        return any((bytes_of(output, batch.nbytes) == UNDEFINED).all() for output in outputs)

    assert any(collide() for _ in range(200))
