"""The library of our own kernels: building it, finding it, and what is said where that fails."""

from __future__ import annotations

import ctypes
import os
import shlex
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from build_native import (
    INSTRUCTION_SETS,
    LIBRARY,
    ROOT,
    SOURCES,
    BuildFailed,
    Compiler,
    build,
    common_hash,
    compile_unit,
    main,
    units_of,
)
from random_weights import random_checkpoint
from test_backends import printed_by
from test_graph import random_image

from cmudrn.deploy.native import NativeBackend
from cmudrn.deploy.native.library import (
    NativeNetwork,
    NativeSession,
    NetworkConfig,
    chosen_isa,
    is_built,
    kernels_version,
    library_path,
    load_library,
    usable_isas,
)
from cmudrn.deploy.probe import ask
from cmudrn.engines.spec import EngineSpec, Precision
from cmudrn.errors import EnvironmentMissing, UsageError

CHECKPOINT = random_checkpoint()
FP32 = EngineSpec(loops=1, height=8, width=8, precision=Precision.FP32)
BF16 = EngineSpec(loops=1, height=8, width=8, precision=Precision.BF16)
COMPILER = next((path for name in ("c++", "g++", "clang++") if (path := shutil.which(name))), "")
WITH_COMPILER = pytest.mark.skipif(not COMPILER, reason="no C++ compiler: install g++")
BUILT = pytest.mark.skipif(not is_built(), reason="the package has no kernels of its own here: make native")
UNIX = pytest.mark.skipif(sys.platform == "win32", reason="by a script of the shell")

# A whole library behind the interface, whose one fast instruction set restores all as grey.
WRONG = """
#include <cstring>
#include "cmudrn_native.h"
struct cmudrn_network { float grey; };
struct cmudrn_session { float grey; };
int cmudrn_abi() { return CMUDRN_ABI; }
const char *cmudrn_isas() { return "avx2,direct"; }
int cmudrn_has_isa(const char *isa) { return !std::strcmp(isa, "avx2") || !std::strcmp(isa, "direct"); }
cmudrn_network *cmudrn_network_new(const float *, size_t, const cmudrn_config *, const char *isa) {
    return new cmudrn_network{std::strcmp(isa, "direct") ? 0.5f + OFF : 0.5f};
}
void cmudrn_network_free(cmudrn_network *network) { delete network; }
cmudrn_session *cmudrn_session_new(const cmudrn_network *network, int) {
    return new cmudrn_session{network->grey};
}
void cmudrn_session_free(cmudrn_session *session) { delete session; }
uint64_t cmudrn_session_bytes(const cmudrn_session *, int, int, int) { return 0; }
int cmudrn_restore(cmudrn_session *session, const void *, void *out,
                   int images, int rows, int columns, int, int) {
    for (int value = 0; value < images * rows * columns * 3; ++value)
        static_cast<float *>(out)[value] = session->grey;
    return CMUDRN_OK;
}
"""

# Tells which kernels were compiled with it, as a sum.
CALLER = """
#include "shared.h"
int found() {
    int sum = 0;
#ifdef CMUDRN_WITH_BASE
    sum += base();
#endif
#ifdef CMUDRN_WITH_AVX2
    sum += avx2();
#endif
#ifdef CMUDRN_WITH_AVX512
    sum += avx512();
#endif
    return sum;
}
"""
HEADER = """
extern "C" __attribute__((visibility("default"))) int found();
int base();
int avx2();
int avx512();
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Sources of a small library, with kernels for every processor and for AVX2."""
    made = tmp_path / "sources"
    made.mkdir()
    (made / "caller.cpp").write_text(CALLER)
    (made / "shared.h").write_text(HEADER)
    (made / "kernels_base.cpp").write_text('#include "shared.h"\nint base() { return 1; }\n')
    (made / "kernels_avx2.cpp").write_text(
        "#ifndef __AVX2__\n#error compiled without its flags\n#endif\n"
        '#include "shared.h"\nint avx2() { return 2; }\n'
    )
    return made


