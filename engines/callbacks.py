"""What TensorRT calls back into Python: a log that is kept, and a build's progress."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from cmudrn.engines.flavors import Library
from cmudrn.wording import listed

if TYPE_CHECKING:
    import tensorrt as trt

__all__ = ["BuildStep", "make_log", "make_monitor"]


class BuildStep(NamedTuple):
    """How far a phase of a build is; phases may lie inside others."""

    phase: str
    done: int
    of: int  # steps in the phase; done = of ends it


def make_log(library: Library) -> Any:
    """A logger that prints nothing and keeps all: `messages`, and `reasons()` for why something failed."""
    if not TYPE_CHECKING:
        trt = library.module

    class Log(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.messages: list[str] = []
            self.errors: list[str] = []

        def log(self, severity: trt.ILogger.Severity, message: str) -> None:
            self.messages.append(message)
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                self.errors.append(" ".join(message.split()))

        def reasons(self) -> str:
            return listed(self.errors, most=5, between="; ") or "it gave no reason"

    return Log()


def make_monitor(library: Library, on_step: Callable[[BuildStep], None], cancelled: threading.Event) -> Any:
    """Passes a build's progress on, and ends it where it is cancelled or `on_step` fails: see `failure`."""
    if not TYPE_CHECKING:
        trt = library.module

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}
            self.failure: Exception | None = None

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.steps[phase_name] = num_steps
            self.tell(BuildStep(phase_name, 0, num_steps))

        def step_complete(self, phase_name: str, step: int) -> bool:
            self.tell(BuildStep(phase_name, step + 1, self.steps[phase_name]))
            return not cancelled.is_set()

        def phase_finish(self, phase_name: str) -> None:
            self.tell(BuildStep(phase_name, self.steps[phase_name], self.steps[phase_name]))

        def tell(self, step: BuildStep) -> None:
            """An exception must not fall into the compiler, which would print it and go on."""
            try:
                on_step(step)
            except Exception as exc:  # noqa: BLE001 (raised in build_plan)
                self.failure = self.failure or exc
                cancelled.set()

    return Monitor()
