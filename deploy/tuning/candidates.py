"""What `cmudrn tune` measures: the ways of libraries, and those of engines, built where there are none."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from cmudrn.deploy.choice import library_versions, usable_engines
from cmudrn.deploy.job import (
    DEFAULT_OVERLAP_PX,
    MOST_AT_ONCE,
    MOST_STREAMS,
    BackendName,
    need_between,
    usual_tile_px,
)
from cmudrn.deploy.profile import Goal, Way
from cmudrn.deploy.tiling import plan_engine_tiles, plan_tiles
from cmudrn.deploy.tuning.frame_timing import Setting
from cmudrn.engines.gpu import local_gpu
from cmudrn.engines.layout import FOR_ONNX_RUNTIME, Layout
from cmudrn.engines.manifest import Manifest
from cmudrn.engines.spec import EngineSpec, Pixel
from cmudrn.errors import CmudrnError, EngineError, UsageError

if TYPE_CHECKING:  # it needs onnx
    from cmudrn.deploy.tuning.builds import EngineBuilder

__all__ = ["Axes", "Candidate", "EngineWays", "Failure", "LibraryWays", "Ways"]

SMALLER_TILE_PX = 384
# Pixels of a batch on the CPU: 32 channels of float32 are 512 MB for each image of features, of which several
# live at once.
MOST_PX_AT_ONCE = 4_000_000
MOST_WORK = 2  # times the frame's pixels: an engine whose tiles cost more isn't measured
USUAL_STREAMS = 2
WITHOUT_GRAPH = (BackendName.NATIVE, BackendName.TORCH)  # they take the weights themselves


class Candidate(NamedTuple):
    """A way to be measured."""

    way: Way
    store: Path | None = None  # where its engine was built to be measured; None: in the usual store, or none
    certified: bool = True  # its engine; without one, nothing needs a certificate


@dataclass(frozen=True, kw_only=True)
class Axes:
    """What is tried beside loops, layouts and backends. Raises UsageError."""

    batches: tuple[int, ...] = (1, 4)
    streams: tuple[int, ...] = (1, 2, 3)  # on a GPU
    tiles: tuple[
        int, ...
    ] = ()  # sides in pixels, on the CPU; (): the usual one, the whole frame, a smaller one
    threads: int | None = None  # on the CPU; None: one for each core

    def __post_init__(self) -> None:
        need_between(1, MOST_AT_ONCE, batch=max(self.batches), threads=self.threads)
        need_between(1, MOST_STREAMS, streams=max(self.streams))

    @property
    def usual_streams(self) -> int:
        return USUAL_STREAMS if USUAL_STREAMS in self.streams else self.streams[0]


class Failure(NamedTuple):
    """What could not be measured, and why."""

    what: str
    error: CmudrnError


class Ways(Protocol):
    """One backend's candidates."""

    @property
    def backend(self) -> BackendName: ...

    @property
    def usual_layout(self) -> Layout | None: ...

    @property
    def has_layouts(self) -> bool:
        """Whether there are others than the usual one."""
        ...

    def usual(self, loops: int, layout: Layout | None) -> Candidate:
        """The plainest, by which depths and layouts are compared. Raises CmudrnError where there is none."""
        ...

    def every(self, loops: int, layout: Layout | None) -> Iterator[Candidate | Failure]:
        """All of a depth and a layout, the usual one first."""
        ...


@dataclass(frozen=True)
class LibraryWays:
    """Of a backend that takes any size."""

    backend: BackendName
    setting: Setting
    goal: Goal
    axes: Axes

    @property
    def usual_layout(self) -> Layout | None:
        return None if self.backend in WITHOUT_GRAPH else FOR_ONNX_RUNTIME

    @property
    def has_layouts(self) -> bool:
        return self.backend not in WITHOUT_GRAPH and find_spec("onnx") is not None

    def usual(self, loops: int, layout: Layout | None) -> Candidate:
        candidate = next(self.every(loops, layout), None)
        if candidate is None:
            batch = min(self.axes.batches)
            raise UsageError(
                f"--batch {batch}: too much for the memory at once, or more than a frame's tiles",
                fix="try a smaller one, too: --batch 1",
            )
        return candidate

    def every(self, loops: int, layout: Layout | None) -> Iterator[Candidate]:
        for batch, tile_px in product(self.axes.batches, self.tiles(loops)):
            if self._makes_sense(loops, batch, tile_px):
                yield Candidate(
                    Way(
                        loops=loops,
                        backend=self.backend,
                        layout=layout,
                        batch=batch,
                        streams=self.axes.usual_streams,
                        tile_px=tile_px,
                        threads=self.axes.threads,
                    )
                )

    def tiles(self, loops: int) -> list[int | None]:
        """Sides, each once; None is the usual one. All that cover the frame are the same."""
        whole, least = max(self.setting.height, self.setting.width), 2 * DEFAULT_OVERLAP_PX[loops] + 1
        usual = usual_tile_px(self.backend)
        told = self.axes.tiles or (usual, whole, SMALLER_TILE_PX)
        # The usual one wherever it does: a profile is used for larger photographs, too.
        covering = max(whole, usual)
        sides = dict.fromkeys(covering if side >= whole else max(side, least) for side in told)
        return [None if side == usual else side for side in sides]

    def _makes_sense(self, loops: int, batch: int, tile_px: int | None) -> bool:
        size, overlap_px = (self.setting.height, self.setting.width), DEFAULT_OVERLAP_PX[loops]
        plan = plan_tiles(*size, tile_px=tile_px or usual_tile_px(self.backend), overlap_px=overlap_px)
        row, column = next(iter(plan))
        pixels = batch * (row.stop - row.start) * (column.stop - column.start)
        asked_for = batch == 1 and (tile_px is None or bool(self.axes.tiles))
        return (asked_for or pixels <= MOST_PX_AT_ONCE) and fills(batch, len(plan), self.goal)


