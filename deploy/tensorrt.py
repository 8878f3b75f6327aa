"""The GPU backend: an engine of the store, batches through several slots, by pycuda and TensorRT's runtime.

A slot is a CUDA stream with an execution context and buffers of its own. While one slot's kernels run, the
next slot's batch crosses the bus. Nothing is allocated after the start.
"""

from __future__ import annotations

import traceback
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cmudrn.deploy.backend import PixelBatch
from cmudrn.deploy.cuda import Device, PinnedBuffer, open_device
from cmudrn.engines.callbacks import make_log
from cmudrn.engines.flavors import Library, open_library
from cmudrn.engines.spec import EngineSpec, Pixel
from cmudrn.engines.store import Engine
from cmudrn.errors import DeviceError, EngineError, ImageError

if TYPE_CHECKING:
    import tensorrt as trt

__all__ = ["TensorRTBackend"]


class Slot:
    """One batch on its way: in, through the engine, out. The device's context is current in every call."""

    def __init__(self, device: Device, engine: trt.ICudaEngine, spec: EngineSpec, taken: ExitStack) -> None:
        taken.callback(self.close)
        cuda = self.cuda = device.cuda
        shape = (spec.batch, spec.height, spec.width, 3)
        dtype = np.uint8 if spec.pixel is Pixel.UINT8 else np.float32
        self.stream = cuda.Stream()
        self.done = cuda.Event(cuda.event_flags.DISABLE_TIMING)
        self.source, self.target = (self._buffer(device, shape, dtype, taken) for _ in range(2))
        self.execution: trt.IExecutionContext | None = engine.create_execution_context()
        if self.execution is None:
            raise DeviceError(
                f"{device.name}: TensorRT makes no execution context",
                fix="free GPU memory, or fewer --streams",
            )
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        for name in names:  # one of each mode; torch-tensorrt has names of its own
            buffer = self.source if engine.get_tensor_mode(name).name == "INPUT" else self.target
            if not self.execution.set_tensor_address(name, buffer.address):
                raise EngineError(f"the engine doesn't take its tensor {name}", fix="build the engine again")
        self.images = 0  # of the batch on its way

    def close(self) -> None:
        """Ends what CUDA and TensorRT made, also where somebody still holds the slot; buffers go before."""
        self.execution = self.done = self.stream = None

    @staticmethod
    def _buffer(device: Device, shape: tuple[int, ...], dtype: Any, taken: ExitStack) -> PinnedBuffer:
        buffer = PinnedBuffer(device, shape, dtype)
        taken.callback(buffer.free)
        return buffer

    def submit(self, batch: PixelBatch) -> None:
        """Begins a batch of at most the engine's size, and returns at once."""
        self.images = len(batch)
        self.source.host[: self.images] = batch
        self.source.host[self.images :] = 0  # a short last batch
        self.cuda.memcpy_htod_async(self.source.device, self.source.host, self.stream)
        if not self.execution or not self.execution.execute_async_v3(self.stream.handle):
            raise DeviceError("TensorRT did not take the batch", fix="run it again; report it if it stays")
        self.cuda.memcpy_dtoh_async(self.target.host, self.target.device, self.stream)
        self.done.record(self.stream)

    def collect(self) -> NDArray[Any]:
        """Waits for the batch, and returns it as memory of its own."""
        self.done.synchronize()
        restored: NDArray[Any] = self.target.host[: self.images].copy()
        return restored


