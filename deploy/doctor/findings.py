"""What `cmudrn doctor` found: a line a part, how it is, and the command that mends it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from cmudrn.deploy.machine import Machine
from cmudrn.deploy.probe import Answer
from cmudrn.engines.store import EngineStore

__all__ = ["Diagnosis", "Finding", "Scene", "State", "mismatched", "missing", "ok"]


class State(str, Enum):
    """How a part is."""

    OK = "ok"
    MISSING = "missing"
    MISMATCHED = "mismatched"  # there, but broken, or for something else than what is here


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One part."""

    part: str
    state: State
    found: str  # a line
    fix: str = ""  # the command that mends it
    needed: bool = False  # by `cmudrn infer`, whatever the backend
    facts: Mapping[str, Any] = field(default_factory=dict)  # plain values, for programs


def ok(part: str, found: str, facts: Mapping[str, Any] | None = None) -> Finding:
    """A part that is there, and fits."""
    return Finding(part=part, state=State.OK, found=found, facts=facts or {})


def missing(part: str, found: str, fix: str = "") -> Finding:
    """A part that isn't there."""
    return Finding(part=part, state=State.MISSING, found=found, fix=fix)


def mismatched(part: str, found: str, fix: str, facts: Mapping[str, Any] | None = None) -> Finding:
    """A part that is there, and doesn't work here."""
    return Finding(part=part, state=State.MISMATCHED, found=found, fix=fix, facts=facts or {})


@dataclass(frozen=True)
class Diagnosis:
    """All parts, in order."""

    findings: Sequence[Finding]

    @property
    def works(self) -> bool:
        """Whether `cmudrn infer` does, on one backend at least."""
        return not any(one.needed and one.state is not State.OK for one in self.findings)

    @property
    def exit_code(self) -> int:
        """0 where it works and nothing is mismatched, whatever else is missing; else 1."""
        fits = all(one.state is not State.MISMATCHED for one in self.findings)
        return 0 if self.works and fits else 1

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json.dumps`."""
        findings = [
            {**vars(one), "state": one.state.value, "facts": dict(one.facts)} for one in self.findings
        ]
        return {"works": self.works, "exit_code": self.exit_code, "findings": findings}


@dataclass(frozen=True)
class Scene:
    """What the parts answered, and what lies beside them."""

    answers: Mapping[str, Answer]  # of each of probe.PROBES
    machine: Machine
    packages: Mapping[str, str]  # installed distributions, in lower case with hyphens: their versions
    store: EngineStore

    def newer_than_the_driver(self, major: int) -> bool:
        """Of what was built with that CUDA: a driver runs its own major version and older ones."""
        return self.machine.cuda is not None and major > int(self.machine.cuda.split(".")[0])

    def installed(self, names: Sequence[str]) -> dict[str, str]:
        """Those of these packages that are, with their versions."""
        return {name: self.packages[name] for name in names if name in self.packages}
