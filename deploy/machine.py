"""What a figure was measured on: processor, memory, GPUs, versions. Never a machine's name."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from cmudrn.deploy.probe import ask

__all__ = ["Graphics", "Machine", "available_cores", "describe_machine", "library_version", "processor"]

# What decides how fast a processor convolves: width of its vectors, and half precision in hardware.
FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_fp16", "asimdhp", "bf16", "sve")
# By what is imported, the packages that may have brought it.
PACKAGES: Mapping[str, tuple[str, ...]] = {
    "cmudrn": ("cmudrn",),
    "numpy": ("numpy",),
    "pyvips": ("pyvips",),
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml"),
    "openvino": ("openvino",),
    "torch": ("torch",),
    "tensorrt": ("tensorrt", "tensorrt-cu13", "tensorrt-cu12"),
    "tensorrt_rtx": ("tensorrt-rtx", "tensorrt-rtx-cu13", "tensorrt-rtx-cu12"),
    "pycuda": ("pycuda",),
}


@dataclass(frozen=True, kw_only=True)
class Graphics:
    """A GPU that CUDA shows."""

    name: str
    target: str  # its compute capability: sm90
    memory_gb: int  # 2^30 bytes


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Two equal ones give figures that may stand in one table."""

    cpu: str  # the model's name
    cores: int  # that this process may use
    flags: tuple[str, ...]  # those of FLAGS that it has
    memory_gb: int  # 2^30 bytes; 0 where the system doesn't say
    system: str  # such as Linux x86_64
    python: str
    versions: Mapping[str, str]  # of what is installed, by the name that is imported
    driver: str | None  # NVIDIA's release, such as 580.65.06, where the system says it
    cuda: str | None  # the newest CUDA that the driver knows; None without one
    gpus: tuple[Graphics, ...]

    def __str__(self) -> str:
        """One line, for the head of a table."""
        gpus = [f"{gpu.name} ({gpu.target})" for gpu in self.gpus]
        flags = f" ({', '.join(self.flags)})" if self.flags else ""
        versions = [f"Python {self.python}", *(f"{name} {told}" for name, told in self.versions.items())]
        return f"{', '.join([f'{self.cores} cores of {self.cpu}{flags}', *gpus])}; {', '.join(versions)}"

    def to_json(self) -> dict[str, Any]:
        """Plain values, as `json.loads` gives them back."""
        plain = asdict(self)
        return {**plain, "flags": list(self.flags), "gpus": list(plain["gpus"])}


def describe_machine() -> Machine:
    """This one, as far as it can be told without importing anything heavy."""
    cpu, flags = processor()
    driver, cuda, gpus = _graphics()
    return Machine(
        cpu=cpu,
        cores=available_cores(),
        flags=flags,
        memory_gb=_memory_gb(),
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        versions={name: told for name in PACKAGES if (told := library_version(name))},
        driver=driver,
        cuda=cuda,
        gpus=gpus,
    )


def available_cores(root: Path = Path("/")) -> int:
    """Those that this process may use: fewer than the machine's in a container, by affinity or by quota.

    root: of the file system that says what a container may take. A share of a core is not counted: threads
    that wait for one another would all wait for the one that has used its time up.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([cores, *(int(quota) for quota in _quotas(root))]))


def _quotas(root: Path) -> Iterator[float]:
    """Cores by control groups, each of this process's own and of those above it; nothing where none says."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:  # no Linux
        return
    mounted = root / "sys/fs/cgroup"
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        own = Path(path.lstrip("/"))
        # In a container the path is often the host's, and what is mounted is the own group itself.
        groups = [own, *own.parents]
        if number == "0":
            limits = (_words(mounted / group / "cpu.max") for group in groups)
        elif "cpu" in controllers.split(","):  # version 1
            names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
            limits = (
                [*_words(mounted / "cpu" / group / names[0]), *_words(mounted / "cpu" / group / names[1])]
                for group in groups
            )
        else:
            continue
        for limit in limits:
            if len(limit) == 2 and all(word.isdecimal() for word in limit) and int(limit[1]):
                yield int(limit[0]) / int(limit[1])  # neither "max" nor -1: both say there is none


def _words(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").split()
    except OSError:
        return []


def library_version(name: str) -> str | None:
    """Of what `import name` would give, without importing it; None where no package says so."""
    for package in PACKAGES.get(name, (name,)):
        try:
            return version(package)
        except PackageNotFoundError:
            continue
    return None


def processor() -> tuple[str, tuple[str, ...]]:
    """The processor's name, and which of FLAGS it has; Linux alone tells the latter."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.is_file():
        return platform.processor() or platform.machine(), ()
    lines = cpuinfo.read_text(encoding="utf-8").splitlines()
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    has = set((fields.get("flags") or fields.get("Features") or "").split())
    return fields.get("model name", platform.machine()), tuple(flag for flag in FLAGS if flag in has)


def _memory_gb() -> int:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30)
    except (AttributeError, ValueError, OSError):  # no Unix, or one that doesn't say
        return 0


def _graphics() -> tuple[str | None, str | None, tuple[Graphics, ...]]:
    """NVIDIA's driver, the CUDA that it knows, and the GPUs it shows; asked in a process of its own."""
    facts = ask("driver").facts
    gpus = tuple(
        Graphics(name=gpu["name"], target=gpu["target"], memory_gb=round(gpu["memory_mb"] / 1024))
        for gpu in facts.get("gpus", ())
    )
    return facts.get("release"), facts.get("cuda"), gpus
