"""Where and when a figure was measured, for the line above it."""

from __future__ import annotations

import sys
from datetime import datetime, timezone
from pathlib import Path

from cmudrn.deploy.machine import describe_machine

__all__ = ["heading"]


def heading() -> str:
    """The command, the processor, versions and the day (UTC)."""
    command = f"python benchmarks/{Path(sys.argv[0]).name} {' '.join(sys.argv[1:])}".strip()
    return f"{command}\n{describe_machine()}; {datetime.now(timezone.utc).date()}"
