"""Frames from a source through the network to a sink: decoding, restoring and encoding at the same time.

One thread decodes, the caller's restores, one encodes; between them are queues that are bounded in bytes.
What is no frame goes around the network. Frames stay in order.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cmudrn.deploy.failures import FAILURES
from cmudrn.deploy.tiling import Restorer, restore_each
from cmudrn.deploy.video.adaptive import LoopController
from cmudrn.deploy.video.depths import Depths
from cmudrn.deploy.video.frames import Frame, Sink, Step
from cmudrn.deploy.video.handover import Closed, DroppingHandover, Handover
from cmudrn.images import Pixels

__all__ = ["LineOptions", "Passage", "beside_each_other", "run_line"]

WAITING = 2  # frames before the network, and as many behind it, or as many as a batch takes


@dataclass(frozen=True, kw_only=True)
class LineOptions:
    """How frames pass."""

    budget_s: float  # for one frame; endless where nothing presses
    drops: bool = False  # what waited longest, where the source does not wait
    preview: bool = False  # each frame beside what became of it
    waiting: int = WAITING
    joins: bool = True  # its threads; not where they may wait for ever, as on a pipe


@dataclass
class Passage:
    """What has passed so far."""

    frames: int = 0
    dropped: int = 0
    by_loops: Counter[int] = field(default_factory=Counter)
    decode_s: float = 0.0
    restore_s: float = 0.0
    encode_s: float = 0.0


def run_line(
    steps: Iterator[Step],
    sink: Sink,
    depths: Depths,
    options: LineOptions,
    *,
    passage: Passage,
    frame_bytes: int,
    on_frame: Callable[[Passage], None] = lambda passage: None,
) -> None:
    """Sends all steps to the sink, frames restored. `passage` counts along, also where this raises.

    Raises what the source, the network or the sink raise; both threads have ended by then, but for
    options.joins.
    """
    line = _Line(steps, sink, depths, options, passage, frame_bytes)
    try:
        line.start()
        for restored in line.restored():
            line.hand_on(restored)
            passage.frames += 1
            on_frame(passage)
        line.finish()
    finally:
        line.stop()


class _Clock:
    """The seconds of frames, less what was waited for the next ones to come."""

    def __init__(self, inbox: Handover[Step]) -> None:
        self._inbox = inbox
        self._handed_on = self._last = self._now()

    def since_handed_on_s(self) -> float:
        """Of the network alone."""
        return self._now() - self._handed_on

    def since_last_s(self) -> float:
        """From frame to frame: a slow encoder is in it, to which fewer loops leave more of the processor."""
        last, self._last = self._last, self._now()
        return self._last - last

    def handed_on(self) -> None:
        self._handed_on = self._now()

    def _now(self) -> float:
        return time.perf_counter() - self._inbox.waited_s


class _Line:
    def __init__(
        self,
        steps: Iterator[Step],
        sink: Sink,
        depths: Depths,
        options: LineOptions,
        passage: Passage,
        frame_bytes: int,
    ) -> None:
        self.steps, self.sink, self.depths, self.options = steps, sink, depths, options
        self.passage = passage
        limit = options.waiting * frame_bytes
        self.inbox: Handover[Step] = (
            DroppingHandover(limit, lambda step: isinstance(step, Frame))
            if options.drops
            else Handover(limit)
        )
        self.outbox: Handover[Step] = Handover(limit * (2 if options.preview else 1))
        self.controller = LoopController(depths.counts, options.budget_s)
        self.read_error: BaseException | None = None
        self.write_error: BaseException | None = None
        self.threads = [
            threading.Thread(target=work, name=f"cmudrn-{name}", daemon=True)
            for work, name in ((self._read, "read-frames"), (self._write, "write-frames"))
        ]

    def start(self) -> None:
        for thread in self.threads:
            thread.start()

    def restored(self) -> Iterator[Frame[Any]]:
        """Frames with restored pixels. Changes the loop count between two frames, never within one."""
        incoming = self._frames()
        while (first := next(incoming, None)) is not None:
            loops = self.controller.loops
            yield from self._stream(first, incoming, self.depths.restorer(loops, first.pixels), loops)

    def _stream(
        self, first: Frame[Any], incoming: Iterator[Frame[Any]], restorer: Restorer, loops: int
    ) -> Iterator[Frame[Any]]:
        """As many frames as have this count."""
        begun: deque[Frame[Any]] = deque()

        def pixels() -> Iterator[Pixels]:
            begun.append(first)
            yield first.pixels
            while self.controller.loops == loops and (frame := next(incoming, None)) is not None:
                begun.append(frame)
                yield frame.pixels

        clock = _Clock(self.inbox)
        with closing(restore_each(pixels(), restorer)) as stream:
            for restored in stream:
                self.passage.restore_s += clock.since_handed_on_s()
                self.controller.observe(loops, clock.since_last_s())
                self.passage.by_loops[loops] += 1
                frame = begun.popleft()
                shown = beside_each_other(frame.pixels, restored) if self.options.preview else restored
                yield Frame(shown, frame.mark)
                clock.handed_on()

    def _frames(self) -> Iterator[Frame[Any]]:
        """From the inbox; the rest goes around. What the source raised is kept until these are through."""
        try:
            for step in self.inbox:
                if isinstance(step, Frame):
                    yield step
                else:
                    self.hand_on(step)
        except FAILURES as exc:
            self.read_error = exc

    def hand_on(self, step: Step) -> None:
        try:
            self.outbox.put(step, step.size_bytes)
        except Closed:
            assert self.write_error is not None
            raise self.write_error from None

    def finish(self) -> None:
        """Until all is written."""
        self.outbox.end()
        self.threads[1].join()
        for error in (self.write_error, self.read_error):
            if error is not None:
                raise error

    def stop(self) -> None:
        self.inbox.close()
        self.outbox.close()
        for thread in self.threads if self.options.joins else ():  # finish() joins who writes
            with suppress(RuntimeError):  # Ctrl-C came before it was started: it finds all closed
                thread.join()
        if isinstance(self.inbox, DroppingHandover):
            self.passage.dropped = self.inbox.dropped

    def _read(self) -> None:
        error: BaseException | None = None
        if self.inbox.is_closed:
            return
        try:
            since = time.perf_counter()
            for step in self.steps:
                self.passage.decode_s += time.perf_counter() - since
                self.inbox.put(step, step.size_bytes)
                since = time.perf_counter()
        except Closed:
            return
        except BaseException as exc:  # noqa: BLE001 (raised again where it is taken)
            error = exc
        self.inbox.end(error)

    def _write(self) -> None:
        try:
            for step in self.outbox:
                since = time.perf_counter()
                self.sink.write(step)
                self.passage.encode_s += time.perf_counter() - since
        except BaseException as exc:  # noqa: BLE001 (raised again where it is handed on)
            self.write_error = exc
            self.outbox.close()
            self.inbox.close()  # else this is not known before another frame comes


def beside_each_other(source: Pixels, restored: Pixels) -> Pixels:
    """[H, 2 W, 3]: the source on the left."""
    return np.concatenate([source, restored], axis=1)
