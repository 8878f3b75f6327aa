"""The runner of `make gpu-check`, and the GPU's tests themselves, where there is no GPU."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from gpu_check import Matrix
from gpu_report import Bar, Report
from gpu_results import memory_bars, parity_bar, read_tests, speed_bars
from gpu_steps import Budget, Outcome, State, Step, run_step
from hostcuda.build import Driver
from test_manifest import manifest_of

from cmudrn.checkpoint import read_checkpoint
from cmudrn.engines.graph import Types, typed_graph
from cmudrn.engines.layout import Layout
from cmudrn.engines.spec import EngineSpec, Precision
from cmudrn.engines.store import EngineStore

ROOT = Path(__file__).parent.parent
RUNNER = ROOT / "tools" / "gpu_check.py"
LABELS = ("TensorRT", "TensorRT-RTX")


# --- a step -----------------------------------------------------------------------------------------------


def run(code: str, folder: Path, *, limit_s: float = 60, **options: Any) -> Outcome:
    step = Step(name="a step", command=[sys.executable, "-c", code], **options)
    return run_step(step, limit_s, folder, os.environ)


def test_a_step_that_ends_well_is_passed_with_what_it_wrote(tmp_path: Path) -> None:
    def read() -> dict[str, Any]:
        return {"said": (tmp_path / "stdout.txt").read_text()}

    outcome = run("print('done')", tmp_path, read=read)
    assert (outcome.state, outcome.reason, outcome.facts) == (State.PASSED, "", {"said": "done\n"})


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("raise SystemExit(3)", "exit code 3"),
        ("print('cmudrn: no room\\n  -> make some'); raise SystemExit(2)", "exit code 2: no room"),
        ("import missing_module", "exit code 1: ModuleNotFoundError: No module named 'missing_module'"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "ended by SIGSEGV"),
    ],
)
def test_a_step_that_fails_says_how_with_its_last_lines(tmp_path: Path, code: str, reason: str) -> None:
    outcome = run(f"print('before')\n{code}", tmp_path)
    assert outcome.state is State.FAILED
    assert outcome.reason.startswith(reason)
    assert outcome.last_lines[0] == "before" or "SIGSEGV" in reason


def test_a_step_whose_files_are_missing_or_tell_of_a_failure_has_failed(tmp_path: Path) -> None:
    def missing() -> dict[str, Any]:
        return {"text": (tmp_path / "nothing.json").read_text()}

    assert "cannot be read" in run("", tmp_path, read=missing).reason
    assert run("", tmp_path, judge=lambda facts: "two of three").reason == "two of three"


def test_a_step_is_ended_in_its_time_by_ctrl_c_with_what_it_has_written_then(tmp_path: Path) -> None:
    code = """
import time
try:
    time.sleep(60)
except KeyboardInterrupt:
    print("half is done")
"""
    began = time.monotonic()
    outcome = run(code, tmp_path, limit_s=14)
    assert time.monotonic() - began < 12
    assert (outcome.state, outcome.reason) == (State.FAILED, "ended after 6 s")
    assert list(outcome.last_lines) == ["half is done"]


def test_a_step_that_ignores_that_is_killed_with_its_children(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpu_steps.GRACE_S", 0.5)
    monkeypatch.setattr("gpu_steps.LEAST_S", 0.5)
    code = """
