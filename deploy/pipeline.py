"""Decode, restore and encode at the same time, in bounded memory. Knows nothing of pixels.

`restore_images` restores in the caller's own thread (a backend brings its threads along); two small pools
read ahead and write behind. Pictures of one kind flow through their backend in one stream, so that batches
are full and a GPU never waits. Where the caller is slow, the work waits for it: nothing piles up.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, replace
from itertools import islice
from types import TracebackType
from typing import TypeVar

from cmudrn.deploy.backends import Backends, Pick
from cmudrn.deploy.decoding import Decoders
from cmudrn.deploy.failures import FAILURES, failed, raise_for_full_disk
from cmudrn.deploy.fingerprint import Stamp, fingerprint_of
from cmudrn.deploy.gate import Gate
from cmudrn.deploy.job import Existing, InferJob
from cmudrn.deploy.keep_options import heatmap_beside
from cmudrn.deploy.keeping import Keeper
from cmudrn.deploy.machine import available_cores
from cmudrn.deploy.report import ItemResult, Status
from cmudrn.deploy.sources import Item
from cmudrn.deploy.tiling import Restorer, restore_each
from cmudrn.images import Picture, Pixels

__all__ = ["restore_images"]

# Threads that read, and as many that write: one for each core, as a fast backend leaves them all to these.
LEAST_THREADS, MOST_THREADS = 2, 64
READ_AHEAD = 2  # images waiting for the backend beside those being read; more where its batches need more
WRITE_BEHIND = 2  # images waiting to be written beside those being written; the same
Ended = TypeVar("Ended")


def restore_images(
    job: InferJob,
    items: Iterable[Item],
    backends: Backends,
    gate: Gate | None = None,
    decoders: Decoders | None = None,
) -> Generator[ItemResult, None, None]:
    """Restores the items, yielding each one's result as it ends, in the order they end.

    gate: what says which of them are without weather, opened; these are left alone. decoders: started while
    the backends were opened, perhaps; closed here.
    An image that cannot be read, restored or written is a failed result, and the others go on. Anything
    else is raised here; a full disk as CmudrnError. Closing the iterator early stops and joins all threads:
    the pictures being written by then are finished, those waiting are dropped.
    """
    pending = iter(items)
    with _Line(job, backends, gate, decoders) as line:
        while line.read_ahead(pending):
            line.wait()
            yield from line.ended()
            yield from line.restore(pending)


@dataclass(kw_only=True)
class _Loaded:
    """A picture on its way, which holds its share of the budget until it is written."""

    item: Item
    picture: Picture
    result: ItemResult  # so far: the size and the seconds
    pick: Pick | None = None  # once it is known what restores it
    before: Pixels | None = None  # those that were read, where a map of the changes is to be drawn


class _Line(AbstractContextManager["_Line"]):
    """Two pools with the restoring between them; only the thread that made it calls its public methods."""

    def __init__(
        self, job: InferJob, backends: Backends, gate: Gate | None, decoders: Decoders | None = None
    ) -> None:
        self.job = job
        self.backends = backends
        self.gate = gate
        self.keeper = Keeper(job)
        self.budget = _PixelBudget(job.in_flight_px)
        self.decoders = decoders or Decoders()
        threads = min(max(available_cores(), LEAST_THREADS), MOST_THREADS)
        self.readers = ThreadPoolExecutor(threads, thread_name_prefix="cmudrn-read")
        self.writers = ThreadPoolExecutor(threads, thread_name_prefix="cmudrn-write")
        self.loads: list[Future[_Loaded | ItemResult]] = []
        self.ready: deque[_Loaded] = deque()  # read, and not yet begun
        self.refused: deque[ItemResult] = deque()  # could not be read, or nothing restores them
        self.saves: list[Future[ItemResult]] = []
        # While one round of batches is restored the next one is read, and the one before is written.
        rounds = 2 * backends.most_at_once
        self.ahead, self.behind = max(threads + READ_AHEAD, rounds), max(threads + WRITE_BEHIND, rounds)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.budget.close()  # first: a reader may be waiting for it
        self.decoders.close()
        for pool in (self.readers, self.writers):
            pool.shutdown(wait=False, cancel_futures=True)
        for pool in (self.readers, self.writers):
            pool.shutdown(wait=True)

    def read_ahead(self, pending: Iterator[Item]) -> bool:
        """Keeps the readers busy; False once everything has been read, restored and written."""
        for item in islice(pending, self.ahead - len(self.loads) - len(self.ready)):
            self.loads.append(self.readers.submit(self._load, item))
        return bool(self.loads or self.ready or self.refused or self.saves)

    def wait(self) -> None:
        """Until there is something to do."""
        if self.refused or (self.ready and not self._behind()):
            return
        wait([*self.saves, *(() if self._behind() else self.loads)], return_when=FIRST_COMPLETED)

    def ended(self) -> Iterator[ItemResult]:
        """The results of what has been written, and of what cannot be restored; the rest is made ready."""
        done, self.saves = _parted(self.saves)
        yield from (save.result() for save in done)
        self._take_in()
        while self.refused:
            yield self.refused.popleft()

    def restore(self, pending: Iterator[Item]) -> Iterator[ItemResult]:
        """Restores pictures of the kind that has waited longest, as long as there are any, in one stream."""
        if not self.ready or self._behind() or (pick := self.ready[0].pick) is None:
            return
        restorer = self.backends.restorer(pick)
        if restorer is None:
            self._pick_again(pick)
            return
        begun: deque[_Loaded] = deque()
        since, restored_by = time.perf_counter(), pick.engine or restorer.backend.label
        with closing(restore_each(self._pixels(pick, begun), restorer)) as stream:
            while True:
                try:
                    restored = next(stream, None)
                except FAILURES as exc:
                    yield from self._one_by_one(begun, restorer, exc, restored_by)
                    break
                if restored is None:
                    break
                self._hand_on(begun.popleft(), restored, time.perf_counter() - since, restored_by)
                self.read_ahead(pending)
                yield from self.ended()
                since = time.perf_counter()  # what the caller took was no restoring

    def _take_in(self) -> None:
        """What the readers have read is ready, or refused."""
        done, self.loads = _parted(self.loads)
        for load in done:
            step = load.result()
            if isinstance(step, ItemResult):
                self.refused.append(step)
            elif step.result.status is Status.CLEAN:
                self.saves.append(self.writers.submit(self._save, step))
            else:
                self._make_ready(step)

    def _make_ready(self, loaded: _Loaded) -> None:
        try:
            loaded.pick = self.backends.pick(
                loaded.picture.pixels.dtype, loaded.result.height, loaded.result.width
            )
        except FAILURES as exc:
            self.refused.append(self._lost(loaded, exc))
        else:
            self.ready.append(loaded)

    def _pick_again(self, lost: Pick) -> None:
        """What it was to restore goes elsewhere, in the order it came."""
        waiting, self.ready = self.ready, deque()
        for loaded in waiting:
            if loaded.pick == lost:
                self._make_ready(loaded)
            else:
                self.ready.append(loaded)

    def _pixels(self, pick: Pick, begun: deque[_Loaded]) -> Iterator[Pixels]:
        """What is ready for one backend. Ends where nothing is: restored pictures wait for none to come."""
        while not self._behind():
            self._take_in()
            loaded = next((one for one in self.ready if one.pick == pick), None)
            if loaded is None:
                return
            self.ready.remove(loaded)
            begun.append(loaded)
            yield loaded.picture.pixels

    def _one_by_one(
        self, begun: deque[_Loaded], restorer: Restorer, error: BaseException, restored_by: str
    ) -> Iterator[ItemResult]:
        """A batch failed, and took others along: each is tried alone, so that only what fails is lost."""
        alone = len(begun) == 1
        while begun:
            loaded, since = begun.popleft(), time.perf_counter()
            try:
                if alone:
                    raise error
                (restored,) = restore_each([loaded.picture.pixels], restorer)
            except FAILURES as exc:
                yield self._lost(loaded, exc)
            else:
                self._hand_on(loaded, restored, time.perf_counter() - since, restored_by)

    def _hand_on(self, loaded: _Loaded, restored: Pixels, seconds: float, restored_by: str) -> None:
        """To the writers, the restored pixels in the place of the old ones."""
        loaded.before = loaded.picture.pixels if self.job.keep.heatmap else None
        loaded.picture = loaded.picture.with_pixels(restored)
        loaded.result = replace(loaded.result, restore_s=seconds, restored_by=restored_by)
        self.saves.append(self.writers.submit(self._save, loaded))

    def _lost(self, loaded: _Loaded, error: BaseException) -> ItemResult:
        self._give_back(loaded.result)
        return failed(loaded.result, error)

    def _behind(self) -> bool:
        """With that much left to write, restoring more would only fill memory."""
        return len(self.saves) >= self.behind

    def _load(self, item: Item) -> _Loaded | ItemResult:
        result = ItemResult(source=item.source, target=item.target, status=Status.RESTORED)
        if item.problem:
            return replace(result, status=Status.FAILED, reason=item.problem)
        held_px = 0
        try:
            if item.done is not None:
                if not (changed := item.done.changed() or self._lost_its_map(item.done)):
                    return item.done
                result = replace(result, anew=changed)
            elif self.job.existing is Existing.SKIP and item.target.exists():
                return replace(result, status=Status.SKIPPED)
            stamp = Stamp.of(item.source)
            header = self.decoders.header(item.source, max_pixels=self.job.max_pixels)
            result = replace(result, height=header.height, width=header.width, pages=header.pages)
            held_px = self.budget.take(result.pixels)
            start = time.perf_counter()
            picture = self.decoders.picture(item.source, max_pixels=self.job.max_pixels, pixels=held_px)
            result = replace(result, read=fingerprint_of(item.source, since=stamp))
            result = replace(result, decode_s=time.perf_counter() - start)
            self.keeper.need_room(picture, item.target)
            if self.gate is not None:
                result = _gated(result, picture, self.gate)
        except FAILURES as exc:
            self.budget.give(held_px)
            return failed(result, exc)
        return _Loaded(item=item, picture=picture, result=result)

    def _save(self, loaded: _Loaded) -> ItemResult:
        start, target = time.perf_counter(), loaded.item.target
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            if loaded.result.status is Status.CLEAN:
                read = loaded.result.read
                self.keeper.leave(loaded.picture, loaded.item.source, target, read.sha256 if read else "")
            else:
                self.keeper.write(loaded.picture, loaded.before, target, loaded.result.restored_by)
            written = fingerprint_of(target)
        except FAILURES as exc:
            raise_for_full_disk(target, exc)
            return failed(loaded.result, exc)
        finally:
            self._give_back(loaded.result)
        return replace(loaded.result, encode_s=time.perf_counter() - start, written=written)

    def _lost_its_map(self, done: ItemResult) -> str:
        """Why it no longer holds, in words; empty where it does."""
        if not self.job.keep.heatmap or done.status is Status.SKIPPED:
            return ""
        return "" if heatmap_beside(done.target).exists() else "its map is gone"

    def _give_back(self, result: ItemResult) -> None:
        self.budget.give(result.pixels)


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


def _parted(futures: list[Future[Ended]]) -> tuple[list[Future[Ended]], list[Future[Ended]]]:
    """Those that are done, and the others."""
    done = [future for future in futures if future.done()]
    return done, [future for future in futures if future not in done]


def _gated(result: ItemResult, picture: Picture, gate: Gate) -> ItemResult:
    """With the gate's confidence; clean, if it is to be left alone."""
    start = time.perf_counter()
    pages = picture.pixels if picture.pages > 1 else picture.pixels[None]
    confidence = min(map(gate.confidence, pages))  # one page with weather is enough
    status = Status.CLEAN if gate.leaves_alone(confidence) else result.status
    return replace(result, status=status, confidence=confidence, gate_s=time.perf_counter() - start)
