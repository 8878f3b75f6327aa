"""What `cmudrn benchmark` has measured: a table of one machine, on disk after each case, to be gone on with.

benchmark.json   terms, cells, and what is missing with its reason
benchmark.csv    the same cells
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

from cmudrn.deploy.benchmark.arithmetic import flops, values_moved
from cmudrn.deploy.benchmark.contestants import Case, Contestant
from cmudrn.deploy.machine import Machine
from cmudrn.engines.spec import Precision
from cmudrn.errors import UsageError
from cmudrn.files import replacing
from cmudrn.wording import listed

__all__ = ["PAPER_FPS", "Cell", "Gap", "Key", "Table", "Terms"]

FORMAT = "cmudrn-benchmark-1"
# The paper's own: PyTorch on a GTX 1070 Ti, images a second by T, height and width.
PAPER_FPS = {(3, 500, 500): 9.0, (3, 1000, 1000): 2.55, (7, 500, 500): 2.40, (7, 1000, 1000): 0.64}
BYTES = {Precision.FP32: 4, Precision.FP16: 2, Precision.BF16: 2}


class Key(NamedTuple):
    """A place in the table."""

    backend: str  # a contestant's name
    place: str  # cpu or gpu
    loops: int
    height: int
    width: int
    batch: int

    @property
    def case(self) -> Case:
        return Case(*self[2:])


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A contestant at one case. Seconds are those of one image: of a batch, divided by its images."""

    backend: str
    place: str
    loops: int
    height: int
    width: int
    batch: int
    seconds: float  # the median
    lower_s: float  # a quarter of the runs took less
    upper_s: float  # a quarter took more
    least_s: float
    first_s: float  # of the first batch as a whole, which compiles and allocates
    runs: int  # that counted
    clock: str
    about: str
    plan: str  # as `Opened.plan`: a figure is of one build of an engine, or of our kernels
    peak_flops_per_s: float | None  # of a matrix product on the same device in the same precision
    peak_bytes_per_s: float | None  # of a copy there
    began: str  # UTC: cells of one time took turns, and only their ratios are fair

    @property
    def key(self) -> Key:
        return Key(self.backend, self.place, self.loops, self.height, self.width, self.batch)

    @property
    def fps(self) -> float:
        """Images a second."""
        return 1 / self.seconds

    @property
    def spread(self) -> float:
        """Half the distance between the quartiles, of the median."""
        return (self.upper_s - self.lower_s) / 2 / self.seconds

    @property
    def flops_per_s(self) -> float:
        return flops(self.loops, self.height, self.width) / self.seconds

    @property
    def peak_share(self) -> float | None:
        """Of the matrix product's speed."""
        return self.flops_per_s / self.peak_flops_per_s if self.peak_flops_per_s else None

    @property
    def moved_share(self) -> float | None:
        """Of the copy's speed, were each layer read and written once; above 1, caches or fusion save that."""
        values = values_moved(self.loops, self.height, self.width) / self.seconds
        bytes_per_s = values * BYTES[Contestant.parse(self.backend).precision]
        return bytes_per_s / self.peak_bytes_per_s if self.peak_bytes_per_s else None

    def row(self) -> dict[str, Any]:
        """What is measured, and what follows from it; plain values."""
        derived = {
            "fps": self.fps,
            "spread": self.spread,
            "flops": flops(self.loops, self.height, self.width),
            "flops_per_s": self.flops_per_s,
            "peak_share": self.peak_share,
            "moved_share": self.moved_share,
        }
        return asdict(self) | derived

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Cell:
        told = {"plan": "", **row}  # tables of before have no plans: such cells are of others
        return cls(**{one.name: told[one.name] for one in fields(cls)})


