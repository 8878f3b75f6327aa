"""`cmudrn tune`: what is measured, what is recommended, and what the command prints and writes."""

from __future__ import annotations

import re
import time
from collections.abc import Generator, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_weights import random_checkpoint

from cmudrn.checkpoint import read_checkpoint, save_checkpoint
from cmudrn.cli.app import main
from cmudrn.deploy.backend import PixelBatch
from cmudrn.deploy.job import BackendName
from cmudrn.deploy.profile import Goal, Spread, Way, read_profile
from cmudrn.deploy.tiling import Restorer, TilePlan, plan_tiles
from cmudrn.deploy.tuning.builds import Compiler, EngineBuilder
from cmudrn.deploy.tuning.candidates import Axes, LibraryWays
from cmudrn.deploy.tuning.frame_timing import HOPELESS, FrameTimes, Opened, Setting, frames_of, time_frames
from cmudrn.deploy.tuning.frontier import Measured, Quality, frontier, nearest, quality_of, recommended
from cmudrn.deploy.tuning.search import Choice, TuneJob, Tuner, worth_it
from cmudrn.engines.flavors import Flavor, open_library
from cmudrn.engines.gpu import Gpu
from cmudrn.engines.layout import FOR_ONNX_RUNTIME, Branches, Layout
from cmudrn.engines.spec import EngineSpec, Precision
from cmudrn.engines.store import EngineStore
from cmudrn.errors import CmudrnError, UsageError

ONE_BY_ONE = Goal(budget_ms=40)
STREAM = Goal(fps=25)  # 40 ms as well


# --- frontier and recommendation --------------------------------------------------------------------------


def measured(loops: int, ms: float, stream_ms: float | None = None) -> Measured:
    """p99 of a frame alone and in a stream; medians are far below, so that nobody takes these."""
    way = Way(loops=loops, backend=BackendName.ONNX)
    alone, stream = (Spread(200, 0.001, took / 1e3) for took in (ms, stream_ms or ms))
    return Measured(way=way, alone=alone, stream=stream, final=True)


def loops_of(points: Iterable[Measured]) -> list[int]:
    return [one.way.loops for one in points]


LOOPS_ALONE = Quality({})
# As the shipped weights: the best at 4, and less from there on.
FIGURES = Quality({1: 26.8, 2: 27.8, 3: 28.19, 4: 28.30, 5: 28.29, 6: 28.2, 7: 28.1}, ("bsd-rain",))
EVERY_DEPTH = [measured(loops, 10.0 * loops) for loops in range(1, 8)]


def test_the_most_loops_in_time_are_recommended() -> None:
    points = frontier(EVERY_DEPTH, ONE_BY_ONE, LOOPS_ALONE)
    assert loops_of(points) == [1, 2, 3, 4, 5, 6, 7]
    best = recommended(points, ONE_BY_ONE)
    assert best
    assert best.way.loops == 4  # 40 ms: just in time
    assert recommended(points, Goal(budget_ms=39.9)) is points[2]
    assert recommended(points, Goal(budget_ms=9.9)) is None
    assert nearest(points, Goal(budget_ms=9.9)) is points[0]


def test_more_loops_that_are_not_better_are_not_on_the_frontier() -> None:
    points = frontier(EVERY_DEPTH, ONE_BY_ONE, FIGURES)
    assert loops_of(points) == [1, 2, 3, 4]
    best = recommended(points, Goal(budget_ms=1000))
    assert best
    assert best.way.loops == 4


def test_the_goal_says_which_of_the_two_times_counts() -> None:
    slow_start = [measured(1, 10, 10), measured(2, 50, 20), measured(3, 30, 60)]
    assert loops_of(frontier(slow_start, ONE_BY_ONE, LOOPS_ALONE)) == [1, 3]
    assert loops_of(frontier(slow_start, STREAM, LOOPS_ALONE)) == [1, 2, 3]
    in_a_stream = recommended(frontier(slow_start, STREAM, LOOPS_ALONE), STREAM)
    assert in_a_stream
    assert in_a_stream.way.loops == 2


