"""`cmudrn parity-check` as its users meet it: engines by the real pycuda, on a CUDA driver in host memory."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import pyvips
from hostcuda.build import Driver, Run
from random_weights import random_checkpoint
from test_manifest import manifest_of

from cmudrn.checkpoint import Checkpoint, read_checkpoint, save_checkpoint
from cmudrn.cli.app import main
from cmudrn.deploy.job import BackendName
from cmudrn.deploy.machine import library_version
from cmudrn.deploy.native.library import is_built, usable_isas
from cmudrn.deploy.parity.candidates import (
    EngineCandidate,
    LibraryCandidate,
    Selection,
    find_candidates,
    library_subject,
)
from cmudrn.deploy.parity.images import shipped_images
from cmudrn.deploy.parity.measure import ParityJob
from cmudrn.engines.certificate import ParityCertificate, ParityLimits
from cmudrn.engines.flavors import Flavor
from cmudrn.engines.graph import typed_graph
from cmudrn.engines.spec import EngineSpec, Output, Pixel, Precision
from cmudrn.engines.store import EngineStore
from cmudrn.errors import EngineError, UsageError

VERSION = "11.4.0.1"  # of the stand-in
SPEC = EngineSpec(loops=1, height=32, width=40, batch=4, precision=Precision.FP32)
HALF = dataclasses.replace(SPEC, precision=Precision.FP16)


class House(NamedTuple):
    """Weights and a store."""

    weights: Path
    store: EngineStore

    @property
    def checkpoint(self) -> Checkpoint:
        return read_checkpoint(self.weights)

    def put(self, spec: EngineSpec = SPEC, *, seed: int = 0, **changes: Any) -> str:
        """An engine of random weights, said to be of these; returns its key. The stand-in takes a graph."""
        plan = typed_graph(random_checkpoint(seed=seed), spec)
        facts = {"version": VERSION, "target": "sm89", "weights_sha256": self.checkpoint.sha256}
        manifest = manifest_of(plan, spec, **{**facts, **changes})
        self.store.put(plan, manifest)
        return manifest.key

    def arguments(self, *options: str) -> list[str]:
        told = ["--weights", str(self.weights), "--store", str(self.store.folder), "--threads", "1"]
        return ["parity-check", *told, *options]

    def check(self, driver: Driver, *options: str, **settings: object) -> Run:
        """On the driver in host memory; nothing may be left of what was taken there."""
        run = driver.run(["-m", "cmudrn", *self.arguments(*options)], {"HOSTCUDA_DELAY_US": 0, **settings})
        assert run.stats.left == 0, run.stats
        assert run.stats.faults == 0, run.last_fault
        return run

    def verdict(self, key: str) -> bool | None:
        """Whether it has passed; None: no certificate."""
        parity = self.store.manifest(key).parity
        return None if parity is None else parity.passed


@pytest.fixture
def house(tmp_path: Path) -> House:
    save_checkpoint(random_checkpoint(), tmp_path / "weights.safetensors")
    return House(tmp_path / "weights.safetensors", EngineStore(tmp_path / "store"))


def cells(output: str, key: str) -> list[str]:
    """The row of an engine."""
    (row,) = [line for line in output.splitlines() if line.startswith(f"{key} ")]
    return row.split()


# Engines


def test_engines_are_certified_in_their_manifests(house: House, driver: Driver, tmp_path: Path) -> None:
    """Good ones in float32 and in half precision, and one whose weights are others than it says."""
    good, half = house.put(), house.put(HALF)
    wrong = house.put(dataclasses.replace(SPEC, width=48), seed=1)
    old = house.put(dataclasses.replace(SPEC, width=56), version="10.16.1.11")
    plans = {key: house.store.load(key).plan for key in (good, half, wrong, old)}
    report, written = tmp_path / "report.html", tmp_path / "report.json"
    run = house.check(driver, "--report", str(report), "--json", str(written))
    assert run.returncode == 1, run.output
    assert [house.verdict(key) for key in (good, half, wrong, old)] == [True, True, False, None]
    assert {key: house.store.load(key).plan for key in plans} == plans

    exact, near = (house.store.manifest(key).parity for key in (good, half))
    assert exact
    assert near
    assert exact.images == near.images == 10
    assert exact.images_sha256 == near.images_sha256
    assert exact.measured_on.startswith(f"TensorRT {VERSION} on ")
    assert exact.off_by_one < 0.001 < near.off_by_one < 0.2
    assert cells(run.process.stdout, good)[1] == "10"
    assert cells(run.process.stdout, half)[-1] == "passed"
    assert cells(run.process.stdout, wrong)[-1] == "below"
    lines = run.process.stderr.splitlines()
    assert any(line.startswith(f"below: {wrong}: PSNR") for line in lines)
    (skipped,) = [line for line in lines if line.startswith(f"skipped: {old}: ")]
    assert "10.16.1.11" in skipped

    plain = json.loads(written.read_text())
    assert {one["name"]: one["verdict"] for one in plain["results"]} == {
        good: "passed",
        half: "passed",
        wrong: "below",
        old: "skipped",
    }
    by_name = {one["name"]: one["certificate"] for one in plain["results"]}
    assert by_name[half] == dataclasses.asdict(near)
    assert all(key in report.read_text() for key in plans)


def test_one_that_is_named_and_cannot_be_run_here_is_exit_code_2(house: House, driver: Driver) -> None:
    good, old = house.put(), house.put(HALF, version="10.16.1.11")
    named = house.check(driver, good, old)
    assert named.returncode == 2, named.output
    assert house.verdict(good) is True
    by_pattern = house.check(driver, "t1-*")
    assert by_pattern.returncode == 0, by_pattern.output
    assert f"skipped: {old}" in by_pattern.output


def test_an_engine_that_fails_in_the_middle_does_not_stop_the_others(house: House, driver: Driver) -> None:
    """The driver refuses an operation of the first one's; what it broke is the context of that one alone."""
    first, second = house.put(), house.put(HALF)
    run = house.check(driver, HOSTCUDA_FAIL="cuMemAlloc_v2:1")
    assert run.returncode == 1, run.output
    verdicts = {house.verdict(first), house.verdict(second)}
    assert verdicts == {None, True}
    assert "out of memory" in run.output


