"""The shared library of our own kernels: finding, loading and calling it (cmudrn_native.h), without torch.

It is compiled when the package is built and a C++ compiler is there (tools/build_native.py), else absent.
Two variables of the environment are for tests: CMUDRN_NATIVE_LIBRARY, the path of another build of it, and
CMUDRN_ISA, the instruction set to compute in.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import sys
import threading
import weakref
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cmudrn import __version__
from cmudrn.checkpoint import TENSOR_SHAPES, NetworkKind
from cmudrn.deploy.backend import PixelBatch
from cmudrn.deploy.machine import available_cores
from cmudrn.engines.spec import Output, Precision
from cmudrn.errors import EnvironmentMissing, ImageError, UsageError
from cmudrn.stitches import STITCH_POINTS, check_stitches
from cmudrn.wording import one_line

__all__ = [
    "NativeNetwork",
    "NativeSession",
    "NetworkConfig",
    "chosen_isa",
    "has_isa",
    "is_built",
    "kernels_version",
    "library_path",
    "load_library",
    "usable_isas",
    "what_is_broken",
]

LIBRARY_VARIABLE, ISA_VARIABLE = "CMUDRN_NATIVE_LIBRARY", "CMUDRN_ISA"
FILE = {"win32": "cmudrn.dll", "darwin": "libcmudrn.dylib"}.get(sys.platform, "libcmudrn.so")
HALF = "avx512bf16"  # the one instruction set that rounds more than float32 does
IS_HALF, GIVE_HALF = "it rounds to bfloat16, and float32 is asked for", "give --precision bf16"
MOST_THREADS = 256
MOST_LOOPS = 32
ANOTHER_BACKEND, ANOTHER_PRECISION = "restore with --backend onnx", "give --precision fp32"
BUILD = (
    f"`make native` in a checkout, or install the package again where a C++ compiler is; or {ANOTHER_BACKEND}"
)

# cmudrn_native.h
ABI = 1
OK, NO_MEMORY = 0, 1
PIXELS: Mapping[np.dtype[np.generic], int] = {np.dtype(np.uint8): 0, np.dtype(np.float32): 1}
OUTPUTS: Mapping[Output, int] = {Output.FUSED: 0, Output.RAIN: 1, Output.SNOW: 2}


class _Config(ctypes.Structure):
    _fields_ = (
        ("inter_loops", ctypes.c_int32),
        ("intra_loops", ctypes.c_int32),
        *((point, ctypes.c_float) for point in STITCH_POINTS),
    )


class Shaped(Protocol):
    """What the weights alone don't say: a Checkpoint, a ModelConfig, or a NetworkConfig."""

    @property
    def inter_loops(self) -> int: ...

    @property
    def intra_loops(self) -> int: ...

    @property
    def stitches(self) -> Mapping[str, float]: ...


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """The depth and the stitches. Raises UsageError for those that there aren't."""

    inter_loops: int  # stages, 1 to 32
    intra_loops: int  # times that the two residual blocks run in a stage, 1 to 32
    stitches: Mapping[str, float]  # point: alpha; as `check_stitches` wants them

    def __post_init__(self) -> None:
        for name, loops in (("inter_loops", self.inter_loops), ("intra_loops", self.intra_loops)):
            if not 1 <= loops <= MOST_LOOPS:
                raise UsageError(f"{name} = {loops}", fix=f"give 1 to {MOST_LOOPS}")
        check_stitches(self.stitches)


def library_path() -> Path:
    """Where the library is, or would be: CMUDRN_NATIVE_LIBRARY, else beside this file."""
    told = os.environ.get(LIBRARY_VARIABLE)
    return Path(told) if told else Path(__file__).with_name(FILE)


def load_library() -> ctypes.CDLL:
    """Loaded once for a process. Raises EnvironmentMissing where it isn't there, is broken, or another's."""
    return _loaded(library_path())


def is_built() -> bool:
    """Whether there is a library, and it loads."""
    try:
        load_library()
    except EnvironmentMissing:
        return False
    return True


def what_is_broken() -> str:
    """Why a library that is there cannot be taken, in a line; empty where it can, or there is none."""
    try:
        load_library()
    except EnvironmentMissing as exc:
        return exc.what if library_path().exists() else ""
    return ""


@cache
def _loaded(path: Path) -> ctypes.CDLL:
    if not path.is_file():
        if os.environ.get(LIBRARY_VARIABLE):
            raise EnvironmentMissing(
                f"{LIBRARY_VARIABLE}={path}: no such file", fix=f"unset {LIBRARY_VARIABLE}"
            )
        raise EnvironmentMissing(f"{path}: the package was built without kernels of its own", fix=BUILD)
    try:
        # Calls through CDLL release Python's lock.
        library = ctypes.CDLL(str(path.absolute()))
        found = library.cmudrn_abi()
    except (OSError, AttributeError) as exc:
        raise EnvironmentMissing(f"{path}: not a library of ours: {one_line(exc)}", fix=BUILD) from exc
    if found != ABI:
        raise EnvironmentMissing(
            f"{path}: of another version of the package: its interface is {found}, not {ABI}", fix=BUILD
        )
    _declare(library)
    return library


