"""Ctrl-C and SIGTERM, held until the step that they fall into is whole."""

from __future__ import annotations

import ctypes
import signal
import sys
import threading
from contextlib import AbstractContextManager
from types import FrameType

__all__ = ["Interruption", "end_with_parent"]

STOPS = (signal.SIGINT, signal.SIGTERM)


class Interruption(AbstractContextManager["Interruption"]):
    """Notes the first signal instead of raising it; a second one raises at once.

    A step that is cut off between the weights and the count of steps could not be resumed exactly.
    """

    def __init__(self) -> None:
        self.came = False
        self._before: dict[signal.Signals, signal.Handlers] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():  # only there may handlers be set
            for stop in STOPS:
                # What was told to ignore a signal, as by nohup, goes on ignoring it.
                if signal.getsignal(stop) is not signal.SIG_IGN:
                    self._before[stop] = signal.signal(stop, self._note)  # type: ignore[assignment]
        return self

    def __exit__(self, *exc_info: object) -> None:
        for stop, handler in self._before.items():
            signal.signal(stop, handler)
        self._before.clear()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.came:
            raise KeyboardInterrupt
        self.came = True


def end_with_parent(worker: int) -> None:
    """For processes that render. Ctrl-C reaches the whole process group: the parent saves and ends them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if sys.platform == "linux":
        # A parent that is killed ends nobody: its workers would wait for ever, photographs in memory.
        pr_set_pdeathsig = 1  # sys/prctl.h
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
