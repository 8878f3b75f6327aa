"""Stands for `tensorrt`: the part of its runtime that runs engines, on hostcuda's streams.

A plan is a serialized ONNX graph of fixed shapes, bare or with a head (`plan`); ONNX Runtime computes it on
the stream's thread, from what lies in device memory at that moment. What TensorRT leaves undefined comes out
wrong here: an input that changes while it is read, a context that runs twice at once, an output that is read
too early.
"""

from __future__ import annotations

import atexit
import ctypes
import itertools
import json
import os
import sys
import time
from collections.abc import Sequence
from enum import Enum, IntEnum
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

__version__ = os.environ.get("HOSTCUDA_TENSORRT", "11.4.0.1")

HEAD = b"hostcuda plan "
UNDEFINED = 0xA5  # of the output, until it has been computed
ALIGNMENT = 256  # bytes, of a tensor's address
ERRORS_ONLY = 3  # ONNX Runtime's severity
LONGEST_RUN_S = 20
OUT_OF_MEMORY, CAPTURE_UNSUPPORTED = 2, 900  # of CUDA's errors
CAPTURING = 1  # CUDA's status of a stream

_driver = ctypes.CDLL("libcuda.so.1")
_HostFunction = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_driver.hostcuda_enqueue.argtypes = [ctypes.c_void_p, _HostFunction, ctypes.c_void_p]
_driver.hostcuda_check_range.argtypes = [ctypes.c_uint64, ctypes.c_size_t]
_driver.cuMemAlloc_v2.argtypes = [ctypes.POINTER(ctypes.c_uint64), ctypes.c_size_t]
_driver.cuMemFree_v2.argtypes = [ctypes.c_uint64]
_driver.cuStreamSynchronize.argtypes = [ctypes.c_void_p]
_driver.cuStreamIsCapturing.argtypes = [ctypes.c_void_p, ctypes.POINTER(ctypes.c_int)]


class DataType(Enum):
    """Of a tensor's values; the numbers are TensorRT's."""

    FLOAT = 0
    HALF = 1
    UINT8 = 5

    @property
    def itemsize(self) -> int:
        """Bytes of a value."""
        return np.dtype(nptype(self)).itemsize


class TensorIOMode(Enum):
    """Which way a tensor goes."""

    NONE = 0
    INPUT = 1
    OUTPUT = 2


class Severity(IntEnum):
    """Of a message."""

    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3
    VERBOSE = 4


class ILogger:
    """To be derived from, with a `log`."""

    Severity: TypeAlias = Severity
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = Severity

    def __init__(self) -> None:
        pass

    def log(self, severity: Severity, msg: str) -> None:
        """Takes one message."""
        raise NotImplementedError


class Logger(ILogger):
    """Writes to stderr what is at least as severe as asked for."""

    def __init__(self, min_severity: Severity = Severity.WARNING) -> None:
        super().__init__()
        self.min_severity = min_severity

    def log(self, severity: Severity, msg: str) -> None:
        """Takes one message."""
        if severity <= self.min_severity:
            sys.stderr.write(f"[TRT] [{severity.name[0]}] {msg}\n")


class _Tensor(NamedTuple):
    name: str
    mode: TensorIOMode
    shape: tuple[int, ...]
    dtype: DataType

    @property
    def bytes(self) -> int:
        return int(np.prod(self.shape)) * self.dtype.itemsize


_ONNX_TYPES = {
    "tensor(float)": DataType.FLOAT,
    "tensor(float16)": DataType.HALF,
    "tensor(uint8)": DataType.UINT8,
}


def nptype(trt_type: DataType) -> type[np.generic]:
    """numpy's type for one of TensorRT's."""
    types: dict[DataType, type[np.generic]] = {
        DataType.FLOAT: np.float32,
        DataType.HALF: np.float16,
        DataType.UINT8: np.uint8,
    }
    return types[trt_type]


