"""`cmudrn benchmark` as its users meet it: lines, files, exit codes."""

from __future__ import annotations

import csv
import json
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from hostcuda.build import Driver
from PIL import Image
from test_manifest import manifest_of

from cmudrn.checkpoint import read_checkpoint
from cmudrn.cli.app import main
from cmudrn.cli.values import parse_counts, parse_sizes
from cmudrn.deploy.benchmark import peak
from cmudrn.deploy.benchmark.contestants import Opened, Place, open_contestant
from cmudrn.engines.graph import typed_graph
from cmudrn.engines.spec import EngineSpec
from cmudrn.engines.store import EngineStore
from cmudrn.errors import UsageError

SMALL = ("--loops", "1", "--size", "16", "--repeats", "2", "--device", "cpu")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of its own, and peaks that take no time."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(peak, "SIDE", dict.fromkeys(Place, 64))
    monkeypatch.setattr(peak, "COPIED_BYTES", dict.fromkeys(Place, 1 << 16))


def benchmark(*arguments: str) -> int:
    return main(["benchmark", *arguments])


def rows(folder: str = "cmudrn-benchmark") -> list[dict[str, str]]:
    return list(csv.DictReader(Path(folder, "benchmark.csv").read_text().splitlines()))


def test_backends_stand_side_by_side_and_all_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark(*SMALL, "--size", "12x20", "--batch", "1,2", "--backend", "torch,onnx") == 0
    said = capsys.readouterr()
    heading = ["T", "size", "batch", "backend", "s/image", "±", "FPS", "GFLOP/s", "of", "peak"]
    lines = [line.split() for line in said.out.splitlines() if line.strip()]
    assert next(line for line in lines if line[0] == "T")[:10] == heading
    assert [line[:4] for line in lines if line[0] == "1"] == [
        ["1", size, batch, "torch"] for size in ("16x16", "12x20") for batch in ("1", "2")
    ]
    assert [line[0] for line in lines].count("onnx") == 4
    assert lines[-1] == ["cmudrn-benchmark:", "benchmark.csv,", "benchmark.json,", "heatmap.png"]
    assert "T = 1, 12x20, batch 2: torch " in said.err  # as it went
    assert len(rows()) == 8
    with Image.open("cmudrn-benchmark/heatmap.png") as image:
        assert image.format == "PNG"
        assert len(np.unique(np.asarray(image.convert("L")))) > 10


def test_the_papers_figure_stands_below_those_of_its_case(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--loops", "3", "--size", "500", "--repeats", "1", "--warmup", "0", "--device", "cpu")
    assert benchmark(*arguments, "--backend", "onnx") == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if "the paper's" in line)
    assert line.split() == ["the", "paper's,", "GTX", "1070", "Ti", "0.111", "9"]


