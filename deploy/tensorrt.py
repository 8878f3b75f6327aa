"""The GPU backend: an engine of the store, batches through several slots, by pycuda and TensorRT's runtime.

A slot is a CUDA stream with an execution context and buffers of its own. While one slot's kernels run, the
next slot's batch crosses the bus. Nothing is allocated after the start. With cuda-bindings, a slot's three
steps are a CUDA graph, and a batch is one launch of it.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Generator, Iterable
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cmudrn.deploy.backend import PixelBatch
from cmudrn.deploy.cuda import NON_BLOCKING, Device, PinnedBuffer, open_device
from cmudrn.deploy.cuda_graph import Graph, GraphDriver, find_graph_driver
from cmudrn.engines.callbacks import make_log
from cmudrn.engines.context import frames_cleared
from cmudrn.engines.flavors import Library, open_library
from cmudrn.engines.spec import EngineSpec, Pixel
from cmudrn.engines.store import Engine
from cmudrn.engines.wanted import Wanted
from cmudrn.errors import CmudrnError, EngineError, EnvironmentMissing, ImageError
from cmudrn.wording import counted

if TYPE_CHECKING:
    import tensorrt as trt

__all__ = ["TensorRTBackend"]

LOG = logging.getLogger(__name__)
# How TensorRT words what isn't the engine's fault: it has no error types.
NO_ROOM = ("out of memory", "OutOfMemory")
NO_CUDA = ("driver version is insufficient", "CUDA initialization failure")


class Loaded(NamedTuple):
    """An engine on the device, and why TensorRT fails when it does."""

    engine: trt.ICudaEngine
    log: Any  # of `make_log`


class _WrongTensor(Exception):
    """The engine has other inputs and outputs than its manifest says."""


class Slot:
    """One batch on its way: in, through the engine, out. The device's context is current in every call.

    All that fails raises pycuda's Error, and making one _WrongTensor, too. loaded: the engine, and the log
    that it writes to.
    """

    def __init__(self, device: Device, loaded: Loaded, spec: EngineSpec, taken: ExitStack) -> None:
        taken.callback(self.close)
        cuda, engine = device.cuda, loaded.engine
        self.cuda, self.log = cuda, loaded.log
        shape, dtype = _batch_shape(spec), _dtype(spec)
        self.stream = cuda.Stream(NON_BLOCKING)
        self.done = cuda.Event(cuda.event_flags.DISABLE_TIMING)
        self.source, self.target = (self._buffer(device, shape, dtype, taken) for _ in range(2))
        self.execution: trt.IExecutionContext | None = engine.create_execution_context()
        if self.execution is None:
            raise cuda.MemoryError(f"TensorRT makes no execution context: {self._words()}")
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        for name in names:  # one of each mode; torch-tensorrt has names of its own
            buffer = self.source if engine.get_tensor_mode(name).name == "INPUT" else self.target
            if not self.execution.set_tensor_address(name, buffer.address):
                raise _WrongTensor(f"the engine does not take its tensor {name}: {self._words()}")
        self.graph: Graph | None = None
        self.images = 0  # of the batch on its way

    def close(self) -> None:
        """Ends what CUDA and TensorRT made, also where somebody still holds the slot; buffers go before."""
        self.execution = self.done = self.stream = self.graph = None

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
        if self.graph:
            self.graph.launch()
        else:
            self._enqueue()
        self.done.record(self.stream)

    def _enqueue(self) -> None:
        """What a graph replays: the same memory each time, and no event, which is of one batch."""
        self.cuda.memcpy_htod_async(self.source.device, self.source.host, self.stream)
        if not self.execution or not self.execution.execute_async_v3(self.stream.handle):
            raise self.cuda.Error(f"TensorRT did not take the batch: {self._words()}")
        self.cuda.memcpy_dtoh_async(self.target.host, self.target.device, self.stream)

    def warm_up(self) -> None:
        """One run of a black batch: TensorRT sets up what it needs in its first, which can't be recorded."""
        self.source.host[...] = 0
        self._enqueue()
        self.stream.synchronize()

    def record(self, driver: GraphDriver, taken: ExitStack) -> None:
        """From now on a batch is one launch. Where an error is raised, all goes on as before."""
        # TensorRT-RTX can tell: an engine that allocates while it runs would be captured, and be wrong.
        capturable = getattr(self.execution, "is_stream_capturable", None)
        if capturable and not capturable(self.stream.handle):
            raise self.cuda.Error("the library says that this engine cannot be captured")
        self.graph = driver.record(self.stream, self._enqueue)
        taken.callback(self.graph.free)

    def _words(self) -> str:
        """TensorRT's latest."""
        return self.log.errors[-1] if self.log.errors else "it gave no reason"

    def collect(self) -> NDArray[Any]:
        """Waits for the batch, and returns it as memory of its own."""
        self.done.synchronize()
        restored: NDArray[Any] = self.target.host[: self.images].copy()
        return restored