def plan(
    graph: bytes,
    *,
    version: str = __version__,
    capability: str | None = None,
    waits: bool = False,
    tells: bool = False,
) -> bytes:
    """A graph as the plan of another version, or of a GPU of one compute capability, such as "8.6".

    waits: for the stream in each run, as engines with loops or conditions do: it cannot be captured.
    tells: its contexts say whether they can be captured, as TensorRT-RTX's do.
    """
    head = {"version": version, "capability": capability, "waits": waits, "tells": tells}
    return HEAD + json.dumps(head).encode() + b"\n" + graph


class Runtime:
    """Reads plans."""

    def __init__(self, logger: ILogger) -> None:
        version = ctypes.c_int()
        _driver.cuDriverGetVersion(ctypes.byref(version))
        if version.value // 1000 < int(os.environ.get("HOSTCUDA_TENSORRT_CUDA", "12")):
            logger.log(Severity.ERROR, "CUDA initialization failure with error: 35.")
            raise TypeError("pybind11::init(): factory function returned nullptr")
        self.logger = logger

    def deserialize_cuda_engine(self, serialized_engine: Any) -> ICudaEngine | None:
        """None where it cannot be read here; the logger was told why."""
        try:
            return ICudaEngine(_read(bytes(serialized_engine)), self.logger)
        except _Refused as exc:
            self.logger.log(Severity.ERROR, str(exc))
            return None


class _Refused(Exception):
    """What TensorRT tells its logger, and not its caller."""


class _Plan(NamedTuple):
    graph: bytes
    waits: bool = False
    tells: bool = False


def _read(data: bytes) -> _Plan:
    """Raises _Refused for another version's plan, or another GPU's."""
    if not data.startswith(HEAD):
        return _Plan(data)
    head, graph = data.removeprefix(HEAD).split(b"\n", 1)
    made = json.loads(head)
    if made["version"] != __version__:
        raise _Refused(
            "IRuntime::deserializeCudaEngine: Error Code 1: Serialization (Version tag does not match. "
            f"Note: Current Version: {__version__}, Serialized Engine Version: {made['version']})"
        )
    here = _current_capability()
    if made["capability"] not in (None, here):
        raise _Refused(
            "IRuntime::deserializeCudaEngine: Error Code 6: API Usage Error (The engine plan file is "
            f"generated on an incompatible device, expecting compute {here} got compute "
            f"{made['capability']}, please rebuild.)"
        )
    return _Plan(graph, made["waits"], made["tells"])


def _current_capability() -> str:
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    _check(_driver.cuCtxGetDevice(ctypes.byref(device)), "cuCtxGetDevice")
    _check(_driver.cuDeviceComputeCapability(ctypes.byref(major), ctypes.byref(minor), device), "capability")
    return f"{major.value}.{minor.value}"


def _check(result: int, call: str) -> None:
    if result:
        raise _Refused(f"Error Code 1: Cuda Runtime (In {call}: {_words(result)})")


def _words(result: int) -> str:
    known = {
        OUT_OF_MEMORY: ": out of memory",
        CAPTURE_UNSUPPORTED: ": operation not permitted when stream is capturing",
    }
    return f"CUDA error {result}{known.get(result, '')}"


class _Memory:
    """Device memory that the library itself takes; it needs the current context, to free it too."""

    def __init__(self, bytes_: int) -> None:
        address = ctypes.c_uint64()
        _check(_driver.cuMemAlloc_v2(ctypes.byref(address), bytes_), "cuMemAlloc")
        self.address = address.value

    def __del__(self) -> None:
        if hasattr(self, "address"):
            _driver.cuMemFree_v2(self.address)