@dataclass(frozen=True, kw_only=True)
class Gap:
    """A cell that stays empty, and why."""

    key: Key
    reason: str
    fix: str

    def row(self) -> dict[str, Any]:
        return {**self.key._asdict(), "reason": self.reason, "fix": self.fix}

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Gap:
        return cls(key=Key(*(row[name] for name in Key._fields)), reason=row["reason"], fix=row["fix"])


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What must be alike for figures to stand in one table."""

    machine: Machine
    weights_sha256: str
    threads: int  # on the CPU
    gpu: str  # its number among those of the machine

    def flat(self) -> dict[str, str]:
        """Each by its name, in words."""
        return flat({name: value for name, value in self.to_json().items() if name != "about"})

    def to_json(self) -> dict[str, Any]:
        plain = self.machine.to_json()
        del plain["memory_gb"]  # a virtual machine's differs by a little from start to start
        others = {name: getattr(self, name) for name in ("weights_sha256", "threads", "gpu")}
        return {"about": str(self.machine), **plain, **others}


def flat(values: Mapping[str, Any]) -> dict[str, str]:
    """Mappings within, such as versions, by their own names."""
    words: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            words |= flat(value)
        else:
            words[name] = str(value)
    return words


@dataclass
class Table:
    """All cells of one folder; `add` writes them."""

    folder: Path
    terms: Terms
    cells: dict[Key, Cell] = field(default_factory=dict)
    gaps: dict[Key, Gap] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path, terms: Terms, *, overwrite: bool = False) -> Table:
        """The folder's table, to go on with, or a new one.

        Raises UsageError for one of other terms, a file that is none, a folder that can't be written.
        """
        table, path = cls(folder, terms), folder / "benchmark.json"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if path.exists() and not overwrite:
                table._read(path)
            table.write()
        except OSError as exc:
            raise UsageError(f"{folder}: {exc.strerror}", fix="give another folder: -o OUT") from exc
        return table

    def add(self, cells: Iterable[Cell], gaps: Iterable[Gap]) -> None:
        """On disk when it returns; a kill leaves what was there before. A gap takes its cell's place."""
        for cell in cells:
            self.cells[cell.key] = cell
            self.gaps.pop(cell.key, None)
        for gap in gaps:
            self.gaps[gap.key] = gap
            self.cells.pop(gap.key, None)
        self.write()

    def write(self) -> None:
        """Both files, each whole or not at all."""
        rows = [cell.row() for cell in self.cells.values()]
        document = {
            "format": FORMAT,
            "terms": self.terms.to_json(),
            "cells": rows,
            "missing": [gap.row() for gap in self.gaps.values()],
        }
        text = json.dumps(document, indent=1, allow_nan=False) + "\n"
        for name, content in (("benchmark.json", text), ("benchmark.csv", _csv(rows))):
            with replacing(self.folder / name, durable=False) as file:
                file.write(content.encode())

    def _read(self, path: Path) -> None:
        """Raises UsageError."""
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            if document["format"] != FORMAT:
                raise ValueError(f"format {document['format']}")
            told, cells = flat(document["terms"]), [Cell.from_row(row) for row in document["cells"]]
            gaps = [Gap.from_row(row) for row in document["missing"]]
        except (ValueError, KeyError, TypeError, AttributeError) as exc:
            raise UsageError(
                f"{path}: not a table of cmudrn benchmark: {exc!r}",
                fix="give another folder: -o OUT, or --overwrite",
            ) from exc
        self._check(path, told)
        self.cells = {cell.key: cell for cell in cells}
        self.gaps = {gap.key: gap for gap in gaps}

    def _check(self, path: Path, told: Mapping[str, str]) -> None:
        here = self.terms.flat()
        names = [name for name in {**told, **here} if name != "about" and told.get(name) != here.get(name)]
        if names:
            changes = [f"{name} {told.get(name, 'absent')}, now {here.get(name, 'absent')}" for name in names]
            raise UsageError(
                f"{path}: measured on other terms: {listed(changes, most=4, between='; ')}",
                fix="give another folder: -o OUT, or --overwrite to begin anew",
            )


def _csv(rows: list[dict[str, Any]]) -> str:
    text = io.StringIO(newline="")
    if rows:
        writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return text.getvalue()