class TensorRTBackend(AbstractContextManager["TensorRTBackend"]):
    """An engine of the store on a GPU; use it in one thread at a time.

    engine: as `EngineStore.load` gives it, so checked. device: its number among those that CUDA shows, or a
    PCI bus id. slots: batches on their way at once; with 1 nothing overlaps. graphs: CUDA graphs are replayed
    where cuda-bindings is installed; an engine that cannot be recorded is logged, and runs without.
    Entering raises EnvironmentMissing without driver or GPU, EngineError for an engine of another version or
    GPU, DeviceError where the GPU has no room.
    """

    def __init__(self, engine: Engine, *, device: str = "0", slots: int = 2, graphs: bool = True) -> None:
        self.manifest, self._plan = engine
        self._wanted, self._count, self._graphs = device, slots, graphs
        self._slots: list[Slot] = []
        self._loaded: Loaded | None = None
        self._turn = 0  # of the latest stream; those before it have ended
        self._taken = ExitStack()
        self._device: Device | None = None

    @property
    def spec(self) -> EngineSpec:
        return self.manifest.spec

    @property
    def label(self) -> str:
        """Once entered."""
        return f"{self.manifest.flavor.label} {self.manifest.version} on {self._opened().name}"

    @property
    def replays(self) -> bool:
        """Whether all slots replay CUDA graphs; while it is open."""
        return bool(self._slots) and all(slot.graph for slot in self._slots)

    def __enter__(self) -> TensorRTBackend:
        library = open_library(self.manifest.flavor)
        if library.version != self.manifest.version:
            raise EngineError(
                f"{self.manifest.key}: built by version {self.manifest.version}, here is {library.version}",
                fix=self._build_command(library, self.manifest.target),
            )
        with ExitStack() as taken:
            device = taken.enter_context(open_device(self._wanted))
            inside = ExitStack()
            taken.callback(_close_inside, device, inside)
            taken.callback(self._drain, device)
            with device.current(), frames_cleared():
                self._fill(library, device, inside)
            self._device, self._taken = device, taken.pop_all()
        return self

    def _fill(self, library: Library, device: Device, inside: ExitStack) -> None:
        """The engine and its slots. The device's context is current."""
        with device.errors("loading the engine", len(self._plan)):
            loaded = self._loaded = self._load(library, device)
        inside.callback(self._forget)  # after the buffers: streams, execution contexts, the engine
        buffer_bytes = int(np.prod(_batch_shape(self.spec))) * np.dtype(_dtype(self.spec)).itemsize
        slot_bytes = 2 * buffer_bytes + loaded.engine.device_memory_size_v2
        with device.errors(f"making {counted(self._count, 'slot')}", self._count * slot_bytes):
            try:
                for _ in range(self._count):
                    self._slots.append(Slot(device, loaded, self.spec, inside))
            except _WrongTensor as exc:
                command = self._build_command(library, device.target)
                raise EngineError(f"{self.manifest.key}: {exc}", fix=f"{command} --rebuild") from exc
        driver = find_graph_driver(device.cuda) if self._graphs else None
        if driver:
            with device.errors("running the engine"):
                self._record(driver, device, inside)

    def _record(self, driver: GraphDriver, device: Device, inside: ExitStack) -> None:
        """A graph for each slot, or for none after the first that is refused."""
        for slot in self._slots:
            slot.warm_up()
            try:
                slot.record(driver, inside)
            except device.cuda.Error as exc:
                slot.stream.synchronize()  # raises where more than the recording has failed
                LOG.warning("%s: runs without CUDA graphs: %s", self.manifest.key, exc)
                return

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._device = None
        self._turn += 1  # ends a stream that was left in the middle
        self._taken.close()

    def _forget(self) -> None:
        """The last references: these objects end while the device's context is current."""
        self._slots.clear()
        self._loaded = None

    def _drain(self, device: Device) -> None:
        """Waits until nothing is on its way, lest buffers be freed or filled under a running batch."""
        with device.current():
            for slot in self._slots:
                with suppress(device.cuda.Error):  # told before, to whoever was waiting
                    slot.stream.synchronize()

    def stream(self, batches: Iterable[PixelBatch]) -> Generator[PixelBatch, None, None]:
        """Each batch restored, in order, same shape and dtype; reads ahead as many as there are slots.

        A batch of fewer images than the engine's is filled up on the way and cut after it. The slots are one
        stream's: the next one ends one that was left in the middle, which raises RuntimeError when it is
        used again.
        Raises ImageError for a batch that doesn't fit the engine, DeviceError where the GPU fails.
        """
        device = self._opened()
        self._turn += 1
        turn = self._turn
        self._drain(device)  # of batches of the stream before
        free, busy = deque(self._slots), deque[Slot]()
        try:
            for batch in batches:
                self._check_turn(turn)
                self._check(batch)
                if not free:
                    yield self._collect(device, free, busy)
                    self._check_turn(turn)
                with device.current(), device.errors("restoring"):
                    busy.append(free.popleft())
                    busy[-1].submit(batch)
            while busy:
                self._check_turn(turn)
                yield self._collect(device, free, busy)
        finally:
            # A consumer that left early, or an error: the next stream finds idle slots.
            if self._turn == turn:
                self._drain(device)

    def _opened(self) -> Device:
        if self._device is None:
            raise RuntimeError("the backend is not open: use it in a `with` block")
        return self._device

    def _check_turn(self, turn: int) -> None:
        """Raises RuntimeError where the slots hold batches of another stream, or are gone."""
        self._opened()
        if self._turn != turn:
            raise RuntimeError("the stream has ended: its backend streams something else")

    @staticmethod
    def _collect(device: Device, free: deque[Slot], busy: deque[Slot]) -> PixelBatch:
        with device.current(), device.errors("restoring"):
            restored = busy[0].collect()
        free.append(busy.popleft())
        return restored

    def _load(self, library: Library, device: Device) -> Loaded:
        if TYPE_CHECKING:
            import tensorrt as trt
        else:
            trt = library.module
        log = make_log(library)
        engine: trt.ICudaEngine | None = None
        with suppress(TypeError):  # pybind11's, where TensorRT gives nothing: CUDA doesn't start for it
            engine = trt.Runtime(log).deserialize_cuda_engine(self._plan)
        if engine is None:
            raise self._not_loaded(library, device, log.reasons())
        return Loaded(engine, log)

    def _not_loaded(self, library: Library, device: Device, reasons: str) -> CmudrnError:
        what = f"{self.manifest.key}: does not load on {device.name} ({device.target}): {reasons}"
        if any(words in reasons for words in NO_CUDA):
            return EnvironmentMissing(
                what, fix=f"install a newer NVIDIA driver, or {library.flavor.label} for an older CUDA"
            )
        if any(words in reasons for words in NO_ROOM):
            return device.out_of_memory(f"loading {self.manifest.key}", len(self._plan), reasons)
        return EngineError(what, fix=f"{self._build_command(library, device.target)} --rebuild")

    def _build_command(self, library: Library, target: str) -> str:
        """What builds such an engine by this library for that GPU; into which store isn't known here."""
        of_this_version = Wanted.like(self.manifest, version=library.version, targets=[target])
        return replace(of_this_version, device=self._wanted).build_command(None)

    def _check(self, batch: PixelBatch) -> None:
        spec = self.spec
        fits = batch.shape[1:] == _batch_shape(spec)[1:] and 0 < len(batch) <= spec.batch
        if not fits or batch.dtype != _dtype(spec):
            raise ImageError(
                f"a batch of {batch.dtype} {batch.shape} for an engine of {spec}", fix="choose another engine"
            )


def _batch_shape(spec: EngineSpec) -> tuple[int, ...]:
    return (spec.batch, spec.height, spec.width, 3)


def _dtype(spec: EngineSpec) -> Any:
    return np.uint8 if spec.pixel is Pixel.UINT8 else np.float32


def _close_inside(device: Device, inside: ExitStack) -> None:
    """Frees what belongs to the device's context while that is current."""
    with device.current():
        inside.close()
