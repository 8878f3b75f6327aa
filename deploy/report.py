"""What became of each image, and of the whole job."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from enum import Enum
from pathlib import Path
from typing import Any

from cmudrn.deploy.fingerprint import Fingerprint
from cmudrn.deploy.video.names import STANDARD_INPUT, is_clip, is_live
from cmudrn.wording import counted

__all__ = ["ItemResult", "JobReport", "Status", "report_lines"]

SHOWN = 20  # failures, and images done anew, listed at the end; the rest is a count


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
    pages: int = 1  # or frames
    decode_s: float = 0.0
    restore_s: float = 0.0
    encode_s: float = 0.0
    frames: int = 0  # of a clip, restored and written; 0 for a photograph
    dropped: int = 0  # frames of a camera that nobody had time for
    frames_by_loops: Mapping[int, int] = field(default_factory=dict)  # of a clip
    gate_s: float = 0.0
    confidence: float | None = None  # of the gate, that there is no weather, 0 to 1; None: not asked
    restored_by: str = ""  # the engine's key, or the backend and its device
    read: Fingerprint | None = None  # the source, as it was decoded
    written: Fingerprint | None = None  # the target
    before: bool = False  # by an earlier session of the run that is gone on with
    anew: str = ""  # why it was done again, although an earlier session had done it

    def changed(self) -> str:
        """Why this result no longer holds, in words; empty where it does.

        Raises OSError where the source cannot be read any more.
        """
        if not self.target.exists():
            return "its target is gone"
        if self.status is Status.SKIPPED:
            return ""
        if self.read is None or not self.read.is_still(self.source):
            return "its source has changed"
        if self.written is None or not self.written.is_still(self.target, written_by_us=True):
            return "its target has changed"
        return ""

    @property
    def pixels(self) -> int:
        """Of all pages."""
        return self.pages * self.height * self.width

    @property
    def is_moving(self) -> bool:
        """A clip, a camera or a pipe, and no photograph."""
        name = str(self.source)
        return name == STANDARD_INPUT or is_clip(name) or is_live(name)

    def to_json(self) -> dict[str, Any]:
        """Plain values; floats to a tenth of a millisecond."""
        values: dict[str, Any] = {}
        for name, value in vars(self).items():  # no asdict: it copies all it finds, and takes 3 times as long
            if isinstance(value, Fingerprint):
                values[name] = value.to_json()
            elif isinstance(value, Enum):
                values[name] = value.value
            elif isinstance(value, Path):
                values[name] = str(value)
            else:
                values[name] = round(value, 4) if isinstance(value, float) else value
        return values

    @classmethod
    def from_json(cls, values: Mapping[str, Any], *, source: Path, target: Path) -> ItemResult:
        """What `to_json` gave; fields that this version doesn't know are left out."""
        known = {one.name for one in fields(cls)}
        told = {name: value for name, value in values.items() if name in known}
        for name in ("read", "written"):
            if told.get(name) is not None:
                told[name] = Fingerprint.from_json(told[name])
        # JSON has texts for names.
        loops = {int(count): frames for count, frames in told.get("frames_by_loops", {}).items()}
        told["frames_by_loops"] = loops
        return cls(**told | {"source": source, "target": target, "status": Status(values["status"])})