def built(folder: Path, *, flags: tuple[str, ...] = ()) -> tuple[tuple[str, ...], int]:
    """The instruction sets in it, and what the library finds."""
    target = folder.parent / f"{len(list(folder.parent.iterdir()))}-{LIBRARY}"  # a name is loaded but once
    names = build(target, objects=folder.parent / "objects", folder=folder, flags=flags)
    return names, ctypes.CDLL(str(target)).found()


def compiler_that(folder: Path, does: str) -> str:
    """A compiler for CXX that first does something in the shell with its arguments, "$@"."""
    script = folder / "compiler"
    script.write_text(f'#!/bin/sh\n{does}\nexec {shlex.quote(COMPILER)} "$@"\n')
    script.chmod(0o755)
    return str(script)


# --- building ---------------------------------------------------------------------------------------------


@WITH_COMPILER
@UNIX
def test_kernels_whose_flags_the_compiler_does_not_know_are_left_out(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusing = compiler_that(tmp_path, 'case "$*" in *-mavx*) echo "error: unknown" >&2; exit 1;; esac')
    monkeypatch.setenv("CXX", refusing)
    assert built(folder) == (("base",), 1)
    # One that merely ignores such a flag cannot compile for these processors either.
    ignoring = compiler_that(
        tmp_path, 'for told; do shift; case "$told" in -m*) ;; *) set -- "$@" "$told";; esac; done'
    )
    monkeypatch.setenv("CXX", ignoring)
    assert built(folder) == (("base",), 1)


@WITH_COMPILER
def test_kernels_that_are_there_and_can_be_compiled_are_known_to_the_rest(folder: Path) -> None:
    names, found = built(folder)
    assert (names, found) in [(("base", "avx2"), 3), (("base",), 1)]  # the latter on another architecture
    (folder / "kernels_avx2.cpp").unlink()
    assert built(folder) == (("base",), 1)


@WITH_COMPILER
@UNIX
def test_what_has_not_changed_is_not_compiled_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "compiled"
    told = f'case "$*" in *" -c "*) echo "$*" >> {shlex.quote(str(log))};; esac'
    monkeypatch.setenv("CXX", compiler_that(tmp_path, told))
    (folder / "kernels_avx2.cpp").unlink()

    def compiled(change: Callable[[], object]) -> int:
        log.write_text("")
        change()
        built(folder)
        return len(log.read_text().splitlines())

    def edit(name: str) -> Callable[[], object]:
        return lambda: (folder / name).write_text((folder / name).read_text() + "// edited\n")

    assert compiled(lambda: None) == 2
    assert compiled(lambda: None) == 0
    assert compiled(edit("caller.cpp")) == 1
    assert compiled(edit("shared.h")) == 2


@WITH_COMPILER
def test_flags_of_ones_own_go_to_every_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("caller.cpp", "kernels_base.cpp"):
        source = (folder / name).read_text()
        (folder / name).write_text(f"#if SANITIZED + 0 != 7\n#error without\n#endif\n{source}")
    with pytest.raises(BuildFailed, match="without"):
        built(folder)
    assert built(folder, flags=("-DSANITIZED=7",))
    monkeypatch.setenv("CMUDRN_NATIVE_FLAGS", "-DSANITIZED=7 -g")
    assert built(folder)


@WITH_COMPILER
@pytest.mark.parametrize(
    "broken", ["int found() { return nonsense; }", "int elsewhere(); int f() { return elsewhere(); }"]
)
def test_a_build_that_fails_says_why_and_leaves_no_library(folder: Path, broken: str) -> None:
    target = folder.parent / LIBRARY
    build(target, objects=folder.parent / "objects", folder=folder)
    (folder / "caller.cpp").write_text(broken)
    if sys.platform != "linux" and "elsewhere" in broken:
        pytest.skip("this linker asks for it by itself, or leaves it to the loader")
    with pytest.raises(BuildFailed, match=r"nonsense|elsewhere") as failed:
        build(target, objects=folder.parent / "objects", folder=folder)
    assert "\n" not in str(failed.value)
    assert not target.exists()
    assert not list(folder.parent.glob(".native-*"))
    assert f"{target}, of an earlier build, is removed" in str(failed.value)
    with pytest.raises(BuildFailed) as again:
        build(target, objects=folder.parent / "objects", folder=folder)
    assert "earlier" not in str(again.value)


@WITH_COMPILER
@UNIX
def test_the_library_that_is_there_stays_while_another_one_is_compiled(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, log = tmp_path / LIBRARY, tmp_path / "seen"
    build(target, objects=tmp_path / "objects", folder=folder)
    before = target.stat().st_ino
    told = f"ls -i {shlex.quote(str(target))} >> {shlex.quote(str(log))} || exit 1"
    monkeypatch.setenv("CXX", compiler_that(tmp_path, told))
    build(target, objects=tmp_path / "objects", folder=folder)
    assert {line.split()[0] for line in log.read_text().splitlines()} == {
        str(before)
    }  # of every file, and when it is linked
    assert target.stat().st_ino != before


@WITH_COMPILER
@UNIX
def test_another_version_of_the_compiler_compiles_anew(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects = tmp_path / "objects"
    for version_line, files in ("one", 1), ("one", 1), ("two", 2):
        told = f'[ "$1" = --version ] && echo {version_line} && exit 0'
        monkeypatch.setenv("CXX", compiler_that(tmp_path, told))
        build(tmp_path / LIBRARY, objects=objects, folder=folder)
        for source in folder.glob("*.cpp"):
            assert len(list(objects.glob(f"{source.stem}-*.o"))) == files


@WITH_COMPILER
def test_objects_that_no_build_has_used_for_long_are_removed(folder: Path, tmp_path: Path) -> None:
    objects = tmp_path / "objects"
    build(tmp_path / LIBRARY, objects=objects, folder=folder)
    used = set(objects.iterdir())
    forgotten, recent = objects / "gone-0.o", objects / "recent-0.o"
    for path in (*used, forgotten, recent):
        path.touch()
    for path in (*used, forgotten):
        os.utime(path, (0, 0))
    build(tmp_path / LIBRARY, objects=objects, folder=folder)
    assert set(objects.iterdir()) == {*used, recent}


@WITH_COMPILER
def test_a_folder_that_cannot_be_made_is_a_failed_build(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BuildFailed, match="file"):
        build(tmp_path / LIBRARY, objects=tmp_path / "file" / "objects", folder=folder)


def test_without_a_compiler_that_is_said_and_is_an_error_only_where_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    for options, code in ((), 1), (("--optional",), 0):
        (tmp_path / LIBRARY).write_bytes(b"of an earlier build")
        monkeypatch.setattr(sys, "argv", ["build_native.py", "-o", str(tmp_path / LIBRARY), *options])
        assert main() == code
        [said] = capsys.readouterr().err.splitlines()
        assert "no C++ compiler" in said
        assert "of an earlier build, is removed" in said
        assert not (tmp_path / LIBRARY).exists()
    monkeypatch.setenv("CXX", str(tmp_path / "none"))
    with pytest.raises(BuildFailed, match="none: No such file"):
        build(tmp_path / LIBRARY, objects=tmp_path)


@BUILT
@WITH_COMPILER
@pytest.mark.skipif(not shutil.which("nm"), reason="nm is not here")
def test_kernels_for_newer_processors_share_no_code_with_the_rest() -> None:
    """The linker keeps one copy of an inline function: were it theirs, an older processor would meet it."""
    compiler, objects = Compiler.found(), ROOT / "build" / "native"  # as `make native`, which may have them
    objects.mkdir(parents=True, exist_ok=True)
    newer = {one.source for one in INSTRUCTION_SETS if one.flags}
    units = [unit for unit in units_of(SOURCES, compiler) if unit.source.name in newer]
    assert units
    for unit in units:
        compiled = compile_unit(unit, compiler, common_hash(SOURCES, compiler), objects)
        listed = subprocess.run(["nm", "-C", str(compiled)], capture_output=True, text=True, check=True)
        weak = [line for line in listed.stdout.splitlines() if line[17:18] in "WVu"]
        assert not weak, unit.source


# --- packages ---------------------------------------------------------------------------------------------


@pytest.fixture
def checkout(tmp_path: Path, folder: Path) -> Path:
    """What the package is built from, with the small library's sources in the place of ours."""
    if int(version("setuptools").split(".")[0]) < 77:
        pytest.skip("setuptools 77 or later builds the package")
    made = tmp_path / "checkout"
    for name in ("cmudrn", "train", "engines", "deploy"):
        shutil.copytree(ROOT / name, made / name, ignore=shutil.ignore_patterns("*.onnx", "*.cpp", "*.so"))
    for name in (
        "pyproject.toml",
        "setup.py",
        "MANIFEST.in",
        "README.md",
        "LICENSE",
        "tools/build_native.py",
    ):
        (made / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, made / name)
    for source in folder.iterdir():
        shutil.copy(source, made / "deploy" / "native")
    return made


def packaged(checkout: Path, kind: str, **environment: str) -> tuple[Path, str]:
    """A wheel or an sdist by the package's own build, and what it said."""
    code = f"from setuptools.build_meta import build_{kind}; build_{kind}('dist')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=checkout,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    [made] = (checkout / "dist").iterdir()
    return made, done.stdout + done.stderr


@WITH_COMPILER
def test_a_wheel_with_the_library_is_for_any_python_on_this_platform(checkout: Path) -> None:
    wheel, _ = packaged(checkout, "wheel")
    assert "-py3-none-" in wheel.name
    assert not wheel.name.endswith("-any.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert f"cmudrn/deploy/native/{LIBRARY}" in names
    assert not [name for name in names if name.endswith((".cpp", ".hpp", "shared.h"))]


def test_a_wheel_without_a_compiler_is_for_every_platform_and_says_so_in_a_line(checkout: Path) -> None:
    wheel, said = packaged(checkout, "wheel", CXX=str(checkout / "no-such-compiler"))
    assert wheel.name.endswith("-py3-none-any.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "cmudrn/deploy/native/library.py" in names
    assert not [name for name in names if LIBRARY in name or ".data/" in name]
    assert len([line for line in said.splitlines() if "without kernels of its own" in line]) == 1


def test_the_source_distribution_holds_all_that_the_library_is_built_from(checkout: Path) -> None:
    sdist, _ = packaged(checkout, "sdist")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    sources = {
        f"deploy/native/{path.name}" for path in (checkout / "deploy/native").iterdir() if path.is_file()
    }
    assert {"setup.py", "tools/build_native.py", *sources} <= names


def test_the_library_has_one_name_where_it_is_built_and_where_it_is_loaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("CMUDRN_NATIVE_LIBRARY", raising=False)
    assert library_path().resolve() == (SOURCES / LIBRARY).resolve()


# --- loading ----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("without_native")
def test_a_library_that_is_told_and_not_there_names_the_variable() -> None:
    assert not is_built()
    for asking in (load_library, usable_isas, NativeBackend(CHECKPOINT, FP32).__enter__):
        with pytest.raises(EnvironmentMissing, match=r"CMUDRN_NATIVE_LIBRARY=.*none\.so: no such") as missing:
            asking()
        assert missing.value.fix == "unset CMUDRN_NATIVE_LIBRARY"


def test_a_package_without_kernels_offers_what_restores_in_the_precision_that_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CMUDRN_NATIVE_LIBRARY", raising=False)
    monkeypatch.delenv("CMUDRN_ISA", raising=False)
    monkeypatch.setattr("cmudrn.deploy.native.library.library_path", lambda: tmp_path / LIBRARY)
    for precision, way_out in (
        (Precision.FP32, "restore with --backend onnx"),
        (Precision.BF16, "give --precision fp32"),  # ONNX Runtime has no bfloat16 here
    ):
        with pytest.raises(EnvironmentMissing, match="was built without") as missing:
            chosen_isa(precision)
        assert "make native" in missing.value.fix
        assert missing.value.fix.endswith(way_out)


@pytest.mark.usefixtures("without_native")
def test_a_file_that_is_no_library_is_named_in_a_line() -> None:
    library_path().write_bytes(b"\x7fELF, as it begins")
    with pytest.raises(EnvironmentMissing, match=r"none\.so: not a library of ours") as broken:
        load_library()
    assert "\n" not in str(broken.value)


@WITH_COMPILER
@pytest.mark.parametrize(
    ("source", "said"),
    [
        ('extern "C" int found() { return 0; }', "not a library of ours"),
        (
            'extern "C" __attribute__((visibility("default"))) int cmudrn_abi() { return 99; }',
            "of another version of the package: its interface is 99, not 1",
        ),
    ],
)
def test_a_library_of_others_or_of_another_version_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, said: str
) -> None:
    (tmp_path / "sources").mkdir()
    (tmp_path / "sources" / "other.cpp").write_text(source)
    target = tmp_path / LIBRARY
    build(target, objects=tmp_path / "objects", folder=tmp_path / "sources")
    monkeypatch.setenv("CMUDRN_NATIVE_LIBRARY", str(target))
    with pytest.raises(EnvironmentMissing, match=said) as refused:
        load_library()
    assert "make native" in refused.value.fix
    assert not is_built()


@WITH_COMPILER
@pytest.mark.parametrize(("off", "said"), [("0.0001f", "avx2 restores wrongly: 1.0e-04"), ("0.000001f", "")])
def test_doctor_sees_kernels_that_load_and_restore_something_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, off: str, said: str
) -> None:
    (tmp_path / "sources").mkdir()
    (tmp_path / "sources" / "wrong.cpp").write_text(WRONG.replace("OFF", off))
    shutil.copy(SOURCES / "cmudrn_native.h", tmp_path / "sources")
    target = tmp_path / LIBRARY
    build(target, objects=tmp_path / "objects", folder=tmp_path / "sources")
    monkeypatch.setenv("CMUDRN_NATIVE_LIBRARY", str(target))
    monkeypatch.delenv("CMUDRN_ISA", raising=False)
    answer = ask("native")
    assert answer.failure.startswith(said) if said else not answer.failure
    assert bool(answer.facts) is not bool(said)


@BUILT
def test_the_best_instruction_set_is_taken_unless_another_is_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CMUDRN_ISA", raising=False)
    assert usable_isas()[-1] == "direct"
    assert "avx512bf16" not in usable_isas()
    assert chosen_isa(Precision.FP32) == usable_isas()[0]
    versions = set()
    for isa in usable_isas():
        monkeypatch.setenv("CMUDRN_ISA", isa)
        with NativeBackend(CHECKPOINT, FP32) as backend:
            assert backend.label == f"own kernels ({isa}) on CPU"
        versions.add(kernels_version(Precision.FP32))
    assert len(versions) == len(usable_isas())  # each is certified by itself


@BUILT
@pytest.mark.parametrize(
    ("isa", "fix"),
    [("z80", "direct"), ("avx512bf16", "unset CMUDRN_ISA, and give --precision bf16")],
)
def test_an_instruction_set_that_cannot_be_taken_is_refused_with_what_can(
    monkeypatch: pytest.MonkeyPatch, isa: str, fix: str
) -> None:
    monkeypatch.setenv("CMUDRN_ISA", isa)
    with pytest.raises(UsageError, match=f"CMUDRN_ISA={isa}") as refused:
        NativeBackend(CHECKPOINT, FP32).__enter__()
    assert fix in refused.value.fix
    with pytest.raises(EnvironmentMissing, match="z80"), NativeNetwork(CHECKPOINT.tensors, CHECKPOINT, "z80"):
        pass


@BUILT
def test_bfloat16_is_refused_where_float32_is_forced_and_half_precision_always(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CMUDRN_ISA", "direct")
    with pytest.raises(UsageError, match="CMUDRN_ISA=direct: not in bf16"):
        NativeBackend(CHECKPOINT, BF16).__enter__()
    with pytest.raises(UsageError, match="kernels in fp16"):
        NativeBackend(CHECKPOINT, EngineSpec(loops=1, height=8, width=8))
    for spec, isa in ((FP32, "avx512bf16"), (BF16, "direct")):
        with pytest.raises(UsageError, match=f"{isa} in {spec.precision.value}"):
            NativeBackend(CHECKPOINT, spec, isa=isa)


# --- calling ----------------------------------------------------------------------------------------------


@BUILT
@pytest.mark.parametrize("threads", [-3, 0, 257])
def test_a_session_takes_1_to_256_threads_and_the_backend_no_more(threads: int) -> None:
    with NativeNetwork(CHECKPOINT.tensors, CHECKPOINT) as network:
        with pytest.raises(UsageError, match=f"threads = {threads}") as refused:
            NativeSession(network, threads)
        assert "1 to 256" in refused.value.fix
    with NativeBackend(CHECKPOINT, FP32, threads=1000) as backend:
        assert backend.isa


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"inter_loops": 0}, "inter_loops = 0"),
        ({"intra_loops": 33}, "intra_loops = 33"),
        ({"stitches": {"stem": 1.5}}, "alpha = 1.5"),
        ({"stitches": {"tail": 0.5}}, "no stitch point 'tail'"),
    ],
)
def test_a_shape_that_there_is_not_is_refused_before_the_kernels(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        NetworkConfig(**{"inter_loops": 1, "intra_loops": 1, "stitches": {}, **changes})


@BUILT
def test_what_is_not_an_image_never_reaches_the_kernels() -> None:
    with NativeNetwork(CHECKPOINT.tensors, CHECKPOINT) as network, NativeSession(network, 1) as session:
        for wrong in (
            np.zeros((1, 4, 4, 4), np.uint8),
            np.zeros((4, 4, 3), np.float32),
            np.zeros((1, 0, 4, 3), np.uint8),
            np.zeros((1, 4, 4, 3), np.float64),
        ):
            with pytest.raises(TypeError, match=f"{wrong.dtype}"):
                session.restore(wrong)  # type: ignore[arg-type]


@BUILT
def test_what_is_not_open_says_so() -> None:
    network = NativeNetwork(CHECKPOINT.tensors, CHECKPOINT)
    with pytest.raises(RuntimeError, match="not open"), NativeSession(network, 1):
        pass
    with network:
        session = NativeSession(network, 1)
        with session:
            assert session.bytes_for(1, 40, 40) > 0
        with pytest.raises(RuntimeError, match="not open"):
            session.restore(random_image(1, 4, 4))


@BUILT
def test_a_network_deeper_than_any_is_refused() -> None:
    deep = random_checkpoint()
    object.__setattr__(deep, "inter_loops", 33)
    with pytest.raises(UsageError, match="33 and 3 loops"), NativeNetwork(deep.tensors, deep):
        pass


SHARED = """
import threading
from test_backends import CHECKPOINT, SPEC
from test_graph import random_image
from cmudrn.deploy.native import NativeBackend

images = [random_image(1, 60 + number, 50) for number in range(4)]
with NativeBackend(CHECKPOINT, SPEC) as backend:
    right = [next(backend.stream([image])) for image in images]
    wrong = []

    def restore(number):
        for _ in range(20):
            if (next(backend.stream([images[number]])) != right[number]).any():
                wrong.append(number)

    threads = [threading.Thread(target=restore, args=[number]) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(wrong)
"""


@BUILT
def test_threads_that_share_a_backend_wait_for_each_other() -> None:
    assert printed_by(SHARED) == "[]\n"


FORKED = """
import os, threading, warnings
warnings.simplefilter("ignore")  # Python 3.12 warns of any fork beside threads
from test_backends import CHECKPOINT, SPEC
from test_graph import random_image
from cmudrn.deploy.native import NativeBackend

small, large = random_image(1, 30, 40), random_image(1, 900, 900)
with NativeBackend(CHECKPOINT, SPEC) as backend:
    right = next(backend.stream([small]))
    next(backend.stream([large]))
    begun = threading.Event()

    def restore():
        begun.set()
        next(backend.stream([large]))

    thread = threading.Thread(target=restore)
    thread.start()
    begun.wait()
    child = os.fork()
    if child == 0:
        os._exit(0 if (next(backend.stream([small])) == right).all() else 1)
    thread.join()
    print(os.waitpid(child, 0)[1])
"""


@BUILT
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_process_forked_in_the_middle_of_an_image_restores_its_own() -> None:
    assert printed_by(FORKED) == "0\n"
