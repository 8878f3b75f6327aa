"""What our code uses of TensorRT exists in its real Python extension, in both majors, without TensorRT.

The extension comes in a wheel of its own. It is imported in a process of its own, on stand-ins for its
libraries, and compared in three ways: the dotted names in our source, the types and signatures of its
docstrings (mypy), and what a real build by TensorRT-RTX touches.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PARTS = ROOT / "tests" / "conformance"
WHEELS = Path(sys.prefix) / "bindings"  # `make test` downloads them
MAJORS = (10, 11)

# Of TensorRT-RTX alone; our code uses them for that flavour only.
RTX_ONLY = {
    "BuilderFlag.REQUIRE_USER_ALLOCATION",
    "ComputeCapability",
    "IBuilderConfig.num_compute_capabilities",
    "IBuilderConfig.set_compute_capability",
}

# In which majors each is wrong, and mypy's code for it.
MISTAKES = {
    "trt.BuilderFlag.FP16": {11: "attr-defined"},  # TensorRT 11 has no precision flags
    "trt.ProfilingVerbosity.THOROUGH": {10: "attr-defined", 11: "attr-defined"},
    "builder.create_graph()": {10: "attr-defined", 11: "attr-defined"},
    "config.progress_monitor()": {10: "operator", 11: "operator"},  # a property
    "config.get_timing_cache.serialize()": {10: "attr-defined", 11: "attr-defined"},  # a method
    "config.set_timing_cache(cache, ignore=True)": {10: "call-arg", 11: "call-arg"},
    "config.num_compute_capabilities": {10: "attr-defined", 11: "attr-defined"},
    "parser.parse(b'', path=1)": {10: "arg-type", 11: "arg-type"},
    "parser.parse(b'')": {},
}

# For each name: "missing", "property", "instancemethod", an enum's name, a class's own type ...
KINDS = """
import importlib, json, operator, sys
module = importlib.import_module(sys.argv[1])
def kind(name):
    try:
        return type(operator.attrgetter(name)(module)).__name__
    except AttributeError:
        return "missing"
print(json.dumps({name: kind(name) for name in sys.argv[2:]}))
"""

# The classes whose objects bytes() takes; no docstring tells. An object that was never initialised will do.
BUFFERS = """
import ctypes, json, tensorrt_bindings
check = ctypes.pythonapi.PyObject_CheckBuffer
classes = [value for value in vars(tensorrt_bindings).values() if isinstance(value, type)]
found = [cls.__name__ for cls in classes if check(ctypes.py_object(cls.__new__(cls)))]
print(json.dumps(found))
"""

# Where the stubs that stubgen reads out of docstrings say less than is so, or what is no Python.
REPAIRS = {
    "typing.SupportsInt": "int",  # what an argument may be; to our overrides the library gives an int
    "*args, **kwargs): ...": "*args: typing.Any, **kwargs: typing.Any) -> typing.Any: ...",
    "channel_axis: int) -> IScaleLayer": "channel_axis: int = ...) -> IScaleLayer",  # follows a default
}


def run(*command: str, path: Path | None = None, check: bool = True) -> str:
    """A fresh interpreter's stdout. path: searched first for modules."""
    env = os.environ | ({} if path is None else {"PYTHONPATH": str(path)})
    done = subprocess.run([sys.executable, *command], cwd=ROOT, env=env, capture_output=True, text=True)
    assert not check or done.returncode == 0, done.stderr
    return done.stdout


def kinds(module: str, names: Iterable[str], path: Path | None = None) -> dict[str, str]:
    found: dict[str, str] = json.loads(run("-c", KINDS, module, *sorted(names), path=path))
    return found