def _declare(library: ctypes.CDLL) -> None:
    """cmudrn_native.h for ctypes, which would cut addresses to 32 bits."""
    address, number, text = ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p
    declared = {
        "isas": (text, []),
        "has_isa": (number, [text]),
        "network_new": (address, [address, ctypes.c_size_t, ctypes.POINTER(_Config), text]),
        "network_free": (None, [address]),
        "session_new": (address, [address, number]),
        "session_free": (None, [address]),
        "session_bytes": (ctypes.c_uint64, [address, number, number, number]),
        "restore": (number, [address, address, address, number, number, number, number, number]),
    }
    for name, (result, arguments) in declared.items():
        function = getattr(library, f"cmudrn_{name}")
        function.restype, function.argtypes = result, arguments


def usable_isas() -> tuple[str, ...]:
    """Instruction sets of float32 that the library has kernels for and the processor has, best first.

    Raises EnvironmentMissing where there is no library.
    """
    names: bytes = load_library().cmudrn_isas()
    return tuple(names.decode().split(","))


def has_isa(name: str) -> bool:
    """Whether the library has kernels for it and the processor has it; avx512bf16, too.

    Raises EnvironmentMissing where there is no library.
    """
    return bool(load_library().cmudrn_has_isa(name.encode()))


def chosen_isa(precision: Precision) -> str:
    """What to compute in: what CMUDRN_ISA says, else the best here.

    precision: FP32, or BF16, which only one has. Raises UsageError for a CMUDRN_ISA that can't be taken or
    another precision, EnvironmentMissing where there is no library, or it or the processor has no bfloat16.
    """
    if precision is Precision.FP16:
        raise UsageError(f"the package's own kernels in {precision.value}", fix="give fp32 or bf16")
    told = os.environ.get(ISA_VARIABLE, "")
    if precision is Precision.FP32:
        usable = usable_isas()
        if told == HALF:
            raise UsageError(
                f"{ISA_VARIABLE}={HALF}: {IS_HALF}", fix=f"unset {ISA_VARIABLE}, and {GIVE_HALF}"
            )
        if told and told not in usable:
            raise UsageError(f"{ISA_VARIABLE}={told}: not here", fix=f"give one of {', '.join(usable)}")
        return told or usable[0]
    if told not in ("", HALF):
        raise UsageError(f"{ISA_VARIABLE}={told}: not in bf16", fix=f"unset it, or give {HALF}")
    try:
        here = has_isa(HALF)
    except EnvironmentMissing as exc:  # ONNX Runtime has no bfloat16 here
        raise EnvironmentMissing(exc.what, fix=exc.fix.replace(ANOTHER_BACKEND, ANOTHER_PRECISION)) from exc
    if not here:
        raise EnvironmentMissing(
            "the package's own kernels in bf16: this processor, or this build of them, has no AVX-512 bf16",
            fix=ANOTHER_PRECISION,
        )
    return HALF


def kernels_version(precision: Precision) -> str:
    """Of what computes in that precision here: such as 0.1.0 avx512 3f1c0a9d52e7.

    The last are the first digits of the library's SHA-256: another compiler, or other sources, may round
    otherwise. Raises what `chosen_isa` raises.
    """
    isa = chosen_isa(precision)
    return f"{__version__} {isa} {hashlib.sha256(library_path().read_bytes()).hexdigest()[:12]}"


