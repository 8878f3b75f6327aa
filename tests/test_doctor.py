"""`cmudrn doctor` on this installation, on broken ones, and on a CUDA driver in host memory."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from certificates import FAILED, PASSED
from hostcuda.build import Driver
from test_manifest import PLAN, manifest_of

from cmudrn.checkpoint import SHIPPED, read_checkpoint
from cmudrn.cli.app import main
from cmudrn.deploy.doctor.checkup import judge
from cmudrn.deploy.doctor.file_checks import check_cache, check_compiler
from cmudrn.deploy.doctor.findings import Diagnosis, Finding, Scene, State
from cmudrn.deploy.machine import Graphics, Machine
from cmudrn.deploy.native.library import is_built
from cmudrn.deploy.probe import MODULES, PROBES, Answer, ask
from cmudrn.engines.flavors import Flavor
from cmudrn.engines.spec import EngineSpec
from cmudrn.engines.store import EngineStore

ROOT = Path(__file__).parent.parent
MACHINE = Machine(
    cpu="A processor",
    cores=4,
    flags=("avx2",),
    memory_gb=32,
    system="Linux x86_64",
    python="3.12.1",
    versions={},
    driver="580.65.06",
    cuda="13.0",
    gpus=(Graphics(name="NVIDIA H100", target="sm90", memory_gb=80),),
)
WEIGHTS = "2" * 64
# A machine with a GPU where all is well, as the parts would tell of it.
HEALTHY: Mapping[str, Mapping[str, Any]] = {
    "torch": {"version": "2.13.0", "cuda": "13.0", "computes": True},
    "native": {"takes": "avx2", "isas": ["avx2", "base", "direct"], "bf16": False},
    "onnxruntime": {
        "version": "1.32.0",
        "providers": ["CUDAExecutionProvider", "CPUExecutionProvider"],
        "cuda_starts": True,
    },
    "graphs": {"weights": {"default-t1-uint8.onnx": WEIGHTS}, "absent": []},
    "weights": {"path": "default.safetensors", "sha256": WEIGHTS, "depths": [1, 3], "parameters": 24825},
    "images": {"version": "8.18.7", "reads": ["jpeg", "png", "tiff"], "writes": ["jpeg", "png", "tiff"]},
    "driver": {},
    "pycuda": {"version": "2026.1", "cuda": [13, 0]},
    "cuda-bindings": {"version": "13.0.1"},
    "tensorrt": {"version": "11.4.0.106", "targets": []},
    "rtx": {"version": "1.7.1.116", "targets": ["sm75", "sm89"]},
    "openvino": {"version": "2026.4.1-22982", "devices": ["CPU"], "bf16": True},
    "onnx": {"version": "1.23.2"},
}


@pytest.fixture
def store(tmp_path: Path) -> EngineStore:
    """With one certified engine, for the healthy machine."""
    store = EngineStore(tmp_path / "store")
    store.put(b"a plan", manifest_of(b"a plan", parity=PASSED))
    return store


def scene(
    store: EngineStore,
    changes: Mapping[str, Answer | Mapping[str, Any]] | None = None,
    *,
    machine: Machine = MACHINE,
) -> Scene:
    """The healthy one, but for some parts."""
    told = {**HEALTHY, **(changes or {})}
    answers = {part: one if isinstance(one, Answer) else Answer(facts=one) for part, one in told.items()}
    return Scene(answers, machine, {}, store)


def finding(diagnosis: Diagnosis, part: str) -> Finding:
    [found] = [one for one in diagnosis.findings if one.part == part]
    return found


def lines(output: str) -> dict[str, tuple[str, str]]:
    """By part, of what is printed into a pipe: how it is, and what was found."""
    rows = re.findall(r"^(ok|missing|mismatched) +(.+?)  +(.+)$", output, re.MULTILINE)
    return {part: (state, found) for state, part, found in rows}


# --- this installation ------------------------------------------------------------------------------------


def test_this_installation_works_and_is_left_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CMUDRN_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CMUDRN_STORE", raising=False)
    began = time.perf_counter()
    code = main(["doctor"])
    said = capsys.readouterr().out
    rows = lines(said)
    assert code == 0, said
    assert time.perf_counter() - began < 60
    assert {"cmudrn", "images", "weights", "graphs", "ONNX Runtime", "PyTorch", "cache"} <= {
        part for part, (state, _) in rows.items() if state == "ok"
    }
    assert {"driver", "GPU", "pycuda", "TensorRT", "TensorRT-RTX", "OpenVINO", "C compiler"} <= set(rows)
    assert rows["own kernels"][0] == ("ok" if is_built() else "missing")
    assert rows["engines"][0] == "missing"
    assert said.endswith("`cmudrn infer` works here.\n")
    assert list(tmp_path.iterdir()) == []


def test_every_part_that_can_be_asked_answers_or_says_why_not() -> None:
    for part in PROBES:
        answer = ask(part)
        assert not (answer.failure and part not in ("pycuda", "tensorrt")), (part, answer.failure)
        assert json.loads(json.dumps(answer.facts)) == answer.facts


def test_shipped_graphs_are_found_to_be_of_the_shipped_weights() -> None:
    graphs, weights = ask("graphs").facts, ask("weights").facts
    assert set(graphs["weights"]) == {path.name for path in SHIPPED.glob("*.onnx")}
    assert set(graphs["weights"].values()) == {weights["sha256"]}


def test_json_holds_the_same_and_the_facts(store: EngineStore) -> None:
    plain = json.loads(json.dumps(judge(scene(store)).to_json()))
    assert (plain["works"], plain["exit_code"]) == (True, 0)
    [gpu] = [one for one in plain["findings"] if one["part"] == "GPU"]
    assert (gpu["state"], gpu["facts"]["target"]) == ("ok", "sm90")
    assert all(one["state"] == "ok" and one["found"] and not one["fix"] for one in plain["findings"])


# --- broken ones ------------------------------------------------------------------------------------------

# What their modules do when they are imported, and what is said of it.
BROKEN = {
    "onnx": ("import ctypes; ctypes.string_at(0)", "SIGSEGV"),
    "openvino": ("raise ImportError('libopenvino.so: cannot open shared object file')", "libopenvino.so"),
    "torch": ("print('noise'); raise SystemExit(3)", "SystemExit: 3"),
    "tensorrt": ("raise RuntimeError('two\\nlines')", "two lines"),
    "tensorrt_rtx": ("__version__ = 5; import os; os._exit(7)", "exit code 7"),
}


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder for packages, and for what pip knows of them."""
    folder = tmp_path / "site"
    folder.mkdir()
    return folder


