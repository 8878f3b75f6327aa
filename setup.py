"""What pyproject.toml cannot say: the C++ library of `cmudrn.deploy.native`, where there is a compiler.

Without one, or where it fails, the package is complete but for that library, and ONNX Runtime restores.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "tools"))

from build_native import LIBRARY, BuildFailed, build, sources_of  # noqa: E402 (from the folder just named)

NAME = "cmudrn.deploy.native.library_file"  # as setuptools names it; the file's own name is LIBRARY


class BuildNative(build_ext):
    """Compiles the library in place of an extension module: Python loads it with ctypes."""

    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name))
        try:
            names = build(target, objects=Path(self.build_temp))
        except BuildFailed as exc:
            self.announce(f"cmudrn is built without kernels of its own: {exc}", level=logging.INFO)
            # A wheel without the library is for every platform.
            self.distribution.ext_modules = None
        else:
            self.announce(f"{target}: kernels for {', '.join(names)}", level=logging.INFO)

    def get_ext_filename(self, fullname: str) -> str:
        """Without the tag of a Python version: it knows of none."""
        *packages, _ = fullname.split(".")
        return str(Path(*packages, LIBRARY))


class WheelForAnyPython(bdist_wheel):
    """py3-none-PLATFORM with the library, py3-none-any without."""

    def run(self) -> None:
        if not self.skip_build:
            self.run_command("build_ext")  # whether there is a library decides where all files go
        self.root_is_pure = not self.distribution.has_ext_modules()
        super().run()

    def get_tag(self) -> tuple[str, str, str]:
        _, _, platform = super().get_tag()
        return "py3", "none", platform


setup(
    ext_modules=[
        Extension(
            NAME,
            [str(path.relative_to(ROOT)) for path in sources_of() if path.suffix == ".cpp"],
            depends=[str(path.relative_to(ROOT)) for path in sources_of()],
            optional=True,
        )
    ],
    cmdclass={"build_ext": BuildNative, "bdist_wheel": WheelForAnyPython},
)
