"""`cmudrn train` and `cmudrn evaluate` from the command line."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from cmudrn.checkpoint import read_checkpoint
from cmudrn.cli.app import main


@pytest.fixture(scope="module")
def run(evaluation_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of three steps."""
    folder = tmp_path_factory.mktemp("run") / "run"
    assert main(train_command(evaluation_data, folder, steps=3)) == 0
    return folder


def train_command(data: Path, folder: Path, *, steps: int) -> list[str]:
    options = {"--steps": steps, "--scenes": 2, "--crop": 24, "--loops": 1, "--threads": 1}
    flat = [str(part) for option in options.items() for part in option]
    return [
        *("train", str(data / "bsds500" / "val"), "--streaks", str(data / "garg06_streaks")),
        *("-o", str(folder), *flat),
    ]


def test_training_leaves_weights_that_know_where_they_come_from(run: Path) -> None:
    checkpoint = read_checkpoint(run / "weights.safetensors")
    assert checkpoint.inter_loops == 1
    assert checkpoint.training["steps"] == 3
    assert checkpoint.training["photos"] == 3
    assert len(checkpoint.training["photos_sha256"]) == 64


def test_a_run_goes_on_where_it_stopped(
    run: Path, evaluation_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = tmp_path / "again"
    shutil.copytree(run, again)
    assert main(train_command(evaluation_data, again, steps=3)) == 0
    assert "resumed at step 3 of 3" in capsys.readouterr().out


def test_evaluate_prints_input_restored_and_the_manifest(
    run: Path, evaluation_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = run / "weights.safetensors"
    assert main(["evaluate", "bsd-snow", "--data", str(evaluation_data), "--weights", str(weights)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("bsd-snow, 3 images, manifest ")
    assert lines[1].startswith("input")
    assert "gain" in lines[2]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["evaluate", "bsd-fog", "--data", "DATA"], "no protocol 'bsd-fog'"),
        (["evaluate", "bsd-rain", "--data", "missing"], "no bsds500/val"),
        (
            ["evaluate", "bsd-rain", "--data", "DATA", "--weights", "missing.safetensors"],
            "missing.safetensors",
        ),
        (["evaluate", "bsd-rain", "--data", "DATA", "--loops", "0"], "--loops 0"),
        (["evaluate", "bsd-rain", "--data", "DATA", "--limit", "0"], "--limit 0"),
        (["train", "missing", "--streaks", "DATA/garg06_streaks"], "missing"),
        (["train", "DATA/bsds500/val", "--streaks", "DATA/bsds500"], "no streak files"),
        (["train", "DATA/bsds500/val", "--streaks", "DATA/garg06_streaks", "--steps", "0"], "steps"),
        (["train", "DATA/bsds500/val", "--streaks", "DATA/garg06_streaks", "--crop", "0"], "crop"),
        (["train", "DATA/bsds500/val", "--streaks", "DATA/garg06_streaks", "--threads", "0"], "--threads 0"),
        (["train", "DATA/bsds500/val"], "--streaks"),
    ],
)
def test_what_makes_no_sense_is_one_line_and_a_way_out(
    arguments: list[str],
    said: str,
    evaluation_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([argument.replace("DATA", str(evaluation_data)) for argument in arguments]) == 2
    what, way_out = capsys.readouterr().err.splitlines()
    assert what.startswith("cmudrn: ")
    assert said in what
    assert way_out.startswith("  -> ")
    assert not list(tmp_path.iterdir())