import signal, subprocess, sys, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(child.pid, flush=True)
time.sleep(60)
"""
    outcome = run(code, tmp_path, limit_s=3)
    [pid] = outcome.last_lines
    assert outcome.seconds < 10
    for _ in range(50):
        state = Path(f"/proc/{pid}/stat")
        if not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.1)
    pytest.fail(f"the child {pid} lives on")


def test_a_step_for_which_no_time_is_left_is_not_run(tmp_path: Path) -> None:
    outcome = run("open('run', 'w')", tmp_path, limit_s=3)
    assert outcome.state is State.FAILED
    assert "used up" in outcome.reason
    assert not (tmp_path / "run").exists()


def test_a_phase_has_what_the_ones_before_it_left() -> None:
    now = [100.0]
    budget = Budget(600, clock=lambda: now[0])
    assert budget.until(0.5) == 300
    now[0] += 200
    assert (budget.spent_s, budget.until(0.5), budget.until(1)) == (200, 100, 400)


# --- bars -------------------------------------------------------------------------------------------------


def timed(**seconds: float) -> dict[str, Any]:
    """A table of `cmudrn benchmark`; with underscores for hyphens."""
    cells = [{"backend": name.replace("_", "-"), "seconds": value} for name, value in seconds.items()]
    return {"cells": cells, "missing": []}


def test_engines_are_compared_with_the_faster_of_pytorchs_layouts() -> None:
    facts = timed(tensorrt=1.0, tensorrt_stream=1.1, torch_fp16=9.0, torch_fp16_nhwc=2.9)
    speed, copies = speed_bars("TensorRT", facts, "")
    assert (speed.state, speed.measured) == (State.FAILED, "2.90x")
    assert (copies.state, copies.measured) == (State.PASSED, "0.91")
    speed, _ = speed_bars("TensorRT", timed(tensorrt=1.0, tensorrt_stream=1.0, torch_fp16=3.0), "")
    assert speed.state is State.PASSED


def test_copies_that_are_not_hidden_fail_their_bar() -> None:
    _, copies = speed_bars("TensorRT", timed(tensorrt=1.0, tensorrt_stream=1.12), "")
    assert (copies.state, copies.measured) == (State.FAILED, "0.89")


def test_a_bar_without_figures_says_why() -> None:
    facts = timed(tensorrt=1.0, tensorrt_stream=1.0)
    facts["missing"] = [{"backend": "torch-fp16", "reason": "PyTorch sees 0 GPUs"}]
    speed, _ = speed_bars("TensorRT", facts, "")
    assert (speed.state, speed.reason) == (State.SKIPPED, "PyTorch sees 0 GPUs")
    assert {bar.reason for bar in speed_bars("TensorRT", {}, "no engine was built")} == {
        "no engine was built"
    }


def test_parity_of_fewer_engines_than_wanted_fails() -> None:
    facts = {"parity": [{"verdict": "passed"}, {"verdict": "below"}]}
    outcome = Outcome(name="parity", state=State.FAILED, facts=facts)
    assert parity_bar("TensorRT", outcome, 2).state is State.FAILED
    assert parity_bar("TensorRT", outcome, 1).state is State.PASSED
    assert parity_bar("TensorRT", Outcome(name="parity", state=State.SKIPPED), 1).state is State.SKIPPED


def test_what_pytest_wrote_is_counted_and_the_memory_test_has_its_bars(tmp_path: Path) -> None:
    (tmp_path / "test_some.py").write_text(
        """
import pytest

@pytest.mark.parametrize("library", ["tensorrt", "rtx"])
def test_nothing_is_allocated_after_the_first_batch(library, record_property):
    if library == "rtx":
        pytest.skip("no rtx here")
    record_property("bytes", 4096)
    assert False, "4096 bytes"

def test_other():
    pass

@pytest.fixture
def broken():
    raise OSError("gone")

def test_with_a_broken_fixture(broken):
    pass
