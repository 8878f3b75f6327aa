"""What became of each image, and of the whole job."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from cmudrn.wording import counted

__all__ = ["ItemResult", "JobReport", "Status"]

SHOWN_FAILURES = 20  # listed at the end; the rest is a count


class Status(str, Enum):
    """How one image ended."""

    RESTORED = "restored"
    SKIPPED = "skipped"  # the target was there already
    FAILED = "failed"


@dataclass(frozen=True, kw_only=True)
class ItemResult:
    """One image's end. Small: neither pixels nor exceptions hang on it."""

    source: Path
    target: Path
    status: Status
    reason: str = ""  # of a failure, one line
    height: int = 0  # pixels, upright; 0 where the header could not be read
    width: int = 0
    decode_s: float = 0.0
    restore_s: float = 0.0
    encode_s: float = 0.0
    frames: int = 0  # of a clip, restored and written; 0 for a photograph
    dropped: int = 0  # frames of a camera that nobody had time for
    frames_by_loops: Mapping[int, int] = field(default_factory=dict)  # of a clip

    def to_json(self) -> dict[str, Any]:
        values = asdict(self) | {
            "source": str(self.source),
            "target": str(self.target),
            "status": self.status.value,
        }
        return {key: round(value, 4) if isinstance(value, float) else value for key, value in values.items()}


@dataclass(kw_only=True)
class JobReport:
    """Sums of a job. Its size does not grow with the images, unless `keep_items` asks for each of them."""

    keep_items: bool = False
    backend: str = ""  # what restores, and why, in words
    counts: dict[Status, int] = field(default_factory=lambda: dict.fromkeys(Status, 0))
    pixels: int = 0  # restored
    frames: int = 0  # of clips, those that broke off too
    dropped: int = 0
    frames_by_loops: Counter[int] = field(default_factory=Counter)
    stage_s: dict[str, float] = field(default_factory=lambda: {"decode": 0.0, "restore": 0.0, "encode": 0.0})
    failures: list[ItemResult] = field(default_factory=list)  # the first SHOWN_FAILURES
    items: list[ItemResult] = field(default_factory=list)
    started: float = field(default_factory=time.perf_counter)
    seconds: float = 0.0  # from the start to the last image

    def add(self, result: ItemResult) -> None:
        self.counts[result.status] += 1
        self.seconds = time.perf_counter() - self.started
        self.stage_s["decode"] += result.decode_s
        self.stage_s["restore"] += result.restore_s
        self.stage_s["encode"] += result.encode_s
        self.frames += result.frames
        self.dropped += result.dropped
        self.frames_by_loops.update(result.frames_by_loops)
        if result.status is Status.RESTORED or result.frames:
            self.pixels += result.height * result.width * max(1, result.frames)
        if result.status is Status.FAILED and len(self.failures) < SHOWN_FAILURES:
            self.failures.append(result)
        if self.keep_items:
            self.items.append(result)

    @property
    def begun(self) -> bool:
        """It is known what restores."""
        return bool(self.backend)

    @property
    def images_per_s(self) -> float:
        return self.counts[Status.RESTORED] / self.seconds if self.seconds else 0.0

    @property
    def exit_code(self) -> int:
        """0 where every image is restored or was there already, 1 where one failed."""
        return 1 if self.counts[Status.FAILED] else 0

    def summary(self) -> str:
        """One line: "38 restored, 2 failed in 12.3 s (3.1 images/s)"."""
        rest = [(status, self.counts[status]) for status in (Status.SKIPPED, Status.FAILED)]
        parts = [f"{self.counts[Status.RESTORED]} restored"]
        parts += [f"{count} {status.value}" for status, count in rest if count]
        rate = f"{self.images_per_s:.1f} images/s"
        if self.frames:
            parts.append(
                counted(self.frames, "frame") + (f", {self.dropped:,} dropped" if self.dropped else "")
            )
            rate = f"{self.frames / self.seconds if self.seconds else 0:.1f} frames/s"
        return f"{', '.join(parts)} in {self.seconds:.1f} s ({rate})"

    def loop_lines(self) -> list[str]:
        """A line with the frames of each loop count, where there were several."""
        if len(self.frames_by_loops) < 2:
            return []
        parts = [
            f"{counted(frames, 'frame')} at T = {loops}"
            for loops, frames in sorted(self.frames_by_loops.items())
        ]
        return [f"loops by load: {', '.join(parts)}"]

    def failure_lines(self) -> list[str]:
        """A line for each of the first failures, and one with the count of the rest."""
        lines = [f"{result.source}: {result.reason}" for result in self.failures]
        unlisted = self.counts[Status.FAILED] - len(self.failures)
        return [*lines, f"... and {unlisted} more"] if unlisted else lines

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json.dumps`; `items` holds every image where they were kept."""
        return {
            "backend": self.backend,
            **{status.value: count for status, count in self.counts.items()},
            "seconds": round(self.seconds, 4),
            "images_per_s": round(self.images_per_s, 4),
            "megapixels": round(self.pixels / 1e6, 4),
            "stage_seconds": {stage: round(seconds, 4) for stage, seconds in self.stage_s.items()},
            "frames": self.frames,
            "dropped": self.dropped,
            "frames_by_loops": dict(sorted(self.frames_by_loops.items())),
            "items": [result.to_json() for result in self.items],
        }
