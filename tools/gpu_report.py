"""The report of `make gpu-check`: gpu-report.json for programs, gpu-report.md for people."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gpu_steps import Facts, Outcome, State

from cmudrn.wording import counted, listed

__all__ = ["Bar", "Report"]

SHOWN = 4  # failures in the verdict; the tables have them all
CELL_CHARS = 160  # of a table's cell; the JSON file has them whole


@dataclass(frozen=True, kw_only=True)
class Bar:
    """Something that must hold on a GPU."""

    name: str
    wanted: str
    measured: str = ""  # empty where it couldn't be
    state: State  # SKIPPED: not measured
    reason: str = ""  # why not


@dataclass(kw_only=True)
class Report:
    """All that a run has found so far."""

    began: str  # UTC
    budget_s: float
    spent_s: float = 0.0
    nothing_to_check: str = ""  # why, where that is so
    interrupted: bool = False
    machine: Mapping[str, Any] = field(default_factory=dict)
    parts: Mapping[str, str] = field(default_factory=dict)  # what is installed, by `cmudrn doctor`
    outcomes: list[Outcome] = field(default_factory=list)
    bars: list[Bar] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """1 where a step or a bar failed, 130 after Ctrl-C."""
        if self.interrupted:
            return 130
        return 1 if self.failed else 0

    @property
    def failed(self) -> list[str]:
        """Steps and bars, by name."""
        steps = [one.name for one in self.outcomes if one.state is State.FAILED]
        return steps + [bar.name for bar in self.bars if bar.state is State.FAILED]

    @property
    def verdict(self) -> str:
        """In a sentence."""
        measured = [bar for bar in self.bars if bar.state is not State.SKIPPED]
        if self.interrupted:
            return "Interrupted: what stands here was found before."
        if self.failed:
            return f"FAILED: {listed(self.failed, most=SHOWN, between='; ')}."
        if self.nothing_to_check:
            return f"Nothing to check: {self.nothing_to_check}."
        if len(measured) < len(self.bars) or not measured:
            return f"Nothing failed; {len(measured)} of {len(self.bars)} bars could be measured here."
        return "Passed: every step, and every bar."

    def write(self, folder: Path, names: Mapping[str, str]) -> None:
        """names: paths that a report must not hold, and what stands for them."""
        plain = {**asdict(self), "exit_code": self.exit_code, "verdict": self.verdict}
        for name, text in (
            ("gpu-report.json", json.dumps(plain, indent=1) + "\n"),
            ("gpu-report.md", "\n".join(self.markdown()) + "\n"),
        ):
            for path, stands in names.items():
                text = re.sub(rf"(?:\.\./)*(?:\.\.)?{re.escape(path)}", stands, text)
            (folder / name).write_text(text, encoding="utf-8")

    def markdown(self) -> Iterator[str]:
        yield from ("# GPU report", "", f"**{self.verdict}**", "")
        yield f"`make gpu-check`, {self.began}, {self.spent_s:.0f} of {self.budget_s:.0f} s."
        yield ""
        yield from table(("part", "found"), list(self.parts.items()))
        if self.bars:
            rows = [
                (bar.name, bar.wanted, bar.measured or f"not measured: {bar.reason}", bar.state.value)
                for bar in self.bars
            ]
            yield from ("## Bars", "", *table(("bar", "wanted", "measured", ""), rows))
        rows = [(one.name, one.state.value, f"{one.seconds:.0f}", one.reason) for one in self.outcomes]
        yield from ("## Steps", "", *table(("step", "", "seconds", "why"), rows))
        yield from self._engines()
        yield from self._parity()
        yield from self._speeds()
        for one in self.outcomes:
            if one.last_lines:
                yield from (f"## {one.name}: its last lines", "", "```text", *one.last_lines, "```", "")

    def _facts(self, kind: str) -> list[Facts]:
        return [row for one in self.outcomes for row in one.facts.get(kind, ())]

    def _engines(self) -> Iterator[str]:
        # Of the last step that saw an engine: the steps share a store.
        engines = {one["key"]: one for one in self._facts("engines")}
        if engines:
            rows = [
                (key, f"{one['seconds']:.1f}", f"{one['plan_bytes'] / 1e6:.1f}", f"{one['half_share']:.0%}")
                for key, one in engines.items()
            ]
            yield from ("## Engines", "", *table(("engine", "build s", "MB", "half precision"), rows))

    def _parity(self) -> Iterator[str]:
        rows = []
        for one in self._facts("parity"):
            found = one["certificate"] or {}
            psnr = found.get("psnr_min_db")
            rows.append(
                (
                    one["name"],
                    one["verdict"],
                    "" if not found else "equal" if psnr is None else f"{psnr:.1f}",
                    f"{found['difference']:.3g}" if found else "",
                    one["reason"],
                )
            )
        if rows:
            header = ("engine", "", "worst PSNR dB", "largest difference", "why")
            yield from ("## Parity with PyTorch in FP32", "", *table(header, rows))

    def _speeds(self) -> Iterator[str]:
        rows = []
        for one in self._facts("cells"):
            case = f"T = {one['loops']}, {one['height']}x{one['width']}, batch {one['batch']}"
            figures = f"{one['seconds'] * 1e3:.2f}", f"{1 / one['seconds']:.1f}", one["clock"]
            rows.append((case, one["backend"], *figures, one["about"]))
        if rows:
            header = ("case", "backend", "ms an image", "images/s", "clock", "what")
            yield from ("## Speed", "", *table(header, rows))
        reasons: dict[str, list[str]] = {}
        for one in self._facts("missing"):
            reasons.setdefault(one["backend"], []).append(one["reason"])
        for backend, why in reasons.items():
            yield f"- {backend} has no figure in {counted(len(why), 'case')}: {in_a_cell(why[0])}"
        yield ""


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Markdown, and an empty line."""
    lines = [header, ["---"] * len(header), *rows]
    return [*(f"| {' | '.join(map(in_a_cell, line))} |" for line in lines), ""]


def in_a_cell(text: str) -> str:
    shown = text.replace("|", "/")
    return shown if len(shown) <= CELL_CHARS else f"{shown[:CELL_CHARS]} ..."
