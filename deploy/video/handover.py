"""From one thread to the next, through queues bounded in bytes; one of them drops what waited too long."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

__all__ = ["Closed", "DroppingHandover", "Handover"]

Thing = TypeVar("Thing")


class Closed(Exception):
    """Nobody takes anything any more."""


class Handover(Generic[Thing]):
    """One thread puts, another takes. What is larger than all of the bound goes alone.

    Whoever puts ends it, with the error that stopped it if there was one: the taker meets it after all that
    was put before. Whoever takes closes it when it needs no more.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._things: deque[tuple[Thing, int]] = deque()
        self._held_bytes = 0
        self._ended = self._closed = False
        self._error: BaseException | None = None
        self._changed = threading.Condition()
        self.waited_s = 0.0  # by the taker, for things to come

    def put(self, thing: Thing, size_bytes: int) -> None:
        """Waits for room. Raises Closed where nobody takes it."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._has_room(size_bytes))
            self._add(thing, size_bytes)

    def end(self, error: BaseException | None = None) -> None:
        """Nothing more will come."""
        with self._changed:
            self._ended, self._error = True, error
            self._changed.notify_all()

    def close(self) -> None:
        """What is held is let go of, and who puts is told."""
        with self._changed:
            self._closed = True
            self._things.clear()
            self._held_bytes = 0
            self._changed.notify_all()

    @property
    def is_closed(self) -> bool:
        """Nobody takes anything any more."""
        return self._closed

    def __iter__(self) -> Iterator[Thing]:
        """All things in order, then the error that ended it, if there was one."""
        while (taken := self._take()) is not None:
            yield taken[0]

    def _take(self) -> tuple[Thing, int] | None:
        with self._changed:
            since = time.perf_counter()
            self._changed.wait_for(lambda: self._things or self._ended or self._closed)
            self.waited_s += time.perf_counter() - since
            if not self._things:
                if self._error is not None and not self._closed:
                    raise self._error
                return None
            taken = self._things.popleft()
            self._held_bytes -= taken[1]
            self._changed.notify_all()
            return taken

    def _has_room(self, size_bytes: int) -> bool:
        return not self._things or self._held_bytes + size_bytes <= self._limit_bytes

    def _add(self, thing: Thing, size_bytes: int) -> None:
        if self._closed:
            raise Closed
        self._things.append((thing, size_bytes))
        self._held_bytes += size_bytes
        self._changed.notify_all()


class DroppingHandover(Handover[Thing]):
    """Of a camera, which waits for nobody: what waited longest makes room, and is counted.

    may_drop: what it may be; the rest stays, and counts for nothing: small as it is, it would evict all else.
    """

    def __init__(self, limit_bytes: int, may_drop: Callable[[Thing], bool] = lambda thing: True) -> None:
        super().__init__(limit_bytes)
        self.dropped = 0
        self._may_drop = may_drop

    def put(self, thing: Thing, size_bytes: int) -> None:
        """Never waits. Raises Closed where nobody takes it."""
        size_bytes = size_bytes if self._may_drop(thing) else 0
        with self._changed:
            while not self._has_room(size_bytes) and self._drop_oldest():
                self.dropped += 1
            self._add(thing, size_bytes)

    def _drop_oldest(self) -> bool:
        for at, (thing, size_bytes) in enumerate(self._things):
            if self._may_drop(thing):
                del self._things[at]
                self._held_bytes -= size_bytes
                return True
        return False
