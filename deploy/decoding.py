"""Pictures read in processes of their own: a codec that crashes, hangs or takes all memory costs one file.

A file that shrinks while it is read is enough for a crash: libvips maps JPEG and WebP files. Nor can a thread
be ended, or held to its memory. A process costs a copy of the pixels through a pipe: docs/hostile.md.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import CancelledError
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TypeVar, cast

from cmudrn.deploy.decoder import Reply, Task, receive, send
from cmudrn.errors import EnvironmentMissing, ImageError
from cmudrn.images import MOST_PAGES, Header, Picture, read_header, read_picture

__all__ = ["Decoders", "memory_limit_bytes", "time_limit_s"]

TIME_LIMIT_S = 60.0  # for one file, a slow disk included
TIME_A_MEGAPIXEL_S = 1.0  # and for each megapixel of it, many times what AVIF takes, the slowest
MEMORY_LIMIT_BYTES = 512 * 2**20  # for one file: metadata, tables, libvips' own
MEMORY_A_PIXEL_BYTES = 40  # and for each pixel: 16 bits, alpha and a turn take 24, AVIF's planes 30
LAST_WORDS_BYTES = 64 * 2**10

# -I: neither the environment nor the folder we stand in, which may be full of strangers' files, adds modules.
# What this process imports from is handed over instead.
START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from cmudrn.deploy.decoder import main; main()"
)
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
NEEDS_PROCESS = "see that this Python can be started once more, and then imports cmudrn"
DOUBT_FILE = "the file may be damaged: fetch it again, or open and save it in an editor"

Answer = TypeVar("Answer")


def time_limit_s(pixels: int) -> float:
    """Seconds that reading a picture of so many pixels may take."""
    return TIME_LIMIT_S + TIME_A_MEGAPIXEL_S * pixels / 1e6


def memory_limit_bytes(pixels: int) -> int:
    """What the process that reads it may take for it."""
    return MEMORY_LIMIT_BYTES + MEMORY_A_PIXEL_BYTES * pixels


class Decoders(AbstractContextManager["Decoders"]):
    """As many decoder processes as there are threads that ask at the same time; one is started in advance.

    `header` and `picture` give and raise what `read_header` and `read_picture` do. A process that dies is an
    ImageError that says of what, and the next question gets another process. After `close`, which any thread
    may call, all who wait get CancelledError.
    """

    def __init__(self) -> None:
        self._lock = threading.Condition()
        self._closed = False
        self._idle = [_Decoder()]
        self._all = set(self._idle)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def header(self, path: Path, *, max_pixels: int) -> Header:
        """Decodes nothing."""
        return self.ask(
            path, partial(read_header, path, max_pixels=max_pixels, max_pages=MOST_PAGES), pixels=0
        )

    def picture(self, path: Path, *, max_pixels: int, pixels: int) -> Picture:
        """pixels: what the header promised; time and memory are measured by it."""
        return self.ask(
            path, partial(read_picture, path, max_pixels=max_pixels, max_pages=MOST_PAGES), pixels=pixels
        )

    def ask(self, path: Path, call: partial[Answer], *, pixels: int) -> Answer:
        """What `call`, a function that can be imported, gives there; it reads `path`, which errors name."""
        task = Task(call=call, time_s=time_limit_s(pixels), memory_bytes=memory_limit_bytes(pixels))
        decoder = self._take()
        try:
            reply = decoder.ask(task)
        except _DecoderDied as exc:
            self._forget(decoder)
            if self._closed:
                raise CancelledError from exc
            raise ImageError(f"{path}: {exc.reason(task)}", fix=DOUBT_FILE) from exc
        except BaseException:  # a reply that was broken off must not answer the next question
            self._forget(decoder)
            raise
        self._give_back(decoder)
        if isinstance(reply.error, MemoryError):
            most = f"{task.memory_bytes / 2**20:,.0f} MiB"
            raise ImageError(f"{path}: to be read it needs more than {most}", fix=DOUBT_FILE) from reply.error
        if reply.error is not None:
            raise reply.error
        return cast("Answer", reply.value)

    def close(self) -> None:
        """Ends all processes, also in the middle of a file."""
        with self._lock:
            self._closed = True
            self._lock.notify_all()
            idle, self._idle = self._idle, []
            asked, self._all = self._all - set(idle), set()
        for decoder in asked:
            decoder.kill()  # its thread closes it
        for decoder in idle:
            decoder.close()

    @property
    def pids(self) -> frozenset[int]:
        """Of the processes that are there now."""
        with self._lock:
            return frozenset(decoder.pid for decoder in self._all)

    def _take(self) -> _Decoder:
        with self._lock:
            while not self._closed:
                while self._idle:
                    decoder = self._idle.pop()
                    if decoder.is_alive:
                        return decoder
                    self._all.discard(decoder)  # killed for want of memory: no file's fault
                    decoder.close()
                try:
                    decoder = _Decoder()
                except EnvironmentMissing:
                    if not self._all:
                        raise
                    self._lock.wait()  # no room for another one now: those that are there go on
                else:
                    self._all.add(decoder)
                    return decoder
            raise CancelledError

    def _give_back(self, decoder: _Decoder) -> None:
        with self._lock:
            if not self._closed:
                self._idle.append(decoder)
                self._lock.notify()
                return
        decoder.close()

    def _forget(self, decoder: _Decoder) -> None:
        decoder.close()
        with self._lock:
            self._all.discard(decoder)
            self._lock.notify()


class _DecoderDied(Exception):
    """exit_code: as subprocess has it, below 0 for a signal. said: its last line."""

    def __init__(self, exit_code: int, said: str) -> None:
        super().__init__(exit_code, said)
        self.exit_code, self.said = exit_code, said

    def reason(self, task: Task) -> str:
        if self.exit_code >= 0:
            return f"the decoder crashed ({self.said or f'exit code {self.exit_code}'})"
        number = -self.exit_code
        if number == getattr(signal, "SIGALRM", None):
            return f"the decoder took more than {task.time_s:.0f} s"
        try:
            name = signal.Signals(number).name
        except ValueError:
            name = "without a name"
        said = f": {self.said}" if self.said else ""
        return f"the decoder crashed (signal {number}, {name}{said})"


class _Decoder:
    """One process and the pipes to it. One thread at a time may ask; `kill` is for any."""

    def __init__(self) -> None:
        self._greeted = False
        try:
            said, theirs = os.pipe()
        except OSError as exc:
            raise EnvironmentMissing(f"no pipe to decode by: {exc.strerror}", fix=NEEDS_PROCESS) from exc
        self._said = os.fdopen(said, "rb", buffering=0)
        if os.name == "posix":
            os.set_blocking(said, False)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-c", START, json.dumps(sys.path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=theirs,
                bufsize=0,
                env={**os.environ, **ONE_THREAD},
            )
        except OSError as exc:
            self._said.close()
            raise EnvironmentMissing(
                f"no process to decode in: {exc.strerror or exc}", fix=NEEDS_PROCESS
            ) from exc
        finally:
            os.close(theirs)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, task: Task) -> Reply:
        """Raises _DecoderDied where there is no answer, EnvironmentMissing where there never will be."""
        tasks, replies = self._process.stdin, self._process.stdout
        assert tasks
        assert replies
        try:
            if not self._greeted:
                receive(replies)
                self._greeted = True
            self._last_words()  # of tasks before: room for this one's
            send(tasks, task)
            return cast("Reply", receive(replies))
        except (EOFError, BrokenPipeError) as exc:
            exit_code = self._process.wait()
            said = self._last_words()
            if not self._greeted and exit_code > 0:
                what = f"the process that decodes does not start: {said or f'exit code {exit_code}'}"
                raise EnvironmentMissing(what, fix=NEEDS_PROCESS) from exc
            raise _DecoderDied(exit_code, said) from exc

    def kill(self) -> None:
        """Whoever asks it gets _DecoderDied."""
        self._process.kill()

    def close(self) -> None:
        """Kills it, waits for its end and closes the pipes; for the thread that has it."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._said):
            if pipe:
                pipe.close()

    def _last_words(self) -> str:
        """What it wrote to its standard error since this was last asked: the last line."""
        content = (
            self._said.read(LAST_WORDS_BYTES)
            if os.name == "posix" or self._process.poll() is not None
            else None
        )
        lines = (content or b"").decode(errors="replace").split("\n")
        return next((" ".join(line.split()) for line in reversed(lines) if line.strip()), "")
