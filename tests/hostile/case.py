"""One hostile file, and what becomes of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["MAX_PIXELS", "MIB", "RESTORED", "Case"]

MIB = 2**20
MAX_PIXELS = 20_000_000  # --max-pixels of the tests: what is allowed is decoded, and must be quick
RESTORED = ""  # strange, and sound


@dataclass(frozen=True)
class Case:
    """One file."""

    name: str
    what: str  # for people
    says: str  # a pattern of the reason; RESTORED; or one that fits both, where libvips' release decides
    make: Callable[[], bytes]
    peak_mib: int = 60  # memory that reading it may take, beyond what the process had
