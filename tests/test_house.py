"""The house: arrows between folders go one way, light things stay light, public names say what they are."""

from __future__ import annotations

import ast
import importlib
import inspect
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cmudrn.deploy.native.library import is_built

ROOT = Path(__file__).parent.parent
# DESIGN 3: what a folder may import of ours, beside itself.
MAY_IMPORT = {"cmudrn": set(), "train": {"cmudrn"}, "engines": {"cmudrn"}, "deploy": {"cmudrn", "engines"}}
STAGES = {"train", "engines", "deploy"}
HEAVY = {
    "torch",
    "onnx",
    "onnxruntime",
    "openvino",
    "tensorrt",
    "pycuda",
    "matplotlib",
    "pyvips",
    "scipy",
    "PIL",
    "cv2",
    "av",
}


def modules(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def module_name(path: Path) -> str:
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    if parts[0] != "cmudrn":
        parts.insert(0, "cmudrn")
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the arrow"
            assert node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def folder_of(module: str) -> str | None:
    """The folder that an imported name of ours lives in."""
    parts = module.split(".")
    if parts[0] != "cmudrn":
        return None
    return parts[1] if len(parts) > 1 and parts[1] in STAGES else "cmudrn"


@pytest.mark.parametrize(
    "path",
    [path for folder in MAY_IMPORT for path in modules(folder)],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_imports_never_go_up(path: Path) -> None:
    own = path.relative_to(ROOT).parts[0]
    # The command line introduces the rooms to each other: it imports the stages, inside its commands.
    allowed = {own} | MAY_IMPORT[own] | (STAGES if path.parent.name == "cli" else set())
    found = {folder for name in imported(path) if (folder := folder_of(name))}
    assert found <= allowed


def loaded_by(code: str, cwd: Path) -> set[str]:
    """Top-level packages that are loaded after `code` ran in a fresh interpreter."""
    probe = f"{code}\nimport sys; print(*{{name.split('.')[0] for name in sys.modules}}, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", probe], cwd=cwd, capture_output=True, text=True, check=True)
    return set(done.stderr.split())


@pytest.mark.parametrize(
    "code",
    [
        "import cmudrn",
        "from cmudrn.cli.app import main; main(['--help'])",
        "from cmudrn.cli.app import main; main(['infer', '--help'])",
        "from cmudrn.cli.app import main; main(['--version'])",
    ],
)
def test_importing_and_asking_for_help_load_nothing_heavy(code: str, tmp_path: Path) -> None:
    assert not loaded_by(code, tmp_path) & HEAVY


@pytest.mark.parametrize("backend", ["onnx", "auto"])
def test_restoring_needs_neither_torch_nor_onnx(tmp_path: Path, backend: str) -> None:
    import numpy as np

    from cmudrn.formats import ImageFormat
    from cmudrn.images import Picture, write_picture

    picture = Picture(np.zeros((8, 8, 3), np.uint8), None, ImageFormat.PNG, False, 1, (1.0, 1.0), {})
    write_picture(picture, tmp_path / "a.png")
    options = ["infer", "a.png", "-o", "b.png", "--backend", backend]
    loaded = loaded_by(f"from cmudrn.cli.app import main; assert main({options}) == 0", tmp_path)
    # Our own kernels need no library at all.
    assert bool({"onnxruntime", "openvino"} & loaded) is not (backend == "auto" and is_built())
    assert not loaded & {"torch", "onnx", "scipy", "PIL"}


@pytest.mark.parametrize(
    "path",
    [path for folder in MAY_IMPORT for path in modules(folder) if path.name != "__main__.py"],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_listed_names_are_there_and_documented(path: Path) -> None:
    module = importlib.import_module(module_name(path))
    listed = getattr(module, "__all__", [])
    for name in listed:
        public = getattr(module, name)
        if inspect.isclass(public) or inspect.isfunction(public):
            assert public.__doc__, f"{module.__name__}.{name} has no docstring"
