"""Compiles hostcuda, and starts Python under it with the real pycuda and a stand-in for TensorRT."""

from __future__ import annotations

import atexit
import importlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path

import pytest

from hostcuda import Stats, read_report

__all__ = ["Driver", "Run", "build_once", "compile_library", "under_hostcuda"]

SOURCES = Path(__file__).parent
WHEELS = SOURCES.parents[2] / "shared" / "wheels"
BODY_SECONDS = 120  # longer than any may take: then it hangs
FLAGS = ("-std=c11", "-O1", "-g", "-fPIC", "-shared", "-pthread", "-Wall", "-Wextra", "-Werror")
LINKING = ("-Wl,-soname,libcuda.so.1", f"-Wl,--version-script={SOURCES / 'exports.map'}", "-ldl")


class Missing(Exception):
    """Without this, nothing runs under hostcuda here."""


@dataclass(frozen=True)
class Run:
    """A process that ran under hostcuda to its end."""

    process: subprocess.CompletedProcess[str]
    report: Path

    @property
    def returncode(self) -> int:
        """The process's."""
        return self.process.returncode

    @property
    def output(self) -> str:
        """Its stdout, then its stderr."""
        return self.process.stdout + self.process.stderr

    @property
    def stats(self) -> Stats:
        """What the driver had counted when the process ended."""
        return self._read()[0]

    @property
    def last_fault(self) -> str:
        """Why the driver refused something last; empty where it never did."""
        return self._read()[1]

    def _read(self) -> tuple[Stats, str]:
        assert self.report.is_file(), f"it never loaded the driver, or was killed:\n{self.output}"
        return read_report(self.report)


