"""Evaluations, their reports, and `cmudrn evaluate`."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
import pyvips
import torch
from PIL import Image
from random_weights import random_checkpoint

from cmudrn import __version__
from cmudrn.checkpoint import Checkpoint, NetworkKind, load_drn, load_model, save_checkpoint
from cmudrn.cli.app import main
from cmudrn.errors import CmudrnError, ImageError, UsageError
from cmudrn.metrics import Scores
from cmudrn.train.evaluate import (
    Candidate,
    Evaluation,
    Output,
    Restoration,
    Restore,
    evaluate,
    load_restorers,
    mean_scores,
    restorer,
)
from cmudrn.train.evaluation_report import (
    TABLE_HEADER,
    WorstImages,
    check_output_folder,
    markdown_table,
    table_rows,
    write_report,
)
from cmudrn.train.kernels import Kernels, choose_kernels
from cmudrn.train.protocols import (
    EvaluationData,
    EvaluationItem,
    Pixels,
    Protocol,
    open_protocol,
)

NOTHING = Candidate("nothing")
REPORT_FILES = {"per-image.csv", "summary.csv", "summary.md", "summary.json", "worst.jpg", "loops.png"}


def item(number: int, *, error: int = 8, size: tuple[int, int] = (16, 24)) -> EvaluationItem:
    """A scene of grey levels below 100, whose input is too bright by `error` everywhere."""
    clean = np.random.default_rng(number).integers(0, 100, (*size, 3), dtype=np.uint8)
    return EvaluationItem(f"image {number}", clean + np.uint8(error), clean)


def protocol_of(items: list[EvaluationItem]) -> Protocol:
    return Protocol(
        id="made-test", about="made for the test", count=len(items), first=lambda count: iter(items[:count])
    )


def darken(levels: int) -> Restore:
    return lambda shown: shown - np.uint8(levels)


def evaluated(items: list[EvaluationItem], restore_by_loops: dict[int, Restore]) -> Evaluation:
    protocol = protocol_of(items)
    return evaluate(protocol, protocol.items(), restore_by_loops, candidate=NOTHING)


def db(error: float) -> float:
    """PSNR of an image that is off by so many levels everywhere."""
    return 20 * math.log10(255 / error)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "random.safetensors"
    save_checkpoint(replace(random_checkpoint(), inter_loops=2, intra_loops=2), path)
    return path


@pytest.fixture
def drn_weights(tmp_path: Path) -> Path:
    whole = random_checkpoint()
    tensors = {
        name.removeprefix("rain."): tensor
        for name, tensor in whole.tensors.items()
        if name.startswith("rain.")
    }
    path = tmp_path / "drn.safetensors"
    save_checkpoint(
        Checkpoint(tensors=tensors, inter_loops=2, intra_loops=2, stitches={}, network=NetworkKind.DRN),
        path,
    )
    return path


# ---- Scores


def test_doing_nothing_gains_nothing() -> None:
    done = evaluated([item(0), item(1)], {3: lambda shown: shown})
    (row,) = done.summary()
    assert row.restored == done.inputs
    assert row.gain == Scores(0, 0, 0, 0)
    assert done.inputs.psnr_rgb_db == pytest.approx(db(8))


def test_every_loop_count_is_scored_against_the_same_input() -> None:
    done = evaluated([item(0), item(1)], {4: darken(4), 1: darken(6)})
    assert [(result.name, result.loops) for result in done.results] == [
        ("image 0", 1),
        ("image 0", 4),
        ("image 1", 1),
        ("image 1", 4),
    ]
    one, four = done.summary()
    assert (one.loops, four.loops) == (1, 4)
    assert one.restored.psnr_rgb_db == pytest.approx(db(2))
    assert four.restored.psnr_rgb_db == pytest.approx(db(4))
    assert four.gain
    assert four.gain.psnr_rgb_db == pytest.approx(20 * math.log10(2))  # half the error


def test_an_item_is_taken_once_and_after_the_one_before_is_done() -> None:
    events: list[str] = []

    def items() -> Iterator[EvaluationItem]:
        for number in range(2):
            events.append(f"taken {number}")
            yield item(number)

    def noting(loops: int) -> Restore:
        def restore(shown: Pixels) -> Pixels:
            events.append(f"restored at {loops}")
            return shown

        return restore

    protocol = protocol_of([item(0), item(1)])
    evaluate(protocol, items(), {2: noting(2), 1: noting(1)}, candidate=NOTHING)
    once = ["restored at 1", "restored at 2"]
    assert events == ["taken 0", *once, "taken 1", *once]


def test_every_restoration_is_told_with_its_pixels() -> None:
    told: list[Restoration] = []
    items = [item(0), item(1)]
    protocol = protocol_of(items)
    done = evaluate(
        protocol, protocol.items(), {1: darken(6), 2: darken(7)}, candidate=NOTHING, tell=told.append
    )
    assert [news.scores for news in told] == list(done.results)
    expected = [(items[0], 6), (items[0], 7), (items[1], 6), (items[1], 7)]
    for news, (shown, levels) in zip(told, expected, strict=True):
        assert news.item is shown
        assert np.array_equal(news.restored, shown.degraded - levels)


def test_the_manifest_is_over_the_inputs_and_the_truth_and_nothing_else() -> None:
    items = [item(0), item(1)]
    expected = hashlib.sha256(b"".join(i.degraded.tobytes() + i.clean.tobytes() for i in items)).hexdigest()
    assert evaluated(items, {1: darken(1)}).manifest_sha256 == expected
    assert evaluated(items, {2: darken(2), 5: darken(3)}).manifest_sha256 == expected
    others = {
        evaluated(shown, {1: darken(1)}).manifest_sha256
        for shown in (items[:1], items[::-1], [item(0, error=9), item(1)])
    }
    assert len(others - {expected}) == 3


def test_the_truth_counts_a_hundred_decibels_in_the_mean() -> None:
    done = evaluated([item(0), item(1, error=10)], {1: darken(8)})
    assert done.results[0].restored.psnr_rgb_db == float("inf")
    assert done.results[0].gain_db == float("inf")
    (row,) = done.summary()
    assert row.restored.psnr_rgb_db == pytest.approx((100 + db(2)) / 2)


def test_inputs_that_are_the_truth_leave_nothing_to_gain() -> None:
    done = evaluated([item(0, error=0)], {1: lambda shown: shown + np.uint8(2), 2: lambda shown: shown})
    assert done.inputs_are_the_truth
    assert [row.gain for row in done.summary()] == [None, None]
    assert done.summary()[0].restored.psnr_rgb_db == pytest.approx(db(2))
    assert [result.gain_db for result in done.results] == [float("-inf"), 0.0]


def test_means_are_taken_metric_by_metric() -> None:
    scores = [Scores(20, 0.5, 22, 0.6), Scores(30, 0.7, 32, 0.9)]
    assert mean_scores(scores) == Scores(25, pytest.approx(0.6), 27, pytest.approx(0.75))  # type: ignore[arg-type]


def test_an_evaluation_of_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="no images"):
        evaluated([], {1: darken(1)})
    with pytest.raises(UsageError, match="loop count"):
        evaluated([item(0)], {})


def test_a_function_that_changes_the_size_is_refused() -> None:
    with pytest.raises(ImageError):
        evaluated([item(0)], {1: lambda shown: shown[:-1]})


# ---- Weights as functions


@pytest.mark.parametrize("kernels", [Kernels.TORCH, Kernels.AUTO])
def test_weights_restore_at_each_loop_count_as_the_model_does(kernels: Kernels, weights: Path) -> None:
    restorers = load_restorers(weights, [1, 3], kernels=kernels)
    shown = item(0).degraded
    planes = torch.from_numpy(shown).permute(2, 0, 1)[None].float() / 255
    for loops in (1, 3):
        with torch.no_grad():
            restored = load_model(weights, loops=loops)(planes)[0].permute(1, 2, 0).numpy()
        expected = np.floor(restored.clip(0, 1) * 255 + 0.5).astype(np.uint8)
        got = restorers.by_loops[loops](shown)
        if kernels is Kernels.TORCH:
            assert np.array_equal(got, expected)
        else:  # a value that lies at a half may be rounded the other way
            assert (got != expected).mean() < 0.01
            assert np.abs(got.astype(int) - expected).max() <= 1
    used = choose_kernels(kernels, device="cpu", bfloat16=False)
    assert restorers.candidate == Candidate(
        "random.safetensors", hashlib.sha256(weights.read_bytes()).hexdigest(), "fused", used.value
    )


def test_without_loop_counts_the_trained_one_is_taken(weights: Path) -> None:
    assert list(load_restorers(weights).by_loops) == [2]


@pytest.mark.parametrize(("loops", "usual"), [([1, 2, 3], 2), ([1, 3], 3)])
def test_the_trained_loop_count_stands_for_all_or_else_the_highest(
    loops: list[int], usual: int, weights: Path
) -> None:
    assert load_restorers(weights, loops).usual_loops == usual


@pytest.mark.parametrize("output", [Output.RAIN, Output.SNOW])
def test_a_branch_gives_its_last_stage(output: Output, weights: Path) -> None:
    shown = item(0).degraded
    planes = torch.from_numpy(shown).permute(2, 0, 1)[None].float() / 255
    with torch.no_grad():
        all_stages = load_model(weights).forward_all(planes)
    stages = all_stages.rain_stages if output is Output.RAIN else all_stages.snow_stages
    expected = np.floor(stages[-1][0].permute(1, 2, 0).numpy().clip(0, 1) * 255 + 0.5).astype(np.uint8)
    restored = restorer(weights, output=output, kernels=Kernels.TORCH)(shown)
    assert np.array_equal(restored, expected)
    assert not np.array_equal(restored, restorer(weights)(shown))


def test_a_baseline_drn_is_evaluated_alike(drn_weights: Path) -> None:
    shown = item(0).degraded
    planes = torch.from_numpy(shown).permute(2, 0, 1)[None].float() / 255
    with torch.no_grad():
        last = load_drn(drn_weights, loops=3)(planes)[-1][0].permute(1, 2, 0).numpy()
    restored = load_restorers(drn_weights, [3]).by_loops[3](shown)
    assert np.array_equal(restored, np.floor(last.clip(0, 1) * 255 + 0.5).astype(np.uint8))
    with pytest.raises(UsageError, match="no snow branch"):
        load_restorers(drn_weights, output=Output.SNOW)


# ---- The report


@pytest.fixture
def reported(tmp_path: Path) -> tuple[Evaluation, Path]:
    """Seven images, the n-th too bright by 10 + n, at two loop counts; and the folder of its report."""
    items = [item(number, error=10 + number) for number in range(7)]
    protocol = protocol_of(items)
    worst = WorstImages(loops=2)
    done = evaluate(
        protocol,
        protocol.items(6),
        {1: darken(3), 2: darken(5)},
        candidate=Candidate("made", "ab" * 32),
        tell=worst.add,
    )
    check_output_folder(tmp_path / "new" / "report")
    write_report(done, worst, tmp_path / "new" / "report")
    return done, tmp_path / "new" / "report"


def rows_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))


def test_a_report_is_six_files_and_leaves_nothing_else(reported: tuple[Evaluation, Path]) -> None:
    assert {path.name for path in reported[1].iterdir()} == REPORT_FILES


def test_the_image_table_has_every_score(reported: tuple[Evaluation, Path]) -> None:
    done, folder = reported
    rows = rows_of(folder / "per-image.csv")
    assert [(row["name"], int(row["loops"])) for row in rows] == [(r.name, r.loops) for r in done.results]
    assert {row["protocol"] for row in rows} == {"made-test"}
    assert {row["weights_sha256"] for row in rows} == {"ab" * 32}
    for row, result in zip(rows, done.results, strict=True):
        assert float(row["input_psnr_rgb_db"]) == pytest.approx(result.input.psnr_rgb_db, abs=1e-6)
        assert float(row["ssim_y"]) == pytest.approx(result.restored.ssim_y, abs=1e-6)


def test_the_summary_begins_with_the_input(reported: tuple[Evaluation, Path]) -> None:
    done, folder = reported
    rows = rows_of(folder / "summary.csv")
    assert [row["loops"] for row in rows] == ["input", "1", "2"]
    assert rows[0]["gain_psnr_rgb_db"] == ""
    assert float(rows[0]["psnr_rgb_db"]) == pytest.approx(sum(db(10 + n) for n in range(6)) / 6, abs=1e-6)
    gain = sum(db(5 + n) - db(10 + n) for n in range(6)) / 6
    assert float(rows[2]["gain_psnr_rgb_db"]) == pytest.approx(gain, abs=1e-6)
    assert {row["manifest_sha256"] for row in rows} == {done.manifest_sha256}


def test_the_json_names_all_that_the_figures_hang_on(reported: tuple[Evaluation, Path]) -> None:
    done, folder = reported
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    assert summary["protocol"] == "made-test"
    assert (summary["images"], summary["of_images"]) == (6, 7)
    assert summary["manifest_sha256"] == done.manifest_sha256
    assert summary["weights_sha256"] == "ab" * 32
    assert summary["output"] == "fused"
    assert summary["kernels"] == done.candidate.kernels
    assert summary["code_version"] == __version__
    assert datetime.fromisoformat(summary["date"]).tzinfo is not None
    assert [row["loops"] for row in summary["restored"]] == [1, 2]


def test_the_markdown_says_what_was_measured(reported: tuple[Evaluation, Path]) -> None:
    done, folder = reported
    text = (folder / "summary.md").read_text(encoding="utf-8")
    assert markdown_table(done) in text
    assert "the first 6 of 7 images" in text
    assert done.manifest_sha256 in text
    assert f"| 1 | {done.summary()[0].restored.psnr_rgb_db:.2f} | +" in text


def test_all_lines_of_the_table_are_as_wide_as_its_header(reported: tuple[Evaluation, Path]) -> None:
    rows = table_rows(reported[0])
    assert {len(row) for row in rows} == {len(TABLE_HEADER)}
    assert rows[0][0] == "input"


def test_the_pictures_are_whole(reported: tuple[Evaluation, Path]) -> None:
    with Image.open(reported[1] / "worst.jpg") as sheet:
        sheet.load()
        assert sheet.format == "JPEG"
        assert sheet.width > 3 * 24
    with Image.open(reported[1] / "loops.png") as plot:
        plot.load()
        assert plot.format == "PNG"


def test_the_five_that_gained_least_are_kept_at_one_loop_count() -> None:
    # Of equal correction a bigger error gains less: the worst come last.
    items = [item(number, error=10 + number) for number in (3, 0, 6, 1, 5, 2, 4)]
    worst = WorstImages(loops=2)
    protocol = protocol_of(items)
    evaluate(protocol, protocol.items(), {1: darken(9), 2: darken(5)}, candidate=NOTHING, tell=worst.add)
    assert [kept.scores.name for kept in worst.kept] == [f"image {n}" for n in (6, 5, 4, 3, 2)]
    assert {kept.scores.loops for kept in worst.kept} == {2}


def test_of_clean_inputs_those_that_lost_most_are_kept() -> None:
    items = [item(number, error=0) for number in range(3)]
    harm = iter([2, 7, 4])
    worst = WorstImages(loops=1, most=2)
    protocol = protocol_of(items)
    spoil: Restore = lambda shown: shown + np.uint8(next(harm))  # noqa: E731
    evaluate(protocol, protocol.items(), {1: spoil}, candidate=NOTHING, tell=worst.add)
    assert [kept.scores.name for kept in worst.kept] == ["image 1", "image 2"]


def test_a_report_of_clean_inputs_has_no_infinity_in_its_json(tmp_path: Path) -> None:
    worst, protocol = WorstImages(loops=1), protocol_of([item(0, error=0)])
    done = evaluate(protocol, protocol.items(), {1: lambda shown: shown}, candidate=NOTHING, tell=worst.add)
    write_report(done, worst, tmp_path)
    text = (tmp_path / "summary.json").read_text(encoding="utf-8")
    summary = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in JSON"))
    assert summary["input"]["psnr_rgb_db"] == summary["psnr_cap_db"] == 100
    assert summary["restored"][0]["gain"] is None
    assert rows_of(tmp_path / "per-image.csv")[0]["psnr_rgb_db"] == "inf"
    assert table_rows(done)[0][1:3] == ["equal", ""]


def test_large_and_tall_images_are_shrunk_and_long_names_cut(tmp_path: Path) -> None:
    tall = item(0, size=(900, 300))._replace(name="a folder/with a very long name/" * 4 + "end")
    worst, protocol = WorstImages(loops=1), protocol_of([tall])
    done = evaluate(protocol, protocol.items(), {1: darken(2)}, candidate=NOTHING, tell=worst.add)
    write_report(done, worst, tmp_path)
    with Image.open(tmp_path / "worst.jpg") as sheet:
        assert sheet.height < 500


def test_an_output_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UsageError, match="cannot write there"):
            check_output_folder(folder)
    check_output_folder(tmp_path / "new")
    assert not list((tmp_path / "new").iterdir())


def test_a_failed_report_leaves_the_older_one(
    reported: tuple[Evaluation, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    done, folder = reported
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def fail(_: Evaluation) -> bytes:
        raise CmudrnError("no plot today")

    monkeypatch.setattr("cmudrn.train.evaluation_report._loops_plot", fail)
    with pytest.raises(CmudrnError):
        write_report(done, WorstImages(loops=2), folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


# ---- The command


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Four pairs in a folder of their own."""
    for number in range(4):
        made = item(number)
        for side, pixels in (("input", made.degraded), ("target", made.clean)):
            (tmp_path / "mine" / side).mkdir(parents=True, exist_ok=True)
            file = str(tmp_path / "mine" / side / f"{number}.png")
            pyvips.Image.new_from_array(pixels).write_to_file(file)
    return tmp_path / "mine"


