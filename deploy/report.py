"""What became of each image, and of the whole job."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

__all__ = ["ItemResult", "JobReport", "Status"]

SHOWN_FAILURES = 20  # listed at the end; the rest is a count


class Status(str, Enum):
    """How one image ended."""

    RESTORED = "restored"
    CLEAN = "clean"  # left alone: the gate found no weather in it
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
    gate_s: float = 0.0
    confidence: float | None = None  # of the gate, that there is no weather, 0 to 1; None: not asked

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
    stage_s: dict[str, float] = field(default_factory=lambda: {"decode": 0.0, "restore": 0.0, "encode": 0.0})
    gate_s: float = 0.0
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
        self.gate_s += result.gate_s
        if result.status is Status.RESTORED:
            self.pixels += result.height * result.width
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
        done = self.counts[Status.RESTORED] + self.counts[Status.CLEAN]
        return done / self.seconds if self.seconds else 0.0

    @property
    def exit_code(self) -> int:
        """0 where every image is restored, left alone or was there already, 1 where one failed."""
        return 1 if self.counts[Status.FAILED] else 0

    def summary(self) -> str:
        """One line: "38 restored, 12 left alone: no weather, 2 failed in 12.3 s (3.1 images/s)"."""
        rest = [(status, self.counts[status]) for status in (Status.SKIPPED, Status.FAILED)]
        parts = [f"{self.counts[Status.RESTORED]} restored"]
        if clean := self.counts[Status.CLEAN]:
            parts.append(f"{clean} left alone: no weather")
        parts += [f"{count} {status.value}" for status, count in rest if count]
        return f"{', '.join(parts)} in {self.seconds:.1f} s ({self.images_per_s:.1f} images/s)"

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
            "stage_seconds": {
                stage: round(seconds, 4) for stage, seconds in {**self.stage_s, "gate": self.gate_s}.items()
            },
            "items": [result.to_json() for result in self.items],
        }
