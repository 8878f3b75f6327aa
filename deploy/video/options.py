"""What `cmudrn infer` is told about clips and cameras, beside the job."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

from cmudrn.deploy.job import DEFAULT_OVERLAP_PX, need_between
from cmudrn.errors import UsageError

__all__ = ["RawFrames", "RawOrder", "VideoOptions"]

WORST_CRF = 63  # of any encoder's scale


class RawOrder(str, Enum):
    """The bytes of a raw pixel, as ffmpeg names them."""

    RGB = "rgb24"
    BGR = "bgr24"


@dataclass(frozen=True, kw_only=True)
class RawFrames:
    """Frames on standard input that no header describes."""

    height: int  # pixels
    width: int  # pixels
    order: RawOrder = RawOrder.RGB

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1:
            raise UsageError(f"--raw-size {self.width}x{self.height}", fix="give WIDTHxHEIGHT like 1280x720")


@dataclass(frozen=True, kw_only=True)
class VideoOptions:
    """How clips are cut, encoded and kept up with."""

    codec: str | None = None  # FFmpeg's name of an encoder or a codec; None: the source's family
    crf: int | None = None  # quality on the encoder's own scale, 0 is best; None: its usual
    start_s: float = 0.0  # of the clip, from its begin
    end_s: float | None = None  # None: to its end
    preview: bool = False  # each frame beside what became of it
    fps: float | None = None  # to be kept up with; only with `adaptive`
    adaptive: bool = False  # fewer loops where time does not suffice
    min_loops: int = 1  # never fewer
    raw: RawFrames | None = None  # of standard input; None: Y4M

    def __post_init__(self) -> None:
        need_between(0, WORST_CRF, crf=self.crf)
        if not math.isfinite(self.start_s) or self.start_s < 0:
            raise UsageError(
                f"--start {self.start_s:g}", fix="give seconds from the clip's begin, or hh:mm:ss"
            )
        if self.end_s is not None and not self.end_s > self.start_s:
            raise UsageError(
                f"--end {self.end_s:g} is not after --start {self.start_s:g}", fix="give a later end"
            )
        if self.min_loops not in DEFAULT_OVERLAP_PX:
            raise UsageError(f"--min-loops {self.min_loops}", fix="give 1 to 7")
        if self.fps is not None and not (math.isfinite(self.fps) and self.fps > 0):
            raise UsageError(f"--fps {self.fps:g}", fix="give frames a second, like 25")
        if self.adaptive is not (self.fps is not None):
            raise UsageError(
                "--adaptive and --fps belong together", fix="--fps 25 --adaptive, or neither of them"
            )

    @property
    def budget_s(self) -> float:
        """For one frame; endless where no rate is told."""
        return math.inf if self.fps is None else 1 / self.fps

    def check_live(self) -> None:
        """Raises UsageError for what a camera cannot do."""
        if self.start_s:
            raise UsageError(
                "--start with a camera: it begins now", fix="leave it away; --end 60 ends after a minute"
            )
        if self.raw is not None:
            raise UsageError("--raw-size with a camera", fix="it is for frames on standard input")

    def counts(self, loops: int) -> range:
        """The loop counts that may be used, where `loops` is the most. Raises UsageError for none."""
        if not self.adaptive:
            return range(loops, loops + 1)
        if self.min_loops > loops:
            raise UsageError(
                f"--min-loops {self.min_loops} is more than --loops {loops}",
                fix="give fewer, or more --loops",
            )
        return range(self.min_loops, loops + 1)
