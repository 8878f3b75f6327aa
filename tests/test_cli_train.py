"""`cmudrn train` from the command line."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
import pyvips
import torch

from cmudrn.checkpoint import read_checkpoint
from cmudrn.cli.app import main
from cmudrn.cli.train import make_recipe
from cmudrn.model import ModelConfig
from cmudrn.train.losses import LossWeights
from cmudrn.train.recipe import TrainRecipe


@pytest.fixture(scope="module")
def run(evaluation_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of three steps."""
    folder = tmp_path_factory.mktemp("run") / "run"
    assert main(train_command(evaluation_data, folder, steps=3)) == 0
    return folder


def train_command(data: Path, folder: Path, *, steps: int) -> list[str]:
    options = {
        "--steps": steps,
        "--scenes": 2,
        "--crop": 24,
        "--loops": "1-2",
        "--default-loops": 1,
        "--threads": 1,
    }
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


@pytest.mark.parametrize(("depths", "usual"), [("1-7", 3), ("5", 5), ("1-2", 2), ("1,2,4", 4)])
def test_the_usual_depth_is_one_that_was_trained(depths: str, usual: int) -> None:
    recipe = make_recipe(
        paper=False,
        network="cmudrn",
        loops=depths,
        default_loops=None,
        stitches=None,
        loss="",
        optimizer=None,
    )
    assert recipe.model.inter_loops == recipe.model.intra_loops == usual


def test_the_run_says_what_it_is_trained_on_and_the_checkpoint_keeps_it(
    evaluation_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in ("input", "target"):
        shutil.copytree(evaluation_data / "bsds500" / "val", tmp_path / "mine" / folder)
    command = ["train", "--pairs", f"rain:{tmp_path / 'mine'}", "-o", str(tmp_path / "run"), "--steps", "1"]
    assert main([*command, *("--scenes", "1", "--crop", "24", "--loops", "1", "--workers", "0")]) == 0
    assert "pairs layout in mine, train: 2 pairs (rain)" in capsys.readouterr().out
    (kept,) = read_checkpoint(tmp_path / "run" / "weights.safetensors").training["pairs"]
    assert (kept["layout"], kept["split"], kept["count"], len(kept["sha256"])) == ("pairs", "train", 2, 64)


def test_plain_lines_tell_losses_speed_and_time_left(
    evaluation_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(train_command(evaluation_data, tmp_path / "run", steps=50)) == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("step 50: "))
    assert re.fullmatch(
        r"step 50: loss [\d.]+ \(local [\d.]+, recur [\d.]+, global [\d.]+\), [\d.]+ steps/s, 0 min left",
        line,
    )


@pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel for it")
def test_processes_that_render_do_not_outlive_a_run_that_was_killed(
    evaluation_data: Path, tmp_path: Path
) -> None:
    process = start(train_command(evaluation_data, tmp_path / "run", steps=10**6))
    try:
        workers = wait_for(lambda: children(process.pid), 60)
    finally:
        process.kill()
        process.communicate()
    wait_for(lambda: not any(Path(f"/proc/{worker}").exists() for worker in workers), 20)


T = TypeVar("T")


def wait_for(condition: Callable[[], T], most_s: float) -> T:
    end = time.monotonic() + most_s
    while not (met := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)
    return met


def children(parent: int) -> list[int]:
    """Processes that a process has begun."""
    tasks = Path(f"/proc/{parent}/task/{parent}/children")
    return [int(number) for number in tasks.read_text().split()] if tasks.exists() else []


def test_without_a_streak_database_rain_comes_from_physics(evaluation_data: Path, tmp_path: Path) -> None:
    command = train_command(evaluation_data, tmp_path / "run", steps=1)
    at = command.index("--streaks")
    assert main(command[:at] + command[at + 2 :]) == 0
    told = read_checkpoint(tmp_path / "run" / "weights.safetensors").training
    assert (told["streak_files"], told["streaks_sha256"]) == (0, None)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "missing", "--streaks", "DATA/garg06_streaks"], "missing"),
        (["train", "DATA/bsds500/val", "--streaks", "DATA/bsds500"], "no streak files"),
        (["train", "DATA/bsds500/val", "--streaks", "DATA/garg06_streaks", "--steps", "0"], "steps"),
        (["train", "DATA/bsds500/val", "--streaks", "DATA/garg06_streaks", "--crop", "0"], "crop"),
        (["train", "DATA/bsds500/val", "--streaks", "DATA/garg06_streaks", "--threads", "0"], "--threads 0"),
        (["train", "DATA/bsds500/val", "--streak-files", "0"], "--streak-files 0"),
        (["train", "DATA/bsds500/val", "--workers", "-1"], "--workers -1"),
        (["train", "DATA/bsds500/val", "--seed", "-1"], "seed = -1"),
        (["train", "DATA/bsds500/val", "--accelerator", "abacus"], "--accelerator abacus"),
        (["train", "DATA/bsds500/val", "--loops", "1-2", "--default-loops", "3"], "--default-loops 3"),
        (["train", "DATA/bsds500/val", "-o", "DATA/bsds500/val/0.jpg"], "cannot write there"),
        (["train", "DATA/bsds500/val", "-o", "DATA/bsds500/val/0.jpg/run"], "cannot write there"),
        (["train", "DATA/bsds500/val", "--start-from", "nobody"], "no such weights"),
        (
            ["ablate", "DATA/bsds500/val", "--validation", "DATA/bsds500/val", "--workers", "-1"],
            "--workers -1",
        ),
        (["train", "DATA/bsds500/val", "--kernels", "winograd", "--bfloat16"], "--kernels winograd"),
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