def test_nothing_measured_is_nothing_recommended() -> None:
    assert frontier([], ONE_BY_ONE, LOOPS_ALONE) == []
    assert recommended([], ONE_BY_ONE) is None
    assert nearest([], ONE_BY_ONE) is None


@given(st.lists(st.tuples(st.integers(1, 7), st.integers(1, 30), st.integers(1, 30)), max_size=20))
def test_a_point_is_on_the_frontier_unless_another_beats_it(told: list[tuple[int, int, int]]) -> None:
    some = [measured(*one) for one in told]
    for goal in (ONE_BY_ONE, STREAM):
        for quality in (LOOPS_ALONE, FIGURES):
            points = frontier(some, goal, quality)

            def rank(one: Measured, goal: Goal = goal, quality: Quality = quality) -> tuple[float, float]:
                return one.of_goal(goal).p99_s, -quality.worth(one.way.loops)

            beaten = [
                one
                for one in some
                if any(
                    rank(other) != rank(one) and np.all(np.less_equal(rank(other), rank(one)))
                    for other in some
                )
            ]
            assert {rank(one) for one in points} == {rank(one) for one in some} - set(map(rank, beaten))
            assert len(points) == len(set(map(rank, points)))


# --- quality ----------------------------------------------------------------------------------------------


def test_quality_is_the_mean_over_the_protocols_of_the_model_card() -> None:
    quality = quality_of(read_checkpoint("default"), range(1, 8))
    card = (Path(__file__).parent.parent / "cmudrn" / "weights" / "default.md").read_text(encoding="utf-8")
    table = card.split("At every loop count")[1].split("\n\n")[1].splitlines()[2:]
    assert [line.split("`")[1] for line in table] == list(quality.protocols)
    for loops in range(1, 8):
        column = [float(line.split("|")[3 + loops].split("/")[0]) for line in table]
        assert quality.psnr_db[loops] == pytest.approx(sum(column) / len(column), abs=0.006)


@pytest.mark.parametrize(
    "training",
    [
        {},
        {"figures": None},
        {"figures": {"bsd-rain": None}},
        {
            "figures": {"bsd-rain": {"by_loops": {"restored": {"1": {"psnr_rgb_db": 20.0}}}}}
        },  # T = 2 is missing
        {"figures": {"a": {"by_loops": {"restored": {"1": {"psnr_rgb_db": "x"}, "2": {"psnr_rgb_db": 1}}}}}},
        {
            "figures": {
                "a": {"by_loops": {"restored": {"1": {"psnr_rgb_db": float("nan")}, "2": {"psnr_rgb_db": 1}}}}
            }
        },
    ],
)
def test_without_figures_for_every_depth_the_loops_stand_in(training: dict[str, Any]) -> None:
    quality = quality_of(replace(random_checkpoint(), training=training), [1, 2])
    assert quality == Quality({})
    assert quality.worth(2) > quality.worth(1)


def test_protocols_without_all_depths_are_left_out() -> None:
    figures = {
        "whole": {"by_loops": {"restored": {"1": {"psnr_rgb_db": 20.0}, "2": {"psnr_rgb_db": 22.0}}}},
        "part": {"by_loops": {"restored": {"1": {"psnr_rgb_db": 90.0}}}},
    }
    checkpoint = replace(random_checkpoint(), training={"figures": figures})
    assert quality_of(checkpoint, [1, 2]) == Quality({1: 20.0, 2: 22.0}, ("whole",))


# --- the clock --------------------------------------------------------------------------------------------


def test_the_99th_percentile_is_a_run_that_was_measured() -> None:
    assert Spread.of([0.3]) == Spread(1, 0.3, 0.3)
    assert Spread.of(range(100)).p99_s == 99  # of few runs the slowest
    assert Spread.of(range(101)).p99_s == 99
    assert Spread.of(range(1001)).p99_s == 990