@dataclass(frozen=True)
class Driver:
    """The compiled library, pycuda and the stand-in, and how to start a process that finds them."""

    folder: Path
    _numbers: itertools.count[int] = field(default_factory=itertools.count, repr=False)
    _nurseries: list[_Nursery] = field(default_factory=list, repr=False)

    def environment(self, settings: Mapping[str, object], *, tensorrt: bool = True) -> dict[str, str]:
        """Of a process under hostcuda: `import pycuda.driver` binds to it, `import tensorrt` to the stand-in.

        settings, all optional:
        HOSTCUDA_SEED       of the delays
        HOSTCUDA_DELAY_US   200: an operation waits 0 to that long before it runs, one in eight eightfold
        HOSTCUDA_DEVICES    1
        HOSTCUDA_MEMORY_MB  1024, of each device
        HOSTCUDA_CAPABILITY 8.9
        HOSTCUDA_VERSION    13000, of the driver
        HOSTCUDA_FAIL       "cuMemAlloc_v2:3,run:7": the third call, and the seventh operation while it runs
        HOSTCUDA_TENSORRT   11.4.0.1, the stand-in's version
        HOSTCUDA_TENSORRT_CUDA  12: it doesn't start on a driver for an earlier CUDA
        CUDA_VISIBLE_DEVICES
        """
        packages = [self.folder / "pycuda", *([self.folder / "tensorrt"] if tensorrt else []), SOURCES.parent]
        inherited = {
            name: value for name, value in os.environ.items() if not name.startswith(("HOSTCUDA_", "CUDA_"))
        }
        return {
            **inherited,
            "LD_LIBRARY_PATH": _before("LD_LIBRARY_PATH", self.folder),
            "PYTHONPATH": _before("PYTHONPATH", *packages),
            **{name: str(value) for name, value in settings.items()},
        }

    def run(
        self,
        arguments: Sequence[str | Path],
        settings: Mapping[str, object] | None = None,
        *,
        tensorrt: bool = True,
        timeout_s: float = 120,
    ) -> Run:
        """`python <arguments>` under hostcuda, such as ["-m", "cmudrn", "infer", ...], to its end."""
        report = self.folder / f"report-{next(self._numbers)}"
        environment = self.environment({**(settings or {}), "HOSTCUDA_REPORT": report}, tensorrt=tensorrt)
        process = subprocess.run(
            [sys.executable, *map(str, arguments)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        return Run(process, report)

    def run_body(self, module: str, name: str, settings: Mapping[str, object]) -> Run:
        """A function that `under_hostcuda` decorates, in a process of its own."""
        if not self._nurseries:
            self._nurseries.append(_Nursery(self.environment({})))
        report = self.folder / f"report-{next(self._numbers)}"
        environment = {name: str(value) for name, value in settings.items()}
        output = report.with_suffix(".txt")
        order = _Order(module, name, str(output), {**environment, "HOSTCUDA_REPORT": str(report)})
        code = self._nurseries[0].run(order)
        return Run(subprocess.CompletedProcess([module, name], code, output.read_text(), ""), report)


def _before(name: str, *folders: Path) -> str:
    """A search path with these before those that it has."""
    return os.pathsep.join([*map(str, folders), *filter(None, [os.environ.get(name)])])


_built: list[Driver] = []


def build_once(factory: pytest.TempPathFactory) -> Driver:
    """The session's driver, for a fixture. Skips the test where a compiler or pycuda is missing."""
    try:
        if not _built:
            _built.append(build(factory.mktemp("hostcuda")))
    except Missing as exc:
        pytest.skip(f"no CUDA driver in host memory: {exc}")
    return _built[0]


def build(folder: Path) -> Driver:
    """Compiles and unpacks into a folder. Raises Missing, with the reason."""
    if sys.platform != "linux":
        raise Missing("it stands for Linux's libcuda.so.1 alone")
    compile_library(folder)
    unpack_pycuda(folder / "pycuda")
    (folder / "tensorrt").mkdir()
    (folder / "tensorrt" / "tensorrt.py").symlink_to(SOURCES / "trt_stand_in.py")
    return Driver(folder)


def compile_library(folder: Path, flags: Sequence[str] = ()) -> Path:
    """libcuda.so.1 in a folder. flags: more of them for the compiler, such as a sanitizer's."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        raise Missing("no C compiler")
    library = folder / "libcuda.so.1"
    sources = sorted(map(str, SOURCES.glob("*.c")))
    subprocess.run([compiler, *FLAGS, *flags, *sources, *LINKING, "-o", str(library)], check=True)
    return library


def unpack_pycuda(folder: Path) -> None:
    """The wheel for this Python; an installed pycuda does as well. Its driver module needs numpy alone."""
    folder.mkdir()
    python = f"cp{sys.version_info.major}{sys.version_info.minor}"
    wheels = sorted(WHEELS.glob(f"pycuda-*-{python}-*_{os.uname().machine}.whl"))
    if wheels:
        with zipfile.ZipFile(wheels[-1]) as wheel:
            wheel.extractall(folder)
    elif find_spec("pycuda") is None:
        raise Missing(f"pycuda is not installed, and no wheel for {python} lies in {WHEELS}")


_bodies: dict[tuple[str, str], Callable[[], None]] = {}


def under_hostcuda(
    *, faults: bool = False, leaks: bool = False, **settings: object
) -> Callable[[Callable[[], None]], Callable[[Driver], None]]:
    """A test whose body runs in a process of its own under hostcuda; it asks for the fixture `driver`.

    faults, leaks: that the body brings some about on purpose; without, one fails the test.
    settings: as of `Driver.environment`.
    """

    def decorate(body: Callable[[], None]) -> Callable[[Driver], None]:
        module, name = body.__module__, body.__qualname__
        _bodies[module, name] = body

        def test(driver: Driver) -> None:
            run = driver.run_body(module, name, settings)
            assert run.returncode == 0, run.output
            assert faults or run.stats.faults == 0, run.last_fault
            assert leaks or run.stats.left == 0, run.stats

        test.__name__, test.__qualname__, test.__doc__ = body.__name__, name, body.__doc__
        test.__module__ = module
        return test

    return decorate


@dataclass(frozen=True)
class _Order:
    """One body, for the process that forks; it travels as a line of JSON."""

    module: str
    name: str
    output: str  # a file
    environment: dict[str, str]


class _Nursery:
    """A process under hostcuda that has imported all that is slow, and forks for each body.

    The driver reads its settings at cuInit, which is after the fork.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        code = "from hostcuda.build import fork_for_bodies; fork_for_bodies()"
        self._process = subprocess.Popen(
            [sys.executable, "-c", code],
            # All names of the driver's bound at once: none may be missing. One thread: the only one forked.
            env={**environment, "LD_BIND_NOW": "1", "OPENBLAS_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        atexit.register(self.close)

    def run(self, order: _Order) -> int:
        """The body's exit code, negative for a signal."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(asdict(order)) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, "the process that forks has ended: does `import pycuda.driver` work?"
        return int(answer)

    def close(self) -> None:
        """Ends it."""
        self._process.communicate()


def fork_for_bodies() -> None:
    """In the nursery. Each child comes back from here, and ends as a Python process does.

    What a test module imports at its top is forked too: not onnxruntime, whose threads wouldn't be there.
    """
    for line in sys.stdin:
        order = _Order(**json.loads(line))
        importlib.import_module(order.module)
        child = os.fork()
        if child == 0:
            _run_body(order)
            return
        _, status = os.waitpid(child, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()


def _run_body(order: _Order) -> None:
    output = os.open(order.output, os.O_WRONLY | os.O_CREAT)
    for stream in (1, 2):
        os.dup2(output, stream)
    os.environ.update(order.environment)
    signal.alarm(BODY_SECONDS)
    warnings.simplefilter("error")
    _bodies[order.module, order.name]()
