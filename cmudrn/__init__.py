"""CMUDRN: rain and snow removed from photographs. `import cmudrn` is light; torch comes with `load_model`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cmudrn.checkpoint import load_model

__all__ = ["__version__", "load_model"]

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    if name == "load_model":
        from cmudrn.checkpoint import load_model

        return load_model
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
