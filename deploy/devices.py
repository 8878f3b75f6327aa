"""Several devices as one backend: each restores in a thread of its own, and gets a batch when it has room.

So a faster device restores more of them. The batches come back in order.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing
from types import TracebackType

from cmudrn.deploy.backend import Backend, PixelBatch
from cmudrn.engines.spec import EngineSpec
from cmudrn.errors import EngineError

__all__ = ["SpreadBackend"]

# Restored batches, for each device, that may wait for an earlier one of a slower device. Bounded: each is
# whole images in memory.
WAITING = 4


class SpreadBackend(AbstractContextManager["SpreadBackend"]):
    """Backends of one spec, on a device each; use it in one thread at a time, for one stream at a time.

    Entering enters all of them, or none where one fails. Raises EngineError where their specs differ.
    """

    def __init__(self, backends: Sequence[Backend]) -> None:
        specs = sorted({str(backend.spec) for backend in backends})
        if len(specs) != 1:
            raise EngineError(
                f"engines of {' and '.join(specs) or 'no device'} cannot share a job",
                fix="build the same engine for each device, or give one --device",
            )
        self._backends = list(backends)
        self._crew: _Crew | None = None  # of the latest stream
        self._open = False
        self._taken = ExitStack()

    @property
    def spec(self) -> EngineSpec:
        return self._backends[0].spec

    @property
    def label(self) -> str:
        labels = Counter(backend.label for backend in self._backends)
        return ", ".join(f"{count} x {label}" if count > 1 else label for label, count in labels.items())

    def __enter__(self) -> SpreadBackend:
        with ExitStack() as taken:
            for backend in self._backends:
                taken.enter_context(backend)
            taken.callback(self._end_stream)  # before the backends that it uses
            self._open, self._taken = True, taken.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open = False
        self._taken.close()

    def stream(self, batches: Iterable[PixelBatch]) -> Generator[PixelBatch, None, None]:
        """Each batch restored, in order, same shape and dtype; reads ahead as far as the devices have room.

        `batches` is read in the caller's thread. What a device raises is raised here, after all have ended;
        so they do when the consumer leaves early. The next stream ends one that was left in the middle.
        """
        if not self._open:
            raise RuntimeError("the backend is not open: use it in a `with` block")
        self._end_stream()
        crew = self._crew = _Crew(self._backends)
        try:
            yield from crew.restore(batches)
        finally:
            crew.end()

    def _end_stream(self) -> None:
        if self._crew:
            self._crew.end()
            self._crew = None


class _Crew:
    """One stream's threads, a worker for each backend."""

    def __init__(self, backends: Sequence[Backend]) -> None:
        self._desk = _Desk(len(backends))
        # Daemons: a stream that nobody closes must not keep the interpreter from ending.
        self._threads = [
            threading.Thread(
                target=self._work, args=(backend, worker), name=f"cmudrn-device-{worker}", daemon=True
            )
            for worker, backend in enumerate(backends)
        ]

    def restore(self, batches: Iterable[PixelBatch]) -> Iterator[PixelBatch]:
        for thread in self._threads:
            thread.start()
        for batch in batches:
            while (worker := self._desk.worker_with_room()) is None:
                yield self._desk.take()
            self._desk.give(worker, batch)
        self._desk.no_more()
        while self._desk.owes():
            yield self._desk.take()

    def end(self) -> None:
        """Waits for the batches that are computed at this moment; the others are dropped."""
        self._desk.close()
        for thread in self._threads:
            if thread.ident is not None:  # started
                thread.join()

    def _work(self, backend: Backend, worker: int) -> None:
        try:
            with closing(backend.stream(self._desk.batches_of(worker))) as restored:
                for batch in restored:
                    self._desk.hand_in(worker, batch)
            self._desk.sign_off(worker)
        except _Closed:
            pass
        except BaseException as exc:  # noqa: BLE001 (raised in the stream's own thread)
            self._desk.fail(exc)


class _Closed(Exception):
    """The stream has ended; what a worker still holds is of no use."""


class _Desk:
    """Where the stream and its workers hand batches over; every method may wait for the others."""

    def __init__(self, workers: int) -> None:
        self._changed = threading.Condition()
        self._inboxes = [deque[PixelBatch]() for _ in range(workers)]  # of one batch at most
        self._held = [deque[int]() for _ in range(workers)]  # numbers of the batches that a worker has
        self._restored: dict[int, PixelBatch] = {}
        self._given = self._taken = 0  # numbers of the next batch in, and out
        self._complete = False  # no more batches come
        self._closed = False
        self._error: BaseException | None = None

    # --- for the stream

    def worker_with_room(self) -> int | None:
        """Who gets the next batch; None where a restored one is to be taken first."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._ended() or self._taken in self._restored or self._with_room()
            )
            self._raise_if_ended()
            if self._taken in self._restored:
                return None
            return min(self._with_room(), key=lambda worker: len(self._held[worker]))

    def give(self, worker: int, batch: PixelBatch) -> None:
        with self._changed:
            self._held[worker].append(self._given)
            self._inboxes[worker].append(batch)
            self._given += 1
            self._changed.notify_all()

    def no_more(self) -> None:
        with self._changed:
            self._complete = True
            self._changed.notify_all()

    def owes(self) -> bool:
        """Whether batches that were given have not been taken."""
        return self._taken < self._given

    def take(self) -> PixelBatch:
        """The next restored batch."""
        with self._changed:
            self._changed.wait_for(lambda: self._ended() or self._taken in self._restored)
            self._raise_if_ended()
            batch = self._restored.pop(self._taken)
            self._taken += 1
            return batch

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    # --- for the workers

    def batches_of(self, worker: int) -> Iterator[PixelBatch]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._complete or self._inboxes[worker])
                if self._closed:
                    raise _Closed
                if not self._inboxes[worker]:
                    return
                batch = self._inboxes[worker].popleft()
                self._changed.notify_all()
            yield batch

    def hand_in(self, worker: int, batch: PixelBatch) -> None:
        with self._changed:
            if self._closed:
                raise _Closed
            self._restored[self._held[worker].popleft()] = batch
            self._changed.notify_all()

    def sign_off(self, worker: int) -> None:
        """Raises RuntimeError where it ends too early: the stream would wait for its batches for ever."""
        with self._changed:
            if not self._complete or self._held[worker]:
                raise RuntimeError(
                    f"backend {worker} stopped with {len(self._held[worker])} batches unrestored"
                )

    def fail(self, error: BaseException) -> None:
        with self._changed:
            self._error = self._error or error
            self._changed.notify_all()

    # --- under the lock

    def _with_room(self) -> list[int]:
        """One that holds the batch which is due always gets more: it may need that to give it out."""
        full = len(self._restored) >= WAITING * len(self._inboxes)
        return [
            worker
            for worker, held in enumerate(self._held)
            if not self._inboxes[worker] and not (full and self._taken not in held)
        ]

    def _ended(self) -> bool:
        return self._closed or self._error is not None

    def _raise_if_ended(self) -> None:
        if self._error:
            raise self._error
        if self._closed:
            raise RuntimeError("the stream has ended: its backend was closed, or streams something else")
