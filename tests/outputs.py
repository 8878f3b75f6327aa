"""What a run of `cmudrn infer` has left in a folder."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["shown"]


def shown(folder: Path | str) -> list[str]:
    """All names, hidden ones too, but for the run's ledger."""
    return sorted(name for name in os.listdir(folder) if not name.startswith(".cmudrn-run"))  # noqa: PTH208