def test_limits_are_the_callers_and_stand_in_the_certificate(house: House, driver: Driver) -> None:
    key = house.put(HALF)
    run = house.check(driver, "--min-psnr", "90", "--max-difference", "0.5", "--max-truth-change", "2")
    assert run.returncode == 1, run.output
    parity = house.store.manifest(key).parity
    assert parity
    assert parity.limits == ParityLimits(psnr_db=90, difference=0.5, truth_db=2)
    assert len(parity.failures) == 2


def test_images_with_their_truth_tell_what_the_psnr_changes_by(
    house: House, driver: Driver, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    for name in ("one", "two"):
        clean = np.repeat(np.repeat(rng.integers(0, 256, (5, 6, 3), np.uint8), 9, axis=0), 9, axis=1)
        noisy = np.clip(clean + rng.normal(0, 8, clean.shape), 0, 255).astype(np.uint8)
        for folder, pixels in (("in", noisy), ("truth", clean)):
            (tmp_path / folder).mkdir(exist_ok=True)
            image = pyvips.Image.new_from_array(pixels).copy(interpretation="srgb")
            image.write_to_file(str(tmp_path / folder / f"{name}.png"))
    key = house.put(HALF)
    run = house.check(driver, "--images", str(tmp_path / "in"), "--truth", str(tmp_path / "truth"))
    parity = house.store.manifest(key).parity
    assert parity, run.output
    assert parity.images == 2
    assert parity.truth_psnr_change_db is not None
    assert 0 < abs(parity.truth_psnr_change_db) < 0.01
    assert f"{parity.truth_psnr_change_db:+.4f}" in cells(run.process.stdout, key)


def test_without_a_gpu_an_engine_stays_without_a_certificate(
    house: House, capsys: pytest.CaptureFixture[str]
) -> None:
    key = house.put(flavor=Flavor.RTX, version="1.7.1.116", target="sm80+")
    for options in ((key,), ()):  # nothing could be measured: no success either
        assert main(house.arguments(*options)) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"skipped: {key}: ")
    assert house.verdict(key) is None