@pytest.fixture(scope="module")
def bindings(tmp_path_factory: pytest.TempPathFactory) -> Mapping[int, Path]:
    """For each major a folder from which `tensorrt_bindings` can be imported."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler `cc` for the stand-ins of TensorRT's libraries")
    folders = {}
    for major in MAJORS:
        wheels = sorted(WHEELS.glob(f"tensorrt_cu13_bindings-{major}.*.whl"))
        if not wheels:
            pytest.skip(f"no bindings of TensorRT {major} in {WHEELS}; `make test` downloads them")
        folders[major] = tmp_path_factory.mktemp(f"tensorrt{major}")
        with zipfile.ZipFile(wheels[-1]) as wheel:
            wheel.extractall(folders[major])
        for library in ("nvinfer", "nvinfer_plugin", "nvonnxparser"):
            # Beside the extension: it looks there first.
            made = folders[major] / "tensorrt_bindings" / f"lib{library}.so.{major}"
            source = PARTS / "stand_in.c"
            subprocess.run([compiler, "-shared", "-fPIC", "-o", str(made), str(source)], check=True)
    return folders


@cache
def our_sources() -> dict[Path, str]:
    """The modules that may use TensorRT."""
    paths = sorted(path for folder in ("engines", "deploy") for path in (ROOT / folder).rglob("*.py"))
    return {path: path.read_text(encoding="utf-8") for path in paths}


def dotted_names(source: str) -> set[str]:
    """What is read off TensorRT's module, however it is called there: Builder, ILogger.Severity ..."""
    tree = ast.parse(source)
    imports = (alias for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names)
    roots = {alias.asname or alias.name for alias in imports if alias.name in ("tensorrt", "tensorrt_rtx")}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and ast.unparse(node.value).endswith("library.module"):
            roots |= {ast.unparse(target) for target in node.targets}
    off = re.compile(rf"(?:{'|'.join(['(?:[a-z_]+[.])*library[.]module', *roots])})[.]([\w.]+)")
    chains = (ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute))
    return {match[1] for chain in chains if (match := off.fullmatch(chain))}


def for_rtx(name: str) -> bool:
    return any(f"{name}.".startswith(f"{only}.") for only in RTX_ONLY)


def test_dotted_names_are_found_under_any_name_of_the_module() -> None:
    source = "\n".join(
        [
            "import tensorrt as nv",
            "trt = self.library.module",
            "nv.Builder(trt.Logger.ERROR, library.module.Runtime, job.library.module.Refitter)",
            "others.trt.Dims, plan.module.Weights",
        ]
    )
    assert dotted_names(source) == {"Builder", "Logger", "Logger.ERROR", "Runtime", "Refitter"}


@pytest.mark.parametrize("major", MAJORS)
def test_every_dotted_name_in_our_source_exists(bindings: Mapping[int, Path], major: int) -> None:
    names = set().union(*(dotted_names(source) for source in our_sources().values()))
    assert {"Builder", "ProfilingVerbosity.DETAILED", "ILogger.Severity"} <= names
    found = kinds("tensorrt_bindings", names, bindings[major])
    assert {name for name, kind in found.items() if kind == "missing"} == set(filter(for_rtx, names))


@pytest.mark.parametrize("major", MAJORS)
def test_what_is_of_rtx_alone_is_missing(bindings: Mapping[int, Path], major: int) -> None:
    assert set(kinds("tensorrt_bindings", RTX_ONLY, bindings[major]).values()) == {"missing"}


def test_a_name_that_one_major_lacks_is_reported_for_that_one(bindings: Mapping[int, Path]) -> None:
    names = ["BuilderFlag.FP16", "BuilderFlag.MADE_UP"]
    found = {major: list(kinds("tensorrt_bindings", names, bindings[major]).values()) for major in MAJORS}
    assert found == {10: ["BuilderFlag", "missing"], 11: ["missing", "missing"]}


@pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="TensorRT-RTX is not installed")
@pytest.mark.parametrize("major", MAJORS)
def test_what_a_real_build_touches_is_of_the_same_kind(bindings: Mapping[int, Path], major: int) -> None:
    touched = json.loads(run(str(PARTS / "record.py")))
    assert {"Builder.build_serialized_network", "IBuilderConfig.progress_monitor"} <= set(touched)
    by_rtx = kinds("tensorrt_rtx", touched)
    assert "missing" not in by_rtx.values()
    found = kinds("tensorrt_bindings", touched, bindings[major])
    assert {name for name in touched if found[name] != by_rtx[name]} == set(filter(for_rtx, touched))