def start(command: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "cmudrn", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Where the tests run in the background of a shell, children inherit a SIGINT that is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def test_two_processes_train_what_one_does(evaluation_data: Path, tmp_path: Path) -> None:
    """Gloo between two CPU processes, the same scenes a step in all: equal but for the order of sums.

    By Adam: after six steps SOAP's matrices have less than full rank, and for the rest of their eigenvectors
    the order of sums decides.
    """
    for devices in (1, 2):
        command = train_command(evaluation_data, tmp_path / str(devices), steps=6)
        process = start([*command, "--devices", str(devices), "--scenes", "4", "--optimizer", "adam"])
        _, said = process.communicate(timeout=300)
        assert process.returncode == 0, said
    one, two = (read_checkpoint(tmp_path / run / "weights.safetensors") for run in "12")
    assert two.training["steps"] == 6
    for name, tensor in one.tensors.items():
        np.testing.assert_allclose(two.tensors[name], tensor, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("devices", [1, 2])  # of two processes the first alone gets the signal
def test_ctrl_c_saves_and_the_run_goes_on_from_there(
    devices: int, evaluation_data: Path, tmp_path: Path
) -> None:
    command = train_command(evaluation_data, tmp_path / "run", steps=100_000)
    process = start([*command, "--devices", str(devices)])
    assert process.stdout
    while not (line := process.stdout.readline()).startswith("step "):
        assert line, process.communicate()
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.count("cmudrn: interrupted") == 1
    assert "Traceback" not in said
    reached = read_checkpoint(tmp_path / "run" / "weights.safetensors").training["steps"]
    assert reached >= int(line.removeprefix("step ").split(":")[0])
    state = torch.load(tmp_path / "run" / "state.pt", weights_only=True)
    assert state["step"] == reached


def test_a_run_is_watched_and_keeps_its_best_weights(evaluation_data: Path, tmp_path: Path) -> None:
    photo = np.random.default_rng(1).integers(0, 255, (130, 140, 3), dtype=np.uint8)
    (tmp_path / "held").mkdir()
    pyvips.Image.new_from_array(photo).write_to_file(str(tmp_path / "held" / "a.png"))
    command = train_command(evaluation_data, tmp_path / "run", steps=4)
    assert main([*command, "--validation", str(tmp_path / "held")]) == 0
    best = read_checkpoint(tmp_path / "run" / "best.safetensors")
    assert len(best.training["validation_sha256"]) == 64
    assert list((tmp_path / "run" / "tensorboard").glob("events.*"))


def test_photographs_are_not_validated_on_and_trained_on(
    evaluation_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = np.random.default_rng(1).integers(0, 255, (130, 140, 3), dtype=np.uint8)
    pyvips.Image.new_from_array(photo).write_to_file(str(tmp_path / "a.png"))
    command = ["train", str(tmp_path), "--streaks", str(evaluation_data / "garg06_streaks")]
    assert main([*command, "--validation", str(tmp_path), "-o", str(tmp_path / "run")]) == 2
    assert "1 of its photographs are trained on" in capsys.readouterr().err


def test_the_papers_recipe_and_single_options_go_together() -> None:
    options = {"paper": True, "network": "cmudrn", "loops": None, "default_loops": 3, "stitches": "body=0.9"}
    recipe = make_recipe(**options, optimizer=None, loss="ssim=0", steps=5)  # type: ignore[arg-type]
    assert recipe == TrainRecipe.paper(
        steps=5,
        model=ModelConfig(stitches={"body": 0.9}),
        loss=replace(LossWeights.paper(), ssim=0.0),
    )


@pytest.mark.parametrize(
    ("paper", "optimizer", "rate"),
    [(False, None, 5e-3), (False, "soap", 5e-3), (False, "adam", 1e-3), (True, "soap", 1e-4)],
)
def test_an_optimizer_brings_its_usual_rate_and_the_paper_keeps_its_own(
    paper: bool, optimizer: str | None, rate: float
) -> None:
    options = {"network": "cmudrn", "loops": None, "default_loops": None, "stitches": None, "loss": ""}
    recipe = make_recipe(paper=paper, optimizer=optimizer, **options)  # type: ignore[arg-type]
    assert recipe.learning_rate == rate
    assert recipe.optimizer.value == (optimizer or "soap")
    asked = make_recipe(paper=paper, optimizer=optimizer, learning_rate=2e-4, **options)  # type: ignore[arg-type]
    assert asked.learning_rate == 2e-4