def test_an_engine_whose_plan_was_changed_is_not_run(
    house: House, capsys: pytest.CaptureFixture[str]
) -> None:
    key = house.put()
    path = house.store.folder / f"{key}.engine"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert main(house.arguments()) == 1
    assert "not the plan that was built" in capsys.readouterr().err


def test_manifests_that_cannot_be_read_are_told(house: House, capsys: pytest.CaptureFixture[str]) -> None:
    (house.store.folder).mkdir()
    (house.store.folder / "t1-9x9-b1-fp32.json").write_text("{")
    assert main(house.arguments()) == 1
    assert "t1-9x9-b1-fp32.json: not a manifest" in capsys.readouterr().err


def test_engines_of_other_weights_are_skipped(house: House, capsys: pytest.CaptureFixture[str]) -> None:
    key = house.put(weights_sha256="3" * 64)
    assert main(house.arguments()) == 2
    error = capsys.readouterr().err
    assert f"skipped: {key}: of weights 333333333333; --weights {house.weights} are" in error


def test_an_engine_that_is_built_anew_meanwhile_is_not_certified(house: House) -> None:
    key = house.put()
    candidate = EngineCandidate(manifest=house.store.manifest(key), store=house.store)
    house.put(seed=1)
    with pytest.raises(EngineError, match="built anew"):
        candidate.backend()


def test_weights_of_another_network_are_refused_before_anything_is_measured(
    house: House, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = {name: tensor for name, tensor in house.checkpoint.tensors.items() if "fusion" not in name}
    save_checkpoint(dataclasses.replace(house.checkpoint, tensors=tensors), house.weights)
    assert main(house.arguments("--backend", "onnx")) == 2
    assert "fusion.conv1.weight" in capsys.readouterr().err


# Which are meant


def chosen(house: House, **wanted: Any) -> list[str]:
    job = ParityJob(images=shipped_images(), checkpoint=house.checkpoint, limits=ParityLimits())
    candidates, errors = find_candidates(house.store, Selection(**wanted), job)
    assert not errors
    return [candidate.name for candidate in candidates]


def test_engines_are_chosen_by_name_pattern_loops_size_precision_pixel_and_output(house: House) -> None:
    changes: list[dict[str, Any]] = [
        {},
        {"loops": 3},
        {"height": 64},
        {"precision": Precision.FP16},
        {"pixel": Pixel.FLOAT32},
        {"output": Output.RAIN},
    ]
    keys = [house.put(dataclasses.replace(SPEC, **change)) for change in changes]
    plain, deep, tall, half, floats, rain = keys
    assert chosen(house) == sorted(keys)
    assert chosen(house, keys=(half, "t3-*")) == sorted([deep, half])
    assert chosen(house, loops=(2, 3)) == [deep]
    assert chosen(house, sizes=((64, 40), (9, 9))) == [tall]
    assert chosen(house, precisions=(Precision.FP16, Precision.BF16)) == [half]
    assert chosen(house, pixel=Pixel.FLOAT32) == [floats]
    assert chosen(house, output=Output.RAIN) == [rain]
    assert chosen(house, keys=("t1-32x40-b4-fp32-uint8-t*",)) == [plain]
    with pytest.raises(EngineError, match="no engine is meant"):
        chosen(house, keys=("t7-*",))
    with pytest.raises(EngineError, match="no such engine"):
        chosen(house, keys=("t7-9x9",))


def test_a_backend_is_checked_for_each_loop_count_and_precision(house: House) -> None:
    names = chosen(house, backends=(BackendName.OPENVINO,), loops=(1, 3), precisions=tuple(Precision)[1:])
    assert names == [
        f"openvino-{precision}-t{loops}-uint8" for loops in (1, 3) for precision in ("fp32", "bf16")
    ]
    assert chosen(house, backends=(BackendName.ONNX, BackendName.TORCH), output=Output.SNOW) == [
        "onnx-fp32-t3-uint8-snow",
        "torch-fp32-t3-uint8-snow",
    ]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--backend", "caffe"], "--backend caffe"),
        (["--backend", "tensorrt"], "--backend tensorrt"),
        (["--backend", "onnx", "--precision", "bf16"], "--precision bf16 with --backend onnx"),
        (["--backend", "onnx", "--size", "32,64"], "several sizes"),
        (["--backend", "onnx", "t3-*"], "t3-*"),
        (["--loops", "0"], "--loops 0"),
        (["--size", "0"], "--size 0"),
        (["--precision", "fp32,int8"], "--precision int8"),
        (["--min-psnr", "nan"], "--min-psnr nan"),
        (["--max-difference", "-1"], "--max-difference -1"),
        (["--max-truth-change", "inf"], "--max-truth-change inf"),
        (["--threads", "0"], "--threads 0"),
        (["--device", "cpu"], "--device cpu"),
        (["--truth", "."], "--truth ."),
        (["--images", "nowhere"], "nowhere"),
        (["--report", "nowhere/report.html"], "--report nowhere"),
        (["--json", "nowhere/report.json"], "--json nowhere"),
        (["t9-9x9"], "t9-9x9"),
        ([], "no engines"),
    ],
)
def test_what_makes_no_sense_is_one_line_with_the_way_out(
    house: House, capsys: pytest.CaptureFixture[str], options: Sequence[str], said: str
) -> None:
    assert main(house.arguments(*options)) == 2
    what, fix = capsys.readouterr().err.splitlines()
    assert said in what
    assert fix.startswith("  -> ")
    assert not house.store.folder.exists()


