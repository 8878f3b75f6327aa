"""What `cmudrn tune` found best on a machine, as a file that `cmudrn infer --profile` goes by."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cmudrn.deploy.job import (
    DEFAULT_OVERLAP_PX,
    DEFAULT_TILE_PX,
    MOST_AT_ONCE,
    MOST_STREAMS,
    BackendName,
)
from cmudrn.engines.layout import Layout
from cmudrn.engines.plain_json import MOST_BYTES, SHA256, UTC_TIME, Document, Fields
from cmudrn.engines.spec import MOST
from cmudrn.errors import EngineError, UsageError
from cmudrn.files import replacing

__all__ = ["Goal", "Profile", "Spread", "Way", "read_profile", "write_profile"]

SCHEMA = 1  # one more whenever a reader of the one before would misread it
TUNE_AGAIN = "write it again: `cmudrn tune ... -o FILE`"
PERCENTILE = 99
DEVICE = re.compile(r"cpu|[0-9]{1,4}|[0-9A-Fa-f:.]{5,20}")
ENGINE_KEY = re.compile(r"[A-Za-z0-9.+-]+")
MOST_S = 1e6  # of one frame
MOST_RUNS = 1 << 31
MOST_DB = 1e3
# What makes two machines one for a profile; versions of libraries change under it.
SAME_MACHINE = ("cpu", "cores", "gpus")


@dataclass(frozen=True, kw_only=True)
class Goal:
    """How fast is fast enough: one of the two, at the 99th percentile. Raises UsageError."""

    fps: float | None = None  # frames a second that a stream brings
    budget_ms: float | None = None  # from a lone frame to its restored one

    def __post_init__(self) -> None:
        told = [one for one in (self.fps, self.budget_ms) if one is not None]
        if len(told) != 1:
            raise UsageError(
                "--fps and --budget-ms" if told else "how fast is fast enough?",
                fix="give one of the two: --fps 30 for a stream, --budget-ms 40 for a frame alone",
            )
        if not 1e3 / MOST_S <= told[0] <= 1e3 * MOST_S:  # NaN neither
            option = "--fps" if self.fps is not None else "--budget-ms"
            raise UsageError(f"{option} {told[0]:g}", fix="give a number above 0, such as 30")

    @property
    def budget_s(self) -> float:
        """For one frame."""
        return 1 / self.fps if self.fps is not None else (self.budget_ms or math.nan) / 1e3

    def __str__(self) -> str:
        if self.fps is not None:
            return f"{self.budget_s * 1e3:.4g} ms a frame in a stream ({self.fps:g} frames/s)"
        return f"{self.budget_ms:g} ms from a frame to its restored one"


@dataclass(frozen=True)
class Spread:
    """Seconds a frame, over some runs."""

    runs: int
    median_s: float
    p99_s: float  # a run that was measured, never a value between two; of 100 runs and fewer the slowest

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Spread:
        """seconds: of each run, at least one."""
        return cls(
            runs=len(seconds),
            median_s=float(np.median(seconds)),
            p99_s=float(np.percentile(seconds, PERCENTILE, method="higher")),
        )

    @classmethod
    def from_fields(cls, fields: Fields) -> Spread:
        """Raises EngineError."""
        return cls(
            runs=fields.integer("runs", 1, MOST_RUNS),
            median_s=fields.number("median_s", 0, MOST_S),
            p99_s=fields.number("p99_s", 0, MOST_S),
        )


@dataclass(frozen=True, kw_only=True)
class Way:
    """How frames are restored: all that is chosen by measuring."""

    loops: int
    backend: BackendName
    layout: Layout | None = None  # of the graph, or that the engine was built with; None: the usual one
    batch: int | None = None  # tiles at once; None: an engine's, or one
    streams: int = 2  # on a GPU
    tile_px: int | None = None  # side of a tile, at most; None: an engine's, or the usual one
    threads: int | None = None  # on the CPU; None: one for each core
    engine: str | None = None  # its key in the store, for backend = TENSORRT
    device: str | None = None  # a GPU's number or PCI bus id, or cpu, as it was told; None: the first GPU

    @classmethod
    def from_fields(cls, fields: Fields) -> Way:
        """Raises EngineError for a value that is missing or out of range."""
        return cls(
            loops=fields.integer("loops", 1, max(DEFAULT_OVERLAP_PX)),
            backend=fields.choice("backend", BackendName),
            layout=fields.maybe("layout", lambda key: Layout.parse(fields.text(key))),
            batch=fields.maybe("batch", lambda key: fields.integer(key, 1, MOST_AT_ONCE)),
            streams=fields.integer("streams", 1, MOST_STREAMS),
            tile_px=fields.maybe("tile", lambda key: fields.integer(key, 1, MOST["height"])),
            threads=fields.maybe("threads", lambda key: fields.integer(key, 1, MOST_AT_ONCE)),
            engine=fields.maybe("engine", lambda key: fields.text(key, ENGINE_KEY)),
            device=fields.maybe("device", lambda key: fields.text(key, DEVICE)),
        )

    def to_json(self) -> dict[str, Any]:
        """As `from_fields` takes it."""
        return {
            "loops": self.loops,
            "backend": self.backend.value,
            "layout": None if self.layout is None else str(self.layout),
            "batch": self.batch,
            "streams": self.streams,
            "tile": self.tile_px,
            "threads": self.threads,
            "engine": self.engine,
            "device": self.device,
        }


@dataclass(frozen=True, kw_only=True)
class Profile:
    """A way, and what it was measured for, on and with."""

    way: Way
    goal: Goal
    height: int  # of the frames, pixels
    width: int
    weights_sha256: str
    quality_db: float | None  # mean PSNR over the protocols of the weights' own figures; None: they have none
    alone: Spread  # a frame alone
    stream: Spread  # a frame in a stream
    machine: Mapping[str, Any]  # as Machine.to_json
    made_at: str  # UTC, such as 2026-11-26T07:30:00Z
    kernels: str | None = None  # of backend = NATIVE: `kernels_version`; None in profiles of before, too

    def to_json(self) -> bytes:
        """Sorted, for people to read and to compare."""
        plain = {
            "schema": SCHEMA,
            "way": self.way.to_json(),
            "goal": vars(self.goal),
            "size": {"height": self.height, "width": self.width},
            "weights_sha256": self.weights_sha256,
            "quality_db": self.quality_db,
            "measured": {"alone": vars(self.alone), "stream": vars(self.stream)},
            "machine": dict(self.machine),
            "made_at": self.made_at,
            "kernels": self.kernels,
        }
        return json.dumps(plain, indent=1, sort_keys=True).encode() + b"\n"

    @classmethod
    def from_json(cls, data: bytes, name: str) -> Profile:
        """Raises UsageError, with `name`, where a value is missing, or is none that `to_json` would write."""
        document = Document(name, "profile", TUNE_AGAIN)
        try:
            return cls._from_fields(document.fields(data))
        except EngineError as exc:
            raise UsageError(exc.what, fix=exc.fix) from exc
        except UsageError as exc:  # a goal or a layout that refuses itself
            raise UsageError(document.damaged(exc.what).what, fix=TUNE_AGAIN) from exc

    @classmethod
    def _from_fields(cls, fields: Fields) -> Profile:
        if fields.integer("schema", 0, 1 << 31) != SCHEMA:
            raise fields.wrong("schema", fix=f"update cmudrn, or {TUNE_AGAIN}")
        way, goal, size = Way.from_fields(fields.inner("way")), fields.inner("goal"), fields.inner("size")
        if (way.backend is BackendName.TENSORRT) != (way.engine is not None):
            raise fields.document.damaged(f"{way.backend.value} with engine = {way.engine}")
        if way.backend is BackendName.AUTO:
            raise fields.document.damaged("no backend")
        if 2 * DEFAULT_OVERLAP_PX[way.loops] >= (way.tile_px or DEFAULT_TILE_PX):
            raise fields.document.damaged(f"tiles of {way.tile_px} pixels are nothing but overlap")
        measured = fields.inner("measured")
        return cls(
            way=way,
            goal=Goal(
                fps=goal.maybe("fps", lambda key: goal.number(key, 0, 1e3 * MOST_S)),
                budget_ms=goal.maybe("budget_ms", lambda key: goal.number(key, 0, 1e3 * MOST_S)),
            ),
            height=size.integer("height", 1, MOST["height"]),
            width=size.integer("width", 1, MOST["width"]),
            weights_sha256=fields.text("weights_sha256", SHA256),
            quality_db=fields.maybe("quality_db", lambda key: fields.number(key, -MOST_DB, MOST_DB)),
            alone=Spread.from_fields(measured.inner("alone")),
            stream=Spread.from_fields(measured.inner("stream")),
            machine=fields.inner("machine").values,
            made_at=fields.text("made_at", UTC_TIME),
            kernels=fields.maybe("kernels", fields.text) if "kernels" in fields.values else None,
        )

    def is_of(self, machine: Mapping[str, Any]) -> bool:
        """Whether it was measured on such a machine: processor, cores, GPUs. machine: as Machine.to_json."""
        return all(self.machine.get(fact) == machine[fact] for fact in SAME_MACHINE)


def write_profile(profile: Profile, path: Path) -> None:
    """Whole or not at all, in place of one that is there. Raises UsageError where it can't be written."""
    try:
        with replacing(path) as file:
            file.write(profile.to_json())
    except OSError as exc:
        raise UsageError(f"{path}: cannot be written: {exc.strerror}", fix="name another file") from exc


def read_profile(path: Path) -> Profile:
    """Raises UsageError for what isn't there, cannot be read, or is no profile of this version."""
    try:
        if not path.is_file():  # before it is opened: a pipe would wait for a writer
            path.stat()
            raise UsageError(f"{path}: not a file", fix="give one that `cmudrn tune ... -o FILE` wrote")
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)  # Document refuses more than MOST_BYTES
    except OSError as exc:
        raise UsageError(
            f"{path}: {exc.strerror}", fix="give a profile that `cmudrn tune ... -o FILE` wrote"
        ) from exc
    return Profile.from_json(data, str(path))