class ICudaEngine:
    """A graph with its weights on the device."""

    def __init__(self, plan: _Plan, logger: ILogger) -> None:
        self._logger = logger
        self._plan = plan
        self._session = _open(plan.graph)
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        self._tensors = [_tensor(node, TensorIOMode.INPUT) for node in inputs]
        self._tensors += [_tensor(node, TensorIOMode.OUTPUT) for node in outputs]
        self._weights = _Memory(len(plan.graph))

    @property
    def num_io_tensors(self) -> int:
        """Inputs and outputs."""
        return len(self._tensors)

    @property
    def device_memory_size_v2(self) -> int:
        """Bytes that one context takes."""
        return 4 * sum(tensor.bytes for tensor in self._tensors)

    def get_tensor_name(self, index: int) -> str:
        """Inputs first."""
        return self._tensors[index].name

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        """NONE for one that isn't there."""
        tensor = self._find(name)
        return tensor.mode if tensor else TensorIOMode.NONE

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        """TensorRT gives Dims, which behave like a tuple."""
        return self._known(name).shape

    def get_tensor_dtype(self, name: str) -> DataType:
        """Of its values."""
        return self._known(name).dtype

    def create_execution_context(self) -> IExecutionContext | None:
        """None where the device's memory doesn't suffice."""
        try:
            return _TellingContext(self) if self._plan.tells else IExecutionContext(self)
        except _Refused as exc:
            self._logger.log(Severity.ERROR, str(exc))
            return None

    def _find(self, name: str) -> _Tensor | None:
        return next((tensor for tensor in self._tensors if tensor.name == name), None)

    def _known(self, name: str) -> _Tensor:
        tensor = self._find(name)
        if tensor is None:
            raise ValueError(f"no tensor {name!r}")
        return tensor


def _open(graph: bytes) -> Any:
    import onnxruntime as ort  # slow to import, and not to be forked

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = ERRORS_ONLY
    try:
        return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception as exc:  # its errors have no common base
        raise _Refused(
            "IRuntime::deserializeCudaEngine: Error Code 1: Serialization (Magic tag does not match)"
        ) from exc


def _tensor(node: Any, mode: TensorIOMode) -> _Tensor:
    if node.type not in _ONNX_TYPES or not all(isinstance(size, int) for size in node.shape):
        raise _Refused(f"Error Code 4: Internal Error ({node.name}: {node.type} {node.shape} is not static)")
    return _Tensor(node.name, mode, tuple(node.shape), _ONNX_TYPES[node.type])


class IExecutionContext:
    """Runs its engine; one run at a time."""

    def __init__(self, engine: ICudaEngine) -> None:
        self.engine = engine
        self._addresses: dict[str, int] = {}
        self._activations = _Memory(engine.device_memory_size_v2)
        self._set_up = False
        self._captured: list[int] = []  # launches

    def __del__(self) -> None:
        """A graph that is replayed after this finds no launch, and fails."""
        for number in getattr(self, "_captured", []):
            _launches.pop(number, None)

    def set_tensor_address(self, name: str, memory: int) -> bool:
        """Where a tensor lies from the next run on."""
        if self.engine._find(name) is None or memory == 0 or memory % ALIGNMENT:
            self._log(
                f"IExecutionContext::setTensorAddress: Error Code 3: API Usage Error ({name}, {memory:#x})"
            )
            return False
        self._addresses[name] = memory
        return True

    def get_tensor_address(self, name: str) -> int:
        """0 where none was set."""
        return self._addresses.get(name, 0)

    def execute_async_v3(self, stream_handle: int) -> bool:
        """Enqueues one run. The addresses are taken now, the memory is read and written when it runs.

        The first run also waits for the stream, as TensorRT sets things up in it: it can't be captured.
        """
        unset = [tensor.name for tensor in self.engine._tensors if tensor.name not in self._addresses]
        if unset:
            self._log(
                f"IExecutionContext::enqueueV3: Error Code 3: API Usage Error (no address is set for {unset})"
            )
            return False
        result = self._enqueue(stream_handle)
        if result:
            self._log(f"IExecutionContext::enqueueV3: Error Code 1: Cuda Runtime ({_words(result)})")
        return not result

    def _enqueue(self, stream: int) -> int:
        """Returns CUDA's error, 0 for none."""
        status = ctypes.c_int()
        if self.engine._plan.waits or not self._set_up:
            result = int(_driver.cuStreamSynchronize(stream))
            if result:
                return result
            self._set_up = True
        if result := int(_driver.cuStreamIsCapturing(stream, ctypes.byref(status))):
            return result
        bound = [(tensor, self._addresses[tensor.name]) for tensor in self.engine._tensors]
        number = next(_numbers)
        captured = status.value == CAPTURING
        _launches[number] = _Launch(self.engine._session, bound, self._activations.address, captured)
        if captured:
            self._captured.append(number)
        result = int(_driver.hostcuda_enqueue(stream, _run_launch, number))
        if result:
            del _launches[number]
        return result

    def _log(self, message: str) -> None:
        self.engine._logger.log(Severity.ERROR, message)


