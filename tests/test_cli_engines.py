"""`cmudrn build-engine` and `cmudrn engines` as their users meet them, with TensorRT-RTX's real compiler."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import onnxruntime
import pytest

pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install 'cmudrn[rtx]'")

from random_weights import random_checkpoint

from cmudrn.checkpoint import read_checkpoint, save_checkpoint
from cmudrn.cli.app import main
from cmudrn.cli.values import parse_sizes
from cmudrn.engines.flavors import Flavor, open_library
from cmudrn.engines.spec import EngineSpec
from cmudrn.engines.store import EngineStore, Wanted
from cmudrn.errors import EngineError, UsageError

VERSION = open_library(Flavor.RTX).version
LABEL = "rtx" + ".".join(VERSION.split(".")[:2])
SMALL = ("--loops", "1", "--size", "64", "--flavor", "rtx")


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's own store, which is not there yet."""
    monkeypatch.setenv("CMUDRN_STORE", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "store"


def wanted(spec: EngineSpec) -> Wanted:
    """The default weights' engine for a GPU of compute capability 8.6."""
    return Wanted(
        spec=spec,
        flavor=Flavor.RTX,
        version=VERSION,
        targets=["sm86", "sm80+"],
        weights_sha256=read_checkpoint("default").sha256,
    )


def build(*arguments: str) -> int:
    return main(["build-engine", *arguments])


def test_the_usual_command_builds_one_engine_for_all_gpus(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert build("--loops", "3", "--size", "500", "--flavor", "rtx") == 0
    key = f"t3-500x500-b1-fp16-uint8-{LABEL}-sm80+"
    heading, row, *rest = capsys.readouterr().out.splitlines()
    assert heading.split() == ["engine", "seconds", "MB", "layers", "share", "parity"]
    assert row.split()[0] == key
    assert row.split()[-3:] == ["100%", "fp16", "unchecked"]
    assert rest == [f"in {store}"]
    engine = EngineStore(store).find(wanted(EngineSpec(loops=3, height=500, width=500)))
    assert engine.manifest.key == key
    assert engine.plan == (store / f"{key}.engine").read_bytes()


def test_a_matrix_of_loops_sizes_and_targets_is_built_in_one_go(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = ("--size", "64,48x96", "--size", "64")
    targets = ("--target", "sm75", "--target", "sm89")
    assert build("--loops", "1-2", *sizes, *targets, "--precision", "fp32", "--flavor", "rtx") == 0
    expected = {
        f"t{loops}-{size}-b1-fp32-uint8-{LABEL}-{target}"
        for loops in (1, 2)
        for size in ("64x64", "48x96")
        for target in ("sm75", "sm89")
    }
    out = capsys.readouterr().out
    assert {path.stem for path in store.glob("*.engine")} == expected
    assert all(key in out for key in expected)
    assert out.count("100% fp32") == 8


def test_what_is_there_is_built_again_only_when_something_changed(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def built_at() -> int:
        return next(store.glob("*.engine")).stat().st_mtime_ns

    assert build(*SMALL) == 0
    first = built_at()
    assert build(*SMALL) == 0
    assert "already there" in capsys.readouterr().out
    assert built_at() == first
    assert build(*SMALL, "--layout", "grouped") == 0
    second = built_at()
    assert second > first
    assert build(*SMALL, "--layout", "grouped", "--rebuild") == 0
    assert built_at() > second
    save_checkpoint(random_checkpoint(), Path("mine.safetensors"))
    assert build(*SMALL, "--weights", "mine.safetensors") == 0
    assert len(list(store.glob("*.engine"))) == 1
    assert next(store.glob("*.engine")).stat().st_mtime_ns > second


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--loops", "0"], "--loops 0"),
        (["--loops", "three"], "--loops three"),
        (["--size", "0"], "--size 0"),
        (["--size", "500x"], "--size 500x"),
        (["--size", "500x400x3"], "--size 500x400x3"),
        (["--batch", "0"], "--batch 0"),
        (["--precision", "int8"], "--precision int8"),
        (["--pixel", "uint16"], "--pixel uint16"),
        (["--output", "both"], "--output both"),
        (["--layout", "sideways"], "--layout sideways"),
        (["--target", "sm90"], "--target sm90"),
        (["--device", "1"], "--device 1: TensorRT-RTX builds on no GPU"),
        (["--flavor", "openvino"], "--flavor openvino"),
        (["--frontend", "tvm"], "--frontend tvm"),
        (["--frontend", "torch-tensorrt"], "--frontend torch-tensorrt"),
        (["--optimization-level", "9"], "--optimization-level 9"),
        (["--workspace", "0"], "--workspace 0"),
        (["--workspace", "99999999999999"], "--workspace 99999999999999"),
        (["--loops", "1-1000000000"], "--loops 1-1000000000"),
        (["--loops", "40"], "loops = 40"),
        (["--batch", "100000"], "batch = 100000"),
        (["--size", "2000000"], "height = 2000000"),
        (["--weights", "nowhere.safetensors"], "nowhere.safetensors"),
    ],
)
def test_wrong_options_are_named_before_anything_is_built(
    store: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert build("--flavor", "rtx", *arguments) == 2
    error = capsys.readouterr().err
    assert said in error.splitlines()[0]
    assert error.splitlines()[1].startswith("  -> ")
    assert not store.exists()


def test_tensorrt_where_it_is_not_installed_is_refused_with_the_way_to_it(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if "tensorrt" in sys.modules:
        pytest.skip("TensorRT is installed")
    assert build("--flavor", "tensorrt") == 2
    error = capsys.readouterr().err
    assert "cannot import tensorrt" in error
    assert "cmudrn[tensorrt]" in error


def test_one_engine_that_cannot_be_built_does_not_stop_the_others(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A side of 500,000 pixels has more values than TensorRT can count."""
    assert build("--loops", "1", "--size", "500000", "--size", "64", "--flavor", "rtx") == 1
    said = capsys.readouterr()
    assert "t1-64x64-b1" in said.out
    assert f"t1-500000x500000-b1-fp16-uint8-{LABEL}-sm80+: " in said.err
    assert [path.stem for path in store.glob("*.json")] == [f"t1-64x64-b1-fp16-uint8-{LABEL}-sm80+"]


def test_engines_are_listed_shown_verified_and_removed(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = f"t1-64x64-b1-fp16-uint8-{LABEL}-sm80+"
    assert main(["engines", "list"]) == 0
    assert "no engines" in capsys.readouterr().out
    assert build(*SMALL) == 0
    capsys.readouterr()
    assert main(["engines", "list"]) == 0
    assert key in capsys.readouterr().out
    assert main(["engines", "show", key]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["spec"]["loops"] == 1
    assert shown["weights_sha256"] == read_checkpoint("default").sha256
    assert main(["engines", "verify"]) == 0
    assert capsys.readouterr().out == f"{key}: whole\n"
    assert main(["engines", "remove", key]) == 0
    assert [path.name for path in store.iterdir() if not path.name.startswith(".")] == []
    assert main(["engines", "remove", key]) == 2
    assert "no engine" in capsys.readouterr().err


def test_a_tampered_engine_fails_verification(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert build(*SMALL) == 0
    plan = next(store.glob("*.engine"))
    data = bytearray(plan.read_bytes())
    data[1000] ^= 1
    plan.write_bytes(data)
    assert main(["engines", "verify"]) == 1
    assert "SHA-256" in capsys.readouterr().err
    assert build(*SMALL) == 0  # and is built again
    assert main(["engines", "verify"]) == 0


def test_prune_removes_what_no_run_can_use(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert build(*SMALL) == 0
    key = next(store.glob("*.engine")).stem
    orphan = store / "t1-32x32-b1-fp16-uint8-rtx1.7-sm75.engine"
    orphan.write_bytes(b"left")
    capsys.readouterr()
    assert main(["engines", "prune"]) == 0
    assert capsys.readouterr().out == f"removed {orphan.name}\n"
    other = dataclasses.replace(EngineStore(store).manifest(key), version="0.9.1")
    EngineStore(store).put((store / f"{key}.engine").read_bytes(), other)
    assert main(["engines", "prune"]) == 0
    assert main(["engines", "prune", "--other-versions"]) == 0
    assert {path.stem for path in store.glob("*.json")} == {key}


def test_another_folder_is_used_when_told(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert build(*SMALL, "--store", "mine") == 0
    assert not store.exists()
    assert len(list((tmp_path / "mine").glob("*.engine"))) == 1
    mode = stat.S_IMODE(next((tmp_path / "mine").glob("*.engine")).stat().st_mode)
    assert mode == 0o644


def test_a_store_that_cannot_be_written_is_one_line(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store.write_text("a file in its place")
    assert build(*SMALL) == 2
    assert str(store) in capsys.readouterr().err


def test_a_missing_engine_is_told_with_the_command_that_builds_it(store: Path) -> None:
    assert build(*SMALL) == 0
    spec = EngineSpec(loops=3, height=720, width=1280, batch=4)
    with pytest.raises(EngineError, match="720x1280") as missing:
        EngineStore(store).find(wanted(spec))
    command = missing.value.fix.split()
    assert command[0] == "cmudrn"
    assert main(command[1:]) == 0
    assert EngineStore(store).find(wanted(spec)).manifest.spec == spec


def test_a_store_that_fills_up_loses_no_engine_and_no_news(tmp_path: Path) -> None:
    """At most 700 kB a file: T = 1 fits, T = 3 doesn't, and T = 2 is tried all the same."""
    code = (
        "import resource, signal, sys; from cmudrn.cli.app import main; "
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (700_000, 700_000)); "
        "sys.exit(main(['build-engine', '--loops', '1,3', '--size', '64,32', '--flavor', 'rtx', "
        f"'--store', {str(tmp_path)!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert [line.split()[0][:8] for line in done.stdout.splitlines()[1:3]] == ["t1-64x64", "t1-32x32"]
    assert done.stderr.count("make room") == 2
    whole, broken = EngineStore(tmp_path).manifests()
    assert [manifest.spec.loops for manifest in whole] == [1, 1]
    assert not broken


def test_prune_by_version_without_any_tensorrt_removes_nothing(
    store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the wrong environment every engine would be one of another version."""
    assert build(*SMALL) == 0
    monkeypatch.setattr("cmudrn.engines.flavors.find_spec", lambda name: None)
    assert main(["engines", "prune", "--other-versions"]) == 2
    assert "neither TensorRT nor TensorRT-RTX" in capsys.readouterr().err
    assert len(list(store.glob("*.engine"))) == 1


def test_prune_leaves_other_folders_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "package.json").write_text("{}")
    assert main(["engines", "prune", "--store", str(tmp_path)]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["package.json"]


@pytest.mark.parametrize("error", ["ImportError", "OSError", "RuntimeError"])
def test_a_broken_tensorrt_is_told_with_what_works(store: Path, tmp_path: Path, error: str) -> None:
    (tmp_path / "fake" / "tensorrt").mkdir(parents=True)
    (tmp_path / "fake" / "tensorrt" / "__init__.py").write_text(
        f"raise {error}('libnvinfer.so.11 is missing')"
    )
    done = subprocess.run(
        [sys.executable, "-m", "cmudrn", "build-engine"],
        env={**os.environ, "PYTHONPATH": str(tmp_path / "fake")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    what, fix = done.stderr.splitlines()
    assert what == "cmudrn: cannot import tensorrt: libnvinfer.so.11 is missing"
    assert "--flavor rtx" in fix


def test_ctrl_c_ends_a_build_with_whole_engines_only(store: Path) -> None:
    command = [sys.executable, "-m", "cmudrn", "build-engine", "--loops", "1,7,7", "--size", "64,500"]
    running = subprocess.Popen([*command, "--flavor", "rtx"], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not list(store.glob("*.json")) and time.monotonic() < deadline:
        time.sleep(0.01)
    running.send_signal(signal.SIGINT)
    _, error = running.communicate(timeout=60)
    assert running.returncode == 130
    assert "interrupted" in error
    whole, broken = EngineStore(store).manifests()
    assert whole
    assert not broken
    assert main(["engines", "verify"]) == 0


def test_sizes_are_height_first_and_each_once() -> None:
    assert parse_sizes(["500", "720x1280,500", "500X500"]) == [(500, 500), (720, 1280)]
    with pytest.raises(UsageError):
        parse_sizes(["x500"])


def test_help_needs_neither_tensorrt_nor_onnx() -> None:
    assert onnxruntime.__version__  # there, so that its absence below says something
    code = (
        "import sys; from cmudrn.cli.app import main; main(['build-engine', '--help']); "
        "heavy = {'tensorrt', 'tensorrt_rtx', 'onnx', 'torch', 'onnxruntime', 'pycuda'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ))
    assert (done.returncode, done.stderr) == (0, "")
    assert "--loops" in done.stdout
