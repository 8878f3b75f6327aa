"""TensorRT and TensorRT-RTX: one API under two names, found where they are installed."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from enum import Enum
from importlib.util import find_spec
from types import ModuleType

from cmudrn.errors import EnvironmentMissing

__all__ = ["PORTABLE", "Flavor", "Library", "installed_flavors", "installed_libraries", "open_library"]

# A TensorRT-RTX plan without a target: for compute capability 8.0, 8.6, 8.9, and 12.0 and later.
PORTABLE = "sm80+"


class Flavor(str, Enum):
    """Whose plan it is."""

    TENSORRT = "tensorrt"  # built on the GPU that it is for
    RTX = "rtx"  # TensorRT-RTX: built anywhere, compiled to the end on the GPU that loads it

    @property
    def module(self) -> str:
        """What to import."""
        return "tensorrt" if self is Flavor.TENSORRT else "tensorrt_rtx"

    @property
    def label(self) -> str:
        """For people."""
        return "TensorRT" if self is Flavor.TENSORRT else "TensorRT-RTX"

    @property
    def extra(self) -> str:
        """What to install."""
        return f"pip install 'cmudrn[{self.value}]'"


@dataclass(frozen=True)
class Library:
    """An imported flavour."""

    flavor: Flavor
    module: ModuleType
    version: str  # such as 11.4.0.106; a plan loads in the version that built it


def installed_flavors() -> list[Flavor]:
    """Without importing them. A folder that only has the name, as some packages leave, is none."""
    specs = {flavor: find_spec(flavor.module) for flavor in Flavor}
    return [flavor for flavor, spec in specs.items() if spec and spec.origin]


def installed_libraries() -> list[Library]:
    """Imported. Raises EnvironmentMissing where there is none, or one that cannot be imported."""
    there: list[Flavor | None] = [*installed_flavors()]
    return [open_library(flavor) for flavor in there or [None]]


def open_library(wanted: Flavor | None = None) -> Library:
    """Imports a flavour; None: TensorRT where it is installed, else TensorRT-RTX.

    Raises EnvironmentMissing where there is none, or it cannot be imported.
    """
    if wanted is None:
        found = installed_flavors()
        if not found:
            raise EnvironmentMissing(
                "neither TensorRT nor TensorRT-RTX is installed",
                fix=f"{Flavor.TENSORRT.extra} on the machine with the GPU, or {Flavor.RTX.extra} anywhere",
            )
        wanted = found[0]
    try:
        module = importlib.import_module(wanted.module)
        return Library(wanted, module, str(module.__version__))
    except (ImportError, OSError, RuntimeError, AttributeError) as exc:  # also for a library that it needs
        others = [f"--flavor {flavor.value}" for flavor in installed_flavors() if flavor is not wanted]
        raise EnvironmentMissing(
            f"cannot import {wanted.module}: {exc}", fix=" or ".join([wanted.extra, *others])
        ) from exc
