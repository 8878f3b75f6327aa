"""Tables of figures: what follows from seconds, and gone on with on equal terms only."""

from __future__ import annotations

import csv
import json
import sys
from contextlib import nullcontext
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from cmudrn.checkpoint import load_model
from cmudrn.deploy.benchmark import grid, peak
from cmudrn.deploy.benchmark.arithmetic import flops, values_moved
from cmudrn.deploy.benchmark.contestants import (
    Case,
    Conditions,
    Contestant,
    Opened,
    Place,
)
from cmudrn.deploy.benchmark.grid import BenchmarkPlan, run_benchmark, terms_of
from cmudrn.deploy.benchmark.plot import MARK, draw_heatmaps
from cmudrn.deploy.benchmark.table import PAPER_FPS, Cell, Table, Terms
from cmudrn.deploy.benchmark.timing import Effort
from cmudrn.deploy.machine import Machine, describe_machine
from cmudrn.deploy.native.library import is_built, kernels_version
from cmudrn.engines.spec import Precision
from cmudrn.errors import EnvironmentMissing, UsageError

EFFORT = Effort(warmup=1, repeats=2)
CASES = (Case(1, 16, 16, 1), Case(1, 12, 20, 2), Case(2, 16, 16, 1))
CPU = Conditions(device="cpu")