def test_the_same_command_goes_on_and_measures_nothing_twice(capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark(*SMALL, "--backend", "onnx", "-o", "out") == 0
    before = rows("out")
    assert benchmark(*SMALL, "--size", "20", "--backend", "onnx", "-o", "out") == 0
    assert rows("out")[:1] == before
    assert len(rows("out")) == 2
    assert capsys.readouterr().err.count("batch 1: onnx") == 2
    assert benchmark(*SMALL, "--backend", "onnx", "-o", "out", "--overwrite") == 0
    assert len(rows("out")) == 1
    assert rows("out") != before


def test_another_machines_table_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark(*SMALL, "--backend", "onnx", "-o", "out") == 0
    path = Path("out", "benchmark.json")
    document = json.loads(path.read_text())
    document["terms"]["cpu"] = "A Famous Processor"
    path.write_text(json.dumps(document))
    capsys.readouterr()
    assert benchmark(*SMALL, "--backend", "onnx", "-o", "out") == 2
    refusal, way_out = capsys.readouterr().err.splitlines()
    assert refusal.startswith(
        "cmudrn: out/benchmark.json: measured on other terms: cpu A Famous Processor, now "
    )
    assert way_out == "  -> give another folder: -o OUT, or --overwrite to begin anew"
    assert json.loads(path.read_text()) == document


def test_what_is_not_here_is_a_line_and_the_rest_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark(*SMALL, "--size", "20", "--backend", "tensorrt,onnx") == 0
    err = capsys.readouterr().err
    assert err.count("tensorrt, T = 1, 16x16, batch 1: tensorrt: runs on a GPU alone (and 1 cell more)") == 1
    assert [row["backend"] for row in rows()] == ["onnx", "onnx"]


def test_nothing_measured_is_exit_code_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark(*SMALL, "--backend", "tensorrt") == 1
    assert "runs on a GPU alone" in capsys.readouterr().err


def test_without_matplotlib_the_rest_is_written(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert benchmark(*SMALL, "--backend", "onnx") == 0
    said = capsys.readouterr()
    assert "heatmap.png is left out: no matplotlib" in said.err
    assert said.out.splitlines()[-1] == "cmudrn-benchmark: benchmark.csv, benchmark.json"
    assert len(rows()) == 1


def test_ctrl_c_leaves_what_was_measured_and_says_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened: list[object] = []
    whole = open_contestant

    def interrupted(*told: object) -> object:
        opened.append(told)
        if len(opened) == 2:
            raise KeyboardInterrupt
        return whole(*told)  # type: ignore[arg-type]

    monkeypatch.setattr("cmudrn.deploy.benchmark.grid.open_contestant", interrupted)
    assert benchmark(*SMALL, "--size", "20", "--backend", "onnx") == 130
    assert "16x16" in capsys.readouterr().out
    assert [row["height"] for row in rows()] == ["16"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--backend", "ncnn"), "--backend ncnn"),
        (("--size", "0"), "--size 0"),
        (("--size", "100-1000"), "--size 100-1000"),
        (("--loops", "0"), "--loops 0"),
        (("--batch", "0"), "--batch 0"),
        (("--batch", "1,x"), "--batch 1,x"),
        (("--repeats", "0"), "--repeats 0"),
        (("--warmup", "-1"), "--warmup -1"),
        (("--seconds", "0"), "--seconds 0"),
        (("--threads", "0"), "--threads 0"),
        (("--photos", "."), "--photos ."),
        (("--end-to-end", "--backend", "compile"), "--backend compile"),
        (("--end-to-end", "--size", "500"), "--size 500"),
        (("--end-to-end", "--batch", "8"), "--batch 8"),
        (("--end-to-end", "--photos", "nowhere"), "nowhere"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_measured(
    arguments: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert benchmark(*arguments) == 2
    refusal, way_out = capsys.readouterr().err.splitlines()
    assert words in refusal
    assert way_out.startswith("  -> ")
    assert not Path("cmudrn-benchmark").exists()


def test_sizes_may_be_told_by_first_last_and_step() -> None:
    papers = parse_sizes(["100-1000:50"])
    assert papers == [(side, side) for side in range(100, 1001, 50)]
    assert parse_sizes(["16,100-200:100", "8x12"]) == [(16, 16), (100, 100), (200, 200), (8, 12)]
    for text in ("100-1000:0", "200-100:50", "0-100:50", "100-:50"):
        with pytest.raises(UsageError):
            parse_sizes([text])
    assert parse_counts("batch", "1, 8,1") == (1, 8)


def test_end_to_end_shows_where_the_time_goes(capsys: pytest.CaptureFixture[str]) -> None:
    Path("photos").mkdir()
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 60, 3), np.uint8)
        Image.fromarray(pixels).save(f"photos/{number}.jpg")
    arguments = (
        "--end-to-end",
        "--photos",
        "photos",
        "--backend",
        "onnx",
        "--loops",
        "1,2",
        "--repeats",
        "2",
    )
    assert benchmark(*arguments) == 0
    out = capsys.readouterr().out
    for word in ("open", "wall", "decode", "restore", "encode", "images/s", "MP/s"):
        assert word in out
    assert "3 images, 0.0 megapixels" in out
    passes = json.loads(Path("cmudrn-benchmark", "end-to-end.json").read_text())["passes"]
    assert [one["loops"] for one in passes] == [1, 1, 2, 2]
    assert all(one["images"] == 3 and one["images_per_s"] > 0 for one in passes)
    assert sorted(path.name for path in Path("photos").iterdir()) == ["0.jpg", "1.jpg", "2.jpg"]


def test_engines_of_the_store_are_timed(driver: Driver, tmp_path: Path) -> None:
    checkpoint, spec = read_checkpoint("default"), EngineSpec(loops=1, height=16, width=16, batch=2)
    plan = typed_graph(checkpoint, spec)  # as which the stand-in takes it
    manifest = manifest_of(plan, spec, version="11.4.0.1", target="sm89", weights_sha256=checkpoint.sha256)
    EngineStore(tmp_path / "store").put(plan, manifest)
    run = driver.run(
        [
            *("-m", "cmudrn", "benchmark", "--backend", "tensorrt,tensorrt-stream", "--store", "store"),
            *("--loops", "1", "--size", "16", "--batch", "2,4", "--repeats", "2"),
        ]
    )
    assert run.returncode == 0, run.output
    # PyTorch sees no GPU here: there is no product to compare with.
    assert all(row["peak_share"] == "" for row in rows())
    assert (run.stats.faults, run.stats.left) == (0, 0), run.last_fault
    assert [(row["backend"], row["place"], row["batch"], row["clock"]) for row in rows()] == [
        ("tensorrt", "gpu", "2", "device events"),
        ("tensorrt-stream", "gpu", "2", "wall"),
    ]
    assert all(row["about"].startswith(manifest.key) for row in rows())
    assert "no engine with batch 4" in run.output
    assert "--batch 4" in run.output


def test_figures_of_a_restless_machine_are_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seconds = iter([1.0, 1.0, 1.0, 1.0, 3.0, 1.0])  # for each size a warm-up, and two runs that count

    def restless(*_: object) -> nullcontext[Opened]:
        return nullcontext(Opened(lambda: next(seconds), "wall"))

    monkeypatch.setattr("cmudrn.deploy.benchmark.grid.open_contestant", restless)
    assert benchmark(*SMALL, "--size", "20", "--warmup", "1", "--backend", "onnx") == 0
    assert "1 figure of 2 spread by more than 20%" in capsys.readouterr().err