class TensorRTBackend(AbstractContextManager["TensorRTBackend"]):
    """An engine of the store on a GPU; use it in one thread at a time.

    engine: as `EngineStore.load` gives it, so checked. device: its number among those that CUDA shows, or a
    PCI bus id. slots: batches on their way at once; with 1 nothing overlaps.
    Entering raises EnvironmentMissing without driver or GPU, EngineError for an engine of another version or
    GPU, DeviceError where the GPU has no room.
    """

    def __init__(self, engine: Engine, *, device: str = "0", slots: int = 2) -> None:
        self.manifest, self._plan = engine
        self._wanted, self._count = device, slots
        self._slots: list[Slot] = []
        self._engine: trt.ICudaEngine | None = None
        self._taken = ExitStack()
        self._device: Device | None = None

    @property
    def spec(self) -> EngineSpec:
        return self.manifest.spec

    def __enter__(self) -> TensorRTBackend:
        library = open_library(self.manifest.flavor)
        if library.version != self.manifest.version:
            raise EngineError(
                f"{self.manifest.key}: built by version {self.manifest.version}, here is {library.version}",
                fix="build the engine again",
            )
        with ExitStack() as taken:
            device = taken.enter_context(open_device(self._wanted))
            inside = ExitStack()
            taken.callback(_close_inside, device, inside)
            with device.current(), device.errors("loading the engine"), _frames_cleared():
                self._engine = self._load(library, device)
                inside.callback(self._forget)  # after the buffers: streams, execution contexts, the engine
                for _ in range(self._count):
                    self._slots.append(Slot(device, self._engine, self.spec, inside))
            taken.callback(self._drain, device)
            self._device, self._taken = device, taken.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._device = None
        self._taken.close()

    def _forget(self) -> None:
        """The last references: these objects end while the device's context is current."""
        self._slots.clear()
        self._engine = None

    def _drain(self, device: Device) -> None:
        """Waits until nothing is on its way, lest buffers be freed or filled under a running batch."""
        with device.current():
            for slot in self._slots:
                with suppress(device.cuda.Error):  # told before, to whoever was waiting
                    slot.stream.synchronize()

    def stream(self, batches: Iterable[PixelBatch]) -> Iterator[PixelBatch]:
        """Each batch restored, in order, same shape and dtype; reads ahead as many as there are slots.

        A batch of fewer images than the engine's is filled up on the way and cut after it.
        Raises ImageError for a batch that doesn't fit the engine, DeviceError where the GPU fails.
        """
        device = self._device
        if device is None:
            raise RuntimeError("the backend is not open: use it in a `with` block")
        free, busy = deque(self._slots), deque[Slot]()
        try:
            for batch in batches:
                self._check(batch)
                if not free:
                    yield self._collect(device, free, busy)
                with device.current(), device.errors("restoring"):
                    busy.append(free.popleft())
                    busy[-1].submit(batch)
            while busy:
                yield self._collect(device, free, busy)
        finally:
            # A consumer that left early, or an error: the next stream finds idle slots.
            if self._device is device:
                self._drain(device)

    @staticmethod
    def _collect(device: Device, free: deque[Slot], busy: deque[Slot]) -> PixelBatch:
        with device.current(), device.errors("restoring"):
            restored = busy[0].collect()
        free.append(busy.popleft())
        return restored

    def _load(self, library: Library, device: Device) -> trt.ICudaEngine:
        if TYPE_CHECKING:
            import tensorrt as trt
        else:
            trt = library.module
        log = make_log(library)
        engine = trt.Runtime(log).deserialize_cuda_engine(self._plan)
        if engine is None:
            raise EngineError(
                f"{self.manifest.key}: does not load on {device.name} ({device.target}): {log.reasons()}",
                fix="build an engine for this GPU and version",
            )
        return engine

    def _check(self, batch: PixelBatch) -> None:
        spec = self.spec
        dtype = np.dtype(np.uint8 if spec.pixel is Pixel.UINT8 else np.float32)
        fits = batch.shape[1:] == (spec.height, spec.width, 3) and 0 < len(batch) <= spec.batch
        if not fits or batch.dtype != dtype:
            raise ImageError(
                f"a batch of {batch.dtype} {batch.shape} for an engine of {spec}", fix="choose another engine"
            )


@contextmanager
def _frames_cleared() -> Iterator[None]:
    """An error's frames hold objects of TensorRT's, which must end while the device's context is current."""
    try:
        yield
    except BaseException as exc:
        traceback.clear_frames(exc.__traceback__)
        raise


def _close_inside(device: Device, inside: ExitStack) -> None:
    """Frees what belongs to the device's context while that is current."""
    with device.current():
        inside.close()