@pytest.fixture(autouse=True)
def small_peaks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Matrices and copies that take no time."""
    monkeypatch.setattr(peak, "SIDE", dict.fromkeys(Place, 64))
    monkeypatch.setattr(peak, "SIDE_FP16_CPU", 32)
    monkeypatch.setattr(peak, "COPIED_BYTES", dict.fromkeys(Place, 1 << 16))


def plan_of(*names: str, cases: tuple[Case, ...] = CASES, conditions: Conditions = CPU) -> BenchmarkPlan:
    contestants = tuple(map(Contestant.parse, names))
    return BenchmarkPlan(contestants=contestants, cases=cases, effort=EFFORT, conditions=conditions)


def measured(folder: Path, *names: str, cases: tuple[Case, ...] = CASES) -> Table:
    table = Table.open(folder, terms_of(CPU))
    list(run_benchmark(plan_of(*names, cases=cases), table))
    return table


def cell_of(backend: str, case: Case, seconds: float, **changes: Any) -> Cell:
    cell = Cell(
        backend=backend,
        place="cpu",
        **case._asdict(),
        seconds=seconds,
        lower_s=seconds,
        upper_s=seconds,
        least_s=seconds,
        first_s=seconds,
        runs=1,
        clock="wall",
        about="",
        plan="",
        peak_flops_per_s=1e11,
        peak_bytes_per_s=1e10,
        began="2026-11-26T10:00:00Z",
    )
    return replace(cell, **changes)


@pytest.mark.parametrize("loops", [1, 2, 3, 7])
def test_the_work_of_a_pixel_is_that_of_the_models_own_layers(loops: int) -> None:
    model, counted = load_model("default", loops=loops), {"flops": 0, "values": 0}

    def count(layer: nn.Module, given: tuple[torch.Tensor, ...], made: torch.Tensor) -> None:
        assert isinstance(layer, nn.Conv2d)
        counted["flops"] += 2 * made.numel() * layer.weight[0].numel()
        counted["values"] += given[0].numel() + made.numel()

    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(count)
    with torch.inference_mode():
        model(torch.zeros(1, 3, 5, 4))
    assert counted == {"flops": flops(loops, 5, 4), "values": values_moved(loops, 5, 4)}
    assert flops(loops, 5, 4) == 20 * 2 * (2 * loops * (864 + 9216 * loops + 432) + 3600)


def test_the_papers_image_takes_88_gflop_at_three_loops() -> None:
    assert flops(3, 500, 500) / 1e9 == pytest.approx(88.6, abs=0.05)


def test_what_follows_from_a_cells_seconds() -> None:
    cell = cell_of("torch-fp16", Case(3, 500, 500, 8), 0.5, peak_flops_per_s=886.32e9)
    assert cell.fps == 2
    assert replace(cell, lower_s=0.4, upper_s=0.7).spread == pytest.approx(0.3)
    assert cell.peak_share == pytest.approx(0.2)
    assert cell.moved_share == pytest.approx(2623 * 250_000 * 2 / 0.5 / 1e10)
    without = replace(cell, peak_flops_per_s=None, peak_bytes_per_s=None)
    assert without.peak_share is without.moved_share is None


def test_every_cell_is_measured_in_turns_and_is_on_disk(tmp_path: Path) -> None:
    table = measured(tmp_path, "torch", "onnx")
    assert [(cell.backend, cell.key.case) for cell in table.cells.values()] == [
        (name, case) for case in CASES for name in ("torch", "onnx")
    ]
    for cell in table.cells.values():
        assert 0 < cell.least_s <= cell.lower_s <= cell.seconds <= cell.upper_s
        assert (cell.runs, cell.clock, cell.place) == (2, "wall", "cpu")
        assert cell.peak_share
        assert cell.peak_share > 0
    assert Table.open(tmp_path, terms_of(CPU)).cells == table.cells


def test_seconds_are_those_of_one_image_of_a_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    takes_eight = nullcontext(Opened(lambda: 8.0, "wall"))
    monkeypatch.setattr(grid, "open_contestant", lambda *_: takes_eight)
    [cell] = measured(tmp_path, "onnx", cases=(Case(1, 16, 16, 4),)).cells.values()
    assert (cell.seconds, cell.lower_s, cell.upper_s, cell.least_s) == (2.0, 2.0, 2.0, 2.0)
    assert cell.first_s == 8.0  # of the batch as a whole
    assert cell.fps == 0.5


def test_a_table_is_gone_on_with_where_it_was_left(tmp_path: Path) -> None:
    table, plan = Table.open(tmp_path, terms_of(CPU)), plan_of("torch", "onnx")
    [first] = islice(run_benchmark(plan, table), 1)
    assert first.case == CASES[0]
    again = Table.open(tmp_path, terms_of(CPU))
    assert len(again.cells) == 2
    rest = list(run_benchmark(plan, again))
    assert [len(one.cells) for one in rest] == [0, 2, 2]
    assert list(again.cells.values())[:2] == list(first.cells)  # not measured anew


@pytest.mark.skipif(not is_built(), reason="the package has no kernels of its own here: make native")
def test_a_figure_of_other_kernels_is_measured_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CMUDRN_ISA", raising=False)
    first = dict(measured(tmp_path, "native", cases=CASES[:1]).cells)
    assert [cell.plan for cell in first.values()] == [kernels_version(Precision.FP32)]
    assert measured(tmp_path, "native", cases=CASES[:1]).cells == first
    monkeypatch.setenv("CMUDRN_ISA", "direct")
    [anew] = measured(tmp_path, "native", cases=CASES[:1]).cells.values()
    assert anew.plan == kernels_version(Precision.FP32)
    assert "direct" in anew.plan
    monkeypatch.setenv("CMUDRN_NATIVE_LIBRARY", str(tmp_path / "gone.so"))
    assert list(measured(tmp_path, "native", cases=CASES[:1]).cells.values()) == [anew]


def test_another_contestant_is_measured_beside_those_that_are_there(tmp_path: Path) -> None:
    before = dict(measured(tmp_path, "onnx").cells)
    after = measured(tmp_path, "onnx", "torch")
    assert {key: after.cells[key] for key in before} == before
    assert len(after.cells) == 2 * len(before)


def test_what_is_missing_is_told_and_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "torch", None)
        table = measured(tmp_path, "torch", "onnx", cases=CASES[:1])
    [gap] = table.gaps.values()
    assert (gap.key.backend, gap.reason) == ("torch", "torch: PyTorch is not installed")
    assert "pip install" in gap.fix
    assert [cell.backend for cell in table.cells.values()] == ["onnx"]
    assert json.loads((tmp_path / "benchmark.json").read_text())["missing"][0]["backend"] == "torch"
    assert not measured(tmp_path, "torch", "onnx", cases=CASES[:1]).gaps


def with_another_torch() -> Machine:
    machine = describe_machine()
    return replace(machine, versions={**machine.versions, "torch": "1.0"})


def other_terms(**changes: Any) -> Terms:
    return replace(terms_of(CPU), **changes)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda: {"machine": replace(describe_machine(), cpu="Another CPU")}, "cpu .*, now Another CPU"),
        (lambda: {"machine": replace(describe_machine(), cores=99)}, "cores .*, now 99"),
        (lambda: {"machine": with_another_torch()}, "torch .*, now 1.0"),
        (lambda: {"weights_sha256": "0" * 64}, "weights_sha256 .*, now 000"),
        (lambda: {"threads": 99}, "threads .*, now 99"),
    ],
)
def test_figures_of_other_machines_are_not_mixed(tmp_path: Path, change: Any, words: str) -> None:
    cells = measured(tmp_path, "onnx", cases=CASES[:1]).cells
    written = (tmp_path / "benchmark.json").read_bytes()
    with pytest.raises(UsageError, match=words) as refusal:
        Table.open(tmp_path, other_terms(**change()))
    assert refusal.value.fix == "give another folder: -o OUT, or --overwrite to begin anew"
    assert (tmp_path / "benchmark.json").read_bytes() == written
    assert Table.open(tmp_path, terms_of(CPU)).cells == cells
    assert not Table.open(tmp_path, other_terms(**change()), overwrite=True).cells


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": "other"}', '{"format": "cmudrn-benchmark-1"}'])
def test_a_file_that_is_no_table_is_left_as_it_is(tmp_path: Path, text: str) -> None:
    (tmp_path / "benchmark.json").write_text(text)
    with pytest.raises(UsageError, match="not a table of cmudrn benchmark"):
        Table.open(tmp_path, terms_of(CPU))
    assert (tmp_path / "benchmark.json").read_text() == text


def test_a_folder_that_cannot_be_made_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="file/out"):
        Table.open(tmp_path / "file" / "out", terms_of(CPU))


def test_both_files_say_the_same(tmp_path: Path) -> None:
    measured(tmp_path, "torch", "onnx")
    document = json.loads((tmp_path / "benchmark.json").read_text())
    rows = list(csv.DictReader((tmp_path / "benchmark.csv").read_text().splitlines()))
    assert rows == [{name: str(value) for name, value in row.items()} for row in document["cells"]]
    assert {"seconds", "fps", "flops_per_s", "peak_share", "backend", "loops", "height"} <= set(rows[0])


@pytest.mark.parametrize(("contestants", "cases"), [((), CASES), ((Contestant.parse("onnx"),), ())])
def test_a_plan_of_nothing_is_refused(contestants: Any, cases: Any) -> None:
    with pytest.raises(UsageError, match="nothing to measure"):
        BenchmarkPlan(contestants=contestants, cases=cases, effort=EFFORT, conditions=CPU)


def marked_pixels(path: Path) -> int:
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"))
    colour = [int(MARK[i : i + 2], 16) for i in (1, 3, 5)]
    return int((pixels == colour).all(axis=2).sum())


def drawn(folder: Path, cases: list[Case]) -> Path:
    table = Table.open(folder, terms_of(CPU))
    table.add([cell_of("torch", case, 0.1 * case.loops) for case in cases], [])
    draw_heatmaps(table)
    return folder / "heatmap.png"


def test_the_papers_figures_are_marked_where_the_grid_has_them(tmp_path: Path) -> None:
    plain = drawn(tmp_path / "plain", [Case(loops, side, side, 1) for loops in (1, 2) for side in (16, 500)])
    assert marked_pixels(plain) == 0
    one = drawn(tmp_path / "one", [Case(loops, side, side, 1) for loops in (1, 3) for side in (16, 500)])
    four = drawn(tmp_path / "four", [Case(loops, side, side, 1) for loops in (3, 7) for side in (500, 1000)])
    assert marked_pixels(one) > 100
    assert marked_pixels(four) > 3 * marked_pixels(one)


def test_the_papers_figures_are_those_of_its_text() -> None:
    assert PAPER_FPS == {(3, 500, 500): 9, (3, 1000, 1000): 2.55, (7, 500, 500): 2.4, (7, 1000, 1000): 0.64}


def test_without_matplotlib_that_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(EnvironmentMissing, match=r"heatmap\.png is left out") as refusal:
        drawn(tmp_path, [Case(1, 16, 16, 1)])
    assert "cmudrn[bench]" in refusal.value.fix
