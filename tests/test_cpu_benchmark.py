"""benchmarks/cpu.py: who gets how many rounds, what a bar says, and contestants in processes of their own."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cpu
import numpy as np
import pytest
from contest import tables
from contest.bars import Bar, SpeedBar, linearity, speed_bar, speedups
from contest.contestants import Program, Work, best_of_ours, parse, usual, why_not
from contest.grid import Allowance, Cell, cost, in_order, measure_grid
from contest.growth import Growth, growth_bars, pixel_bar, thread_bar, thread_counts
from contest.peak import Peaks, compiled, run, shares
from contest.quality import Quality, bf16_bar, exact, photographs
from contest.whole_way import WholeWay, photos_made_of, whole_way_bar
from contest.workers import Worker, drawn_pixels

from cmudrn.deploy.benchmark.arithmetic import flops
from cmudrn.deploy.benchmark.timing import Times
from cmudrn.deploy.graphs import shipped_graph
from cmudrn.deploy.onnxruntime import OnnxBackend
from cmudrn.engines.spec import EngineSpec, Pixel, Precision
from cmudrn.errors import DeviceError, UsageError
from cmudrn.images import read_picture

SMALL, LARGE = Work(1, 100, 100, 2), Work(1, 200, 200, 2)  # four times the pixels


class Clock:
    """Stands still until it is moved."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def took(seconds: float) -> Times:
    return Times.of([seconds], first_s=seconds)


def test_time_left_is_shared_by_the_arithmetic_and_rounds_follow_from_it() -> None:
    clock = Clock()
    allowance = Allowance([SMALL, LARGE], 100.0, clock=clock)
    allowance.learn(SMALL, 2.0)  # a round of SMALL takes 2 s, and a fifth of 100 s is its own
    effort = allowance.effort(SMALL)
    assert effort is not None
    assert effort.warmup + effort.repeats == 10
    clock.now_s = 50.0
    effort = allowance.effort(LARGE)  # 8 s a round by its arithmetic, 50 s left
    assert effort is not None
    assert effort.warmup + effort.repeats == 6


def test_where_few_rounds_fit_all_of_them_count() -> None:
    allowance = Allowance([LARGE], 20.0, clock=Clock())
    allowance.learn(SMALL, 2.0)
    effort = allowance.effort(LARGE)
    assert effort is not None
    assert (effort.warmup, effort.repeats) == (0, 2)


def test_what_does_not_fit_into_the_time_at_all_is_left_out() -> None:
    clock = Clock()
    allowance = Allowance([SMALL, LARGE], 10.0, clock=clock)
    allowance.learn(SMALL, 2.0)
    assert allowance.effort(SMALL) is not None
    clock.now_s = 2.5
    assert allowance.effort(LARGE) is None  # 8 s a round, 7.5 s left


def test_no_more_rounds_than_told() -> None:
    allowance = Allowance([SMALL], 1e6, most_rounds=4, clock=Clock())
    allowance.learn(SMALL, 0.001)
    effort = allowance.effort(SMALL)
    assert effort is not None
    assert effort.repeats == 4


def test_works_come_by_what_they_cost_and_more_threads_cost_less() -> None:
    alone = SMALL._replace(threads=1)
    assert cost(alone) == 2 * cost(SMALL) == flops(1, 100, 100)
    assert in_order([LARGE, alone, SMALL]) == [SMALL, alone, LARGE]


def test_linearity_is_the_distance_from_the_best_line_through_zero() -> None:
    pixels = 100 * 100
    off = linearity({SMALL: took(1.02 * pixels), LARGE: took(0.98 * 4 * pixels)})
    assert off[SMALL] == pytest.approx(0.02)
    assert off[LARGE] == pytest.approx(-0.02)


def test_speedups_are_against_the_fewest_threads() -> None:
    alone = SMALL._replace(threads=1)
    assert speedups({SMALL: took(1.0), alone: took(1.9)}) == {SMALL: 1.9, alone: 1.0}