def fills(batch: int, tiles: int, goal: Goal) -> bool:
    """A frame alone fills no batch larger than its tiles are many."""
    return batch == 1 or goal.fps is not None or batch <= tiles


class Found(NamedTuple):
    """An engine, and the folder of the store where it is for now; None: the usual one."""

    manifest: Manifest
    store: Path | None = None


class EngineWays:
    """Of engines: those of the frame's size, built where the store has none, and others of it that fit.

    builder: None to build none. Making this raises EnvironmentMissing without GPU or library.
    """

    backend = BackendName.TENSORRT
    usual_layout: Layout | None = Layout()

    def __init__(self, setting: Setting, goal: Goal, axes: Axes, builder: EngineBuilder | None) -> None:
        library_versions()
        local_gpu(setting.device or "0")
        self.setting, self.goal, self.axes, self.builder = setting, goal, axes, builder
        self._stored: dict[int, list[Found]] = {}

    @property
    def has_layouts(self) -> bool:
        return self.builder is not None

    def usual(self, loops: int, layout: Layout | None) -> Candidate:
        found = next(self._engines(loops, layout), None)
        if found is None:
            size = f"{self.setting.height}x{self.setting.width}"
            raise EngineError(f"the store has no engine for T = {loops} that fits {size}", fix="build one")
        if isinstance(found, Failure):
            raise found.error
        return self._candidate(found, self.axes.usual_streams)

    def every(self, loops: int, layout: Layout | None) -> Iterator[Candidate | Failure]:
        in_turn = sorted(self.axes.streams, key=lambda streams: streams != self.axes.usual_streams)
        for found in self._engines(loops, layout):
            if isinstance(found, Failure):
                yield found
            else:
                yield from (self._candidate(found, streams) for streams in in_turn)

    def _engines(self, loops: int, layout: Layout | None) -> Iterator[Found | Failure]:
        exact = []
        for batch in self.axes.batches if self.builder else ():
            if fills(batch, 1, self.goal):
                spec = EngineSpec(
                    loops=loops, height=self.setting.height, width=self.setting.width, batch=batch
                )
                try:
                    exact.append(self._exact(spec, layout or Layout()))
                except CmudrnError as exc:
                    yield Failure(f"{spec}, layout {layout}", exc)
                else:
                    yield exact[-1]
        yield from (found for found in self._of_the_store(loops) if found not in exact)

    def _exact(self, spec: EngineSpec, layout: Layout) -> Found:
        for found in self._of_the_store(spec.loops):
            if (found.manifest.spec, found.manifest.layout) == (spec, layout):
                return found
        if self.builder is None:
            raise RuntimeError("nothing builds engines here")
        return Found(*self.builder.engine(spec, layout))

    def _of_the_store(self, loops: int) -> list[Found]:
        """Those that can be used and cost little more than the frame itself, the cheapest first."""
        if loops not in self._stored:
            any_engine = Way(loops=loops, backend=self.backend)
            try:
                engines = usable_engines(self.setting.job(any_engine))
            except UsageError:
                raise
            except CmudrnError:  # none for this depth, weights, version or GPU
                engines = ()
            ranked = sorted((self._work(one), one.key, one) for one in engines)
            self._stored[loops] = [Found(one) for work, _, one in ranked if work <= MOST_WORK]
        return self._stored[loops]

    def _work(self, engine: Manifest) -> float:
        """Pixels that one frame costs, of the frame's own."""
        spec, size = engine.spec, (self.setting.height, self.setting.width)
        overlap_px = DEFAULT_OVERLAP_PX[spec.loops]
        plan = plan_engine_tiles(*size, tile=(spec.height, spec.width), overlap_px=overlap_px)
        if plan is None or spec.pixel is not Pixel.UINT8:
            return float("inf")
        return len(plan) * spec.height * spec.width / (size[0] * size[1])

    def _candidate(self, found: Found, streams: int) -> Candidate:
        one = found.manifest
        way = Way(
            loops=one.spec.loops,
            backend=self.backend,
            layout=one.layout,
            batch=one.spec.batch,
            streams=streams,
            engine=one.key,
        )
        return Candidate(way, found.store, one.parity is not None and one.parity.passed)
