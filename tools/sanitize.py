"""The native kernels under sanitizers, with poisoned scratch, and on emulated processors.

    make sanitize
    python tools/sanitize.py [--few] [address|thread|emulated ...]

Builds deploy/native/ once for each, and runs tests/native/driver.cpp on it: sizes, configurations, threads
and instruction sets, each held to "direct". What cannot be had here is a line, and the rest is run all the
same. Exit code 1 where something failed.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from build_native import LIBRARY, ROOT, SOURCES, BuildFailed, build

__all__ = ["EMULATED", "SANITIZERS", "Missing", "Program", "Variant", "build_program", "emulator", "run"]

PROGRAMS = ROOT / "tests" / "native"
OBJECTS = ROOT / "build" / "native"
PROBE = "#include <thread>\nint main() { std::thread([] {}).join(); }\n"
HUNG_S = 3600.0


class Missing(Exception):
    """Without this, one of the runs cannot be had here."""


@dataclass(frozen=True)
class Variant:
    """A way to build the library and the program that calls it."""

    name: str
    flags: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict, hash=False)  # of the run


# -O1: of the unrolled kernels, -O3 with every access checked takes minutes to compile.
SANITIZERS = (
    # Scratch begins as NaN, so what is read before it is written shows in the image.
    Variant(
        "address",
        ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-DCMUDRN_POISON"),
        {"ASAN_OPTIONS": "detect_stack_use_after_return=1", "UBSAN_OPTIONS": "print_stacktrace=1"},
    ),
    # It sees no memcpy that GCC writes out, and by those strips hand on their edges.
    Variant(
        "thread",
        ("-O1", "-g", "-fsanitize=thread", "-fno-builtin-memcpy"),
        {"TSAN_OPTIONS": "halt_on_error=1"},
    ),
)
# qemu's name for a processor: the instruction sets that ours must find on it.
EMULATED: Mapping[str, tuple[str, ...]] = {
    "Haswell": ("avx2", "base", "direct"),  # as sold from 2013 on
    "Westmere": ("base", "direct"),  # 2010, before AVX
}


@dataclass(frozen=True)
class Program:
    """One of tests/native/, with a library of its own beside it."""

    path: Path
    library: Path
    isas: tuple[str, ...]  # instruction sets whose kernels the library holds
    variant: Variant


def build_program(source: str, variant: Variant, folder: Path) -> Program:
    """Compiles library and program into a folder. Raises Missing, with the reason."""
    if sys.platform != "linux":
        raise Missing("it needs Linux")
    compiler = shlex.split(os.environ.get("CXX", "")) or [shutil.which("c++") or shutil.which("g++") or ""]
    if not compiler[0]:
        raise Missing("no C++ compiler")
    folder.mkdir(parents=True, exist_ok=True)
    probe(compiler, variant, folder)
    try:
        isas = build(folder / LIBRARY, objects=OBJECTS, flags=variant.flags)
    except BuildFailed as exc:
        raise Missing(str(exc)) from exc
    made = folder / Path(source).stem
    command = [*compiler, "-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", "-pthread", *variant.flags]
    linking = [
        "-I",
        str(SOURCES),
        str(PROGRAMS / source),
        str(folder / LIBRARY),
        "-ldl",
        f"-Wl,-rpath,{folder}",
    ]
    subprocess.run([*command, *linking, "-o", str(made)], check=True)
    return Program(made, folder / LIBRARY, isas, variant)


def probe(compiler: Sequence[str], variant: Variant, folder: Path) -> None:
    """Raises Missing unless a program of two threads can be built so, and runs: a sanitizer has a runtime."""
    made = folder / "probe"
    command = [*compiler, *variant.flags, "-pthread", "-x", "c++", "-", "-o", str(made)]
    built = subprocess.run(command, input=PROBE, capture_output=True, text=True, check=False)
    if built.returncode:
        raise Missing(
            f"{compiler[0]} builds nothing with {shlex.join(variant.flags)}: {built.stderr.strip()}"
        )
    ran = subprocess.run([made], capture_output=True, text=True, check=False)
    if ran.returncode:
        raise Missing(f"nothing runs with {shlex.join(variant.flags)} here: {ran.stderr.strip()}")


def emulator(processor: str) -> tuple[str, ...]:
    """What runs a program as on that processor. Raises Missing."""
    found = shutil.which("qemu-x86_64") or shutil.which("qemu-x86_64-static")
    if found is None:
        raise Missing("no qemu-x86_64: apt install qemu-user")
    return (found, "-cpu", processor)


def run(
    program: Program, *arguments: str, under: Sequence[str] = (), timeout_s: float = HUNG_S
) -> subprocess.CompletedProcess[str]:
    """To its end, its stderr in its stdout. under: a command that starts it, such as an emulator."""
    done = subprocess.run(
        [*under, str(program.path), *arguments],
        env={**os.environ, **program.variant.environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    # qemu says at each start what of that processor it lacks: nothing that a program would see.
    lines = [
        line for line in done.stdout.splitlines(keepends=True) if "warning: TCG doesn't support" not in line
    ]
    return subprocess.CompletedProcess(done.args, done.returncode, "".join(lines))


def run_all(names: Sequence[str], plan: str, folder: Path) -> bool:
    """Prints what each run said. Returns whether none failed."""
    plain = Variant("plain")
    runs: list[tuple[str, Variant, str | None]] = [(one.name, one, None) for one in SANITIZERS]
    runs += [("emulated", plain, processor) for processor in EMULATED]
    passed = True
    for name, variant, processor in runs:
        if names and name not in names:
            continue
        print(f"== {name}{f', {processor}' if processor else ''}", flush=True)
        try:
            under = emulator(processor) if processor else ()
            program = build_program("driver.cpp", variant, folder / variant.name)
        except Missing as exc:
            print(f"skipped: {exc}")
            continue
        # An emulator takes a hundred times as long: a few cases are what there is time for.
        done = run(program, "fewest" if processor else plan, under=under)
        print(done.stdout, end="", flush=True)
        if done.returncode:
            print(f"FAILED: exit code {done.returncode}")
            passed = False
    return passed


def main() -> int:
    """Exit code 1 where a run failed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", help="address, thread, emulated; all without")
    parser.add_argument("--few", action="store_true", help="the sizes of the tests, not hundreds")
    told = parser.parse_args()
    unknown = set(told.names) - {*(one.name for one in SANITIZERS), "emulated"}
    if unknown:
        parser.error(f"no run is named {', '.join(sorted(unknown))}")
    with TemporaryDirectory(prefix="cmudrn-sanitize-") as folder:
        return 0 if run_all(told.names, "few" if told.few else "many", Path(folder)) else 1


if __name__ == "__main__":
    sys.exit(main())