def test_growth_is_only_judged_where_its_ends_were_measured() -> None:
    alone, both = Work(3, 720, 1280, 1), Work(3, 720, 1280, 2)
    assert thread_bar({both: took(1.0)}).kept is None
    assert thread_bar({both: took(1.0), alone: took(1.8)}).kept is False
    assert thread_bar({both: took(1.0), alone: took(1.95)}).kept is True
    small, large = Work(1, 500, 500, 2), Work(1, 10_000, 10_000, 2)
    assert pixel_bar(1, {small: took(1.0)}).kept is None
    assert pixel_bar(1, {small: took(1.0), large: took(400.0)}).kept is True
    assert pixel_bar(1, {small: took(1.0), large: took(450.0)}).kept is False


def test_of_what_no_memory_was_left_for_there_are_no_bars_and_no_tables() -> None:
    growth = Growth(
        contestant="native-avx2", pixels={1: {}}, bytes_needed={}, too_large=(), loops={}, threads={}
    )
    assert [bar.kept for bar in growth_bars(growth)] == [None, None]
    assert "seconds" in tables.growth_tables(growth)


@pytest.mark.parametrize(
    ("crops", "parity", "said", "kept"),
    [
        (
            54.14,
            46.0,
            "crops: worst 4.1 dB ahead, mean 5.1 dB ahead; parity-check's images: worst 4.0 dB beh",
            False,
        ),
        (
            49.0,
            49.5,
            "crops: worst 1.0 dB behind, mean 0.0 dB ahead; parity-check's images: worst 0.5 dB beh",
            True,
        ),
        (48.0, 60.0, "crops: worst 2.0 dB behind", False),
    ],
)
def test_bfloat16_keeps_its_bar_where_the_worst_of_both_sets_does(
    crops: float, parity: float, said: str, kept: bool
) -> None:
    theirs = Quality(
        contestant="openvino-bf16", loops=3, difference=0, difference_float64=0, levels=0,
        psnr_db=50.0, mean_psnr_db=50.0, parity_psnr_db=50.0, parity_mean_psnr_db=50.0,
    )  # fmt: skip
    ours = replace(
        theirs, contestant="native-avx512bf16", psnr_db=crops, mean_psnr_db=crops + 1, parity_psnr_db=parity
    )
    bar = bf16_bar([ours, theirs])
    assert said in bar.found
    assert bar.kept is kept
    assert bf16_bar([ours]).kept is None


def plan_of_command(monkeypatch: pytest.MonkeyPatch, *options: str) -> cpu.Plan:
    monkeypatch.setattr(sys, "argv", ["cpu.py", *options])
    return cpu.plan_of(cpu.parsed())


def test_rounds_are_refused_by_their_own_name(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="--rounds 0"):
        plan_of_command(monkeypatch, "--rounds", "0")