""",
        encoding="utf-8",
    )
    command = [sys.executable, "-m", "pytest", "-q", "--junitxml=found.xml", "-c", os.devnull, "test_some.py"]
    assert subprocess.run(command, cwd=tmp_path, capture_output=True, check=False).returncode == 1
    facts = read_tests(tmp_path / "found.xml")
    assert (facts["passed"], len(facts["failed"]), facts["skipped"]) == (1, 2, ["no rtx here"])
    ours, rtx = memory_bars(LABELS, Outcome(name="tests", state=State.FAILED, facts=facts))
    assert (ours.state, ours.measured) == (State.FAILED, "4096 bytes")
    assert (rtx.state, rtx.reason) == (State.SKIPPED, "no rtx here")
    unknown, _ = memory_bars(LABELS, Outcome(name="tests", state=State.FAILED, reason="ended by SIGSEGV"))
    assert (unknown.state, unknown.reason) == (State.SKIPPED, "ended by SIGSEGV")


# --- the report -------------------------------------------------------------------------------------------


def report(*outcomes: Outcome, bars: tuple[Bar, ...] = ()) -> Report:
    return Report(began="2026-11-26T07:30:00Z", budget_s=600, outcomes=[*outcomes], bars=[*bars])


PASSED = Outcome(name="one", state=State.PASSED)
BAR = Bar(name="bar", wanted=">= 3x", measured="4x", state=State.PASSED)


def test_the_exit_code_is_1_for_a_step_or_a_bar_that_failed_and_for_nothing_else() -> None:
    skipped = replace(PASSED, state=State.SKIPPED)
    assert report(PASSED, skipped, bars=(BAR, replace(BAR, state=State.SKIPPED))).exit_code == 0
    assert report(PASSED, replace(PASSED, state=State.FAILED)).exit_code == 1
    assert report(PASSED, bars=(replace(BAR, state=State.FAILED),)).exit_code == 1


def test_the_verdict_says_passed_only_where_every_bar_was_measured() -> None:
    assert report(PASSED, bars=(BAR,)).verdict == "Passed: every step, and every bar."
    unmeasured = report(PASSED, bars=(BAR, replace(BAR, state=State.SKIPPED))).verdict
    assert unmeasured == "Nothing failed; 1 of 2 bars could be measured here."
    assert report(PASSED).verdict == "Nothing failed; 0 of 0 bars could be measured here."
    assert report(replace(PASSED, state=State.FAILED), bars=(BAR,)).verdict == "FAILED: one."


def test_a_report_holds_no_paths_of_this_machine(tmp_path: Path) -> None:
    outcome = Outcome(
        name="one", state=State.FAILED, reason=f"{tmp_path}/a | b", last_lines=[f"../../..{tmp_path}/a"]
    )
    report(outcome).write(tmp_path, {str(tmp_path): "WORK"})
    plain = json.loads((tmp_path / "gpu-report.json").read_text(encoding="utf-8"))
    assert plain["outcomes"][0]["reason"] == "WORK/a | b"
    text = (tmp_path / "gpu-report.md").read_text(encoding="utf-8")
    assert str(tmp_path) not in text
    assert "| WORK/a / b |" in text
    assert "\nWORK/a\n" in text


# --- the whole way ----------------------------------------------------------------------------------------


def test_without_a_gpu_there_is_nothing_to_check_and_that_is_said_at_once(tmp_path: Path) -> None:
    began = time.monotonic()
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1"}  # should this machine have one
    command = [sys.executable, str(RUNNER), "--out", str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Nothing to check: no GPU." in done.stdout
    assert time.monotonic() - began < 60
    assert "**Nothing to check: no GPU.**" in (tmp_path / "gpu-report.md").read_text(encoding="utf-8")
    plain = json.loads((tmp_path / "gpu-report.json").read_text(encoding="utf-8"))
    assert (plain["exit_code"], len(plain["outcomes"])) == (0, 1)


def test_ctrl_c_ends_it_with_the_report_that_there_is(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, RUNNER, "--out", tmp_path], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout
    assert process.stdout.read(6) == "doctor"
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130
    plain = json.loads((tmp_path / "gpu-report.json").read_text(encoding="utf-8"))
    assert plain["interrupted"]


# What stands in for parts that are slow, or not asked about, on a GPU in host memory.
QUICK = {
    "torch": "__version__ = '0'\nclass version: cuda = hip = None",
    "tensorrt_rtx": "raise ImportError('left out')",
}
# A compiler for the stand-in for TensorRT, which takes graphs as plans; in float32, for a CPU to be quick.
COMPILER = """
from functools import partial

from cmudrn.engines import compile as compiling
from cmudrn.engines.build import Plan
from cmudrn.engines.graph import Types
from cmudrn.engines.layers import Layer
from cmudrn.engines.spec import Precision

