"""Compile deploy/native/*.cpp into the shared library that `cmudrn.deploy.native` loads.

`make native` runs it in a checkout, setup.py whenever the package is built: so it needs nothing but Python
and a C++ compiler, CXX or the first of c++, g++ and clang++. Nothing in it depends on the processor at hand:
each instruction set is a file of its own, compiled for that set alone; what calls them chooses at run time.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

__all__ = ["LIBRARY", "SOURCES", "BuildFailed", "build", "sources_of"]

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "deploy" / "native"
LIBRARY = {"win32": "cmudrn.dll", "darwin": "libcmudrn.dylib"}.get(sys.platform, "libcmudrn.so")
FLAGS_VARIABLE = "CMUDRN_NATIVE_FLAGS"  # added to all, for sanitizers

# No contraction: on ARM it would round pixels once where the graph rounds twice. Kernels say otherwise below.
FLAGS = (
    "-std=c++17",
    "-O3",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fvisibility=hidden",
)
# Windows has neither: there all code can be moved, and threads need no library.
SHARED = () if sys.platform == "win32" else ("-fPIC", "-pthread")
# What is missing is found out here, not when the library is loaded; a sanitizer's functions are found then.
WHOLE = ("-Wl,-z,defs",) if sys.platform == "linux" else ()
# ReLU is one instruction only where neither NaN nor -0 must come out as the comparison has them.
OF_KERNELS = ("-ffinite-math-only", "-fno-signed-zeros", "-ffp-contract=fast")
FORGET_AFTER_S = 7 * 24 * 3600
AVX512 = ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512")


class BuildFailed(Exception):
    """No library was made; in a line, why."""


@dataclass(frozen=True)
class InstructionSet:
    """Kernels for one kind of processor: kernels_NAME.cpp."""

    name: str
    flags: tuple[str, ...] = ()
    macros: tuple[str, ...] = ()  # that the compiler defines where it takes the flags at their word

    @property
    def source(self) -> str:
        return f"kernels_{self.name}.cpp"

    @property
    def define(self) -> str:
        """Tells the other files that these kernels are in the library."""
        return f"-DCMUDRN_WITH_{self.name.upper()}"


INSTRUCTION_SETS = (
    InstructionSet("base"),
    InstructionSet("avx2", ("-mavx2", "-mfma"), ("__AVX2__", "__FMA__")),
    InstructionSet("avx512", AVX512, ("__AVX512F__", "__AVX512BW__", "__AVX512DQ__", "__AVX512VL__")),
    InstructionSet("avx512bf16", (*AVX512, "-mavx512bf16"), ("__AVX512BF16__",)),
)


@dataclass(frozen=True)
class Compiler:
    """A C++ compiler that takes GCC's options, and what all files are compiled with."""

    command: tuple[str, ...]
    extra: tuple[str, ...] = ()

    @classmethod
    def found(cls, extra: Sequence[str] = ()) -> Compiler:
        """CXX, or the first that is installed. Raises BuildFailed."""
        told = shlex.split(os.environ.get("CXX", ""))  # `ccache g++` is two words
        names = ("clang++",) if sys.platform == "win32" else ("c++", "g++", "clang++")
        there = [path for name in names if (path := shutil.which(name))]
        if not told and not there:
            raise BuildFailed(f"no C++ compiler: none of {', '.join(names)}, and CXX is not set")
        # macOS names there the processors that a wheel is for.
        archs = shlex.split(os.environ.get("ARCHFLAGS", "")) if sys.platform == "darwin" else []
        return cls(tuple(told or there[:1]), (*archs, *extra))

    def run(self, *arguments: str, text: str | None = None) -> str:
        """What it prints. Raises BuildFailed with the compiler's first error."""
        command = [*self.command, *arguments, *self.extra]  # the last of two -O counts
        try:
            done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
        except OSError as exc:
            raise BuildFailed(f"{self.command[0]}: {exc.strerror}") from exc
        if done.returncode:
            lines = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
            # The linker's own, not what is said of the linker; else whatever comes first.
            errors = [line for line in lines if "undefined" in line or "error:" in line]
            said = next(iter(errors or lines), "")
            raise BuildFailed(f"{shlex.join(self.command)}: {said or f'exit code {done.returncode}'}")
        return done.stdout

    def knows(self, instructions: InstructionSet) -> bool:
        """Whether it can compile for them: an older one, or one for another architecture, cannot.

        By what it defines, for one that merely warns of a flag ignores it.
        """
        test = "".join(f"#if !defined({macro})\n#error {macro}\n#endif\n" for macro in instructions.macros)
        try:
            self.run(*instructions.flags, "-fsyntax-only", "-x", "c++", "-", text=test)
        except BuildFailed:
            return False
        return True


@dataclass(frozen=True)
class Unit:
    """One source file and its own flags."""

    source: Path
    flags: tuple[str, ...]