def install(site: Path, module: str, code: str) -> None:
    (site / f"{module}.py").write_text(code, encoding="utf-8")


# In its place where PyTorch itself isn't what is asked about: it is imported in no time.
QUICK_TORCH = "__version__ = '0'\nclass version: cuda = hip = None"


def run_doctor(site: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own, where the packages of `site` go before all others."""
    store = str(site / "no-engines")
    return subprocess.run(
        [sys.executable, "-m", "cmudrn", "doctor", *arguments],
        env={**os.environ, "PYTHONPATH": str(site), "CMUDRN_STORE": store, **environment},
        cwd=site.parent,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )


def test_whatever_an_import_does_becomes_a_line_and_the_rest_is_told(site: Path) -> None:
    for module, (code, _) in BROKEN.items():
        install(site, module, code)
    for name, version in (
        ("onnxruntime_gpu", "1.20.0"),
        ("tensorrt_cu12", "10.9"),
        ("tensorrt-cu13", "11.4"),
    ):
        (site / f"{name}-{version}.dist-info").mkdir()
        metadata = site / f"{name}-{version}.dist-info" / "METADATA"
        metadata.write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8")
    done = run_doctor(site)
    rows = lines(done.stdout)
    assert done.returncode == 1
    assert "Traceback" not in done.stdout + done.stderr
    named = {"onnx": "onnx", "openvino": "OpenVINO", "torch": "PyTorch", "tensorrt_rtx": "TensorRT-RTX"}
    for module, part in named.items():
        state, found = rows[part]
        assert state == "mismatched"
        assert BROKEN[module][1] in found
    assert rows["TensorRT"] == (
        "mismatched",
        "several over each other: tensorrt-cu12 10.9, tensorrt-cu13 11.4",
    )
    assert rows["ONNX Runtime"][0] == "mismatched"
    assert "onnxruntime-gpu 1.20.0" in rows["ONNX Runtime"][1]
    assert rows["images"][0] == rows["weights"][0] == rows["graphs"][0] == "ok"
    assert done.stdout.endswith("`cmudrn infer` works here.\n")


def test_without_onnx_runtime_it_is_said_that_nothing_works(site: Path) -> None:
    install(site, "onnxruntime", "raise ImportError('DLL load failed')")
    install(site, "torch", QUICK_TORCH)
    done = run_doctor(site, "--json")
    plain = json.loads(done.stdout)
    found = {one["part"]: one for one in plain["findings"]}
    assert done.returncode == plain["exit_code"] == 1
    assert not plain["works"]
    assert "DLL load failed" in found["ONNX Runtime"]["found"]
    assert found["ONNX Runtime"]["fix"] == "pip install --force-reinstall onnxruntime"
    assert found["PyTorch"]["state"] == "ok"


def test_files_of_the_working_folder_are_not_taken_for_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, "onnxruntime", "raise RuntimeError('somebody's notes')")
    install(tmp_path, "json", "raise RuntimeError('more notes')")
    monkeypatch.chdir(tmp_path)
    assert ask("onnxruntime").facts["providers"]


def test_an_import_that_never_ends_is_ended_with_all_that_it_started(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])"
    install(site, "onnx", f"import subprocess, sys, time; {child}; time.sleep(60)")
    monkeypatch.setenv("PYTHONPATH", str(site))
    monkeypatch.syspath_prepend(site)
    began = time.perf_counter()
    assert ask("onnx", timeout_s=2).failure == "no answer within 2 s"
    assert time.perf_counter() - began < 20


# --- what doesn't fit -------------------------------------------------------------------------------------


def test_a_machine_where_all_is_well_has_nothing_to_mend(store: EngineStore) -> None:
    diagnosis = judge(scene(store))
    assert diagnosis.exit_code == 0
    assert {one.state for one in diagnosis.findings} == {State.OK}


@pytest.mark.parametrize("part", MODULES)
def test_a_library_that_is_missing_is_no_error_unless_nothing_works_without(
    store: EngineStore, part: str
) -> None:
    (store.folder / f"{manifest_of(b'a plan').key}.json").unlink()  # or it would be another flavour's
    diagnosis = judge(scene(store, {part: Answer(installed=False)}))
    [gone] = [one for one in diagnosis.findings if one.state is State.MISSING and one.part != "engines"]
    assert gone.fix.startswith("pip install ")
    assert diagnosis.exit_code == (1 if part == "onnxruntime" else 0)


@pytest.mark.parametrize(
    ("part", "changes", "said", "mends"),
    [
        (
            "pycuda",
            {"pycuda": {"version": "2026.1", "cuda": [14, 1]}},
            "newer than the driver's 13.0",
            "pycuda",
        ),
        ("pycuda", {"pycuda": Answer(failure="undefined symbol: cuX")}, "undefined symbol", "--no-cache-dir"),
        ("cuda-bindings", {"cuda-bindings": {"version": "14.0"}}, "newer than", "'cuda-bindings==13.*'"),
        (
            "PyTorch",
            {"torch": {"version": "2.13.0", "cuda": "13.0", "error": "no kernel image is available"}},
            "no kernel image is available",
            "install a build",
        ),
        (
            "ONNX Runtime",
            {"onnxruntime": {**HEALTHY["onnxruntime"], "cuda_starts": False}},
            "CUDA does not start",
            "onnxruntime-gpu",
        ),
        (
            "own kernels",
            {"native": Answer(failure="libcmudrn.so: not a library of ours")},
            "not a library of ours",
            "pip install --force-reinstall --no-deps .",
        ),
        (
            "own kernels",
            {"native": Answer(failure="CMUDRN_ISA=z80: not here")},
            "z80",
            "unset CMUDRN_ISA",
        ),
        (
            "own kernels",
            {"native": Answer(failure="CMUDRN_ISA=avx512bf16: it rounds to bfloat16")},
            "rounds to bfloat16",
            "unset CMUDRN_ISA, and give --precision bf16",
        ),
        ("images", {"images": {**HEALTHY["images"], "writes": ["png", "tiff"]}}, "without jpeg", "pyvips"),
        (
            "graphs",
            {"weights": {**HEALTHY["weights"], "sha256": "3" * 64}},
            "of other weights",
            "make graphs",
        ),
        (
            "graphs",
            {"graphs": {"weights": {}, "absent": ["default-t1-uint8.onnx"]}},
            "not there",
            "reinstall",
        ),
        ("weights", {"weights": Answer(failure="not readable")}, "not readable", "reinstall"),
        ("driver", {"driver": {"error": "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH"}}, "DRIVER_MISMATCH", "reboot"),
    ],
)
def test_what_is_mismatched_is_named_with_what_mends_it(
    store: EngineStore, part: str, changes: dict[str, Any], said: str, mends: str
) -> None:
    diagnosis = judge(scene(store, changes))
    found = finding(diagnosis, part)
    assert (found.state, diagnosis.exit_code) == (State.MISMATCHED, 1)
    assert said in found.found
    assert mends in found.fix


def test_a_package_without_kernels_of_its_own_works_and_says_how_it_gets_them(store: EngineStore) -> None:
    diagnosis = judge(scene(store, {"native": {"absent": "libcmudrn.so"}}))
    found = finding(diagnosis, "own kernels")
    assert (found.state, diagnosis.exit_code) == (State.MISSING, 0)
    assert "make native" in found.fix


@pytest.mark.usefixtures("without_native")
def test_kernels_that_were_not_built_are_missing_and_broken_ones_a_failure(
    store: EngineStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = ask("native")
    assert "absent" in answer.facts
    found = finding(judge(scene(store, {"native": answer})), "own kernels")
    assert (found.state, found.fix) == (State.MISSING, "unset CMUDRN_NATIVE_LIBRARY")
    (tmp_path / "none.so").write_bytes(b"no library")
    assert "not a library of ours" in ask("native").failure


def test_a_machine_without_a_gpu_lacks_things_and_mismatches_nothing(store: EngineStore) -> None:
    machine = replace(MACHINE, driver=None, cuda=None, gpus=())
    changes: dict[str, Answer | Mapping[str, Any]] = {
        "driver": {"absent": "libcuda.so.1: cannot open shared object file"},
        "pycuda": Answer(failure="ImportError: libcuda.so.1"),
        "torch": {"version": "2.13.0+cpu", "cuda": None},
    }
    diagnosis = judge(scene(store, changes, machine=machine))
    lacking = {one.part for one in diagnosis.findings if one.state is State.MISSING}
    assert (lacking, diagnosis.exit_code) == ({"driver", "GPU", "pycuda"}, 0)
    assert "no GPU here" in finding(diagnosis, "engines").found


def test_hidden_gpus_are_said_to_be_hidden(store: EngineStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    hidden = replace(MACHINE, gpus=())
    found = finding(judge(scene(store, {"driver": {"error": "CUDA_ERROR_NO_DEVICE"}}, machine=hidden)), "GPU")
    assert (found.state, found.fix) == (State.MISSING, "unset CUDA_VISIBLE_DEVICES")


def test_a_check_that_fails_itself_is_a_finding_and_the_others_go_on(store: EngineStore) -> None:
    diagnosis = judge(scene(store, {"openvino": {"version": "2026.4"}}))  # without devices
    broken = finding(diagnosis, "openvino")
    assert broken.found == "cannot be checked: KeyError: 'bf16'"
    assert len(diagnosis.findings) == len(judge(scene(store)).findings)


# --- engines ----------------------------------------------------------------------------------------------


def engines(
    store: EngineStore,
    changes: Mapping[str, Answer | Mapping[str, Any]] | None = None,
    *,
    machine: Machine = MACHINE,
    part: str = "engines",
) -> Finding:
    return finding(judge(scene(store, changes, machine=machine)), part)


def test_engines_are_counted_and_those_that_run_here(store: EngineStore) -> None:
    other = manifest_of(b"other", target="sm80", parity=PASSED)
    store.put(b"other", other)
    found = engines(store)
    assert found.facts == {"engines": 2, "of_version": 2, "for_gpu": 1}
    assert found.state is State.OK


def test_engines_of_another_version_only_are_mismatched_with_the_command_that_builds_one(
    store: EngineStore,
) -> None:
    found = engines(store, {"tensorrt": {"version": "11.5.0.1"}, "rtx": Answer(installed=False)})
    assert found.state is State.MISMATCHED
    assert "all of TensorRT 11.4.0.106; here: TensorRT 11.5.0.1" in found.found
    assert found.fix == (
        "cmudrn build-engine --loops 3 --size 500x400 --batch 8 --weights FILE --flavor tensorrt "
        f"--store {store.folder}"
    )
    shipped = manifest_of(weights_sha256=read_checkpoint("default").sha256)
    store.put(PLAN, shipped)
    found = engines(store, {"tensorrt": {"version": "11.5.0.1"}, "rtx": Answer(installed=False)})
    assert found.fix == (
        f"cmudrn build-engine --loops 3 --size 500x400 --batch 8 --flavor tensorrt --store {store.folder}"
    )


def test_engines_for_another_gpu_only_are_mismatched(store: EngineStore) -> None:
    machine = replace(MACHINE, gpus=(replace(MACHINE.gpus[0], target="sm89"),))
    found = engines(store, machine=machine)
    assert found.state is State.MISMATCHED
    assert "for sm90; here: sm89" in found.found


def test_a_broken_engine_is_named_with_its_reason(store: EngineStore) -> None:
    broken = manifest_of(b"another plan", EngineSpec(loops=1, height=64, width=64), flavor=Flavor.RTX)
    store.put(b"another plan", broken)
    (store.folder / f"{broken.key}.engine").write_bytes(b"another PLAN")
    diagnosis = judge(scene(store))
    [first, second] = [one for one in diagnosis.findings if one.part == "engines"]
    assert (first.state, second.state, diagnosis.exit_code) == (State.MISMATCHED, State.OK, 1)
    assert "1 engine broken" in first.found
    assert "SHA-256" in first.found
    assert first.fix.startswith(f"cmudrn engines remove {broken.key} --store {store.folder}")


def test_certificates_are_counted_and_a_failed_one_is_mismatched(store: EngineStore) -> None:
    assert engines(store, part="certificates").found == "1 of 1 engine certified"
    store.put(b"second", replace(manifest_of(b"second"), target="sm80"))
    uncertified = engines(store, part="certificates")
    assert (uncertified.state, uncertified.facts.get("certified")) == (State.MISSING, None)
    assert uncertified.fix == f"cmudrn parity-check --store {store.folder}"
    store.put(b"second", replace(manifest_of(b"second"), target="sm80", parity=FAILED))
    failed = engines(store, part="certificates")
    assert failed.state is State.MISMATCHED
    assert "1 of 2 engines certified, 1 failed" in failed.found
    assert "31.00 dB" in failed.found


def test_a_store_that_is_a_file_is_mismatched(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert engines(EngineStore(tmp_path / "file")).state is State.MISMATCHED


# --- compiler and cache -----------------------------------------------------------------------------------


@pytest.mark.parametrize("compiler", ["false", "/no/such/cc -O2"])
def test_a_compiler_that_does_not_compile_is_as_good_as_none(
    store: EngineStore, monkeypatch: pytest.MonkeyPatch, compiler: str
) -> None:
    monkeypatch.setenv("CC", compiler)
    [found] = check_compiler(scene(store))
    assert found.state is State.MISSING
    assert compiler.split()[0] in found.found


def test_without_a_compiler_that_is_missing(store: EngineStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", "/no/such/folder")
    [found] = check_compiler(scene(store))
    assert found.state is State.MISSING


def test_a_cache_without_room_or_with_a_file_in_its_way_is_mismatched(
    store: EngineStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CMUDRN_CACHE", str(tmp_path / "new" / "cache"))
    assert [one.state for one in check_cache(scene(store))] == [State.OK]
    monkeypatch.setattr("cmudrn.deploy.doctor.file_checks.LEAST_FREE_MB", 1 << 50)
    [full] = check_cache(scene(store))
    assert (full.state, "MB free" in full.found) == (State.MISMATCHED, True)
    (tmp_path / "new").write_text("")
    [blocked] = check_cache(scene(store))
    assert (blocked.state, "cannot be written to" in blocked.found) == (State.MISMATCHED, True)


# --- how it looks -----------------------------------------------------------------------------------------


def test_extras_in_the_commands_are_those_of_the_package(store: EngineStore) -> None:
    missing = {part: Answer(installed=False) for part in MODULES}
    fixes = [one.fix for one in judge(scene(store, missing)).findings]
    named = {extra for fix in fixes for extra in re.findall(r"cmudrn\[(.+?)\]", fix)}
    declared = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert {"train", "tensorrt", "rtx", "cuda"} <= named
    for extra in named:
        assert re.search(rf"^{extra} = \[", declared, re.MULTILINE), extra


def test_on_a_terminal_it_is_a_coloured_table_and_long_lines_fold(site: Path) -> None:
    install(site, "torch", QUICK_TORCH)
    wide, narrow = (
        run_doctor(site, FORCE_COLOR="1", COLUMNS=columns, TERM="xterm").stdout for columns in ("200", "60")
    )
    assert "\x1b[32mok" in wide
    assert max(len(re.sub(r"\x1b\[[0-9;]*m", "", line)) for line in narrow.splitlines()) <= 60
    assert len(narrow.splitlines()) > len(wide.splitlines())


# --- on a GPU, in host memory -----------------------------------------------------------------------------


def under_driver(driver: Driver, site: Path, **settings: object) -> tuple[int, dict[str, Any]]:
    install(site, "torch", QUICK_TORCH)
    path = os.pathsep.join([str(site), driver.environment({})["PYTHONPATH"]])
    done = driver.run(
        ["-m", "cmudrn", "doctor", "--json", "--store", site / "none"], {**settings, "PYTHONPATH": path}
    )
    plain = json.loads(done.process.stdout)
    return done.returncode, {one["part"]: one for one in plain["findings"]}


def test_a_gpu_its_driver_and_what_was_built_for_them_are_told(driver: Driver, site: Path) -> None:
    code, found = under_driver(driver, site)
    assert code == 0, found
    assert found["GPU"]["found"].startswith("Host memory 0, sm89")
    assert found["driver"]["facts"] == {"cuda": "13.0"}
    assert found["TensorRT"]["facts"]["version"] == "11.4.0.1"
    assert found["pycuda"]["state"] == "ok"


def test_pycuda_of_a_newer_cuda_than_the_drivers_is_mismatched(driver: Driver, site: Path) -> None:
    code, found = under_driver(driver, site, HOSTCUDA_VERSION=11080)
    assert code == 1
    assert found["pycuda"]["state"] == "mismatched"
    assert "newer than the driver's 11.8" in found["pycuda"]["found"]


def test_a_driver_that_shows_no_gpu_or_does_not_start_is_told(driver: Driver, site: Path) -> None:
    code, found = under_driver(driver, site, HOSTCUDA_DEVICES=0)
    assert (code, found["GPU"]["state"]) == (0, "missing")
    code, found = under_driver(driver, site, HOSTCUDA_FAIL="cuInit:1")
    assert (code, found["driver"]["state"], found["GPU"]["state"]) == (1, "mismatched", "missing")


def test_examining_imports_nothing_that_may_be_broken(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from cmudrn.deploy.doctor.checkup import examine;"
        "from cmudrn.engines.store import EngineStore; examine(EngineStore(Path('none')));"
        "print(*{name.split('.')[0] for name in sys.modules})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    heavy = {"torch", "onnx", "onnxruntime", "openvino", "tensorrt", "tensorrt_rtx", "pycuda", "pyvips"}
    assert not heavy & set(done.stdout.split())