HALF = frozenset({"Half"})
LAYER = Layer("conv", "CaskConvolution", HALF, HALF, ())
compiling.typed_graph = partial(compiling.typed_graph, types=Types.of(Precision.FP32))
compiling.build_plan = lambda library, graph, options, **others: Plan(graph, 0.0, [LAYER], None)
"""


def environment(
    driver: Driver, folder: Path, modules: Mapping[str, str], **settings: object
) -> dict[str, object]:
    """Under hostcuda, with modules that are found before all others."""
    folder.mkdir()
    for name, code in modules.items():
        (folder / f"{name}.py").write_text(code, encoding="utf-8")
    path = os.pathsep.join([str(folder), driver.environment({})["PYTHONPATH"]])
    return {"HOSTCUDA_DELAY_US": 0, **settings, "PYTHONPATH": path}


def run_check(
    driver: Driver, out: Path, settings: Mapping[str, object], *arguments: object
) -> tuple[int, dict[str, Any], str]:
    small = ["--loops", "1", "--size", "24", "--batch", "2"]
    done = driver.run([RUNNER, "--out", out, *small, *map(str, arguments)], settings, timeout_s=100)
    assert "Traceback" not in done.process.stderr, done.process.stderr
    plain = json.loads((out / "gpu-report.json").read_text(encoding="utf-8"))
    return done.returncode, plain, (out / "gpu-report.md").read_text(encoding="utf-8")


def states(plain: Mapping[str, Any], kind: str) -> dict[str, tuple[str, str]]:
    return {one["name"]: (one["state"], one["reason"]) for one in plain[kind]}


def test_a_compiler_that_cannot_build_is_in_the_report_and_the_rest_is_run(
    driver: Driver, tmp_path: Path
) -> None:
    """The stand-in for TensorRT has no builder."""
    code, plain, text = run_check(driver, tmp_path, environment(driver, tmp_path / "site", QUICK))
    steps, bars = states(plain, "outcomes"), states(plain, "bars")
    assert code == plain["exit_code"] == 1
    assert plain["parts"]["GPU"].startswith("Host memory 0, sm89")
    state, reason = steps["TensorRT: engines for T = 1 at 24, batch 2"]
    assert (state, reason.partition(":")[0]) == ("failed", "exit code 1")
    assert "has no attribute" in reason
    assert steps["TensorRT-RTX"] == ("skipped", "TensorRT-RTX: cannot import tensorrt_rtx: left out")
    assert steps["TensorRT: parity"] == ("skipped", "no engine was built")
    assert steps["torch.compile"] == ("skipped", "PyTorch: 0, a build for the CPU")
    assert steps["tests/gpu/test_runtime.py"][0] == steps["tests/gpu/test_engines.py"][0] == "failed"
    assert bars["TensorRT: parity with PyTorch in FP32"] == ("skipped", "no engine was built")
    assert bars["TensorRT: speed against PyTorch eager FP16"] == ("skipped", "no engine was built")
    assert "AttributeError: module 'tensorrt' has no attribute" in text
    assert str(ROOT) not in text


UNSUPPORTING = """
from hostcuda.trt_stand_in import *
from hostcuda.trt_stand_in import __version__

class IProgressMonitor:
    pass

def Builder(log):
    what = "Target GPU SM 89 is not supported by this TensorRT release."
    log.log(ILogger.ERROR, f"IBuilder::buildSerializedNetwork: Error Code 9: API Usage Error ({what})")
    raise TypeError("pybind11::init(): factory function returned nullptr")
"""


def test_a_gpu_that_a_flavour_does_not_know_is_one_line_and_no_failure(
    driver: Driver, tmp_path: Path
) -> None:
    modules = {"torch": QUICK["torch"], "tensorrt": UNSUPPORTING}
    settings = environment(driver, tmp_path / "site", modules)
    code, plain, _ = run_check(driver, tmp_path, settings, "--flavors", "tensorrt")
    steps = states(plain, "outcomes")
    state, reason = steps.pop("TensorRT")
    assert (state, "SM 89 is not supported by this TensorRT release" in reason) == ("skipped", True)
    assert code == 0, steps
    assert plain["verdict"].startswith("Nothing failed; ")
    assert not any("engines for" in name for name in steps)


def test_engines_that_are_there_are_tested_compared_and_timed(driver: Driver, tmp_path: Path) -> None:
    """Engines for the stand-in, in float32; built by nobody, so they are there before."""
    spec = EngineSpec(loops=1, height=24, width=24, batch=2)
    checkpoint = read_checkpoint("default")
    plan = typed_graph(checkpoint, spec, types=Types.of(Precision.FP32))
    manifest = manifest_of(
        plan,
        spec,
        version="11.4.0.1",
        target="sm89",
        layout=Layout(),
        workspace_mb=None,
        graph_sha256=hashlib.sha256(typed_graph(checkpoint, spec)).hexdigest(),
        weights_sha256=checkpoint.sha256,
    )
    store = EngineStore(tmp_path / "work" / "engines-tensorrt")
    store.put(plan, manifest)
    modules = {"graphs_as_plans": COMPILER}
    some = "-p graphs_as_plans -k 'after_the_first_batch or bytes_come_back'"
    settings = environment(driver, tmp_path / "site", modules, PYTEST_ADDOPTS=some)
    code, plain, text = run_check(
        driver, tmp_path, settings, "--work", tmp_path / "work", "--flavors", "tensorrt"
    )
    steps, bars = states(plain, "outcomes"), states(plain, "bars")
    assert steps["TensorRT: engines for T = 1 at 24, batch 2"] == ("passed", "")
    assert steps["tests/gpu/test_runtime.py"] == ("passed", "")
    assert steps["TensorRT: parity"] == ("passed", "")
    assert steps["TensorRT: speed at the bars' case"] == ("passed", "")
    assert bars["TensorRT: parity with PyTorch in FP32"][0] == "passed"
    assert bars["TensorRT: memory taken after the first batch"][0] == "passed"
    state, why = bars["TensorRT: speed against PyTorch eager FP16"]
    assert (state, "0 GPUs" in why) == ("skipped", True)
    [copies] = [bar for bar in plain["bars"] if bar["name"].startswith("TensorRT: throughput")]
    assert (copies["state"] == "passed") == (float(copies["measured"]) >= 0.9)
    assert store.manifest(manifest.key).parity is not None
    assert f"| {manifest.key} | passed |" in text
    assert code == plain["exit_code"]


# --- the GPU's own tests ----------------------------------------------------------------------------------

LEAKING = """
from cmudrn.deploy.cuda import PinnedBuffer
from cmudrn.deploy.tensorrt import Slot

