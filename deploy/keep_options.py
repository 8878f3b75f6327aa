"""What is written beside the restored pixels, as it is told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = ["HEATMAP_SUFFIX", "KeepOptions", "heatmap_beside"]

HEATMAP_SUFFIX = "-heatmap.png"


@dataclass(frozen=True, kw_only=True)
class KeepOptions:
    """Of every file alike."""

    strip: bool = False  # of what the source says beside its pixels, all but ICC profile and orientation
    provenance: bool = False  # what restored it, into XMP
    heatmap: bool = False  # a map of the changes, in a file of its own beside the target


def heatmap_beside(target: Path) -> Path:
    """photo.jpg -> photo-heatmap.png."""
    return target.with_name(target.stem + HEATMAP_SUFFIX)
