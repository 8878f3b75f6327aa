"""One way of restoring, timed as `infer` would run it: a frame alone, and frames in a stream."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cmudrn.deploy.backends import Backends
from cmudrn.deploy.job import ON_CPU_ALONE, BackendOptions, InferJob
from cmudrn.deploy.profile import Goal, Way
from cmudrn.deploy.tiling import Restorer, restore_each
from cmudrn.images import Pixels

__all__ = ["FrameTimes", "Opened", "Setting", "frames_of", "time_frames"]

# A way that takes that many budgets is measured once: more frames on their way would not make up for it.
HOPELESS = 4
# Libraries set themselves up in their first run, but not for as long as that.
LONGEST_SET_UP_S = 1.0
FRAMES = 4  # different ones, in turn: one alone would stay in the caches


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is alike for all ways."""

    height: int  # of a frame, pixels
    width: int
    weights: str = "default"  # or a path
    device: str | None = None  # a GPU's number or PCI bus id, or cpu; None: the first GPU
    store: Path | None = None  # of engines; None: the usual one

    def job(self, way: Way, store: Path | None = None) -> InferJob:
        """As `infer` gets it, but for the sources. store: where the way's engine is, if not in the usual."""
        engine = way.engine is not None
        on_gpus = self.device is not None and way.backend not in ON_CPU_ALONE
        return InferJob(
            sources=(Path(),),
            loops=way.loops,
            tile_px=None if engine else way.tile_px,
            batch=None if engine else way.batch,
            layout=way.layout,
            backend=BackendOptions(
                name=way.backend,
                devices=(str(self.device),) if on_gpus else (),
                streams=way.streams,
                threads=way.threads,
                allow_unverified=True,  # only their speed counts here
                store=store or self.store,
                engine=way.engine,
            ),
            weights=self.weights,
        )

    @contextmanager
    def open(self, way: Way, store: Path | None = None) -> Iterator[Opened]:
        """Raises what `Backends` raises: a library, an engine, room on the GPU is missing."""
        with Backends(self.job(way, store)) as backends:
            restorer = backends.restorer_for(np.uint8, self.height, self.width)
            tiles = len(restorer.plan(self.height, self.width))
            yield Opened(restorer, math.lcm(tiles, restorer.batch) // tiles)


class Opened(NamedTuple):
    """A way that is ready."""

    restorer: Restorer
    frames_a_round: int  # the fewest that fill whole batches


@dataclass(frozen=True)
class FrameTimes:
    """Seconds a frame, of each run, at least one of either kind."""

    alone: Sequence[float]  # from a frame to its restored one, with nothing else on its way
    stream: Sequence[float]  # between restored frames: over a round of whole batches, divided by its frames
    hopeless: bool = False  # so slow that it was measured once

    def of(self, goal: Goal) -> Sequence[float]:
        """What the goal is about."""
        return self.alone if goal.fps is None else self.stream

    def __add__(self, more: FrameTimes) -> FrameTimes:
        return FrameTimes([*self.alone, *more.alone], [*self.stream, *more.stream], self.hopeless)


def frames_of(height: int, width: int) -> list[Pixels]:
    """Random ones, uint8: the network takes as long for them as for photographs."""
    rng = np.random.default_rng([height, width])
    return [rng.integers(0, 256, (height, width, 3), np.uint8) for _ in range(FRAMES)]


def time_frames(opened: Opened, frames: Sequence[Pixels], goal: Goal, seconds: float) -> FrameTimes:
    """Half of the seconds for either kind, at least one run, after one that doesn't count.

    What the goal is about goes first: where that is hopeless, both kinds are measured once.
    """
    in_a_stream = goal.fps is not None
    kinds = (stream_runs, alone_runs) if in_a_stream else (alone_runs, stream_runs)
    with closing(kinds[0](opened, frames)) as runs:
        took = warmed_up(runs, HOPELESS * goal.budget_s)
        hopeless = took > HOPELESS * goal.budget_s
        first = [took] if hopeless else timed(runs, seconds / 2)
    with closing(kinds[1](opened, frames)) as runs:
        took = next(runs)
        other = [took] if hopeless else timed(runs, seconds / 2)
    alone, stream = (other, first) if in_a_stream else (first, other)
    return FrameTimes(alone, stream, hopeless)


def warmed_up(runs: Iterator[float], longest_s: float) -> float:
    """What the first run took, or the second where setting up may be why the first took longer than that."""
    took = next(runs)
    return next(runs) if longest_s < took < LONGEST_SET_UP_S else took


def timed(runs: Iterator[float], seconds: float) -> list[float]:
    """What the runs took that began within so many seconds, at least one."""
    ends, took = time.perf_counter() + seconds, [next(runs)]
    while time.perf_counter() < ends:
        took.append(next(runs))
    return took


def alone_runs(opened: Opened, frames: Sequence[Pixels]) -> Generator[float, None, None]:
    """Seconds of one frame after the other."""
    for frame in cycle(frames):
        began = time.perf_counter()
        deque(restore_each([frame], opened.restorer), maxlen=0)
        yield time.perf_counter() - began


def stream_runs(opened: Opened, frames: Sequence[Pixels]) -> Generator[float, None, None]:
    """Seconds a frame of one round after the other, frames following as fast as they are taken."""
    count = opened.frames_a_round
    began = time.perf_counter()
    with closing(restore_each(cycle(frames), opened.restorer)) as restored:
        while True:
            deque(islice(restored, count), maxlen=0)
            now = time.perf_counter()
            yield (now - began) / count
            began = now
