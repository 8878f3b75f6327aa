"""A CUDA driver in host memory, asked from inside a process that `hostcuda.build` has started under it."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

__all__ = ["Stats", "current_depth", "enqueue", "last_fault", "library", "mark", "read_report", "stats"]


class Stats(NamedTuple):
    """What the driver has counted; the order is that of hostcuda.h."""

    live_device_bytes: int
    live_device_blocks: int
    live_pinned_bytes: int  # page-locked, or registered as such
    live_pinned_blocks: int
    live_streams: int
    live_events: int
    live_contexts: int
    total_device_bytes: int
    total_device_blocks: int
    total_pinned_bytes: int
    total_pinned_blocks: int
    total_streams: int
    total_events: int
    peak_device_bytes: int
    peak_pinned_bytes: int
    leaks: int  # blocks, streams, events and graphs that were still there when their context ended
    faults: int  # calls refused for misuse, and operations that failed so; injected failures aren't
    operations: int  # run, on all streams
    allocations_since_mark: int  # of device and page-locked memory
    live_graphs: int  # recorded ones, and those made ready to be launched
    total_graphs: int
    graph_launches: int

    @property
    def left(self) -> int:
        """What was taken and not given back, contexts too."""
        live = self.live_device_blocks + self.live_pinned_blocks + self.live_streams + self.live_events
        return live + self.live_graphs + self.live_contexts + self.leaks


class _Stats(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in Stats._fields]


HOST_FUNCTION = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


@cache
def library() -> ctypes.CDLL:
    """The driver of this process. Raises OSError where it isn't hostcuda's."""
    driver = ctypes.CDLL("libcuda.so.1")
    if not hasattr(driver, "hostcuda_stats"):
        raise OSError(f"{driver._name}: a CUDA driver, but not hostcuda")
    driver.hostcuda_stats.argtypes = [ctypes.POINTER(_Stats)]
    driver.hostcuda_enqueue.argtypes = [ctypes.c_void_p, HOST_FUNCTION, ctypes.c_void_p]
    driver.hostcuda_check_range.argtypes = [ctypes.c_uint64, ctypes.c_size_t]
    return driver


def stats() -> Stats:
    """As of now."""
    counted = _Stats()
    library().hostcuda_stats(ctypes.byref(counted))
    return Stats(*(getattr(counted, name) for name in Stats._fields))


def mark() -> None:
    """Counts `allocations_since_mark` from here."""
    library().hostcuda_mark()


def last_fault() -> str:
    """Why the last call or operation was refused; empty before the first."""
    text = ctypes.create_string_buffer(512)
    library().hostcuda_last_fault(text, ctypes.c_size_t(len(text)))
    return text.value.decode()


def current_depth() -> int:
    """Contexts on this thread's stack."""
    return int(library().hostcuda_current_depth())


_functions: list[object] = []  # the library calls them later, when Python may have forgotten them


def enqueue(stream: int, function: Callable[[], None]) -> int:
    """Runs a function in the stream's order, on the stream's thread. Returns CUDA's error, 0 for none."""
    called = HOST_FUNCTION(lambda _: function())
    _functions.append(called)
    return int(library().hostcuda_enqueue(stream, called, None))


def read_report(path: Path) -> tuple[Stats, str]:
    """What a process left behind at its end (HOSTCUDA_REPORT), and its last fault."""
    lines = dict(line.split(" ", 1) for line in path.read_text(encoding="utf-8").splitlines())
    fault = lines.pop("last_fault")
    return Stats(**{name: int(value) for name, value in lines.items()}), fault
