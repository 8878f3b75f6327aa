"""What `cmudrn parity-check` refuses or finds broken, and what is left of earlier certificates then."""

from __future__ import annotations

import dataclasses
import os
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import pyvips
from hostcuda.build import Driver
from test_certificate import certificate_of
from test_cli_parity import HALF, SPEC, VERSION, House, house
from test_manifest import manifest_of

from cmudrn.cli.app import main
from cmudrn.deploy.job import BackendName
from cmudrn.deploy.parity.candidates import LibraryCandidate, library_subject
from cmudrn.engines.spec import EngineSpec
from cmudrn.engines.store import EngineStore
from cmudrn.errors import UsageError

__all__ = ["house"]  # the fixture


def put_broken(house: House, spec: EngineSpec = SPEC) -> str:
    """An engine that is what was built, of this version and GPU, and doesn't load; returns its key."""
    plan = b"no plan"
    facts = {"version": VERSION, "target": "sm89", "weights_sha256": house.checkpoint.sha256}
    manifest = manifest_of(plan, spec, **facts)
    house.store.put(plan, manifest)
    return manifest.key


# Engines


def test_an_engine_that_fits_and_does_not_load_has_failed(house: House, driver: Driver) -> None:
    broken, whole = put_broken(house), house.put(HALF)
    house.store.certify(house.store.manifest(broken), certificate_of())
    run = house.check(driver)
    assert run.returncode == 1, run.output
    assert f"failed: {broken}: does not load" in run.process.stderr
    assert house.verdict(broken) is None  # no longer
    assert house.verdict(whole) is True


def test_an_engine_that_breaks_while_it_is_measured_loses_its_certificate(
    house: House, driver: Driver
) -> None:
    key = house.put()
    house.store.certify(house.store.manifest(key), certificate_of())
    run = house.check(driver, HOSTCUDA_FAIL="cuMemAlloc_v2:1")
    assert run.returncode == 1, run.output
    assert f"failed: {key}: " in run.process.stderr
    assert house.verdict(key) is None


def test_an_engine_whose_plan_was_changed_loses_its_certificate(
    house: House, capsys: pytest.CaptureFixture[str]
) -> None:
    key = house.put()
    house.store.certify(house.store.manifest(key), certificate_of())
    path = house.store.folder / f"{key}.engine"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert main(house.arguments()) == 1
    assert "not the plan that was built" in capsys.readouterr().err
    assert house.verdict(key) is None


@pytest.mark.parametrize("changes", [{"version": "10.16.1.11"}, {"target": "sm90"}])
def test_an_engine_of_another_version_or_gpu_is_skipped_and_keeps_its_certificate(
    house: House, driver: Driver, changes: dict[str, Any]
) -> None:
    key = house.put(**changes)
    house.store.certify(house.store.manifest(key), certificate_of())
    run = house.check(driver)
    assert run.returncode == 2, run.output
    assert f"skipped: {key}: " in run.process.stderr
    assert all(wanted in run.process.stderr for wanted in changes.values())
    assert house.verdict(key) is True


# What no engine can help