def write_stubs(bindings: Path, folder: Path) -> None:
    """The extension's classes and signatures, as its docstrings give them, as stubs of `tensorrt`."""
    stubgen = "from mypy.stubgen import main; main()"  # compiled: -m would not find it
    command = [
        "-c",
        stubgen,
        "--quiet",
        "--inspect-mode",
        "-m",
        "tensorrt_bindings.tensorrt",
        "-o",
        str(folder),
    ]
    run(*command, path=bindings)
    text = (folder / "tensorrt_bindings" / "tensorrt.pyi").read_text(encoding="utf-8")
    for wrong, right in REPAIRS.items():
        text = text.replace(wrong, right)
    for name in json.loads(run("-c", BUFFERS, path=bindings)):
        buffer = "    def __buffer__(self, flags: int, /) -> memoryview: ...\n"
        text = text.replace(f"class {name}:\n", f"class {name}:\n{buffer}")
    (folder / "tensorrt").mkdir()
    (folder / "tensorrt" / "__init__.pyi").write_text(f"import typing\n{text}", encoding="utf-8")


def write_house(folder: Path) -> None:
    """The installed layout in links, as `make check` gives it to mypy."""
    (folder / "cmudrn").mkdir()
    for path in [*(ROOT / "cmudrn").iterdir(), ROOT / "train", ROOT / "engines", ROOT / "deploy"]:
        (folder / "cmudrn" / path.name).symlink_to(path)


def write_mistakes(file: Path) -> None:
    parameters = (
        "builder: trt.Builder, config: trt.IBuilderConfig, cache: trt.ITimingCache, parser: trt.OnnxParser"
    )
    head = ["import tensorrt as trt", f"def make({parameters}) -> None:"]
    file.write_text("\n".join(head + [f"    {line}" for line in MISTAKES]), encoding="utf-8")


@pytest.fixture(scope="module")
def reports(bindings: Mapping[int, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[str]]:
    """For each major mypy's lines on the modules of ours that use TensorRT, and on the mistakes."""
    pytest.importorskip("mypy", reason="mypy is not installed")
    ours = [path for path, source in our_sources().items() if "import tensorrt as" in source]
    assert ROOT / "engines" / "build.py" in ours
    names = [".".join(["cmudrn", *path.relative_to(ROOT).with_suffix("").parts]) for path in ours]
    modules = [word for name in [*names, "mistakes"] for word in ("-m", name)]
    work = tmp_path_factory.mktemp("mypy")
    write_house(work)
    write_mistakes(work / "mistakes.py")
    found = {}
    for major in MAJORS:
        write_stubs(bindings[major], work / f"stubs{major}")
        options = ["--cache-dir", str(work / "cache"), "--follow-imports", "silent", "--no-pretty"]
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MYPYPATH", os.pathsep.join(map(str, (work, work / f"stubs{major}"))))
            found[major] = run("-m", "mypy", *options, *modules, check=False).splitlines()
    return found


@pytest.mark.parametrize("major", MAJORS)
def test_our_code_keeps_to_the_extensions_signatures(reports: Mapping[int, list[str]], major: int) -> None:
    summary = reports[major][-1]
    assert summary.startswith("Found ")  # the mistakes: mypy did run to its end
    assert [line for line in reports[major][:-1] if "mistakes.py" not in line] == []


@pytest.mark.parametrize("major", MAJORS)
def test_mistakes_are_reported_for_the_majors_they_are_of(
    reports: Mapping[int, list[str]], major: int
) -> None:
    errors = [re.search(r"mistakes\.py:(\d+): error: .*\[([a-z-]+)\]$", line) for line in reports[major]]
    found = {list(MISTAKES)[int(error[1]) - 3]: error[2] for error in errors if error}
    assert found == {line: codes[major] for line, codes in MISTAKES.items() if major in codes}