@dataclass(kw_only=True)
class JobReport:
    """Sums of a job, those done before included. Its size does not grow with the images."""

    backend: str = ""  # what restores, and why, in words
    counts: dict[Status, int] = field(default_factory=lambda: dict.fromkeys(Status, 0))
    before: int = 0  # of those restored or left alone
    anew: int = 0  # of those restored or failed
    gate_confidence: float | None = None  # from which the gate leaves alone; None without one
    gone: int = 0  # the run has restored them, and their sources are no longer there
    pixels: int = 0  # restored in this session, as all that follows
    frames: int = 0  # of clips, those that broke off too
    dropped: int = 0
    moving: int = 0  # clips and streams, whatever became of them
    photographs: int = 0  # restored or left alone
    frames_by_loops: Counter[int] = field(default_factory=Counter)
    stage_s: dict[str, float] = field(default_factory=lambda: {"decode": 0.0, "restore": 0.0, "encode": 0.0})
    gate_s: float = 0.0
    failures: list[ItemResult] = field(default_factory=list)  # the first that are shown
    redone: list[ItemResult] = field(default_factory=list)  # the same
    started: float = field(default_factory=time.perf_counter)
    seconds: float = 0.0  # from the start to the last image, and to the end once that is told

    def add(self, result: ItemResult) -> None:
        self.counts[result.status] += 1
        self.seconds = time.perf_counter() - self.started
        if result.before:
            self.before += result.status in (Status.RESTORED, Status.CLEAN)
            return
        self.stage_s["decode"] += result.decode_s
        self.stage_s["restore"] += result.restore_s
        self.stage_s["encode"] += result.encode_s
        self.gate_s += result.gate_s
        self.frames += result.frames
        self.dropped += result.dropped
        self.moving += result.is_moving
        self.photographs += not result.is_moving and result.status in (Status.RESTORED, Status.CLEAN)
        self.frames_by_loops.update(result.frames_by_loops)
        if result.status is Status.RESTORED or result.frames:
            self.pixels += result.pixels * max(1, result.frames)
        if result.status is Status.FAILED and len(self.failures) < SHOWN:
            self.failures.append(result)
        if result.anew:
            self.anew += 1
            if len(self.redone) < SHOWN:
                self.redone.append(result)

    def end(self) -> None:
        """The clock runs on to here: what was broken off took its time, too."""
        self.seconds = time.perf_counter() - self.started

    @property
    def images_per_s(self) -> float:
        """Of this session, those left alone included."""
        done = self.counts[Status.RESTORED] + self.counts[Status.CLEAN] - self.before
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
        if self.before:
            parts[-1] += f" ({self.before} {'of both' if clean else 'of them'} before)"
        parts += [f"{count} {status.value}" for status, count in rest if count]
        if self.frames or self.dropped:
            parts.append(
                counted(self.frames, "frame") + (f", {self.dropped:,} dropped" if self.dropped else "")
            )
        return f"{', '.join(parts)} in {self.seconds:.1f} s{self._rate()}"

    def _rate(self) -> str:
        """Of images or of frames; of both together there is none."""
        if not self.moving:
            return f" ({self.images_per_s:.1f} images/s)"
        if self.photographs or not self.frames or not self.seconds:
            return ""
        return f" ({self.frames / self.seconds:.1f} frames/s)"

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
        return _with_rest(lines, self.counts[Status.FAILED])

    def redone_lines(self) -> list[str]:
        """The same for what was done anew."""
        return _with_rest([f"{result.source}: {result.anew}" for result in self.redone], self.anew)

    def gone_line(self) -> str:
        """What to say of results whose sources are gone; empty without."""
        if not self.gone:
            return ""
        return f"{counted(self.gone, 'source')} of this run no longer there; what became of them stays"

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json.dumps`, but for the items."""
        return {
            "backend": self.backend,
            **{status.value: count for status, count in self.counts.items()},
            "restored_before": self.before,
            "done_anew": self.anew,
            "sources_gone": self.gone,
            "seconds": round(self.seconds, 4),
            "images_per_s": round(self.images_per_s, 4),
            "megapixels": round(self.pixels / 1e6, 4),
            "stage_seconds": {
                stage: round(seconds, 4) for stage, seconds in {**self.stage_s, "gate": self.gate_s}.items()
            },
            "gate_confidence": self.gate_confidence,
            "frames": self.frames,
            "dropped": self.dropped,
            "frames_by_loops": dict(sorted(self.frames_by_loops.items())),
        }


def report_lines(head: Mapping[str, Any], items: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """A JSON object of the head's values and "items", an item a line: never all of it in memory at once."""
    yield json.dumps(head, indent=2).removesuffix("\n}") + ',\n  "items": ['
    between = "\n    "
    for item in items:
        yield between + json.dumps(item)
        between = ",\n    "
    yield "\n  ]\n}\n"


def _with_rest(lines: list[str], count: int) -> list[str]:
    unlisted = count - len(lines)
    return [*lines, f"... and {unlisted} more"] if unlisted else lines