def sources_of(folder: Path = SOURCES) -> list[Path]:
    """All that the library is compiled from, headers included."""
    return sorted(path for path in folder.iterdir() if path.suffix in {".cpp", ".hpp", ".h"})


def common_hash(folder: Path, compiler: Compiler) -> str:
    """What all units depend on: every header (which file includes which is not looked at), the compiler."""
    whole = hashlib.sha256(compiler.run("--version").encode())
    for path in sources_of(folder):
        if path.suffix != ".cpp":
            whole.update(path.read_bytes())
    return whole.hexdigest()


def units_of(folder: Path, compiler: Compiler) -> list[Unit]:
    """The files to compile, in the order to link them.

    Those for newer processors last: where two files hold the same inline function, the linker keeps the
    first, which runs on all.
    """
    kernels = [one for one in INSTRUCTION_SETS if (folder / one.source).is_file() and compiler.knows(one)]
    defines = tuple(one.define for one in kernels)
    for_some = {one.source for one in INSTRUCTION_SETS}
    for_all = sorted(path for path in folder.glob("*.cpp") if path.name not in for_some)
    return [Unit(path, defines) for path in for_all] + [
        Unit(folder / one.source, (*OF_KERNELS, *one.flags)) for one in kernels
    ]


def compile_unit(unit: Unit, compiler: Compiler, common: str, objects: Path) -> Path:
    """Compiled before from the same text by the same command, it is taken as it is. common: `common_hash`."""
    command = (*FLAGS, *SHARED, *unit.flags)
    key = hashlib.sha256(unit.source.read_bytes())
    key.update("\0".join([common, *compiler.command, *compiler.extra, *command]).encode())
    made = objects / f"{unit.source.stem}-{key.hexdigest()[:16]}.o"
    if not made.is_file():
        part = made.with_suffix(f".{os.getpid()}.part")
        try:
            compiler.run(*command, "-c", str(unit.source), "-o", str(part))
            part.replace(made)
        finally:
            part.unlink(missing_ok=True)
    made.touch()
    return made


def forget_old(objects: Path) -> None:
    """Removes what no build has used for long: every change of a source leaves its objects behind."""
    for made in objects.glob("*.o"):
        with suppress(OSError):  # another build's, or gone
            if time.time() - made.stat().st_mtime > FORGET_AFTER_S:
                made.unlink()


def build(
    target: Path, *, objects: Path, flags: Sequence[str] = (), folder: Path = SOURCES, jobs: int | None = None
) -> tuple[str, ...]:
    """Compiles the library, then puts it in the place of what was there before: until then, that one works.

    objects: a folder for what is compiled, kept to be quicker the next time. flags: for all files.
    Returns the names of the instruction sets in it. Raises BuildFailed; nothing is there then, for kernels
    of other sources than those beside them would go on unnoticed.
    """
    try:
        try:
            return built(target, objects=objects, flags=flags, folder=folder, jobs=jobs)
        except OSError as exc:  # no room, or no permission
            raise BuildFailed(f"{exc.filename or target}: {exc.strerror}") from exc
    except BuildFailed as exc:
        if not target.exists():
            raise
        target.unlink()
        raise BuildFailed(f"{exc}; {target}, of an earlier build, is removed") from exc


def built(
    target: Path, *, objects: Path, flags: Sequence[str], folder: Path, jobs: int | None
) -> tuple[str, ...]:
    """As `build`, but what is there stays where it fails."""
    told = shlex.split(os.environ.get(FLAGS_VARIABLE, ""))
    compiler = Compiler.found((*flags, *told))
    units = units_of(folder, compiler)
    if not units:
        raise BuildFailed(f"{folder}: no sources")
    for needed in (objects, target.parent):
        needed.mkdir(parents=True, exist_ok=True)
    compiling = partial(
        compile_unit, compiler=compiler, common=common_hash(folder, compiler), objects=objects
    )
    with ThreadPoolExecutor(jobs or os.cpu_count()) as pool:
        compiled = list(pool.map(compiling, units))
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".native-") as scratch:
        made = Path(scratch, target.name)
        whole = () if compiler.extra else WHOLE
        compiler.run(*SHARED, "-shared", *whole, *map(str, compiled), "-o", str(made))
        made.replace(target)
    forget_old(objects)
    names = {unit.source.name for unit in units}
    return tuple(one.name for one in INSTRUCTION_SETS if one.source in names)


def main() -> int:
    """Exit code 1 where nothing was made, unless that is no harm."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--flags", default="", help="for all files: --flags=-fsanitize=address")
    parser.add_argument("-o", dest="target", type=Path, default=SOURCES / LIBRARY, metavar="FILE")
    parser.add_argument("--optional", action="store_true", help="where it cannot be built, only say so")
    told = parser.parse_args()
    try:
        names = build(told.target, objects=ROOT / "build" / "native", flags=shlex.split(told.flags))
    except BuildFailed as exc:
        print(f"no own kernels: {exc}", file=sys.stderr)
        return 0 if told.optional else 1
    print(f"{told.target}: {', '.join(names)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
