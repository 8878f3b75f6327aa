"""The readers fed with unsound files, in the very processes that decode for `cmudrn infer`.

Each input follows from (seed, number), so that a finding can be made again; it is kept as a file besides.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random

import pyvips
from hostile.mutate import mutated
from hostile.seeds import seeds

from cmudrn.deploy.decoding import Decoders
from cmudrn.errors import ImageError, ImageTooLarge
from cmudrn.formats import CODECS, ImageFormat
from cmudrn.images import _as_stored, read_picture

__all__ = ["MAX_PIXELS", "Finding", "Tally", "examine", "fuzz", "unsound_file"]

MAX_PIXELS = 1_000_000  # what is below is decoded; a size is soon a large one when bytes of it are changed
SLOW_S = 10.0  # on a busy machine; the usual input takes a thousandth
MEMORY_MIB = 128  # beyond what the process had: as `MAX_PIXELS` in 16 bits with alpha, held twice, and as much again
CRASHES = ("the decoder crashed", "the decoder took", "to be read it needs")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """An input that did what none may do."""

    seed: int
    number: int
    what: str
    content: bytes


@dataclass(kw_only=True)
class Tally:
    """What became of the inputs."""

    inputs: int = 0
    endings: Counter[str] = field(default_factory=Counter)
    slowest: tuple[float, int] = (0.0, 0)  # seconds and the input's number
    largest: tuple[int, int] = (0, 0)  # MiB and the input's number
    grown_mib: int = 0  # of a decoder's process that outlived them all, between its first input and its last
    findings: list[Finding] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        self.inputs += other.inputs
        self.endings += other.endings
        self.slowest = max(self.slowest, other.slowest)
        self.largest = max(self.largest, other.largest)
        self.grown_mib = max(self.grown_mib, other.grown_mib)
        self.findings += other.findings


def unsound_file(seed: int, number: int) -> bytes:
    """The input of this number; always the same."""
    return mutated(list(seeds().values()), Random(f"{seed}:{number}"))


def fuzz(folder: Path, *, seed: int, first: int, count: int, threads: int = 2) -> Tally:
    """Reads `count` inputs, from `first` on; `folder` is for the files that are being read."""
    total = Tally()
    with ThreadPoolExecutor(threads) as pool:
        for part in pool.map(
            lambda thread: _fuzz_one_in(folder, seed, range(first + thread, first + count, threads)), range(threads)
        ):
            total.add(part)
    return total


def examine(decoders: Decoders, path: Path) -> tuple[str, int]:
    """How the reading of a file ended, in a word or a finding's, and the MiB it took."""
    before_mib = _forget_peak(decoders)
    try:
        header = decoders.header(path, max_pixels=MAX_PIXELS)
        ending = decoders.ask(path, partial(read_and_write, path), pixels=header.height * header.width)
    except ImageTooLarge:
        ending = "too large"
    except ImageError as exc:
        reason = exc.what.removeprefix(f"{path}: ")
        ending = reason if reason.startswith(CRASHES) else "refused"
    return ending, max(0, _peak_mib(decoders) - before_mib)


def read_and_write(path: Path) -> str:
    """In the decoder's process: as EXIF that was read goes through libexif once more when it is written."""
    picture = read_picture(path, max_pixels=MAX_PIXELS)
    try:
        _as_stored(picture, CODECS[ImageFormat.JPEG]).jpegsave_buffer()
    except pyvips.Error:
        return "read, not written"
    return "read"


def _fuzz_one_in(folder: Path, seed: int, numbers: range) -> Tally:
    tally = Tally()
    path = folder / f"{numbers.start}.image"
    with Decoders() as decoders:
        begun: tuple[frozenset[int], int] = (frozenset(), 0)
        for number in numbers:
            content = unsound_file(seed, number)
            path.write_bytes(content)
            start = time.perf_counter()
            ending, mib = examine(decoders, path)
            seconds = time.perf_counter() - start
            tally.inputs += 1
            tally.slowest = max(tally.slowest, (seconds, number))
            tally.largest = max(tally.largest, (mib, number))
            what = ending if ending.startswith(CRASHES) else _excess(seconds, mib)
            tally.endings[re.sub(r"\d+ s", "its time", what) or ending] += 1
            if what:
                tally.findings.append(Finding(seed=seed, number=number, what=what, content=content))
            if number == numbers.start:
                begun = decoders.pids, _forget_peak(decoders)
        if decoders.pids == begun[0]:
            tally.grown_mib = _forget_peak(decoders) - begun[1]
    return tally


def _excess(seconds: float, mib: int) -> str:
    if seconds > SLOW_S:
        return f"{seconds:.0f} s to read"
    return f"{mib} MiB to read" if mib > MEMORY_MIB else ""


def _forget_peak(decoders: Decoders) -> int:
    """Sets the kernel's record of the most that was held back to what is held now, and returns that."""
    for pid in decoders.pids:
        with suppress(OSError):
            Path(f"/proc/{pid}/clear_refs").write_text("5")
    return _peak_mib(decoders)


def _peak_mib(decoders: Decoders) -> int:
    """The most that one of its processes has held; 0 where nobody counts it."""
    peaks_kib = [0]
    for pid in decoders.pids:
        with suppress(OSError):
            found = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
            peaks_kib += [int(found[1])] if found else []
    return max(peaks_kib) // 1024