class NativeNetwork(AbstractContextManager["NativeNetwork"]):
    """Weights, packed once for one instruction set; serves several sessions, which end before it.

    weights: by parameter name, float32, as `check_tensors` wants them. isa: None for `chosen_isa` of float32.
    Entering raises EnvironmentMissing where there is no library, or it has no such isa here; UsageError for
    loops beyond 32.
    """

    def __init__(
        self, weights: Mapping[str, NDArray[np.float32]], config: Shaped, isa: str | None = None
    ) -> None:
        self._weights, self._config, self._isa = weights, config, isa
        self._library: ctypes.CDLL | None = None
        self._address: int | None = None

    def __enter__(self) -> NativeNetwork:
        library, isa, config = load_library(), self.isa, self._config
        if not has_isa(isa):
            raise EnvironmentMissing(
                f"{isa}: this build of the kernels, or this processor, doesn't have it",
                fix=f"take one of {', '.join(usable_isas())}",
            )
        alphas = [config.stitches.get(point, 1.0) for point in STITCH_POINTS]
        shape = _Config(config.inter_loops, config.intra_loops, *alphas)
        names = TENSOR_SHAPES[NetworkKind.CMUDRN]  # in the order of cmudrn_native.h
        flat = np.concatenate([np.ravel(self._weights[name]) for name in names]).astype(np.float32)
        address = library.cmudrn_network_new(flat.ctypes.data, flat.size, ctypes.byref(shape), isa.encode())
        if not address:
            loops = f"{config.inter_loops} and {config.intra_loops} loops"
            raise UsageError(
                f"{loops}: refused by the kernels", fix=f"give 1 to {MOST_LOOPS}, with memory left"
            )
        self._library, self._address = library, address
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._library is not None:
            self._library.cmudrn_network_free(self._address)
        self._library = self._address = None

    @property
    def isa(self) -> str:
        """The instruction set it is packed for."""
        return self._isa or chosen_isa(Precision.FP32)

    @property
    def handle(self) -> tuple[ctypes.CDLL, int]:
        """The library and the network's address in it. Raises RuntimeError unless entered."""
        if self._library is None or self._address is None:
            raise RuntimeError("the network is not open: use it in a `with` block")
        return self._library, self._address


SESSIONS: weakref.WeakSet[NativeSession] = weakref.WeakSet()


def renew_locks() -> None:
    """In a forked child: a thread that held one when the process forked isn't there."""
    for session in SESSIONS:
        session.renew_lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=renew_locks)


class NativeSession(AbstractContextManager["NativeSession"]):
    """The memory that batches need: it grows with the largest one, and is freed at the end.

    threads: at most so many work on a batch, and end with it, 1 to 256; None for one on each core.
    May be used by several threads, which wait for each other, and by a process forked from this one. Raises
    UsageError for another number of threads.
    """

    def __init__(self, network: NativeNetwork, threads: int | None = None) -> None:
        if threads is not None and not 1 <= threads <= MOST_THREADS:
            raise UsageError(
                f"threads = {threads}", fix=f"give 1 to {MOST_THREADS}, or None for one on each core"
            )
        self._network = network
        self._threads = threads or min(available_cores(), MOST_THREADS)
        self._library: ctypes.CDLL | None = None
        self._address: int | None = None
        self._turn = threading.Lock()
        SESSIONS.add(self)

    def __enter__(self) -> NativeSession:
        library, network = self._network.handle
        address = library.cmudrn_session_new(network, self._threads)
        if not address:
            raise EnvironmentMissing(
                "the package's own kernels: no memory for a session", fix="free some, or use fewer --threads"
            )
        self._library, self._address = library, address
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._turn:
            if self._library is not None:
                self._library.cmudrn_session_free(self._address)
            self._library = self._address = None

    def bytes_for(self, batch: int, height: int, width: int) -> int:
        """That it holds from the first batch of that size on, beside the images themselves."""
        library, address = self._opened()
        return int(library.cmudrn_session_bytes(address, batch, height, width))

    def restore(self, batch: PixelBatch, output: Output = Output.FUSED) -> PixelBatch:
        """batch: [B, H, W, 3], uint8, or finite float32 in [0, 1]; left as it is. Returns the same kind.

        The same bytes whatever the number of threads. Raises TypeError for another kind, ImageError where the
        memory is short; smaller ones can be restored then.
        """
        # Behind this an array is a bare address: another type or size would be read past its end.
        if batch.dtype not in PIXELS or batch.ndim != 4 or batch.shape[3] != 3 or 0 in batch.shape:
            raise TypeError(
                f"the kernels take uint8 or float32 [B, H, W, 3], not {batch.dtype} {batch.shape}"
            )
        images, height, width, _ = batch.shape
        try:
            given = np.require(batch, requirements=("C", "ALIGNED"))
            restored: PixelBatch = np.empty(batch.shape, batch.dtype)
            with self._turn:
                library, address = self._opened()
                status = library.cmudrn_restore(
                    address, given.ctypes.data, restored.ctypes.data, images, height, width,
                    PIXELS[given.dtype], OUTPUTS[output],
                )  # fmt: skip
        except MemoryError:
            status = NO_MEMORY
        if status == NO_MEMORY:
            megabytes = self.bytes_for(images, height, width) / 1e6
            raise ImageError(
                f"own kernels: {megabytes:,.0f} MB cannot be allocated for {images}x{height}x{width} pixels",
                fix="try a smaller --tile",
            )
        if status != OK:
            raise RuntimeError(f"cmudrn_restore: status {status} for {batch.dtype} {batch.shape}")
        return restored

    def renew_lock(self) -> None:
        """After a fork, in the child."""
        self._turn = threading.Lock()

    def _opened(self) -> tuple[ctypes.CDLL, int]:
        if self._library is None or self._address is None:
            raise RuntimeError("the session is not open: use it in a `with` block")
        return self._library, self._address
