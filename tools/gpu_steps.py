"""Steps of `make gpu-check`: each a command in a process of its own, with a limit, and what became of it."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

__all__ = ["Budget", "Facts", "Outcome", "State", "Step", "run_step", "skipped"]

Facts = dict[str, Any]  # plain values, of one step
LAST_LINES, LINE_CHARS = 8, 1000  # of what a step said on each way, for the report
LEAST_S = 5.0  # below that no step is begun
GRACE_S = 8.0  # after Ctrl-C, for a command to write what it has


class State(str, Enum):
    """How a step ended."""

    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"  # what it is about isn't here


@dataclass(frozen=True, kw_only=True)
class Step:
    """A command, and how to read what it leaves behind."""

    name: str
    command: Sequence[object]  # texts and paths
    read: Callable[[], Facts] = dict  # what the command wrote, for the report; it may raise
    judge: Callable[[Facts], str] = lambda facts: ""  # why they mean a failure; empty where they don't


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a step."""

    name: str
    state: State
    reason: str = ""  # in a line, where it didn't pass
    command: Sequence[str] = ()
    seconds: float = 0.0
    last_lines: Sequence[str] = ()  # of what it said, where it failed
    facts: Facts = field(default_factory=dict)


def skipped(name: str, reason: str) -> Outcome:
    """A step about something that isn't here."""
    return Outcome(name=name, state=State.SKIPPED, reason=reason)


class Budget:
    """Seconds from its making on."""

    def __init__(self, total_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.total_s, self._clock = total_s, clock
        self._began = clock()

    @property
    def spent_s(self) -> float:
        return self._clock() - self._began

    def until(self, share: float) -> float:
        """Seconds left until this share of the whole, 0 to 1, is spent."""
        return self.total_s * share - self.spent_s


def run_step(step: Step, limit_s: float, folder: Path, environment: Mapping[str, str]) -> Outcome:
    """Runs it, at the longest for limit_s, with the grace that it gets to end. Never raises for what it does.

    folder: where it runs, and where what it says goes, stdout.txt and stderr.txt.
    """
    command = [str(part) for part in step.command]
    if limit_s - GRACE_S < LEAST_S:
        reason = "not run: the time for it was used up by the steps before"
        return Outcome(name=step.name, state=State.FAILED, reason=reason, command=command)
    began = time.monotonic()
    try:
        code = run_limited(command, limit_s - GRACE_S, folder, environment)
    except OSError as exc:
        return Outcome(name=step.name, state=State.FAILED, reason=str(exc), command=command)
    lines, facts, reason = last_lines(folder), Facts(), ""
    try:
        facts = step.read()
        reason = step.judge(facts)
    except Exception as exc:  # noqa: BLE001 (whatever a step that failed has left behind, or hasn't)
        reason = "" if code != 0 else f"what it should have written cannot be read: {exc!r}"
    if code is None:
        reason = f"ended after {limit_s - GRACE_S:.0f} s"
    elif code:
        reason = reason or how_it_ended(code, lines)
    return Outcome(
        name=step.name,
        state=State.FAILED if reason else State.PASSED,
        reason=reason,
        command=command,
        seconds=round(time.monotonic() - began, 1),
        last_lines=lines if reason else (),
        facts=facts,
    )


def run_limited(
    command: Sequence[str], limit_s: float, folder: Path, environment: Mapping[str, str]
) -> int | None:
    """The exit code, or None where it had to be ended: by Ctrl-C first, then for good, with its children."""
    with (folder / "stdout.txt").open("wb") as stdout, (folder / "stderr.txt").open("wb") as stderr:
        process = subprocess.Popen(
            command,
            cwd=folder,
            # What a step that crashes has said is in the file, not lost with its buffer.
            env={**environment, "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
        )
    try:
        return process.wait(limit_s)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_S)
        return None
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # with whatever it has left running
        process.wait()


def how_it_ended(code: int, lines: Sequence[str]) -> str:
    """With the line that says most: a command's own complaint, else its last one."""
    ended = f"ended by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    complaints = [line.removeprefix("cmudrn: ") for line in lines if line.startswith("cmudrn: ")]
    return ": ".join([ended, *(complaints or lines)[-1:]])


def last_lines(folder: Path) -> list[str]:
    """Of what it said, on either way."""
    lines = []
    for name in ("stdout.txt", "stderr.txt"):
        said = (folder / name).read_text(encoding="utf-8", errors="replace").splitlines()
        lines += [line.rstrip()[:LINE_CHARS] for line in said if line.strip()][-LAST_LINES:]
    return lines
