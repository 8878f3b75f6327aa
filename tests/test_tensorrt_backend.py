"""The GPU backend through the real pycuda, on a CUDA driver in host memory and a stand-in for TensorRT.

Each test's body runs in a process of its own; nothing may be left of what it took, unless it says so.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import hostcuda
import numpy as np
import pytest
from hostcuda.build import Driver, under_hostcuda
from numpy.typing import NDArray
from random_weights import random_checkpoint
from test_manifest import manifest_of

from cmudrn.deploy.tensorrt import Slot, TensorRTBackend
from cmudrn.engines.graph import typed_graph
from cmudrn.engines.spec import EngineSpec, Output, Pixel, Precision
from cmudrn.engines.store import Engine
from cmudrn.errors import DeviceError, EngineError, EnvironmentMissing, ImageError, UsageError

if TYPE_CHECKING:
    import pycuda.driver as cuda
    from hostcuda import trt_stand_in as trt
else:
    try:  # in the processes under hostcuda alone
        import pycuda.driver as cuda
        import tensorrt as trt
    except ImportError:
        cuda = trt = None

SPEC = EngineSpec(loops=1, height=12, width=16, batch=4, precision=Precision.FP32)
# What builds such an engine; of weights of which no more is known than that they aren't the shipped ones.
COMMAND = (
    "cmudrn build-engine --loops 1 --size 12x16 --batch 4 --precision fp32 --weights FILE --flavor tensorrt"
)


def engine(spec: EngineSpec = SPEC, *, version: str | None = None, plan: bytes | None = None) -> Engine:
    """As the store would give it; the stand-in takes a graph as a plan."""
    data = typed_graph(random_checkpoint(), spec) if plan is None else plan
    return Engine(manifest_of(data, spec, version=version or trt.__version__), data)


def batches(count: int, spec: EngineSpec = SPEC, *, last: int | None = None) -> list[NDArray[Any]]:
    """last: images of the last one."""
    rng = np.random.default_rng(count)
    sizes = [spec.batch] * (count - 1) + [last or spec.batch]
    levels = [rng.integers(0, 256, (size, spec.height, spec.width, 3), np.uint8) for size in sizes]
    return (
        [np.divide(one, 255, dtype=np.float32) for one in levels] if spec.pixel is Pixel.FLOAT32 else levels
    )


def by_onnx_runtime(given: list[NDArray[Any]], spec: EngineSpec = SPEC) -> list[NDArray[Any]]:
    """The same graph, image by image."""
    import onnxruntime as ort

    session = ort.InferenceSession(typed_graph(random_checkpoint(), spec), providers=["CPUExecutionProvider"])

    def restore(batch: NDArray[Any]) -> NDArray[Any]:
        filled = np.zeros((spec.batch, *batch.shape[1:]), batch.dtype)
        filled[: len(batch)] = batch
        restored: NDArray[Any] = session.run(None, {"image": filled})[0][: len(batch)]
        return restored

    return [restore(batch) for batch in given]


def equal(found: list[NDArray[Any]], right: list[NDArray[Any]]) -> list[bool]:
    return [np.array_equal(one, other) for one, other in zip(found, right, strict=True)]


# --- what comes out ---------------------------------------------------------------------------------------


@under_hostcuda(HOSTCUDA_DELAY_US=100)
def test_thousands_of_batches_equal_onnx_runtimes_bit_for_bit() -> None:
    given = batches(2000, last=3)
    with TensorRTBackend(engine(), graphs=False) as backend:  # with them: test_cuda_graph.py
        assert all(equal(list(backend.stream(iter(given))), by_onnx_runtime(given)))


@under_hostcuda(HOSTCUDA_DELAY_US=300)
def test_any_number_of_slots_and_batches_gives_the_same() -> None:
    for slots in (1, 2, 3, 5):
        with TensorRTBackend(engine(), slots=slots) as backend:
            for count in (0, 1, 2, 7):
                given = batches(count, last=1) if count else []
                assert all(equal(list(backend.stream(given)), by_onnx_runtime(given)))


@under_hostcuda(HOSTCUDA_DELAY_US=300)
def test_float32_pixels_and_a_branchs_own_image() -> None:
    spec = EngineSpec(
        loops=2,
        height=9,
        width=7,
        batch=2,
        precision=Precision.FP32,
        pixel=Pixel.FLOAT32,
        output=Output.SNOW,
    )
    given = batches(5, spec)
    with TensorRTBackend(engine(spec)) as backend:
        assert backend.spec == spec
        assert all(equal(list(backend.stream(given)), by_onnx_runtime(given, spec)))


@under_hostcuda(HOSTCUDA_DELAY_US=300)
def test_what_was_given_out_is_never_written_again() -> None:
    given = batches(12)
    with TensorRTBackend(engine()) as backend:
        kept = list(backend.stream(given))
        copies = [one.copy() for one in kept]
        list(backend.stream(batches(6)))
    assert all(equal(kept, copies))


@under_hostcuda(HOSTCUDA_DELAY_US=500)
def test_a_stream_ends_the_one_that_was_left_in_the_middle_which_then_says_so() -> None:
    given = batches(30)
    one, other = given[:15], given[15:]
    for graphs in (True, False):
        with TensorRTBackend(engine(), graphs=graphs) as backend:
            left = backend.stream(one)
            assert all(equal([next(left)], by_onnx_runtime(one[:1])))
            assert all(equal(list(backend.stream(other)), by_onnx_runtime(other)))
            with pytest.raises(RuntimeError, match="the stream has ended"):
                list(left)
            left, newer = backend.stream(one), backend.stream(other)
            next(left)
            next(newer)
            left.close()  # leaves the newer one's batches alone
            assert all(equal(list(newer), by_onnx_runtime(other)[1:]))
            with pytest.raises(RuntimeError, match="the stream has ended"):
                list(backend.stream(backend.stream(one)))
            left = backend.stream(one)
            next(left)
        with pytest.raises(RuntimeError, match="not open"):
            next(left)
        with backend, pytest.raises(StopIteration):
            next(left)


@under_hostcuda(HOSTCUDA_DELAY_US=500)
def test_a_missing_synchronisation_is_seen() -> None:
    """Without the wait for its event a slot gives out what is there: the tests above do mean something."""
    given = batches(30)

    def without_waiting(slot: Slot) -> NDArray[Any]:
        restored: NDArray[Any] = slot.target.host[: slot.images].copy()
        return restored

    right, whole = by_onnx_runtime(given), Slot.collect
    Slot.collect = without_waiting  # type: ignore[method-assign,assignment]
    with TensorRTBackend(engine()) as backend:
        assert not all(equal(list(backend.stream(given)), right))
    Slot.collect = whole  # type: ignore[method-assign]
    with TensorRTBackend(engine()) as backend:
        assert all(equal(list(backend.stream(given)), right))


# --- how it goes ------------------------------------------------------------------------------------------


@under_hostcuda(HOSTCUDA_DELAY_US=2000)
def test_as_many_batches_are_on_their_way_as_there_are_slots() -> None:
    taken: list[int] = []

    def counted() -> Iterator[NDArray[Any]]:
        for number, batch in enumerate(batches(6)):
            taken.append(number)
            yield batch

    with TensorRTBackend(engine(), slots=3) as backend:
        restored = backend.stream(counted())
        next(restored)
        assert taken == [0, 1, 2, 3]  # the fourth was taken, and waits for the first one's slot
        restored.close()


@under_hostcuda()
def test_nothing_is_allocated_after_the_start() -> None:
    with TensorRTBackend(engine()) as backend:
        hostcuda.mark()
        list(backend.stream(batches(50)))
        assert hostcuda.stats().allocations_since_mark == 0


@under_hostcuda()
def test_the_context_is_current_only_while_it_works() -> None:
    """Whoever gets a batch may use another context, as PyTorch does."""
    with TensorRTBackend(engine()) as backend:
        assert hostcuda.current_depth() == 0
        for _ in backend.stream(batches(5)):
            assert hostcuda.current_depth() == 0
    assert hostcuda.current_depth() == 0


@under_hostcuda()
def test_another_user_of_the_primary_context_keeps_it() -> None:
    cuda.init()
    other = cuda.Device(0).retain_primary_context()
    other.push()
    memory = cuda.mem_alloc(64)
    cuda.memcpy_htod(memory, np.full(64, 7, np.uint8))
    with TensorRTBackend(engine()) as backend:
        list(backend.stream(batches(3)))
    assert hostcuda.current_depth() == 1
    read = np.empty(64, np.uint8)
    cuda.memcpy_dtoh(read, memory)
    assert (read == 7).all()
    memory.free()
    cuda.Context.pop()
    other.detach()
    hostcuda.library().cuCtxPopCurrent_v2(None)  # pycuda leaves it current


@under_hostcuda(HOSTCUDA_DELAY_US=300)
def test_several_backends_on_one_device_each_in_a_thread() -> None:
    wrong: list[int] = []
    right = by_onnx_runtime(batches(40))

    def work(number: int) -> None:
        with TensorRTBackend(engine()) as backend:
            if not all(equal(list(backend.stream(batches(40))), right)):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@under_hostcuda(HOSTCUDA_DELAY_US=2000)
def test_a_consumer_that_leaves_early_leaves_nothing_behind() -> None:
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


@under_hostcuda(HOSTCUDA_DELAY_US=1000)
def test_a_source_that_fails_in_mid_stream_leaves_nothing_behind() -> None:
    def failing() -> Iterator[NDArray[Any]]:
        yield from batches(3)
        raise OSError("the disk is gone")

    with TensorRTBackend(engine()) as backend:
        with pytest.raises(OSError, match="the disk is gone"):
            list(backend.stream(failing()))
        given = batches(4)
        assert all(equal(list(backend.stream(given)), by_onnx_runtime(given)))


@under_hostcuda(HOSTCUDA_DELAY_US=1000)
def test_ctrl_c_leaves_nothing_behind() -> None:
    def interrupted() -> Iterator[NDArray[Any]]:
        yield from batches(3)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), TensorRTBackend(engine()) as backend:
        list(backend.stream(interrupted()))


# --- devices ----------------------------------------------------------------------------------------------


@under_hostcuda(HOSTCUDA_DEVICES=3)
def test_a_device_is_chosen_by_number_or_by_bus_id() -> None:
    cuda.init()
    bus_id = cuda.Device(2).pci_bus_id()
    for wanted in ("1", bus_id):
        with TensorRTBackend(engine(), device=wanted) as backend:
            assert len(list(backend.stream(batches(2)))) == 2
    for wanted in ("3", "first", "-1", "0000:ff:00.0"):
        with (
            pytest.raises(UsageError, match=f"--device {wanted}") as refusal,
            TensorRTBackend(engine(), device=wanted),
        ):
            pass
        assert bus_id in refusal.value.fix


@under_hostcuda(HOSTCUDA_DEVICES=0)
def test_without_a_gpu_that_is_said() -> None:
    with pytest.raises(EnvironmentMissing, match=r"GPU|driver"), TensorRTBackend(engine()):
        pass


# --- what goes wrong --------------------------------------------------------------------------------------


@under_hostcuda(HOSTCUDA_MEMORY_MB=1)
def test_out_of_memory_tells_what_is_free_and_what_to_do() -> None:
    large = EngineSpec(loops=1, height=256, width=256, batch=8, precision=Precision.FP32)
    free = r"out of memory, \d+ of 1 MB are free"
    with pytest.raises(DeviceError, match=free) as refusal, TensorRTBackend(engine(large)):
        pass
    assert "smaller batch" in refusal.value.fix


@under_hostcuda()
def test_plans_that_do_not_load_here_are_refused_with_tensorrts_words() -> None:
    other = trt.plan(typed_graph(random_checkpoint(), SPEC), capability="7.5")
    for plan, words in ((other, "incompatible device"), (b"no plan", "Magic tag")):
        with pytest.raises(EngineError, match=words) as refusal, TensorRTBackend(engine(plan=plan)):
            pass
        assert "sm89" in refusal.value.what
        assert refusal.value.fix == f"{COMMAND} --rebuild"


@under_hostcuda()
def test_an_engine_of_another_version_is_refused_before_it_is_loaded() -> None:
    other = engine(version="10.16.1.11")
    with (
        pytest.raises(EngineError, match=r"version 10\.16\.1\.11, here is") as refusal,
        TensorRTBackend(other),
    ):
        pass
    assert refusal.value.fix == COMMAND


@under_hostcuda(HOSTCUDA_DEVICES=2)
def test_an_engine_that_does_not_take_its_tensors_is_named_with_the_command_that_builds_it() -> None:
    class Refusing(trt.IExecutionContext):
        def set_tensor_address(self, name: str, memory: int) -> bool:
            return super().set_tensor_address(name, memory + 1)

    trt.IExecutionContext = Refusing  # type: ignore[misc]
    key = re.escape(engine().manifest.key)
    with (
        pytest.raises(
            EngineError, match=f"{key}: the engine does not take its tensor image: .*Error"
        ) as refusal,
        TensorRTBackend(engine(), device="1"),
    ):
        pass
    assert refusal.value.fix == f"{COMMAND} --device 1 --rebuild"


@under_hostcuda()
def test_batches_that_do_not_fit_are_refused_and_the_next_stream_works() -> None:
    wrong: list[NDArray[Any]] = [
        np.zeros((4, 12, 17, 3), np.uint8),
        np.zeros((4, 12, 16, 3), np.float32),
        np.zeros((5, 12, 16, 3), np.uint8),
        np.zeros((0, 12, 16, 3), np.uint8),
    ]
    with TensorRTBackend(engine()) as backend:
        for batch in wrong:
            with pytest.raises(ImageError, match="t1-12x16-b4"):
                list(backend.stream([batches(1)[0], batch]))
        assert len(list(backend.stream(batches(3)))) == 3


@pytest.mark.parametrize("call", ["cuMemAlloc_v2", "cuMemHostAlloc", "cuStreamCreate", "cuEventCreate"])
@pytest.mark.parametrize("number", [1, 2, 3])
def test_whatever_fails_at_the_start_is_an_error_of_ours_and_nothing_stays(
    driver: Driver, call: str, number: int
) -> None:
    run = driver.run_body(__name__, "start_that_may_fail", {"HOSTCUDA_FAIL": f"{call}:{number}"})
    assert run.returncode == 0, run.output
    assert run.stats.faults == 0, run.last_fault
    assert run.stats.left == 0, run.stats


@under_hostcuda()
def start_that_may_fail() -> None:
    with suppress(DeviceError, EngineError), TensorRTBackend(engine()) as backend:
        list(backend.stream(batches(1)))


@pytest.mark.parametrize(
    "failing",
    [
        "cuMemcpyHtoDAsync_v2:3",
        "cuMemcpyDtoHAsync_v2:3",
        "cuEventRecord:2",
        "cuEventSynchronize:1",
        "hostcuda_enqueue:2",
        "run:1",
        "run:7",
    ],
)
def test_whatever_fails_in_mid_stream_is_an_error_of_ours_and_nothing_stays(
    driver: Driver, failing: str
) -> None:
    run = driver.run_body(__name__, "stream_that_fails", {"HOSTCUDA_FAIL": failing})
    assert run.returncode == 0, (run.last_fault, run.output)
    assert run.stats.live_streams == run.stats.live_events == run.stats.live_contexts == 0, run.stats
    assert run.stats.live_device_blocks == run.stats.live_pinned_blocks == 0, run.stats


@under_hostcuda()
def stream_that_fails() -> None:
    with pytest.raises(DeviceError) as failure, TensorRTBackend(engine()) as backend:
        list(backend.stream(batches(20)))
    assert failure.value.fix
