"""A job's backends for every loop count that frames may get."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from types import TracebackType

from cmudrn.deploy.backends import Backends
from cmudrn.deploy.choice import choose
from cmudrn.deploy.job import InferJob
from cmudrn.deploy.tiling import Restorer
from cmudrn.errors import CmudrnError, UsageError
from cmudrn.images import Pixels

__all__ = ["Depths"]

MANY = 10_000  # frames of one size: what engines are chosen for


class Depths(AbstractContextManager["Depths"]):
    """Opens each loop count when the first frame wants it.

    backends: entered, of the job's own count, which is the highest; they stay the caller's. wanted: counts
    that may be used. Those are there that restore with what the highest does: engines where that has
    engines, a backend for any size where it has none.
    """

    def __init__(
        self,
        job: InferJob,
        backends: Backends,
        wanted: Iterable[int],
        *,
        on_note: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._job, self._on_note = job, on_note
        self._by_count = {job.loops: backends}
        self._taken = ExitStack()
        self.counts = tuple(loops for loops in wanted if loops == job.loops or self._has(loops))

    def __enter__(self) -> Depths:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._taken.close()

    @property
    def label(self) -> str:
        """What restores, in a word or two."""
        return self._by_count[self._job.loops].label

    @property
    def most_at_once(self) -> int:
        """Frames that the backend of most loops has on their way, where each is one tile."""
        return self._by_count[self._job.loops].most_at_once

    def restorer(self, loops: int, pixels: Pixels) -> Restorer:
        """Opened, for frames like this one. Raises what backends raise."""
        if loops not in self._by_count:
            others = Backends(self._job_at(loops), images=MANY, on_note=self._on_note)
            self._by_count[loops] = self._taken.enter_context(others)
        return self._by_count[loops].restorer_for(pixels.dtype, *pixels.shape[:2])

    def _has(self, loops: int) -> bool:
        ours = self._by_count[self._job.loops].choice
        try:
            theirs = choose(self._job_at(loops))
        except UsageError:
            raise
        except CmudrnError:
            return False
        return theirs.backend is ours.backend and bool(theirs.engines) is bool(ours.engines)

    def _job_at(self, loops: int) -> InferJob:
        """An engine that is named has another count."""
        return replace(self._job, loops=loops, backend=replace(self._job.backend, engine=None))
