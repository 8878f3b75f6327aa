"""Where cross-stitches may stand, and with which alpha; for those without torch, too."""

from __future__ import annotations

from collections.abc import Mapping

from cmudrn.errors import UsageError

__all__ = ["STITCH_POINTS", "check_stitches"]

STITCH_POINTS = ("stem", "block1", "block2", "body")


def check_stitches(stitches: Mapping[str, float]) -> None:
    """point: alpha. Raises UsageError for a point that isn't one, and for an alpha outside [0, 1]."""
    for point, alpha in stitches.items():
        if point not in STITCH_POINTS:
            raise UsageError(f"no stitch point {point!r}", fix=f"choose from {', '.join(STITCH_POINTS)}")
        if not 0 <= alpha <= 1:
            raise UsageError(f"alpha = {alpha} at {point}", fix="give 0 to 1; the paper has 0.5")
