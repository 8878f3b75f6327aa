"""What may go wrong with one photograph or clip, and how it is told; all else ends the job."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path

from cmudrn.deploy.report import ItemResult, Status
from cmudrn.errors import CmudrnError, ImageError

__all__ = ["FAILURES", "failed", "raise_for_full_disk"]

FAILURES = (ImageError, OSError, MemoryError)
DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


def failed(result: ItemResult, error: BaseException) -> ItemResult:
    """A failed result with its reason: one line, without the path that stands before it anyway."""
    if isinstance(error, MemoryError):
        reason = f"not enough memory for {result.height}x{result.width} pixels"
    else:
        reason = " ".join(str(error).removeprefix(f"{result.source}: ").split())
    return replace(result, status=Status.FAILED, reason=reason)


def raise_for_full_disk(target: Path, error: BaseException) -> None:
    """Raises CmudrnError where a full disk or quota is behind it: every other item would fail by it, too."""
    if is_disk_full(error):
        raise CmudrnError(
            f"{target}: the disk is full",
            fix="make room, then run the same again with --resume; what is written is whole",
        ) from error


def is_disk_full(error: BaseException | None) -> bool:
    """ImageError keeps its cause, libvips gives but the words."""
    while error is not None:
        if getattr(error, "errno", None) in DISK_FULL or any(
            os.strerror(no) in str(error) for no in DISK_FULL
        ):
            return True
        error = error.__cause__
    return False
