"""The process that decodes. `decoding.py` starts it, asks it and ends it; what a file does to it stays there.

Both ends speak in pickles of protocol 5 over pipes, the pixels beside the pickle: copied into the pipe
and out of it, nowhere else. That keeps crashes apart, not attackers: a codec that has been taken over has
the rights of who started it, here as there.
"""

from __future__ import annotations

import os
import pickle
import signal
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from cmudrn.errors import CmudrnError
from cmudrn.files import write_all

__all__ = ["Reply", "Task", "main", "receive", "send"]

_LENGTH = struct.Struct("<Q")


@dataclass(frozen=True, kw_only=True)
class Task:
    """What to do, and what it may take."""

    call: Callable[[], Any]  # a functools.partial of a function that can be imported
    time_s: float
    memory_bytes: int  # beyond what the process holds when it is idle


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What it gave, or why it gave nothing."""

    value: Any = None
    error: BaseException | None = None


def send(file: IO[bytes], value: object) -> None:
    """Writes one value to an unbuffered pipe. Raises OSError where nobody reads any more."""
    beside: list[pickle.PickleBuffer] = []
    content = pickle.dumps(value, protocol=5, buffer_callback=beside.append)
    parts = [memoryview(content), *(buffer.raw() for buffer in beside)]
    head = b"".join(_LENGTH.pack(number) for number in (len(parts), *map(len, parts)))
    for part in (memoryview(head), *parts):
        write_all(file, part)


def receive(file: IO[bytes]) -> Any:
    """Reads what `send` wrote. Raises EOFError where the other side is gone, be it in the middle."""
    (count,) = _LENGTH.unpack(_read(file, _LENGTH.size))
    lengths = [_LENGTH.unpack(_read(file, _LENGTH.size))[0] for _ in range(count)]
    content, *beside = [_read(file, length) for length in lengths]
    return pickle.loads(content, buffers=beside)


def _read(file: IO[bytes], length: int) -> memoryview:
    # numpy's, for bytearray would write zeros first: 5 ms for a picture of 12 megapixels.
    whole = np.empty(length, np.uint8).data
    rest = whole
    while rest:
        count = file.readinto(rest)  # type: ignore[attr-defined]  # an unbuffered file's, which typeshed forgets
        if not count:
            raise EOFError
        rest = rest[count:]
    return whole


def main() -> None:
    """Answers until nothing more is asked. An error that nobody foresaw ends the process, as a crash does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the run, which ends this process itself
    tasks, replies = _own_pipes()
    _leave_no_files()
    import cmudrn.images  # noqa: F401 (while the backend is opened, not when the first picture waits)

    send(replies, Reply())  # from now on it is a file's fault where this process ends
    idle_bytes = _data_bytes()
    while True:
        try:
            task: Task = receive(tasks)
        except EOFError:
            return
        send(replies, _done(task, idle_bytes))


def _done(task: Task, idle_bytes: int) -> Reply:
    _limit(task, idle_bytes)
    try:
        return Reply(value=task.call())
    except (CmudrnError, OSError, MemoryError) as exc:
        return Reply(error=exc)
    finally:
        _unlimit()


def _own_pipes() -> tuple[IO[bytes], IO[bytes]]:
    """Standard input and output, out of reach of libraries: what these print must not pass for a reply."""
    tasks, replies = os.dup(0), os.dup(1)
    nowhere = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nowhere, 0)
    os.dup2(2, 1)
    os.close(nowhere)
    if os.name == "posix":
        os.set_blocking(2, False)  # once the pipe is full, what is said there is lost, and nobody waits
    return os.fdopen(tasks, "rb", buffering=0), os.fdopen(replies, "wb", buffering=0)


def _leave_no_files() -> None:
    """Neither a core of a gigabyte where a codec crashes, nor anything else: this process only reads."""
    if sys.platform == "win32":
        return
    import resource

    for kind in (resource.RLIMIT_CORE, resource.RLIMIT_FSIZE):
        resource.setrlimit(kind, (0, resource.getrlimit(kind)[1]))


def _limit(task: Task, idle_bytes: int) -> None:
    """By the kernel: it ends a codec that loops for ever, also when there is no run left to do so."""
    if sys.platform == "win32":
        return
    import resource

    signal.setitimer(signal.ITIMER_REAL, task.time_s)  # SIGALRM without a handler ends the process
    if idle_bytes:
        most = resource.getrlimit(resource.RLIMIT_DATA)[1]
        wanted = idle_bytes + task.memory_bytes
        soft = wanted if most == resource.RLIM_INFINITY else min(wanted, most)
        resource.setrlimit(resource.RLIMIT_DATA, (soft, most))


def _unlimit() -> None:
    """While the reply is on its way, the time is the reader's."""
    if sys.platform != "win32":
        signal.setitimer(signal.ITIMER_REAL, 0)


def _data_bytes() -> int:
    """Private memory that is or may be written to, as the kernel counts it for RLIMIT_DATA; 0: not known."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[5])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
