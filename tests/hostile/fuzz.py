"""The readers fed with unsound files, in the very processes that decode for `cmudrn infer`.

Each input follows from its seed and number, so that a finding can be made again; it is kept as a file too.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random

from cmudrn.deploy.decoding import Decoders
from cmudrn.errors import ImageError, ImageTooLarge
from cmudrn.formats import ImageFormat
from cmudrn.images import MOST_PAGES, read_header, read_picture, write_picture
from hostile.mutate import mutated
from hostile.seeds import seeds

__all__ = ["MAX_PIXELS", "Ending", "Finding", "Tally", "examine", "fuzz", "unsound_file"]

MAX_PIXELS = 1_000_000  # what is below is decoded; sizes soon grow when bytes of them are changed
SLOW_S = 10.0  # on a busy machine; the usual input takes a thousandth of it
# Beyond what the process held when it began: a picture of MAX_PIXELS in 16 bits with alpha, held three times
# and written, takes 30; the heap that is left between some ten thousand inputs as much.
MEMORY_MIB = 128
SLOW_FORMATS = (ImageFormat.AVIF, ImageFormat.HEIF)
READ, UNWRITTEN, REFUSED, TOO_LARGE = "read", "read, not written", "refused", "too large"


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How the reading of one file ended."""

    what: str  # one of those above; else, what must not be
    peak_mib: int = 0  # that its process has held since it began; 0 where it died

    @property
    def is_sound(self) -> bool:
        return self.what in (READ, UNWRITTEN, REFUSED, TOO_LARGE)


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
    most_mib: tuple[int, int] = (0, 0)  # memory beyond what the process began with, and the input's number
    findings: list[Finding] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        self.inputs += other.inputs
        self.endings += other.endings
        self.slowest = max(self.slowest, other.slowest)
        self.most_mib = max(self.most_mib, other.most_mib)
        self.findings += other.findings


def unsound_file(seed: int, number: int) -> bytes:
    """The input of this number; always the same."""
    return mutated(list(seeds().values()), Random(f"{seed}:{number}"))


def fuzz(folder: Path, *, seed: int, first: int, count: int, threads: int = 2) -> Tally:
    """Reads `count` inputs, from `first` on; `folder` is for the files that are being read."""
    total = Tally()
    shares = [range(first + thread, first + count, threads) for thread in range(threads)]
    with ThreadPoolExecutor(threads) as pool:
        for tally in pool.map(partial(_fuzz_one_in, folder, seed), shares):
            total.add(tally)
    return total


def examine(decoders: Decoders, path: Path) -> Ending:
    """Reads it in a decoder's process, and writes what was read."""
    try:
        return decoders.ask(path, partial(_read_and_write, path), pixels=MAX_PIXELS)
    except ImageError as exc:  # not the readers', which come back as an ending: the process is dead
        return Ending(what=exc.what.removeprefix(f"{path}: "))


def _read_and_write(path: Path) -> Ending:
    """In the decoder's process. What stood beside the pixels goes into a file once more, too."""
    try:
        read_header(path, max_pixels=MAX_PIXELS, max_pages=MOST_PAGES)
        picture = read_picture(path, max_pixels=MAX_PIXELS, max_pages=MOST_PAGES)
    except ImageTooLarge:
        return Ending(what=TOO_LARGE, peak_mib=_peak_mib())
    except ImageError:
        return Ending(what=REFUSED, peak_mib=_peak_mib())
    # In its own format, but for AVIF, which takes a hundred times as long.
    image_format = ImageFormat.PNG if picture.format in SLOW_FORMATS else picture.format
    target = path.with_name(f"{path.stem}-written{image_format.suffix}")
    try:
        with _files_allowed():
            write_picture(picture, target)
    except ImageError:
        what = UNWRITTEN
    else:
        what = READ
    return Ending(what=what, peak_mib=_peak_mib())


@contextmanager
def _files_allowed() -> Iterator[None]:
    """A decoder may write none, for it has none to write."""
    try:
        import resource
    except ImportError:  # Windows
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def _peak_mib() -> int:
    try:
        import resource
    except ImportError:  # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def _fuzz_one_in(folder: Path, seed: int, numbers: range) -> Tally:
    tally = Tally()
    path = folder / f"{numbers.start}.image"
    todo = iter(numbers)
    while tally.inputs < len(
        numbers
    ):  # after a finding with another process: it must not colour the next input's
        with Decoders() as decoders:
            path.write_bytes(seeds()["plain.png"])
            began_mib = examine(decoders, path).peak_mib
            for number in todo:
                content = unsound_file(seed, number)
                path.write_bytes(content)
                start = time.perf_counter()
                ending = examine(decoders, path)
                seconds, mib = time.perf_counter() - start, ending.peak_mib - began_mib
                tally.inputs += 1
                tally.endings[ending.what] += 1
                tally.slowest = max(tally.slowest, (seconds, number))
                tally.most_mib = max(tally.most_mib, (mib, number), key=lambda most: most[0])
                if what := _complaint(ending, seconds, mib):
                    tally.findings.append(Finding(seed=seed, number=number, what=what, content=content))
                    break
    return tally


def _complaint(ending: Ending, seconds: float, mib: int) -> str:
    if not ending.is_sound:
        return ending.what
    if seconds > SLOW_S:
        return f"{seconds:.0f} s to read"
    return f"{mib} MiB to read" if mib > MEMORY_MIB else ""
