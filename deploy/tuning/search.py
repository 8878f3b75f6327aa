"""`cmudrn tune`: what is worth measuring on this machine, stage by stage, and the measuring itself.

A full grid of backends, layouts, tiles, batches, streams and loops would take hours. So backends are compared
at the least loop count; layouts at the deepest one that seems to meet the goal; then the best of these at all
depths with every tile, batch and number of streams. Up to here medians decide, for a 99th percentile of few
runs is noise. The best of each depth are measured again, longer and by turns, and these figures count.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from itertools import islice
from statistics import median
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from cmudrn.deploy.benchmark.arithmetic import flops
from cmudrn.deploy.job import CPU, DEFAULT_OVERLAP_PX, BackendName
from cmudrn.deploy.native.library import is_built
from cmudrn.deploy.profile import Goal, Way
from cmudrn.deploy.tuning.candidates import Axes, Candidate, EngineWays, Failure, LibraryWays, Ways
from cmudrn.deploy.tuning.frame_timing import FrameTimes, Setting, frames_of, time_frames
from cmudrn.deploy.tuning.frontier import Measured
from cmudrn.engines.layout import Branches, Layout
from cmudrn.engines.store import EngineStore
from cmudrn.errors import CmudrnError, EnvironmentMissing, UsageError

if TYPE_CHECKING:  # it needs onnx
    from cmudrn.deploy.tuning.builds import Build, EngineBuilder

__all__ = ["LAPS", "TuneJob", "Tuner"]

NEAR = 1.25  # times the best one's median: what is slower is not looked at further
WORTH_IT = 0.95  # of the usual layout's median: what takes more isn't worth a graph of its own
FINALISTS = 2  # of each depth
LONGEST_S = 3600  # for a candidate
LAPS = 4  # of the finalists: what else the machine does falls on all of them alike

Key = TypeVar("Key", bound=Hashable)
OnStep = Callable[[int, str], None]  # gets the steps done, of `Tuner.steps`, and what is being measured


@dataclass(frozen=True, kw_only=True)
class TuneJob:
    """All that `cmudrn tune` is told. Raises UsageError."""

    goal: Goal
    setting: Setting
    axes: Axes = field(default_factory=Axes)
    loops: tuple[int, ...] = tuple(DEFAULT_OVERLAP_PX)
    backends: tuple[BackendName, ...] = ()  # (): engines, our kernels, OpenVINO where they are, ONNX Runtime
    layouts: tuple[Layout, ...] = ()  # (): looked for
    seconds: float = 2.0  # for each candidate; LAPS times as long for the finalists
    build: bool = True  # engines that the store doesn't have

    def __post_init__(self) -> None:
        if not self.loops or not set(self.loops) <= DEFAULT_OVERLAP_PX.keys():
            raise UsageError(f"--loops {','.join(map(str, self.loops))}", fix="give 1 to 7")
        if not 0 < self.seconds <= LONGEST_S:  # NaN neither
            raise UsageError(
                f"--seconds {self.seconds:g}", fix=f"give more than 0, up to {LONGEST_S}; 2 is the default"
            )
        if BackendName.AUTO in self.backends:
            raise UsageError("--backend auto", fix="name backends, or leave it out for all that run here")


class Choice(NamedTuple):
    """A backend and a layout."""

    ways: Ways
    layout: Layout | None


class Tuner(AbstractContextManager["Tuner"]):
    """Measures what a job asks for; holds the engines that it builds until it is left.

    on_step: see OnStep. on_note: gets a line for people where something isn't measured at all.
    build: instead of the library's compiler.
    Entering raises EnvironmentMissing for a backend that is asked for and isn't here, CheckpointError, and
    UsageError for a device that there isn't.
    """

    def __init__(
        self,
        job: TuneJob,
        *,
        on_step: OnStep = lambda done, what: None,
        on_note: Callable[[str], None] = lambda line: None,
        build: Build | None = None,
    ) -> None:
        self.job, self._on_step, self._on_note, self._build = job, on_step, on_note, build
        self._frames = frames_of(job.setting.height, job.setting.width)
        self._ways: list[Ways] = []
        self._times: dict[Candidate, FrameTimes | Failure] = {}
        self._taken = ExitStack()
        self._done = 0

    def __enter__(self) -> Tuner:
        with ExitStack() as taken:
            self._ways = list(self._find_ways(taken))
            self._taken = taken.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._taken.close()

    @property
    def steps(self) -> int:
        """Backends, layouts, each depth, each lap."""
        return 2 + len(self.job.loops) + LAPS

    def run(self) -> Iterator[Measured | Failure]:
        """What is measured, as it is, and what fails. Those that are `final` make the frontier."""
        choices = yield from self._compare_backends()
        self._done = 1
        if choices:
            choices = yield from self._compare_layouts(choices)
        for done, loops in enumerate(self.job.loops, 2):
            self._done = done
            for choice in choices:
                yield from self._search(choice, loops)
        yield from self._measure_finalists()

    def keep(self, way: Way) -> bool:
        """Puts a way's engine into the usual store, where it was built to be measured; whether it was.

        Raises EngineError where that can't be written.
        """
        for candidate in self._times:
            if candidate.way == way and candidate.store is not None and way.engine is not None:
                engine = EngineStore(candidate.store).load(way.engine)
                EngineStore.default(self.job.setting.store).put(engine.plan, engine.manifest)
                return True
        return False

    def _find_ways(self, taken: ExitStack) -> Iterator[Ways]:
        job, told = self.job, self.job.backends
        if BackendName.TENSORRT in told or (not told and job.setting.device != CPU):
            try:
                yield EngineWays(job.setting, job.goal, job.axes, self._builder(taken))
            except EnvironmentMissing as exc:
                if told:
                    raise
                self._on_note(f"no engines: {exc.what}")
        here = [BackendName.NATIVE] if is_built() else []
        here += [BackendName.OPENVINO] if find_spec("openvino") else []
        for name in told or (*here, BackendName.ONNX):
            if name is not BackendName.TENSORRT:
                yield LibraryWays(name, job.setting, job.goal, job.axes)

    def _builder(self, taken: ExitStack) -> EngineBuilder | None:
        job = self.job
        if not job.build:
            return None
        if not find_spec("onnx"):
            self._on_note("no onnx: only engines that the store has are measured")
            return None
        from cmudrn.deploy.tuning.builds import Compiler, EngineBuilder

        build = self._build or Compiler(
            job.setting.weights,
            EngineStore.default(job.setting.store),
            device=job.setting.device or "0",
            on_step=lambda key, step: self._on_step(self._done, f"building {key}: {step.phase}"),
        )
        return taken.enter_context(EngineBuilder(build))

    def _compare_backends(self) -> Generator[Measured | Failure, None, dict[Choice, float]]:
        """At the least loop count, each in its usual layout, or in the first one that is asked for."""
        tried: dict[Choice, float] = {}
        for ways in self._ways:
            layout = self.job.layouts[0] if self.job.layouts and ways.has_layouts else ways.usual_layout
            yield from self._try(Choice(ways, layout), min(self.job.loops), tried)
        return near(tried)

    def _compare_layouts(
        self, backends: Mapping[Choice, float]
    ) -> Generator[Measured | Failure, None, dict[Choice, float]]:
        """For each backend that is left, the best one."""
        loops, best = self._pilot(min(backends.values())), dict[Choice, float]()
        for ways, usual in backends:
            tried: dict[Choice, float] = {}
            for layout in self._layouts(ways, usual):
                yield from self._try(Choice(ways, layout), loops, tried)
            if ways.has_layouts and not self.job.layouts:
                for choice in with_flags(near(tried)):
                    yield from self._try(choice, loops, tried)
            if tried:
                choice = worth_it(tried, Choice(ways, usual))
                best[choice] = tried[choice]
        return near(best)

    def _layouts(self, ways: Ways, usual: Layout | None) -> Sequence[Layout | None]:
        if not ways.has_layouts:
            return [usual]
        return self.job.layouts or [Layout(branches=branches) for branches in Branches]

    def _pilot(self, least_s: float) -> int:
        """The deepest loop count that seems to meet the goal. least_s: what the least one takes."""
        size = self.job.setting.height, self.job.setting.width
        least = min(self.job.loops)
        speed = flops(least, *size) / least_s
        within = [loops for loops in self.job.loops if flops(loops, *size) / speed <= self.job.goal.budget_s]
        return max(within, default=least)

    def _try(self, choice: Choice, loops: int, tried: dict[Choice, float]) -> Iterator[Measured | Failure]:
        """The plainest way of a choice; what it takes goes into `tried`."""
        try:
            candidate = choice.ways.usual(loops, choice.layout)
        except CmudrnError as exc:
            layout = choice.layout or "its own"
            yield Failure(f"T = {loops}, {choice.ways.backend.value}, layout {layout}", exc)
            return
        times = yield from self._measure(candidate)
        if times:
            tried[choice] = median(times.of(self.job.goal))

    def _search(self, choice: Choice, loops: int) -> Iterator[Measured | Failure]:
        """All of a depth; where its plainest way is hopeless, no other is tried."""
        for candidate in choice.ways.every(loops, choice.layout):
            if isinstance(candidate, Failure):
                yield candidate
                continue
            times = yield from self._measure(candidate)
            if times and times.hopeless:
                return

    def _measure(self, candidate: Candidate) -> Generator[Measured | Failure, None, FrameTimes | None]:
        """Once for each; None where it fails."""
        if candidate not in self._times:
            self._on_step(self._done, described(candidate.way))
            times = self._times[candidate] = self._timed(candidate)
            if isinstance(times, Failure):
                yield times
            else:
                yield Measured.of(candidate.way, times, final=times.hopeless, certified=candidate.certified)
        known = self._times[candidate]
        return None if isinstance(known, Failure) else known

    def _timed(self, candidate: Candidate) -> FrameTimes | Failure:
        try:
            with self.job.setting.open(candidate.way, candidate.store) as opened:
                return time_frames(opened, self._frames, self.job.goal, self.job.seconds)
        except CmudrnError as exc:
            return Failure(described(candidate.way), exc)
        except MemoryError:
            error = CmudrnError("not enough memory", fix="try smaller tiles or batches")
            return Failure(described(candidate.way), error)

    def _measure_finalists(self) -> Iterator[Measured | Failure]:
        """The quickest of each depth, again and by turns."""
        racing: dict[Candidate, FrameTimes | None] = dict.fromkeys(self._finalists())
        for lap in range(LAPS):
            self._done = self.steps - LAPS + lap
            for candidate in list(racing) if lap % 2 == 0 else reversed(list(racing)):
                self._on_step(self._done, f"{described(candidate.way)}, again")
                times, before = self._timed(candidate), racing[candidate]
                if isinstance(times, Failure):
                    yield times
                    del racing[candidate]
                else:
                    racing[candidate] = before + times if before else times
        for candidate, whole in racing.items():
            if whole:
                yield Measured.of(candidate.way, whole, final=True, certified=candidate.certified)

    def _finalists(self) -> Iterator[Candidate]:
        medians = {
            candidate: median(times.of(self.job.goal))
            for candidate, times in self._times.items()
            if isinstance(times, FrameTimes) and not times.hopeless
        }
        for loops in self.job.loops:
            of_depth = {one: took for one, took in medians.items() if one.way.loops == loops}
            yield from islice(near(of_depth), FINALISTS)


def near(medians: Mapping[Key, float]) -> dict[Key, float]:
    """The quickest first, and those that are hardly slower."""
    ranked = sorted(medians.items(), key=lambda one: one[1])
    return {key: took for key, took in ranked if took <= NEAR * ranked[0][1]}


def worth_it(tried: Mapping[Choice, float], usual: Choice) -> Choice:
    """The quickest, unless it gains next to nothing on the usual layout, whose graph is shipped."""
    best = min(tried, key=lambda choice: tried[choice])
    return usual if tried.get(usual, math.inf) * WORTH_IT <= tried[best] else best


def with_flags(tried: Iterable[Choice]) -> Iterator[Choice]:
    """The first of these with y-once, first-from-y, and both."""
    for ways, layout in islice(tried, 1):
        for y_once, first_from_y in ((True, False), (False, True), (True, True)):
            yield Choice(ways, replace(layout or Layout(), y_once=y_once, first_from_y=first_from_y))


def described(way: Way) -> str:
    """For people, in a line."""
    parts = [f"T = {way.loops}", way.backend.value]
    parts += [] if way.layout is None else [f"layout {way.layout}"]
    parts += [f"batch {way.batch}"] if way.batch else []
    if way.engine is not None:
        return ", ".join([*parts, f"{way.streams} streams", way.engine])
    return ", ".join([*parts, f"tiles of {way.tile_px} pixels"] if way.tile_px else parts)