PinnedBuffer.free = lambda self: LOST.append((self.device, self.host))
LOST, submit = [], Slot.submit

def taking_more(slot, batch):
    LOST.append(slot.cuda.mem_alloc(1 << 21))
    submit(slot, batch)

Slot.submit = taking_more
"""

# Once for each backend, as what is set up late would be.
TAKING_LATE = """
from cmudrn.deploy.tensorrt import Slot

TAKEN, submit = [], Slot.submit

def taking_at_the_second(slot, batch):
    slot.log.batches = getattr(slot.log, "batches", 0) + 1
    if slot.log.batches == 2:
        TAKEN.append(slot.cuda.mem_alloc(1 << 21))
    submit(slot, batch)

Slot.submit = taking_at_the_second
"""


def run_gpu_tests(
    driver: Driver, folder: Path, modules: Mapping[str, str], *options: str
) -> tuple[str, dict[str, Any]]:
    plugins = [part for name in modules for part in ("-p", name)]
    found = folder / "found.xml"
    done = driver.run(
        [
            "-m",
            "pytest",
            *plugins,
            ROOT / "tests" / "gpu" / "test_runtime.py",
            f"--junitxml={found}",
            *options,
        ],
        environment(driver, folder / "site", modules, HOSTCUDA_DELAY_US=20),
    )
    return done.output, read_tests(found)


def test_the_runtimes_tests_pass_on_a_gpu_in_host_memory(driver: Driver, tmp_path: Path) -> None:
    output, facts = run_gpu_tests(driver, tmp_path, {"graphs_as_plans": COMPILER}, "-k", "not rtx")
    assert not facts["failed"], output
    assert facts["passed"] >= 12
    assert set(facts["skipped"]) <= {"this PyTorch has no GPU"}


def test_the_runtimes_tests_fail_where_memory_is_lost(driver: Driver, tmp_path: Path) -> None:
    modules = {"graphs_as_plans": COMPILER, "leaking": LEAKING}
    chosen = "not rtx and (after_the_first_batch or gives_all_memory_back)"
    output, facts = run_gpu_tests(driver, tmp_path, modules, "-k", chosen)
    assert (facts["passed"], len(facts["failed"])) == (0, 2), output
    [bar, _] = memory_bars(LABELS, Outcome(name="tests", state=State.FAILED, facts=facts))
    assert bar.state is State.FAILED
    assert int(bar.measured.split()[0]) >= 2 << 20


@pytest.mark.parametrize("graphs", [True, False])
def test_memory_that_is_taken_once_at_the_second_batch_fails_the_runtimes_test(
    driver: Driver, tmp_path: Path, graphs: bool
) -> None:
    condition = f"bool(slot.graph) is {graphs} and slot.log.batches == 2"
    late = TAKING_LATE.replace("slot.log.batches == 2", condition)
    modules = {"graphs_as_plans": COMPILER, "late": late}
    output, facts = run_gpu_tests(driver, tmp_path, modules, "-k", "not rtx and after_the_first_batch")
    assert (facts["passed"], len(facts["failed"])) == (0, 1), output
    [bar, _] = memory_bars(LABELS, Outcome(name="tests", state=State.FAILED, facts=facts))
    assert bar.measured == f"{1 << 21} bytes"


def test_the_bars_are_about_t_3_at_500_in_batches_of_8() -> None:
    usual = Matrix()
    assert len(usual) == 12
    assert usual.of_the_bars == Matrix(loops=(3,), sizes=(500,), batches=(8,))
    assert Matrix(loops=(1,), sizes=(24,), batches=(2,)).of_the_bars.loops == (1,)
