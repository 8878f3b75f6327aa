"""A process for each contestant, asked for one thing at a time and idle between.

In one process the libraries would disturb each other: their threads spin for a while after their work, and
what an environment variable says is read once. A process answers only when its threads lie still.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from cmudrn.engines.spec import Pixel
from cmudrn.errors import CmudrnError, DeviceError
from contest.contestants import Contestant, Program, Work, open_contestant

if TYPE_CHECKING:
    from cmudrn.deploy.backend import Backend, PixelBatch

__all__ = ["Worker", "drawn_pixels"]

Request: TypeAlias = "tuple[str, tuple[Any, ...]]"  # a method of Bench, and what it is given
STILL_S, STILL_SHARE = 0.005, 0.1  # a process lies still if it computes less than that share of so long
LONGEST_WAIT_S = 2.0
GOODBYE_S = 10.0
TILE_PX = 512


class Worker(AbstractContextManager["Worker"]):
    """A contestant in its own process, from entering to leaving.

    Its methods raise the CmudrnError that the contestant raised, or DeviceError if its process has ended.
    """

    def __init__(self, contestant: Contestant, weights: str = "default") -> None:
        self.contestant = contestant
        # A fresh interpreter: what this process has imported and set is not in it.
        context = multiprocessing.get_context("spawn")
        self._here, self._there = context.Pipe()
        self._process = context.Process(target=serve, args=(self._there, contestant, weights), daemon=True)

    def __enter__(self) -> Worker:
        self._process.start()
        self._there.close()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._here.close()  # it ends when it hears no more
        self._process.join(GOODBYE_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def run(self, work: Work) -> float:
        """Seconds of one image; what only the first one takes, opening the backend, is not in it."""
        return float(self._ask("run", work))

    def restore(self, pixels: PixelBatch, work: Work) -> PixelBatch:
        """pixels: [B, H, W, 3], uint8, or float32 in [0, 1]. Returns the same."""
        restored: PixelBatch = self._ask("restore", pixels, work)
        return restored

    def bytes_needed(self, work: Work) -> int | None:
        """Of memory beside the images; None where the program doesn't tell."""
        told = self._ask("bytes_needed", work)
        return None if told is None else int(told)

    def forget(self) -> None:
        """Frees backends and images."""
        self._ask("forget")

    def _ask(self, what: str, *given: object) -> Any:
        request: Request = (what, given)
        try:
            self._here.send(request)
            answer = self._here.recv()
        except (EOFError, OSError) as exc:
            self._process.join(GOODBYE_S)
            raise DeviceError(
                f"{self.contestant.name}: its process ended with exit code {self._process.exitcode}",
                fix=f"leave it out of --contestants, or see what it said: {what}",
            ) from exc
        if isinstance(answer, CmudrnError):
            raise answer
        return answer


def serve(questions: Connection, contestant: Contestant, weights: str) -> None:
    """In the process: answers until the other side closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asks
    os.environ.update(contestant.environment)
    with Bench(contestant, weights) as bench:
        while True:
            try:
                what, given = questions.recv()
            except EOFError:
                return
            questions.send(answer_of(bench, what, given))


def answer_of(bench: Bench, what: str, given: tuple[Any, ...]) -> object:
    try:
        answer: object = getattr(bench, what)(*given)
    except CmudrnError as exc:
        return DeviceError(f"{bench.contestant.name}: {exc.what}", fix=exc.fix)
    except MemoryError:
        return DeviceError(f"{bench.contestant.name}: not enough memory", fix="give smaller sizes")
    wait_until_still()
    return answer


def wait_until_still() -> None:
    """Until this process' threads have stopped spinning, or for LONGEST_WAIT_S."""
    until = time.perf_counter() + LONGEST_WAIT_S
    while time.perf_counter() < until:
        computed, began = time.process_time(), time.perf_counter()
        time.sleep(STILL_S)
        if time.process_time() - computed < STILL_SHARE * (time.perf_counter() - began):
            return


@dataclass
class Bench(AbstractContextManager["Bench"]):
    """What a process keeps: opened backends, and the image of the size before."""

    contestant: Contestant
    weights: str
    _opened: dict[tuple[int, int, Pixel], Backend] = field(default_factory=dict)  # by loops, threads, pixel
    _taken: ExitStack = field(default_factory=ExitStack)
    _pixels: NDArray[np.uint8] | None = None  # [1, H, W, 3]

    def __exit__(self, *ending: object) -> None:
        self.forget()

    def run(self, work: Work) -> float:
        backend, pixels = self._backend(work, Pixel.UINT8), self._image(work)
        began = time.perf_counter()
        list(backend.stream([pixels]))
        return time.perf_counter() - began

    def restore(self, pixels: PixelBatch, work: Work) -> PixelBatch:
        pixel = Pixel.UINT8 if pixels.dtype == np.uint8 else Pixel.FLOAT32
        (restored,) = self._backend(work, pixel).stream([pixels])
        return restored

    def bytes_needed(self, work: Work) -> int | None:
        if self.contestant.program is not Program.NATIVE:
            return None
        from cmudrn.checkpoint import read_checkpoint
        from cmudrn.deploy.native.library import NativeNetwork, NativeSession, NetworkConfig

        checkpoint, loops = read_checkpoint(self.weights), work.loops
        config = NetworkConfig(inter_loops=loops, intra_loops=loops, stitches=checkpoint.stitches)
        with (
            NativeNetwork(checkpoint.tensors, config, self.contestant.isa) as network,
            NativeSession(network, work.threads) as session,
        ):
            return session.bytes_for(1, work.height, work.width)

    def forget(self) -> None:
        self._opened.clear()
        self._pixels = None
        self._taken.close()

    def _backend(self, work: Work, pixel: Pixel) -> Backend:
        key = (work.loops, work.threads, pixel)
        if key not in self._opened:
            backend = open_contestant(self.contestant, work, pixel, self.weights)
            self._opened[key] = self._taken.enter_context(backend)
        return self._opened[key]

    def _image(self, work: Work) -> NDArray[np.uint8]:
        if self._pixels is None or self._pixels.shape[1:3] != (work.height, work.width):
            self._pixels = None  # not two of 100 megapixels
            self._pixels = drawn_pixels(work.height, work.width)
        return self._pixels


def drawn_pixels(height: int, width: int) -> NDArray[np.uint8]:
    """[1, H, W, 3], the same for all: noise, repeated, for that is drawn at once at 100 megapixels, too."""
    tile = np.random.default_rng(0).integers(0, 256, (TILE_PX, TILE_PX, 3), np.uint8)
    down, across = -(-height // TILE_PX), -(-width // TILE_PX)
    return np.ascontiguousarray(np.tile(tile, (down, across, 1))[None, :height, :width])
