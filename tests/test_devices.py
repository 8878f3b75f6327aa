"""Batches spread over several backends: in order, each restored once, and every thread ends."""

from __future__ import annotations

import faulthandler
import os
import random
import signal
import threading
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any

import hostcuda
import numpy as np
import pytest
from hostcuda.build import Driver, under_hostcuda
from numpy.typing import NDArray
from test_infer_tensorrt import House, house
from test_tensorrt_backend import SPEC, batches, by_onnx_runtime, engine, equal

from cmudrn.deploy.backend import PixelBatch
from cmudrn.deploy.devices import WAITING, SpreadBackend
from cmudrn.deploy.tensorrt import TensorRTBackend
from cmudrn.engines.spec import EngineSpec
from cmudrn.errors import DeviceError, EngineError

if TYPE_CHECKING:
    import pycuda.driver as cuda
else:
    try:  # in the processes under hostcuda alone
        import pycuda.driver as cuda
    except ImportError:
        cuda = None

__all__ = ["house"]  # the fixture

LONGEST_S = 60  # of any test here; a deadlock would last for ever


@pytest.fixture(autouse=True)
def limit() -> Iterator[None]:
    """Ends all, with every thread's stack, where a test hangs."""
    faulthandler.dump_traceback_later(LONGEST_S, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


class Negative:
    """Turns images into their negatives: reads ahead, takes its time, and fails when told to."""

    def __init__(
        self, spec: EngineSpec = SPEC, *, ahead: int = 0, delay_s: float = 0, fails_at: int = -1
    ) -> None:
        self.spec, self.label = spec, "negatives"
        self.ahead, self.delay_s, self.fails_at = ahead, delay_s, fails_at
        self.restored = 0
        self.opened = self.closed = 0
        self.streams_ended = 0
        self.random = random.Random(ahead)

    def __enter__(self) -> Negative:
        self.opened += 1
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.closed += 1

    def stream(self, batches: Iterable[PixelBatch]) -> Generator[PixelBatch, None, None]:
        busy: deque[PixelBatch] = deque()
        try:
            for batch in batches:
                busy.append(batch)
                if len(busy) > self.ahead:
                    yield self.restore(busy.popleft())
            while busy:
                yield self.restore(busy.popleft())
        finally:
            self.streams_ended += 1

    def restore(self, batch: PixelBatch) -> PixelBatch:
        if self.restored == self.fails_at:
            raise DeviceError("the device is gone", fix="plug it in")
        self.restored += 1
        time.sleep(self.random.uniform(0, self.delay_s))
        negative: NDArray[np.uint8] = 255 - batch  # type: ignore[assignment]
        return negative


def numbered(count: int) -> list[NDArray[Any]]:
    """Batches that differ."""
    return [np.full((1, 1, 1, 3), number % 256, np.uint8) for number in range(count)]


def negatives(given: list[NDArray[Any]]) -> list[NDArray[Any]]:
    return [255 - batch for batch in given]


def workers() -> list[str]:
    """Threads of a stream that still run."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("cmudrn-device")]


def spread(*backends: Negative) -> SpreadBackend:
    return SpreadBackend(backends)


# --- what comes out ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 2, 3, 7, 100])
@pytest.mark.parametrize("aheads", [(0,), (0, 0), (1, 1, 1), (3, 0, 1), (5, 9), (0, 40)])
def test_every_batch_comes_back_once_and_in_order(aheads: tuple[int, ...], count: int) -> None:
    backends = [Negative(ahead=ahead, delay_s=0.001) for ahead in aheads]
    given = numbered(count)
    with spread(*backends) as backend:
        assert all(equal(list(backend.stream(iter(given))), negatives(given)))
        assert workers() == []
        assert all(equal(list(backend.stream(given)), negatives(given)))  # and again
    assert sum(one.restored for one in backends) == 2 * count


def test_a_faster_device_restores_more() -> None:
    slow, fast = Negative(delay_s=0.02), Negative(delay_s=0.001)
    with spread(slow, fast) as backend:
        given = numbered(100)
        assert all(equal(list(backend.stream(given)), negatives(given)))
    assert fast.restored > 2 * slow.restored > 0


def test_little_is_read_ahead_while_one_device_stands_still() -> None:
    """WAITING batches for each wait, each holds one and has another before it, and one is being dealt out."""
    gate = threading.Event()

    class Stuck(Negative):
        def restore(self, batch: PixelBatch) -> PixelBatch:
            assert gate.wait(LONGEST_S)
            return super().restore(batch)

    backends = [Stuck(), Negative(), Negative()]
    most = (WAITING + 2) * len(backends) + 1
    given, taken = numbered(200), 0

    def source() -> Iterator[NDArray[Any]]:
        nonlocal taken
        for batch in given:
            taken += 1
            yield batch

    with spread(*backends) as backend:
        found: list[PixelBatch] = []
        consumer = threading.Thread(target=lambda: found.extend(backend.stream(source())))
        consumer.start()
        time.sleep(0.3)  # enough to read all, if nothing held it back
        assert taken <= most
        gate.set()
        consumer.join()
        assert all(equal(found, negatives(given)))


def test_a_backend_says_what_restores_and_takes_one_spec() -> None:
    with spread(Negative(), Negative()) as backend:
        assert backend.spec == SPEC
        assert backend.label == "2 x negatives"
    other = EngineSpec(loops=2, height=12, width=16)
    with pytest.raises(EngineError, match="t1-12x16-b4-fp32-uint8 and t2-12x16-b1") as refusal:
        spread(Negative(), Negative(other))
    assert "same engine" in refusal.value.fix
    with pytest.raises(EngineError, match="no device"):
        SpreadBackend([])


# --- what goes wrong --------------------------------------------------------------------------------------


@pytest.mark.parametrize("fails_at", [0, 1, 10])
@pytest.mark.parametrize("ahead", [0, 4])
def test_what_a_device_raises_is_raised_when_all_threads_have_ended(fails_at: int, ahead: int) -> None:
    broken = Negative(ahead=ahead, fails_at=fails_at)
    others = [Negative(ahead=ahead, delay_s=0.001) for _ in range(2)]
    with spread(broken, *others) as backend:
        with pytest.raises(DeviceError, match="the device is gone"):
            list(backend.stream(numbered(200)))
        assert workers() == []
        broken.fails_at = -1
        given = numbered(20)
        assert all(equal(list(backend.stream(given)), negatives(given)))


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
@pytest.mark.parametrize("good", [0, 1, 20])
def test_what_the_source_raises_ends_all_threads(error: type[BaseException], good: int) -> None:
    def failing() -> Iterator[NDArray[Any]]:
        yield from numbered(good)
        raise error("of the source")

    backends = [Negative(ahead=2, delay_s=0.001) for _ in range(3)]
    with spread(*backends) as backend:
        with pytest.raises(error, match="of the source"):
            list(backend.stream(failing()))
        assert workers() == []
    assert [one.streams_ended for one in backends] == [1, 1, 1]


@pytest.mark.parametrize("stop", [0, 1, 2, 9])
def test_a_consumer_that_leaves_early_leaves_no_thread(stop: int) -> None:
    backends = [Negative(ahead=2, delay_s=0.001) for _ in range(3)]
    given = numbered(50)
    with spread(*backends) as backend:
        restored = backend.stream(given)
        assert all(equal([next(restored) for _ in range(stop)], negatives(given[:stop])))
        restored.close()
        assert workers() == []
        assert all(equal(list(backend.stream(given)), negatives(given)))


def test_a_stream_that_was_left_in_the_middle_ends_with_the_next_or_with_the_backend() -> None:
    given = numbered(50)
    with spread(Negative(ahead=1), Negative(ahead=1)) as backend:
        left = backend.stream(given)
        next(left)
        assert all(equal(list(backend.stream(given)), negatives(given)))
        with pytest.raises(RuntimeError, match="the stream has ended"):
            list(left)
        again = backend.stream(given)
        next(again)
    assert workers() == []
    with pytest.raises(RuntimeError, match="the stream has ended"):
        next(again)
    with pytest.raises(RuntimeError, match="not open"):
        next(backend.stream(given))


def test_ctrl_c_while_it_waits_for_a_device_ends_all_threads() -> None:
    gate = threading.Event()

    class Stuck(Negative):
        def restore(self, batch: PixelBatch) -> PixelBatch:
            threading.Timer(0.2, gate.set).start()  # what a device has begun, it ends
            os.kill(os.getpid(), signal.SIGINT)
            assert gate.wait(LONGEST_S)
            return super().restore(batch)

    with pytest.raises(KeyboardInterrupt), spread(Stuck(), Stuck()) as backend:
        list(backend.stream(numbered(1)))
    assert workers() == []


@pytest.mark.parametrize("ahead", [0, 3])
def test_a_backend_that_gives_fewer_batches_than_it_took_is_an_error(ahead: int) -> None:
    class Losing(Negative):
        def stream(self, batches: Iterable[PixelBatch]) -> Generator[PixelBatch, None, None]:
            for number, batch in enumerate(super().stream(batches)):
                if number == 5:
                    return
                yield batch

    with spread(Negative(), Losing(ahead=ahead)) as backend:
        with pytest.raises(RuntimeError, match="backend 1 stopped"):
            list(backend.stream(numbered(200)))
        assert workers() == []


def test_where_one_does_not_open_the_others_are_closed() -> None:
    class Broken(Negative):
        def __enter__(self) -> Negative:
            raise DeviceError("no room", fix="make some")

    first, last = Negative(), Negative()
    with pytest.raises(DeviceError, match="no room"), spread(first, Broken(), last):
        pass
    assert (first.opened, first.closed, last.opened) == (1, 1, 0)


# --- GPUs -------------------------------------------------------------------------------------------------


def gpus(count: int = 3, **settings: Any) -> SpreadBackend:
    return SpreadBackend(
        [TensorRTBackend(engine(), device=str(number), **settings) for number in range(count)]
    )


@under_hostcuda(HOSTCUDA_DEVICES=3, HOSTCUDA_DELAY_US=300)
def test_three_gpus_give_onnx_runtimes_bytes_in_order() -> None:
    given = batches(300, last=3)
    right = by_onnx_runtime(given)
    for graphs in (True, False):
        with gpus(graphs=graphs) as backend:
            assert hostcuda.stats().live_contexts == 3
            assert all(equal(list(backend.stream(iter(given))), right))
            assert all(equal(list(backend.stream(given[:2])), right[:2]))
        assert workers() == []
        assert hostcuda.current_depth() == 0


@under_hostcuda(HOSTCUDA_DEVICES=3, HOSTCUDA_DELAY_US=300)
def test_each_gpu_restores_some_in_its_own_context_and_allocates_nothing() -> None:
    counts: dict[str, int] = {}

    class Counting(TensorRTBackend):
        def stream(self, batches: Iterable[PixelBatch]) -> Generator[PixelBatch, None, None]:
            for batch in super().stream(batches):
                assert hostcuda.current_depth() == 0
                counts[self.label] = counts.get(self.label, 0) + 1
                yield batch

    with SpreadBackend([Counting(engine(), device=str(number)) for number in range(3)]) as backend:
        assert backend.label == ", ".join(f"TensorRT 11.4.0.1 on Host memory {number}" for number in range(3))
        hostcuda.mark()
        list(backend.stream(batches(120)))
        assert hostcuda.stats().allocations_since_mark == 0
    assert len(counts) == 3
    assert sum(counts.values()) == 120


@under_hostcuda(HOSTCUDA_DEVICES=2, HOSTCUDA_DELAY_US=300)
def test_two_backends_on_one_gpu_share_its_context() -> None:
    given = batches(60)
    cuda.init()
    one, other = (
        TensorRTBackend(engine(), device="1"),
        TensorRTBackend(engine(), device=cuda.Device(1).pci_bus_id()),
    )
    with SpreadBackend([one, other]) as backend:
        assert hostcuda.stats().live_contexts == 1
        assert backend.label == "2 x TensorRT 11.4.0.1 on Host memory 1"
        assert all(equal(list(backend.stream(given)), by_onnx_runtime(given)))


def test_infer_refuses_the_same_gpu_by_two_names(driver: Driver, house: House) -> None:
    house.photo("a.png", 32, 40)
    house.engine()
    run = house.infer(driver, "--device", "0", "--device", "0000:01:00.0", HOSTCUDA_DEVICES=2)
    assert run.returncode == 2
    assert "--device 0000:01:00.0: the same GPU as --device 0" in run.output
    assert "Traceback" not in run.output


@under_hostcuda(HOSTCUDA_DEVICES=3, HOSTCUDA_DELAY_US=1000)
def test_leaving_gpus_early_or_by_ctrl_c_frees_all() -> None:
    given = batches(40)
    right = by_onnx_runtime(given)

    def interrupted() -> Iterator[NDArray[Any]]:
        yield from given[:9]
        raise KeyboardInterrupt

    with gpus() as backend:
        for stop in (0, 1, 7):
            restored = backend.stream(given)
            assert all(equal([next(restored) for _ in range(stop)], right[:stop]))
            restored.close()
        with pytest.raises(KeyboardInterrupt):
            list(backend.stream(interrupted()))
        assert all(equal(list(backend.stream(given)), right))
        half = backend.stream(given)
        next(half)  # and the backend is closed in mid-stream
    assert workers() == []


@pytest.mark.parametrize(
    "failing",
    ["run:30", "run:200", "cuGraphLaunch:9", "cuMemAlloc_v2:7", "cuStreamCreate:4", "cuMemHostAlloc:9"],
)
def test_a_gpu_that_fails_ends_all_and_nothing_stays(driver: Driver, failing: str) -> None:
    if "Graph" in failing:
        pytest.importorskip("cuda.bindings", reason="CUDA graphs need cuda-bindings")
    run = driver.run_body(__name__, "gpu_that_fails", {"HOSTCUDA_FAIL": failing, "HOSTCUDA_DEVICES": 3})
    assert run.returncode == 0, (run.last_fault, run.output)
    live = {name: value for name, value in run.stats._asdict().items() if name.startswith("live")}
    assert not any(live.values()), live


@under_hostcuda()
def gpu_that_fails() -> None:
    with pytest.raises(DeviceError) as failure, gpus() as backend:
        list(backend.stream(batches(100)))
    assert failure.value.fix
    assert workers() == []
