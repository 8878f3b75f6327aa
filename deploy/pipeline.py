"""Decode, restore and encode at the same time, in bounded memory. Knows nothing of pixels.

`restore_images` restores in the caller's own thread (a backend brings its threads along); two small pools
read ahead and write behind. Where the caller is slow, the work waits for it: nothing piles up.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import islice
from types import TracebackType

from cmudrn.deploy.backend import Backends
from cmudrn.deploy.job import Existing, InferJob
from cmudrn.deploy.report import ItemResult, Status
from cmudrn.deploy.sources import Item
from cmudrn.deploy.tiling import restore_pixels
from cmudrn.errors import CmudrnError, ImageError
from cmudrn.images import Picture, read_header, read_picture, write_picture

__all__ = ["restore_images"]

READERS = 2  # threads; decoding and encoding are far cheaper than restoring
WRITERS = 2
READ_AHEAD = 4  # images being read or waiting for the backend
WRITE_BEHIND = 4  # images being written or waiting for it
IN_FLIGHT_PX = (
    64_000_000  # of all images held at once, about 400 MB decoded and restored; a larger one goes alone
)
DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
FAILURES = (ImageError, OSError, MemoryError)  # of one image; anything else ends the job


def restore_images(
    job: InferJob, items: Iterable[Item], backends: Backends
) -> Generator[ItemResult, None, None]:
    """Restores the items, yielding each one's result as it ends, in the order they end.

    An image that cannot be read, restored or written is a failed result, and the others go on. Anything
    else is raised here; a full disk as CmudrnError. Closing the iterator early stops and joins all threads:
    the pictures being written by then are finished, those waiting are dropped.
    """
    pending = iter(items)
    with _Line(job, backends) as line:
        while line.read_ahead(pending) or line.saves:
            yield from line.written()
            yield from line.restore_one()


@dataclass(kw_only=True)
class _Loaded:
    """A picture on its way, which holds its share of the budget until it is written."""

    item: Item
    picture: Picture
    result: ItemResult  # so far: the size and the seconds


class _Line(AbstractContextManager["_Line"]):
    """Two pools with the restoring between them; only the thread that made it calls its public methods."""

    def __init__(self, job: InferJob, backends: Backends) -> None:
        self.job = job
        self.backends = backends
        self.budget = _PixelBudget(IN_FLIGHT_PX)
        self.readers = ThreadPoolExecutor(READERS, thread_name_prefix="cmudrn-read")
        self.writers = ThreadPoolExecutor(WRITERS, thread_name_prefix="cmudrn-write")
        self.loads: set[Future[_Loaded | ItemResult]] = set()
        self.saves: set[Future[ItemResult]] = set()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.budget.close()  # first: a reader may be waiting for it
        for pool in (self.readers, self.writers):
            pool.shutdown(wait=False, cancel_futures=True)
        for pool in (self.readers, self.writers):
            pool.shutdown(wait=True)

    def read_ahead(self, pending: Iterator[Item]) -> bool:
        """Keeps the readers busy; False once everything has been read and restored."""
        for item in islice(pending, READ_AHEAD - len(self.loads)):
            self.loads.add(self.readers.submit(self._load, item))
        return bool(self.loads)

    def written(self) -> Iterator[ItemResult]:
        """Waits until there is something to do, then gives the results of what was written."""
        wait([*self.saves, *(() if self._behind() else self.loads)], return_when=FIRST_COMPLETED)
        for save in [save for save in self.saves if save.done()]:
            self.saves.remove(save)
            yield save.result()

    def restore_one(self) -> Iterator[ItemResult]:
        """Restores one picture that has been read, if there is one, and hands it to the writers."""
        load = next((load for load in self.loads if load.done()), None)
        if load is None or self._behind():
            return
        self.loads.remove(load)
        step = load.result()
        if isinstance(step, _Loaded):
            failed = self._restore(step)
            if failed is None:
                self.saves.add(self.writers.submit(self._save, step))
                return
            step = failed
        yield step

    def _behind(self) -> bool:
        """With that much left to write, restoring more would only fill memory."""
        return len(self.saves) >= WRITE_BEHIND

    def _load(self, item: Item) -> _Loaded | ItemResult:
        result = ItemResult(source=item.source, target=item.target, status=Status.RESTORED)
        if item.problem:
            return replace(result, status=Status.FAILED, reason=item.problem)
        held_px = 0
        try:
            if self.job.existing is Existing.SKIP and item.target.exists():
                return replace(result, status=Status.SKIPPED)
            header = read_header(item.source, max_pixels=self.job.max_pixels)
            result = replace(result, height=header.height, width=header.width)
            held_px = self.budget.take(header.height * header.width)
            start = time.perf_counter()
            picture = read_picture(item.source, max_pixels=self.job.max_pixels)
        except FAILURES as exc:
            self.budget.give(held_px)
            return _failed(result, exc)
        result = replace(result, decode_s=time.perf_counter() - start)
        return _Loaded(item=item, picture=picture, result=result)

    def _restore(self, loaded: _Loaded) -> ItemResult | None:
        """Puts the restored pixels in the place of the old ones; the result where that failed."""
        job, start = self.job, time.perf_counter()
        try:
            pixels = loaded.picture.pixels
            backend = self.backends.restoring(pixels.dtype)
            restored = restore_pixels(
                pixels, backend, tile_px=job.tile_px, overlap_px=job.overlap, batch=job.batch
            )
            loaded.picture = loaded.picture.with_pixels(restored)
        except FAILURES as exc:
            self._give_back(loaded.result)
            return _failed(loaded.result, exc)
        loaded.result = replace(loaded.result, restore_s=time.perf_counter() - start)
        return None

    def _save(self, loaded: _Loaded) -> ItemResult:
        start, target = time.perf_counter(), loaded.item.target
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            write_picture(loaded.picture, target)
        except FAILURES as exc:
            if _disk_full(exc):
                raise CmudrnError(
                    f"{target}: the disk is full",
                    fix="make room, then run the same again with --skip-existing: what is written is whole",
                ) from exc
            return _failed(loaded.result, exc)
        finally:
            self._give_back(loaded.result)
        return replace(loaded.result, encode_s=time.perf_counter() - start)

    def _give_back(self, result: ItemResult) -> None:
        self.budget.give(result.height * result.width)


class _PixelBudget:
    """How many pixels may be held at once. What is larger than all of it waits until it is alone."""

    def __init__(self, limit_px: int) -> None:
        self._limit_px = limit_px
        self._held_px = 0
        self._closed = False
        self._changed = threading.Condition()
        self._turn = (
            threading.Lock()
        )  # one waits at a time, so that small images cannot overtake a large one for ever

    def take(self, pixels: int) -> int:
        """Waits for room. Returns what it took. Raises CancelledError once the budget is closed."""
        with self._turn, self._changed:
            self._changed.wait_for(
                lambda: self._closed or not self._held_px or self._held_px + pixels <= self._limit_px
            )
            if self._closed:
                raise CancelledError
            self._held_px += pixels
        return pixels

    def give(self, pixels: int) -> None:
        with self._changed:
            self._held_px -= pixels
            self._changed.notify_all()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()


def _failed(result: ItemResult, error: BaseException) -> ItemResult:
    """A failed result with its reason: one line, without the path that stands before it anyway."""
    if isinstance(error, MemoryError):
        reason = f"not enough memory for {result.height}x{result.width} pixels"
    else:
        reason = " ".join(str(error).removeprefix(f"{result.source}: ").split())
    return replace(result, status=Status.FAILED, reason=reason)


def _disk_full(error: BaseException | None) -> bool:
    """Whether a full disk or quota is behind it; ImageError keeps its cause, libvips gives but the words."""
    while error is not None:
        if getattr(error, "errno", None) in DISK_FULL or any(
            os.strerror(no) in str(error) for no in DISK_FULL
        ):
            return True
        error = error.__cause__
    return False