# Backends that need no engine


def test_a_backends_certificate_is_found_again_for_exactly_this_library(
    house: House, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(house.arguments("--backend", "onnx,torch", "--size", "24x32", "--loops", "1")) == 0
    out = capsys.readouterr().out
    assert cells(out, "onnx-fp32-t1-uint8")[-1] == "passed"
    assert cells(out, "torch-fp32-t1-uint8")[2] == "equal"  # the reference itself
    subject = library_subject(BackendName.ONNX, SPEC, house.checkpoint.sha256)
    found = house.store.certificate(subject)
    assert found
    assert found.passed
    other = dataclasses.replace(subject, precision=Precision.BF16)
    assert house.store.certificate(other) is None
    assert house.store.manifests() == ([], [])


def test_a_backend_that_is_not_installed_is_exit_code_2_and_the_others_are_checked(
    house: House, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        "cmudrn.deploy.parity.candidates.library_version",
        lambda name: None if name == "openvino" else library_version(name),
    )
    options = ("--backend", "openvino", "--backend", "onnx", "--size", "16", "--loops", "1")
    assert main(house.arguments(*options)) == 2
    told = capsys.readouterr()
    assert "skipped: openvino-fp32-t1-uint8: --backend openvino: openvino is not installed" in told.err
    assert cells(told.out, "onnx-fp32-t1-uint8")[-1] == "passed"


def test_our_kernels_are_certified_for_exactly_this_build_and_instruction_set(
    house: House, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if not is_built():
        pytest.skip("the package has no kernels of its own here: make native")

    def found() -> ParityCertificate | None:
        return house.store.certificate(library_subject(BackendName.NATIVE, SPEC, house.checkpoint.sha256))

    assert main(house.arguments("--backend", "native", "--size", "24x32", "--loops", "1")) == 0
    assert cells(capsys.readouterr().out, "native-fp32-t1-uint8")[-1] == "passed"
    certificate = found()
    assert certificate
    assert certificate.difference <= 1
    assert certificate.measured_on == f"own kernels ({usable_isas()[0]}) on CPU"
    monkeypatch.setenv("CMUDRN_ISA", "direct")
    assert found() is None


def test_openvino_is_certified_for_each_precision_that_the_processor_has(
    house: House, capsys: pytest.CaptureFixture[str]
) -> None:
    if find_spec("openvino") is None:  # not importorskip, which would import it, and be reported
        pytest.skip("OpenVINO is not installed: pip install 'cmudrn[openvino]'")
    from cmudrn.deploy.openvino import cpu_has_bf16

    told = "fp32,bf16" if cpu_has_bf16() else "fp32"
    options = ("--backend", "openvino", "--precision", told, "--size", "24", "--loops", "1")
    code = main(house.arguments(*options))
    found = {
        precision: house.store.certificate(
            library_subject(
                BackendName.OPENVINO,
                dataclasses.replace(SPEC, precision=precision),
                house.checkpoint.sha256,
            )
        )
        for precision in map(Precision, told.split(","))
    }
    exact = found[Precision.FP32]
    assert exact
    assert exact.passed
    rows = capsys.readouterr().out
    for precision, certificate in found.items():
        assert certificate
        verdict = "passed" if certificate.passed else "below"
        assert cells(rows, f"openvino-{precision.value}-t1-uint8")[-1] == verdict
    if lower := found.get(Precision.BF16):
        assert lower.off_by_one > 10 * exact.off_by_one  # it was in bfloat16
    assert code == (0 if all(one and one.passed for one in found.values()) else 1)


def test_json_to_the_standard_output_is_alone_there(house: House, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--backend", "onnx", "--size", "16", "--loops", "1", "--json", "-")
    assert main(house.arguments(*options)) == 0
    told = capsys.readouterr()
    plain = json.loads(told.out)
    assert [one["verdict"] for one in plain["results"]] == ["passed"]
    assert plain["limits"] == {"psnr_db": 50.0, "difference": 3.0, "truth_db": 0.01}
    assert plain["float32_limits"] == {"psnr_db": 50.0, "difference": 1.0, "truth_db": 0.01}
    assert plain["results"][0]["certificate"]["limits"] == plain["float32_limits"]
    assert len(plain["images"]) == 10
    assert "onnx-fp32-t1-uint8" in told.err


def test_the_default_weights_are_checked_as_infer_runs_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On the graph that is shipped."""
    options = ["--backend", "onnx", "--size", "32", "--loops", "2", "--pixel", "float32", "--threads", "1"]
    assert main(["parity-check", "--store", str(tmp_path), *options]) == 0
    assert cells(capsys.readouterr().out, "onnx-fp32-t2-float32")[-1] == "passed"


def test_ctrl_c_keeps_what_was_certified(house: House) -> None:
    options = ["--backend", "onnx", "--size", "300", "--loops", "1,7"]
    running = subprocess.Popen(
        [sys.executable, "-m", "cmudrn", *house.arguments(*options)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=dict(os.environ),
    )
    subject = library_subject(BackendName.ONNX, SPEC, house.checkpoint.sha256)
    deadline = time.monotonic() + 100
    while house.store.certificate(subject) is None and time.monotonic() < deadline:
        time.sleep(0.02)
    running.send_signal(signal.SIGINT)
    out, error = running.communicate(timeout=60)
    assert running.returncode == 130, error
    assert "interrupted" in error
    assert cells(out, "onnx-fp32-t1-uint8")[-1] == "passed"
    assert "t7" not in out
    assert house.store.certificate(subject)


def test_help_needs_no_torch() -> None:
    code = (
        "import sys; from cmudrn.cli.app import main; main(['parity-check', '--help']); "
        "heavy = {'torch', 'onnx', 'onnxruntime', 'pyvips', 'pycuda'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "--min-psnr" in done.stdout


def test_a_library_computes_only_what_it_can(house: House) -> None:
    with pytest.raises(UsageError, match="fp16 with --backend torch"):
        LibraryCandidate(
            library=BackendName.TORCH,
            spec=HALF,
            weights="default",
            checkpoint=house.checkpoint,
            store=house.store,
        )


def test_the_python_of_its_document_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CMUDRN_STORE", str(tmp_path))
    document = Path(__file__).parents[1] / "docs" / "parity.md"
    (code,) = re.findall(r"```python\n(.+?)```", document.read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, object] = {}
    exec(code, names)
    assert (names["passed"], names["certificate"]) == ([], None)