def test_the_command_prints_input_and_each_loop_count(
    weights: Path, evaluation_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["evaluate", "bsd-snow", "--data", str(evaluation_data), "--weights", str(weights)]
    assert main([*command, "--loops", "1,3", "--limit", "2"]) == 0
    captured = capsys.readouterr()
    lines = [line.split() for line in captured.out.splitlines() if line.strip()]
    sha256 = hashlib.sha256(weights.read_bytes()).hexdigest()
    assert captured.out.startswith("bsd-snow, the first 2 of 3 images, manifest ")
    assert f"random.safetensors {sha256[:16]}, output fused" in captured.out
    assert [line[0] for line in lines[-3:]] == ["input", "1", "3"]
    assert {len(line) for line in lines[-2:]} == {9}
    assert max(len(line) for line in captured.out.splitlines()[1:]) <= 80
    assert captured.err == ""  # no bar where there is no terminal

    protocol, restorers = open_protocol("bsd-snow", EvaluationData(evaluation_data)), load_restorers(weights)
    done = evaluate(protocol, protocol.items(2), restorers.by_loops, candidate=restorers.candidate)
    assert done.manifest_sha256[:16] in captured.out
    assert lines[-3][1] == f"{done.inputs.psnr_rgb_db:.2f}"


def test_without_loops_the_trained_count_is_evaluated(
    weights: Path, pairs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(pairs), "--split", "all", "--weights", str(weights)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert [line[0] for line in lines[-2:]] == ["input", "2"]


@pytest.mark.parametrize(
    ("options", "expected"), [([], "pairs-test, 2"), (["--split", "all"], "pairs-all, 4")]
)
def test_a_folder_of_pairs_is_a_protocol_of_its_own(
    options: list[str], expected: str, weights: Path, pairs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(pairs), "--weights", str(weights), "--loops", "1", *options]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{expected} images, manifest ")
    assert f"{db(8):.2f}" in out  # the inputs are off by eight levels


def test_the_command_leaves_a_report(
    weights: Path, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a" / "report"
    command = ["evaluate", str(pairs), "--split", "all", "--weights", str(weights), "--output", "rain"]
    assert main([*command, "--loops", "1-2", "--threads", "1", "-o", str(out)]) == 0
    assert {path.name for path in out.iterdir()} == REPORT_FILES
    assert f"report: {out}" in capsys.readouterr().out
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    assert summary["protocol"] == "pairs-all"
    assert summary["output"] == "rain"
    assert len(rows_of(out / "per-image.csv")) == 4 * 2


@pytest.mark.parametrize(
    ("arguments", "said", "way_out"),
    [
        (["bsd-fog", "--data", "DATA"], "no protocol 'bsd-fog'", "bsd-rain-light"),
        (["bsd-rain"], "whose images?", "--data"),
        (["bsd-rain", "--data", "missing"], "no bsds500/val", "folder"),
        (["photos-clean", "--data", "DATA"], "no photos/val", "folder"),
        (
            ["bsd-rain", "--data", "DATA", "--weights", "missing.safetensors"],
            "missing.safetensors",
            "default",
        ),
        (["bsd-rain", "--data", "DATA", "--loops", "0"], "--loops 0", "1-7"),
        (["bsd-rain", "--data", "DATA", "--loops", ""], "--loops", "1-7"),
        (["bsd-rain", "--data", "DATA", "--limit", "0"], "--limit 0", "1 or more"),
        (["bsd-rain", "--data", "DATA", "--threads", "0"], "--threads 0", "1 or more"),
        (["bsd-rain", "--data", "DATA", "--output", "fog"], "--output fog", "fused, rain, snow"),
        (["bsd-rain", "--data", "DATA", "--split", "test"], "--split test", "leave --split away"),
        (["bsd-rain", "--data", "DATA", "--weather", "rain"], "--weather rain", "leave --weather away"),
        (["bsd-snow", "--data", "DATA", "-o", "FILE/below"], "cannot write there", "folder"),
        (["PAIRS", "--data", "DATA"], "--data", "leave --data away"),
        (["PAIRS", "--split", "half"], "--split half", "train, test, all, paper-train"),
        (["PAIRS", "--weather", "fog"], "--weather fog", "rain, snow"),
        (["EMPTY"], "no images in it", "folder of a dataset"),
        (["EMPTY/missing"], "no such folder", "bsd-rain"),
    ],
)
def test_what_makes_no_sense_is_one_line_and_a_way_out(
    arguments: list[str],
    said: str,
    way_out: str,
    evaluation_data: Path,
    pairs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("in the way")
    places = {"DATA": evaluation_data, "PAIRS": pairs, "EMPTY": tmp_path / "empty", "FILE": tmp_path / "file"}
    for name, place in places.items():
        arguments = [argument.replace(name, str(place)) for argument in arguments]
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    # Nothing is restored before all is known to be well.
    monkeypatch.setattr("cmudrn.train.evaluate.Truth", lambda clean: pytest.fail("an image was scored"))
    assert main(["evaluate", *arguments]) == 2
    what, fix = capsys.readouterr().err.splitlines()
    assert what.startswith("cmudrn: ")
    assert said in what
    assert fix.startswith("  -> ")
    assert way_out in fix
    assert not list((tmp_path / "here").iterdir())
