"""The backend by pycuda on a real GPU, with engines built there: `make gpu-check`. Skipped without one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("onnx", reason="graphs need onnx")

from cmudrn.checkpoint import read_checkpoint
from cmudrn.deploy.backend import PixelBatch
from cmudrn.deploy.cuda import Device, PinnedBuffer, open_device
from cmudrn.deploy.graphs import shipped_graph
from cmudrn.deploy.onnxruntime import OnnxBackend
from cmudrn.deploy.parity.images import shipped_images
from cmudrn.deploy.parity.tally import Comparison, Tally
from cmudrn.deploy.tensorrt import TensorRTBackend
from cmudrn.engines.certificate import ParityLimits
from cmudrn.engines.compile import CompileJob, compile_engines
from cmudrn.engines.flavors import Library
from cmudrn.engines.gpu import Gpu
from cmudrn.engines.spec import EngineSpec, Pixel
from cmudrn.engines.store import Engine, EngineStore
from cmudrn.errors import UsageError

# Short kernels, so that copies and kernels meet often. `make gpu-check` times and compares large engines.
SPEC = EngineSpec(loops=1, height=48, width=64, batch=4)
# cuMemGetInfo counts pages of 2 MB, and what a process sets up once stays: a slot more each time is far more.
PAGE_BYTES = 2 << 20
TIMES = 12  # that a backend is opened, to find what each time loses
TRIES = 3  # others may be using the GPU; what we allocate ourselves is seen in each


def built(library: Library, spec: EngineSpec, factory: pytest.TempPathFactory) -> Engine:
    store = EngineStore(factory.mktemp("store"))
    [one] = compile_engines(CompileJob(specs=(spec,)), read_checkpoint("default"), library, store)
    if one.error:
        raise one.error
    return store.load(one.key)


@pytest.fixture(scope="module", params=list(Pixel), ids=lambda pixel: pixel.value)
def engine_of_either_pixel(
    request: pytest.FixtureRequest, library: Library, tmp_path_factory: pytest.TempPathFactory
) -> Engine:
    return built(library, replace(SPEC, pixel=request.param), tmp_path_factory)


@pytest.fixture(scope="module")
def engine(library: Library, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return built(library, SPEC, tmp_path_factory)


@pytest.fixture
def device(gpu: Gpu) -> Iterator[Device]:
    """Open around a test: the primary context outlives the backends that the test opens and closes."""
    with open_device("0") as device:
        yield device


def batches(count: int, *, last: int = SPEC.batch) -> list[NDArray[np.uint8]]:
    """last: images of the last one."""
    rng = np.random.default_rng(count)
    sizes = [SPEC.batch] * (count - 1) + [last]
    return [rng.integers(0, 256, (size, SPEC.height, SPEC.width, 3), np.uint8) for size in sizes]


def equal(found: list[Any], right: list[Any]) -> bool:
    return len(found) == len(right) and all(map(np.array_equal, found, right))


def restored(engine: Engine, given: list[NDArray[np.uint8]], **options: Any) -> list[PixelBatch]:
    with TensorRTBackend(engine, **options) as backend:
        return list(backend.stream(given))


def free_bytes(device: Device) -> int:
    with device.current():
        free, _ = device.cuda.mem_get_info()
    return int(free)


# --- copies, streams, slots -------------------------------------------------------------------------------


def test_bytes_come_back_as_they_went_over_the_bus(device: Device) -> None:
    given = np.random.default_rng(0).integers(0, 256, 1 << 22, np.uint8)
    with device.current():
        there, back = (PinnedBuffer(device, given.shape, np.uint8) for _ in range(2))
        stream = device.cuda.Stream()
        there.host[...] = given
        device.cuda.memcpy_htod_async(there.device, there.host, stream)
        device.cuda.memcpy_dtoh_async(back.host, there.device, stream)
        stream.synchronize()
        assert np.array_equal(back.host, given)
        there.free()
        back.free()


def test_images_are_onnx_runtimes_within_the_limits_of_parity(engine_of_either_pixel: Engine) -> None:
    spec = engine_of_either_pixel.manifest.spec
    images = [image.pixels for image in shipped_images().at(spec.height, spec.width)]
    levels = np.stack(images)
    given = levels if spec.pixel is Pixel.UINT8 else np.divide(levels, 255, dtype=np.float32)
    parts = [given[start : start + spec.batch] for start in range(0, len(given), spec.batch)]
    with (
        TensorRTBackend(engine_of_either_pixel) as backend,
        OnnxBackend(shipped_graph(spec.loops, spec.pixel), spec) as reference,
    ):
        tally = Tally()
        pairs = zip(backend.stream(parts), reference.stream(parts), parts, strict=True)
        for found, right, part in pairs:
            for one, other, image in zip(found, right, part, strict=True):
                tally.add(image, Comparison("", one, other))
        certificate = tally.certificate(
            ParityLimits(), measured_on=backend.label, measured_at="2026-01-01T00:00:00Z"
        )
    print(f"{engine_of_either_pixel.manifest.key}: {certificate}")
    assert certificate.passed, certificate.failures


def test_any_number_of_slots_gives_the_same_bytes(engine: Engine) -> None:
    given = batches(10)
    one = restored(engine, given, slots=1)
    for slots in (2, 3, 5):
        assert equal(restored(engine, given, slots=slots), one), slots


def test_recorded_as_cuda_graphs_the_batches_are_the_same(engine: Engine) -> None:
    given = batches(10)
    with TensorRTBackend(engine) as backend:
        if not backend.replays:
            pytest.skip("no cuda-bindings, or an engine that cannot be recorded: see the log")
        found = list(backend.stream(given))
    assert equal(found, restored(engine, given, graphs=False))


def test_a_short_last_batch_is_cut_and_its_images_are_the_same(engine: Engine) -> None:
    whole = batches(1)[0]
    [of_whole] = restored(engine, [whole])
    for images in range(1, SPEC.batch + 1):
        [short] = restored(engine, [whole[:images]])
        assert np.array_equal(short, of_whole[:images])


def test_backends_in_threads_do_not_disturb_each_other(engine: Engine) -> None:
    given = batches(10)
    right = restored(engine, given)
    with ThreadPoolExecutor(3) as executor:
        for found in executor.map(lambda _: restored(engine, given), range(3)):
            assert equal(found, right)


# --- memory -----------------------------------------------------------------------------------------------


def test_nothing_is_allocated_after_the_first_batch(
    engine: Engine, device: Device, record_property: Callable[[str, object], None]
) -> None:
    taken = {
        graphs: min(bytes_taken(engine, device, graphs=graphs) for _ in range(TRIES))
        for graphs in (True, False)
    }
    most = max(taken.values())
    record_property("bytes taken after the first of 24 batches", most)
    assert most <= 0, taken


def bytes_taken(engine: Engine, device: Device, *, graphs: bool) -> int:
    """After the first of 24 batches, by a backend of its own: what it takes late, it takes each time."""
    with TensorRTBackend(engine, graphs=graphs) as backend:
        list(backend.stream(batches(1)))
        before = free_bytes(device)
        list(backend.stream(batches(23)))
        return before - free_bytes(device)


def test_closing_gives_all_memory_back(engine: Engine, device: Device) -> None:
    restored(engine, batches(2))  # what the libraries set up once
    before = free_bytes(device)
    for _ in range(TIMES):
        restored(engine, batches(2), slots=3)
    slots_bytes = TIMES * 3 * 2 * batches(1)[0].nbytes
    lost = before - free_bytes(device)
    print(f"{lost} bytes lost; {slots_bytes} would be if the buffers stayed")
    assert lost <= PAGE_BYTES < slots_bytes


def test_a_consumer_that_leaves_early_leaves_nothing_behind(engine: Engine, device: Device) -> None:
    given = batches(20)
    with TensorRTBackend(engine) as backend:
        right = list(backend.stream(given))
        for stop in (1, 2, 7):
            stream = backend.stream(given)
            assert equal([next(stream) for _ in range(stop)], right[:stop])
            stream.close()
        assert equal(list(backend.stream(given)), right)
        half = backend.stream(given)
        next(half)  # and the backend is closed in mid-stream
    before = free_bytes(device)
    for _ in range(TIMES):
        with TensorRTBackend(engine, slots=3) as backend:
            next(backend.stream(given))
    assert before - free_bytes(device) <= PAGE_BYTES


def test_a_source_that_fails_in_mid_stream_does_not_stop_the_next_one(engine: Engine) -> None:
    given = batches(6)

    def failing() -> Iterator[NDArray[np.uint8]]:
        yield from given[:3]
        raise OSError("the disk is gone")

    with TensorRTBackend(engine) as backend:
        right = list(backend.stream(given))
        with pytest.raises(OSError, match="the disk is gone"):
            list(backend.stream(failing()))
        assert equal(list(backend.stream(given)), right)


# --- devices and neighbours -------------------------------------------------------------------------------


def test_a_device_is_the_same_by_number_and_by_bus_id(engine: Engine, device: Device) -> None:
    given = batches(3)
    bus_id = device.cuda.Device(0).pci_bus_id()
    assert equal(restored(engine, given, device=bus_id), restored(engine, given, device="0"))
    with pytest.raises(UsageError, match="--device 99"):
        restored(engine, given, device="99")


def test_pytorch_goes_on_computing_in_the_same_process(engine: Engine) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    if not torch.cuda.is_available():
        pytest.skip("this PyTorch has no GPU")
    ours = batches(10)
    right = restored(engine, ours)
    theirs = torch.rand(256, 256, generator=torch.Generator().manual_seed(0)).to("cuda", torch.float64)
    product = theirs @ theirs
    with TensorRTBackend(engine) as backend:
        for found, expected in zip(backend.stream(ours), right, strict=True):
            assert torch.equal(theirs @ theirs, product)
            assert np.array_equal(found, expected)
    torch.cuda.synchronize()
    assert torch.equal(theirs @ theirs, product)
    assert torch.ones(8, device="cuda").sum().item() == 8  # it may still allocate