class _TellingContext(IExecutionContext):
    def is_stream_capturable(self, stream: int) -> bool:
        return not self.engine._plan.waits


_numbers = itertools.count(1)
_launches: dict[int, _Launch] = {}


# Runs that compute at this moment. On a broken context nobody waits for them, and Python, when it ends, would
# end them in the middle of ONNX Runtime; a GPU's kernels are not in the process.
_computing: set[int] = set()


@atexit.register
def _let_them_end() -> None:
    deadline = time.monotonic() + LONGEST_RUN_S
    while _computing and time.monotonic() < deadline:
        time.sleep(0.001)


def _run(number: int) -> None:
    """On the stream's thread."""
    _computing.add(number)
    try:
        launch = _launches[number] if _launches[number].captured else _launches.pop(number)
        launch.run(next(_numbers))
    except _BadMemory:
        pass  # the driver has noted it, and refuses everything from now on
    except BaseException as exc:
        _driver.hostcuda_fail(f"the engine failed: {exc!r}".encode())
        raise
    finally:
        _computing.discard(number)


_run_launch = _HostFunction(_run)


class _BadMemory(Exception):
    """A tensor's address is none."""


class _Launch(NamedTuple):
    """One run that was enqueued."""

    session: Any  # of ONNX Runtime
    bound: Sequence[tuple[_Tensor, int]]
    activations: int
    captured: bool  # in a graph, to be run again

    def run(self, number: int) -> None:
        """Computes, as a GPU would: with what is in memory while it computes. number: no other run's."""
        busy = _device_array(self.activations, (1,), np.dtype(np.uint64))
        tensors = {tensor: _device_array(at, tensor.shape, _dtype(tensor)) for tensor, at in self.bound}
        inputs = {t.name: memory for t, memory in tensors.items() if t.mode is TensorIOMode.INPUT}
        outputs = {t.name: memory for t, memory in tensors.items() if t.mode is TensorIOMode.OUTPUT}
        busy[0] = number
        for output in outputs.values():
            output.view(np.uint8).fill(UNDEFINED)
        read = {name: memory.copy() for name, memory in inputs.items()}
        results = self.session.run(list(outputs), read)
        if any(memory.tobytes() != read[name].tobytes() for name, memory in inputs.items()):
            # Kernels read their input to the end, and so have seen some of the later one.
            results = self.session.run(
                list(outputs), {name: memory.copy() for name, memory in inputs.items()}
            )
        if busy[0] != number:
            return  # another run has overwritten the activations of this one
        for output, result in zip(outputs.values(), results, strict=True):
            output[...] = result


def _dtype(tensor: _Tensor) -> np.dtype[Any]:
    return np.dtype(nptype(tensor.dtype))


def _device_array(address: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Device memory, as it is. Raises _BadMemory where it is none."""
    count = int(np.prod(shape)) * dtype.itemsize
    if _driver.hostcuda_check_range(address, count):
        raise _BadMemory
    memory = (ctypes.c_ubyte * count).from_address(address)
    array: NDArray[Any] = np.ctypeslib.as_array(memory).view(dtype).reshape(shape)
    return array