def test_what_was_measured_is_kept_after_each_part_and_where_one_breaks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A peak that cannot be told costs its shares alone."""
    compiler = tmp_path / "compiler"  # of programs that end without an answer
    compiler.write_text(
        '#!/bin/sh\nfor out; do :; done\nprintf "#!/bin/sh\\nexit 3\\n" > "$out"; chmod +x "$out"\n'
    )
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    plan = plan_of_command(
        monkeypatch, "--contestants", "onnx", "--loops", "1", "--size", "16", "--threads", "1",
        "--rounds", "2", "--minutes", "0.1", "--parts", "grid,growth",
    )  # fmt: skip
    kept: list[int] = []
    found = cpu.run(plan, keep=lambda found: kept.append(len(found.to_json(plan)["cells"])))
    assert kept == [1, 1]  # growth needs our own kernels to compete
    assert set(found.cells[0].times) == {"onnx"}
    assert not found.peaks


def test_a_speed_bar_is_kept_where_every_case_keeps_it() -> None:
    bar = SpeedBar(ours="a", other="b", least=4.0)
    fast = Cell(work=Work(3, 500, 500, 2), times={"a": took(1.0), "b": took(5.0)})
    slow = replace(fast, work=LARGE, times={"a": took(1.0), "b": took(3.0)})
    assert speed_bar(bar, [fast]).kept is True
    missed = speed_bar(bar, [fast, slow])
    assert missed.kept is False
    assert missed.found == "3.00x to 5.00x, kept in 1 of 2 cases; 5.00x at T = 3, 500x500"
    assert speed_bar(bar, [replace(fast, times={"b": took(5.0)})]).kept is None


def test_names_say_program_instruction_set_and_precision() -> None:
    assert parse("native-avx2").isa == "avx2"
    assert parse("native-avx512bf16").precision is Precision.BF16
    assert parse("openvino-avx2").environment == {"ONEDNN_MAX_CPU_ISA": "AVX2"}
    for name in ("native", "native-", "tensorrt", ""):
        with pytest.raises(UsageError):
            parse(name)


def test_what_the_processor_cannot_do_does_not_compete() -> None:
    without = {one.name for one in usual(["avx2"]) if one.program is not Program.NATIVE}
    assert without == {"onnx", "openvino", "torch"}
    assert {"openvino-bf16", "openvino-avx2"} <= {one.name for one in usual(["avx512f", "avx512_bf16"])}
    assert why_not(parse("openvino-bf16"), ["avx2"]) == "this processor has no bfloat16"
    assert why_not(parse("native-mmx"), []) != ""
    assert why_not(parse("onnx"), []) == ""


def test_our_best_is_the_first_in_float32() -> None:
    names = ["openvino", "native-avx512bf16", "native-avx512", "native-avx2"]
    best = best_of_ours([parse(name) for name in names])
    assert best is not None
    assert best.name == "native-avx512"
    assert best_of_ours([parse("onnx")]) is None


@pytest.mark.parametrize(("cores", "counts"), [(1, [1]), (2, [1, 2]), (6, [1, 2, 4, 6]), (8, [1, 2, 4, 8])])
def test_threads_double_up_to_all_cores(cores: int, counts: list[int]) -> None:
    assert thread_counts(cores) == counts


def test_shares_are_those_of_the_direct_convolutions() -> None:
    cell = Cell(work=LARGE, times={"native-avx2": took(2.0), "onnx": took(4.0)})
    peaks = Peaks(flops_per_s={"avx2": flops(1, 200, 200) / 4, "avx512": 1e30}, bytes_per_s=1.0)
    ours = shares(parse("native-avx2"), cell, peaks)
    assert ours.of_peak == pytest.approx(2.0)  # Winograd's way may
    assert shares(parse("onnx"), cell, peaks).of_peak == pytest.approx(0.0)  # it may take AVX-512
    assert shares(parse("onnx"), cell, None).of_peak is None


def test_the_best_of_two_measurements_is_the_peak() -> None:
    one = Peaks(flops_per_s={"avx2": 2.0}, bytes_per_s=3.0)
    other = Peaks(flops_per_s={"avx2": 1.0}, bytes_per_s=4.0)
    assert one.better(other) == Peaks(flops_per_s={"avx2": 2.0}, bytes_per_s=4.0)


@pytest.mark.skipif(not shutil.which("c++"), reason="no C++ compiler")
def test_the_peak_is_measured_by_a_program_compiled_here(tmp_path: Path) -> None:
    rates = run(compiled("base", tmp_path), 1)
    assert rates["bf16_flops_per_s"] == 0
    assert 1e8 < rates["flops_per_s"] < 1e13
    assert 1e8 < rates["bytes_per_s"] < 1e13


def test_drawn_pixels_are_the_same_at_every_size_and_of_any_size() -> None:
    large = drawn_pixels(600, 1100)
    assert large.shape == (1, 600, 1100, 3)
    assert np.array_equal(large[:, :5, :7], drawn_pixels(5, 7))
    assert np.array_equal(large[:, :88, :76], large[:, 512:, 1024:])


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker(parse("onnx")) as opened:
        yield opened


def test_a_contestant_restores_in_its_own_process_as_it_does_here(worker: Worker) -> None:
    pixels, work = drawn_pixels(20, 30), Work(1, 20, 30, 1)
    spec = EngineSpec(loops=1, height=20, width=30, precision=Precision.FP32)
    with OnnxBackend(shipped_graph(1, Pixel.UINT8), spec, device="cpu") as backend:
        (expected,) = backend.stream([pixels])
    assert np.array_equal(worker.restore(pixels, work), expected)
    assert worker.run(work) > 0
    assert worker.bytes_needed(work) is None
    assert worker._process.pid != os.getpid()


def test_what_a_contestant_refuses_is_raised_where_it_was_asked_and_it_goes_on(worker: Worker) -> None:
    wrong = np.zeros((1, 8, 8, 4), np.uint8)
    with pytest.raises(DeviceError, match="onnx: "):
        worker.restore(wrong, Work(1, 8, 8, 1))
    assert worker.run(Work(1, 8, 8, 1)) > 0


def test_a_process_that_ends_is_an_error_of_that_contestant_alone(worker: Worker) -> None:
    with Worker(parse("native-mmx")) as broken:
        broken._process.terminate()
        broken._process.join()
        (cell,) = measure_grid([worker, broken], [Work(1, 16, 16, 1)], 1.0, rounds=2)
    assert set(cell.times) == {"onnx"}
    assert "its process ended" in cell.failures["native-mmx"]


def test_float64_on_a_photograph_agrees_with_what_onnx_runtime_makes_of_it(worker: Worker) -> None:
    image = np.divide(photographs()[0][:40, :40], 255, dtype=np.float32)
    found = worker.restore(image[None], Work(1, 40, 40, 1))[0]
    assert np.abs(found - exact(1, image, "default")).max() < 1e-5


def test_photographs_are_made_in_both_formats_and_in_the_told_sizes() -> None:
    with photos_made_of(Path(__file__).parent.parent / "examples" / "weather") as folder:
        paths = sorted(folder.iterdir())
        assert len(paths) == 40
        assert {path.suffix for path in paths} == {".jpg", ".png"}
        assert read_picture(paths[0]).pixels.shape == (500, 500, 3)
        assert read_picture(paths[-1]).pixels.shape == (750, 1000, 3)
    assert not folder.exists()


def test_the_whole_way_says_what_most_is_lost_to() -> None:
    found = WholeWay(
        backend="native", loops=1, images=40, megapixels=20.0, cores=2,
        infer_s=10.0, pipeline_s=9.5, alone_s=8.0, decode_s=0.4, encode_s=2.0,
    )  # fmt: skip
    assert found.losses_s == pytest.approx(
        {
            "start and end of the process": 0.5,
            "decoding": 0.2,
            "encoding": 1.0,
            "what remains: tiles, threads in each other's way": 0.3,
        }
    )
    assert whole_way_bar(found).found == "80.0%; most is lost to: encoding"
    assert whole_way_bar(found).kept is False
    assert "T = 1" in whole_way_bar(found).what


def test_a_table_shows_medians_and_how_often_ours_fits_into_them() -> None:
    contestants = [parse("native-avx2"), parse("onnx")]
    cell = Cell(work=Work(3, 500, 500, 2), times={"native-avx2": took(0.1), "onnx": took(0.45)})
    without = Cell(work=LARGE, left_out="no time was left")
    lines = tables.grid_table([cell, without], contestants, "native-avx2").splitlines()
    assert lines[2] == "| 2 | 1 | 200x200 |  |  |  | no time was left |"
    assert lines[3] == "| 2 | 3 | 500x500 | 100 | 450 (4.50x) | 1 | 0% |"
    assert len({line.count("|") for line in lines}) == 1


def test_bars_say_kept_missed_or_not_measured() -> None:
    bars = [Bar(what="a", bar="b", found="c", kept=kept) for kept in (True, False, None)]
    ends = [line.rsplit("|", 2)[1].strip() for line in tables.bars_table(bars).splitlines()[2:]]
    assert ends == ["kept", "**missed**", "not measured"]