class Sleeper:
    """A backend that takes its time for each batch, and gives it back as it is."""

    label = "asleep"

    def __init__(self, seconds: float) -> None:
        self.spec = EngineSpec(loops=1, height=24, width=32, precision=Precision.FP32)
        self.seconds, self.batches = seconds, list[int]()
        self.set_up_s = 0.0  # of the first batch, besides

    def stream(self, batches: Iterable[PixelBatch]) -> Generator[PixelBatch, None, None]:
        for batch in batches:
            time.sleep(self.seconds if self.batches else self.seconds + self.set_up_s)
            self.batches.append(len(batch))
            yield batch

    def __enter__(self) -> Sleeper:
        return self

    def __exit__(self, *exc_info: object) -> None:
        pass


def opened(backend: Sleeper, *, batch: int = 1, tile_px: int = 32) -> Opened:
    def plan(height: int, width: int) -> TilePlan:
        return plan_tiles(height, width, tile_px=tile_px, overlap_px=6)

    tiles = len(plan(24, 32))
    return Opened(Restorer(backend, plan, batch), int(np.lcm(tiles, batch)) // tiles)


def test_a_frame_of_a_stream_takes_its_share_of_a_whole_batch() -> None:
    backend = Sleeper(0.02)
    times = time_frames(opened(backend, batch=4), frames_of(24, 32), Goal(fps=1), 0.5)
    assert not times.hopeless
    assert set(backend.batches) == {1, 4}
    # A lone frame is a batch of one: 20 ms. Four of a stream share these.
    assert min(times.alone) >= 0.02
    assert 0.005 <= min(times.stream) < 0.02
    assert len(times.alone) > 3
    assert len(times.stream) > 3


def test_rounds_of_a_stream_are_whole_batches_where_frames_are_tiled() -> None:
    backend = Sleeper(0)
    time_frames(opened(backend, batch=3, tile_px=24), frames_of(24, 32), Goal(fps=1000), 0.02)
    assert opened(backend, batch=3, tile_px=24).frames_a_round == 3  # of two tiles each: two batches
    assert opened(backend, batch=4, tile_px=24).frames_a_round == 2
    assert set(backend.batches) == {3, 2}  # a lone frame is a batch of its two tiles


@pytest.mark.parametrize("goal", [Goal(fps=1000), Goal(budget_ms=1)], ids=["stream", "alone"])
def test_a_hopeless_way_is_measured_once(goal: Goal) -> None:
    backend = Sleeper(0.001 * HOPELESS * 5)
    times = time_frames(opened(backend), frames_of(24, 32), goal, 60)
    assert times.hopeless
    assert (len(times.alone), len(times.stream)) == (1, 1)


def test_a_first_run_that_sets_things_up_makes_no_way_hopeless() -> None:
    backend = Sleeper(0)
    backend.set_up_s = 0.2
    times = time_frames(opened(backend), frames_of(24, 32), Goal(budget_ms=20), 0.1)
    assert not times.hopeless
    assert max(times.alone) < 0.2


def test_however_little_time_there_is_each_is_measured_at_least_once() -> None:
    times = time_frames(opened(Sleeper(0.01)), frames_of(24, 32), STREAM, 1e-9)
    assert (len(times.alone), len(times.stream), times.hopeless) == (1, 1, False)
    assert times + times == FrameTimes([*times.alone] * 2, [*times.stream] * 2)


def test_frames_are_different_ones_and_the_same_in_every_run() -> None:
    frames = frames_of(24, 32)
    assert len({frame.tobytes() for frame in frames}) == len(frames) > 1
    assert all(np.array_equal(one, other) for one, other in zip(frames, frames_of(24, 32), strict=True))


# --- candidates -------------------------------------------------------------------------------------------


def tried(
    height: int, width: int, goal: Goal = STREAM, loops: int = 3, **axes: Any
) -> list[tuple[int | None, int | None]]:
    """(batch, side of the tiles) of ONNX Runtime's candidates."""
    ways = LibraryWays(BackendName.ONNX, Setting(height=height, width=width), goal, Axes(**axes))
    every = list(ways.every(loops, FOR_ONNX_RUNTIME))
    assert every[0] == ways.usual(loops, FOR_ONNX_RUNTIME)
    return [(one.way.batch, one.way.tile_px) for one in every]


def test_tiles_that_cover_the_frame_are_one_candidate() -> None:
    assert tried(100, 200) == [(1, None), (4, None)]
    assert tried(720, 1280) == [(1, None), (1, 1280), (1, 384), (4, None), (4, 1280), (4, 384)]
    assert tried(500, 500, tiles=(384, 1024)) == [(1, 384), (1, None), (4, 384), (4, None)]


def test_a_lone_frame_is_not_tried_in_batches_larger_than_its_tiles() -> None:
    assert tried(100, 200, ONE_BY_ONE) == [(1, None)]
    # Of 720x1280, two tiles of 768 and eight of 384.
    assert tried(720, 1280, ONE_BY_ONE, batches=(1, 2, 8)) == [
        (1, None),
        (1, 1280),
        (1, 384),
        (2, None),
        (2, 384),
        (8, 384),
    ]


def test_our_kernels_take_larger_tiles_and_no_graph() -> None:
    ways = LibraryWays(BackendName.NATIVE, Setting(height=1080, width=1920), STREAM, Axes(batches=(1,)))
    assert [one.way.tile_px for one in ways.every(3, ways.usual_layout)] == [None, 384]  # None covers it
    assert (ways.usual_layout, ways.has_layouts) == (None, False)


def test_more_than_memory_may_hold_is_not_tried() -> None:
    assert (1, 3840) not in tried(2160, 3840)  # 8 million pixels at once
    assert (1, 3840) in tried(2160, 3840, tiles=(3840,))  # unless asked for
    assert tried(1080, 1920) == [(1, None), (1, 1920), (1, 384), (4, None), (4, 384)]


def test_tiles_leave_something_between_overlaps_at_every_depth() -> None:
    assert tried(200, 1000, loops=7, tiles=(20,), batches=(1,)) == [(1, 79)]


def test_what_makes_no_sense_at_all_is_said() -> None:
    ways = LibraryWays(BackendName.ONNX, Setting(height=1080, width=1920), STREAM, Axes(batches=(64,)))
    with pytest.raises(UsageError, match="--batch 64"):
        ways.usual(1, None)
    for axes in ({"batches": (2000,)}, {"streams": (1, 17)}, {"threads": 0}):
        with pytest.raises(UsageError):
            Axes(**axes)


# --- engines that are built to be measured ----------------------------------------------------------------

SMALL = EngineSpec(loops=1, height=24, width=32)


def test_engines_are_built_once_for_each_layout_and_are_gone_at_the_end(tmp_path: Path) -> None:
    """By the real TensorRT-RTX, which needs no GPU to build."""
    usual = EngineStore(tmp_path / "store")
    steps: list[str] = []
    compiler = Compiler(
        "default",
        usual,
        on_step=lambda key, step: steps.append(key),
        library=open_library(Flavor.RTX),
        gpu=Gpu("a GPU", "sm89"),
    )
    with EngineBuilder(compiler) as builder:
        plain, first = builder.engine(SMALL, Layout())
        dense, second = builder.engine(SMALL, Layout(branches=Branches.DENSE))
        assert (plain.key, first) != (dense.key, second)
        assert plain.key == dense.key  # they don't tell layouts apart
        assert plain.graph_sha256 != dense.graph_sha256
        count = len(steps)
        assert builder.engine(SMALL, Layout()) == (plain, first)
        assert len(steps) == count
        assert EngineStore(second).load(dense.key).manifest == dense
    assert not first.exists()
    assert usual.manifests() == ([], [])


def test_a_build_that_fails_says_why(tmp_path: Path) -> None:
    library = open_library(Flavor.RTX)
    compiler = Compiler("default", EngineStore(tmp_path), library=library, gpu=Gpu("a GPU", "sm75"))
    with EngineBuilder(compiler) as builder:
        with pytest.raises(CmudrnError, match="sm75"):  # it has no bfloat16
            builder.engine(replace(SMALL, precision=Precision.BF16), Layout())
        manifest, _ = builder.engine(SMALL, Layout())
        assert manifest.target == "sm75"


# --- the whole search, by ONNX Runtime --------------------------------------------------------------------


def job(goal: Goal, **changes: Any) -> TuneJob:
    told = {
        "setting": Setting(height=24, width=32),
        "loops": (1, 2),
        "backends": (BackendName.ONNX,),
        "seconds": 0.02,
    }
    return TuneJob(goal=goal, **{**told, **changes})


def test_every_layout_batch_and_depth_is_measured_both_ways() -> None:
    steps: list[int] = []
    with Tuner(job(Goal(fps=1)), on_step=lambda done, what: steps.append(done)) as tuner:
        found = [one for one in tuner.run() if isinstance(one, Measured)]
        assert max(steps) < tuner.steps
    assert steps == sorted(steps)
    search, final = ([one.way for one in found if one.final is last] for last in (False, True))
    assert {way.layout.branches for way in search if way.layout} == set(Branches)
    assert {(way.layout.y_once, way.layout.first_from_y) for way in search if way.layout} == {
        (y_once, first) for y_once in (False, True) for first in (False, True)
    }
    assert {(way.loops, way.batch) for way in search} >= {(1, 1), (1, 4), (2, 1), (2, 4)}
    assert len(search) == len(set(search))
    assert {way.loops for way in final} == {1, 2}
    assert set(final) <= set(search)
    for one in found:
        assert 0 < one.alone.median_s <= one.alone.p99_s
        assert 0 < one.stream.median_s <= one.stream.p99_s
    # The finalists were measured in four laps.
    assert all(one.alone.runs >= 4 for one in found if one.final)


def test_another_layout_than_the_shipped_one_must_be_worth_it() -> None:
    ways = LibraryWays(BackendName.ONNX, Setting(height=24, width=32), STREAM, Axes())
    usual, dense = Choice(ways, FOR_ONNX_RUNTIME), Choice(ways, Layout(branches=Branches.DENSE))
    assert worth_it({usual: 1.0, dense: 0.96}, usual) == usual
    assert worth_it({usual: 1.0, dense: 0.9}, usual) == dense
    assert worth_it({dense: 0.96}, usual) == dense  # the usual one failed


def test_what_is_hopeless_is_tried_in_its_plainest_way_only() -> None:
    with Tuner(job(Goal(fps=1e6), layouts=(FOR_ONNX_RUNTIME,))) as tuner:
        found = [one for one in tuner.run() if isinstance(one, Measured)]
    assert [(one.way.loops, one.way.batch) for one in found] == [(1, 1), (2, 1)]
    assert all((one.final, one.alone.runs, one.stream.runs) == (True, 1, 1) for one in found)


def test_a_backend_that_fails_is_told_of_and_the_others_go_on(tmp_path: Path) -> None:
    save_checkpoint(random_checkpoint(), tmp_path / "mine.safetensors")
    weights = tmp_path / "mine.safetensors"
    setting = Setting(height=24, width=32, weights=str(weights))
    with Tuner(job(STREAM, setting=setting, loops=(1,))) as tuner:
        assert any(isinstance(one, Measured) for one in tuner.run())
        weights.write_bytes(b"")
    with Tuner(job(STREAM, setting=setting, loops=(1,))) as tuner:
        (failure,) = list(tuner.run())
    assert not isinstance(failure, Measured)
    assert "mine.safetensors" in failure.error.what


# --- the command ------------------------------------------------------------------------------------------

QUICK = ("--size", "24x32", "--loops", "1-2", "--backend", "onnx", "--seconds", "0.02", "--layout", "grouped")


def tune(*arguments: str | Path) -> int:
    return main(["tune", *QUICK, *map(str, arguments)])


def test_the_best_in_time_is_recommended_and_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tune("--fps", "0.5", "-o", tmp_path / "profile.json", "--all") == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert "in time: 2000 ms a frame in a stream (0.5 frames/s)" in said.out
    assert "recommended: T = 2, onnx, layout grouped" in said.out
    quality = quality_of(read_checkpoint("default"), (1, 2))
    assert f"mean over {', '.join(quality.protocols)} " in said.out
    profile = read_profile(tmp_path / "profile.json")
    assert (profile.way.loops, profile.way.backend, profile.way.layout) == (
        2,
        BackendName.ONNX,
        FOR_ONNX_RUNTIME,
    )
    assert (profile.height, profile.width, profile.goal) == (24, 32, Goal(fps=0.5))
    assert profile.stream.p99_s <= 2
    assert profile.quality_db == quality.psnr_db[2]
    assert profile.weights_sha256 == read_checkpoint("default").sha256


def test_nothing_in_time_is_exit_code_1_the_nearest_and_no_profile(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tune("--budget-ms", "0.001", "-o", tmp_path / "profile.json") == 1
    said = capsys.readouterr()
    # One run each: on a busy machine the deeper one may have been the quicker.
    assert re.search(r"nothing is in time; the nearest is T = [12], onnx", said.err)
    assert "of 1 run, 0.001 ms allowed" in said.err
    assert "  -> " in said.err
    assert "recommended" not in said.out
    assert not list(tmp_path.iterdir())


def test_weights_without_figures_are_said_to_have_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_checkpoint(random_checkpoint(), tmp_path / "mine.safetensors")
    assert tune("--fps", "0.5", "--weights", tmp_path / "mine.safetensors") == 0
    assert "their quality is not known, and the count stands for it" in capsys.readouterr().out


def test_ctrl_c_prints_what_is_known(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    left = iter(range(3))

    def timed_thrice(*arguments: Any) -> FrameTimes:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return time_frames(*arguments)

    monkeypatch.setattr("cmudrn.deploy.tuning.search.time_frames", timed_thrice)
    assert tune("--fps", "0.5", "-o", tmp_path / "profile.json", "--all") == 130
    said = capsys.readouterr()
    assert "frontier, as far as it is known" in said.out
    assert said.out.count("grouped") >= 4  # three that were measured, and a frontier
    assert "interrupted" in said.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "how fast is fast enough?"),
        (["--fps", "30", "--budget-ms", "40"], "--fps and --budget-ms"),
        (["--fps", "0"], "--fps 0"),
        (["--budget-ms", "nan"], "--budget-ms nan"),
        (["--fps", "30", "--size", "0x5"], "--size 0x5"),
        (["--fps", "30", "--size", "500,600"], "--size 500,600"),
        (["--fps", "30", "--loops", "8"], "--loops 8"),
        (["--fps", "30", "--batch", "0"], "--batch 0"),
        (["--fps", "30", "--batch", "x"], "--batch x"),
        (["--fps", "30", "--streams", "17"], "--streams 17"),
        (["--fps", "30", "--tile", "1-"], "--tile 1-"),
        (["--fps", "30", "--layout", "round"], "--layout round"),
        (["--fps", "30", "--backend", "cuda"], "--backend cuda"),
        (["--fps", "30", "--backend", "auto"], "--backend auto"),
        (["--fps", "30", "--seconds", "0"], "--seconds 0"),
        (["--fps", "30", "--seconds", "inf"], "--seconds inf"),
        (["--fps", "30", "--threads", "0"], "--threads 0"),
        (["--fps", "30", "-o", "none/profile.json"], "--out none/profile.json"),
        (["--fps", "30", "--weights", "none"], "none: no such weights"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_makes_no_sense_is_one_line_with_a_way_out(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tune", *arguments]) == 2
    what, way_out = capsys.readouterr().err.splitlines()
    assert said in what
    assert len(way_out) > 10