@pytest.mark.parametrize("room_bytes", [0, 5000])
def test_a_full_temporary_folder_is_one_error_of_the_run(
    house: House, tmp_path: Path, room_bytes: int
) -> None:
    """Ten images of 768 bytes; the seventh fits in part. Where nothing fits, not even an empty file may."""
    (tmp_path / "small").mkdir()
    arguments = house.arguments("--backend", "onnx", "--loops", "1", "--size", "16")
    done = subprocess.run(
        [sys.executable, "-m", "cmudrn", *arguments],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (room_bytes, room_bytes)),
        env={**os.environ, "TMPDIR": str(tmp_path / "small")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stderr
    what, fix = done.stderr.splitlines()
    assert f"{tmp_path / 'small'}: cannot keep there what PyTorch restores: " in what
    assert "TMPDIR=DIR" in fix
    assert not list(house.store.folder.glob("parity-*"))


def test_a_file_that_does_not_decode_is_an_error_before_the_first_engine(
    house: House, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    whole: bytes = pyvips.Image.new_from_array(pixels).copy(interpretation="srgb").pngsave_buffer()
    (tmp_path / "in" / "whole.png").write_bytes(whole)
    (tmp_path / "in" / "torn.png").write_bytes(whole[: len(whole) // 2])
    house.put()
    assert main(house.arguments("--images", str(tmp_path / "in"))) == 1
    error = capsys.readouterr().err
    assert "torn.png" in error
    assert "failed" not in error
    assert "skipped" not in error


# Where libraries compute


@pytest.mark.parametrize(
    ("backend", "device", "said"),
    [
        ("openvino", "5", "--device 5 with --backend openvino"),
        ("openvino", "0000:65:00.0", "--device 0000:65:00.0 with --backend openvino"),
        ("onnx", "0000:65:00.0", "--device 0000:65:00.0 with --backend onnx"),
        ("torch", "0000:65:00.0", "--device 0000:65:00.0 with --backend torch"),
        ("onnx,openvino", "0", "--device 0 with --backend openvino"),
        ("native", "0", "--device 0 with --backend native"),
    ],
)
def test_a_device_that_a_library_does_not_take_is_refused_before_anything_is_measured(
    house: House, capsys: pytest.CaptureFixture[str], backend: str, device: str, said: str
) -> None:
    options: Sequence[str] = ("--backend", backend, "--device", device, "--size", "16", "--loops", "1")
    assert main(house.arguments(*options)) == 2
    what, fix = capsys.readouterr().err.splitlines()
    assert said in what
    assert "cpu" in fix
    assert not house.store.folder.exists()


def test_the_cpu_is_not_certified_under_a_gpus_number(
    house: House, capsys: pytest.CaptureFixture[str]
) -> None:
    if len(onnxruntime.get_available_providers()) > 2:
        pytest.skip("this ONNX Runtime may have a GPU")
    options = ("--backend", "onnx", "--size", "16", "--loops", "1")
    assert main(house.arguments(*options, "--device", "5")) == 2
    assert "skipped: onnx-fp32-t1-uint8: --device 5: ONNX Runtime" in capsys.readouterr().err
    assert not house.store.folder.exists()
    assert main(house.arguments(*options, "--device", "cpu")) == 0
    found = house.store.certificate(library_subject(BackendName.ONNX, SPEC, house.checkpoint.sha256))
    assert found
    assert found.device == "CPU"


@pytest.mark.parametrize(("told", "subject"), [(None, "CUDA 0"), ("1", "CUDA 1")])
def test_a_certificate_of_a_gpu_in_onnx_runtime_is_not_that_of_the_processor(
    house: House, tmp_path: Path, told: str | None, subject: str
) -> None:
    store = EngineStore(tmp_path / "store")
    candidate = library(house, store, BackendName.ONNX, told)
    certificate = certificate_of(measured_on="ONNX Runtime 1.32.0 on CUDA")
    candidate.certify(certificate)
    weights = house.checkpoint.sha256
    assert store.certificate(library_subject(BackendName.ONNX, candidate.spec, weights)) is None
    there = library_subject(BackendName.ONNX, candidate.spec, weights, device=subject)
    assert store.certificate(there) == certificate
    candidate.withdraw(certificate.measured_on)
    assert store.certificate(there) is None


def library(house: House, store: EngineStore, name: BackendName, device: str | None) -> LibraryCandidate:
    return LibraryCandidate(
        library=name,
        spec=dataclasses.replace(SPEC, batch=1),
        weights=str(house.weights),
        checkpoint=house.checkpoint,
        store=store,
        device=device,
    )


def test_a_candidate_refuses_a_device_when_it_is_made(house: House) -> None:
    with pytest.raises(UsageError, match="it computes on the CPU"):
        library(house, house.store, BackendName.OPENVINO, "0")
    assert library(house, house.store, BackendName.OPENVINO, "cpu").device == "cpu"
