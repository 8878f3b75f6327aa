"""Where and when a figure was measured, for the line above it."""

from __future__ import annotations

import platform
import sys
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from cmudrn.deploy.onnxruntime import available_cores

__all__ = ["heading"]

LIBRARIES = ("cmudrn", "onnxruntime", "torch", "pyvips", "numpy")


def heading() -> str:
    """The command, the processor, versions and the day (UTC)."""
    command = f"python benchmarks/{Path(sys.argv[0]).name} {' '.join(sys.argv[1:])}".strip()
    libraries = ", ".join(f"{name} {_version(name)}" for name in LIBRARIES)
    day = datetime.now(timezone.utc).date()
    return (
        f"{command}\n{_processor()}, {available_cores()} cores; "
        f"Python {platform.python_version()}, {libraries}; {day}"
    )


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return "absent"


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.is_file():
        return platform.processor() or platform.machine()
    lines = cpuinfo.read_text().splitlines()
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = fields.get("flags", "").split()
    wide = next((flag for flag in ("avx512_bf16", "avx512f", "avx2") if flag in flags), "")
    return f"{fields.get('model name', platform.machine())} {wide}".strip()
