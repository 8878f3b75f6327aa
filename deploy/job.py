"""What `cmudrn infer` is told, as one value that has been checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from cmudrn.engines.spec import Output
from cmudrn.errors import UsageError
from cmudrn.formats import ImageFormat
from cmudrn.images import DEFAULT_MAX_PIXELS

__all__ = ["DEFAULT_OVERLAP_PX", "Existing", "InferJob"]

# By loops: the smallest with PSNR >= 60 dB against the whole image, for the default weights
# (benchmarks/overlap.py), and never less than at fewer loops.
DEFAULT_OVERLAP_PX: Mapping[int, int] = {1: 6, 2: 13, 3: 17, 4: 26, 5: 30, 6: 34, 7: 39}
MOST_AT_ONCE = 1024  # tiles or threads: more are a slip of the hand, and end in the middle of a library


class Existing(str, Enum):
    """What to do where a target is there already."""

    REFUSE = "refuse"  # before anything is restored
    OVERWRITE = "overwrite"
    SKIP = "skip"


@dataclass(frozen=True, kw_only=True)
class InferJob:
    """All that `cmudrn infer` is told."""

    sources: tuple[Path, ...]  # files and folders
    out: Path | None = None  # None: beside each source, with "-restored" in the name
    loops: int = 3  # T: inter = intra = T, 1 to 7
    output: Output = Output.FUSED
    tile_px: int = 768  # side of a square tile, overlap included
    overlap_px: int | None = None  # None: the smallest with PSNR >= 60 dB against the whole image
    batch: int = 1  # tiles at once
    threads: int | None = None  # of the backend; None: one for each core
    existing: Existing = Existing.REFUSE
    format: ImageFormat | None = None  # None: the source's own
    max_pixels: int = DEFAULT_MAX_PIXELS  # of one image
    weights: str = "default"  # or a path

    def __post_init__(self) -> None:
        if not self.sources:
            raise UsageError("no source", fix="name an image or a folder")
        if self.loops not in DEFAULT_OVERLAP_PX:
            raise UsageError(f"--loops {self.loops}", fix="give 1 to 7; 3 is the default")
        if self.format and not self.format.writable:
            raise UsageError(
                f"--format {self.format.value}: no encoder for it here", fix="give png, jpeg or tiff"
            )
        self._need_at_least(
            1, batch=self.batch, threads=self.threads, max_pixels=self.max_pixels, tile=self.tile_px
        )
        self._need_at_least(0, overlap=self.overlap_px)
        self._need_at_most(MOST_AT_ONCE, batch=self.batch, threads=self.threads)
        if 2 * self.overlap >= self.tile_px:
            raise UsageError(
                f"--tile {self.tile_px} leaves nothing between overlaps of {self.overlap} pixels",
                fix=f"give --tile {2 * self.overlap + 1} or more, or a smaller --overlap",
            )

    @property
    def overlap(self) -> int:
        """Pixels that a tile shares with its neighbour, on each side."""
        return DEFAULT_OVERLAP_PX[self.loops] if self.overlap_px is None else self.overlap_px

    @staticmethod
    def _need_at_least(least: int, **options: int | None) -> None:
        for name, value in options.items():
            if value is not None and value < least:
                raise UsageError(f"--{name.replace('_', '-')} {value}", fix=f"give {least} or more")

    @staticmethod
    def _need_at_most(most: int, **options: int | None) -> None:
        for name, value in options.items():
            if value is not None and value > most:
                raise UsageError(f"--{name} {value}", fix=f"give {most} or less")
