"""What it costs to decode in processes of their own: against threads, by time, processor and memory.

    python benchmarks/decoding.py [--small 10000] [--pictures 24]

Two threads read each file as the pipeline does: its header, then its pixels. The processor's seconds are of
the run and its decoders together; unlike those on the clock they hardly depend on what else runs.
"""

from __future__ import annotations

import argparse
import re
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

import numpy as np
import pyvips

from cmudrn.deploy.decoding import Decoders
from cmudrn.images import read_header, read_picture

THREADS = 2  # as the pipeline's
ANY = 10**9  # pixels
Read = Callable[[Path], object]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", type=int, default=10_000, help="JPEGs of 64 x 48")
    parser.add_argument("--pictures", type=int, default=24, help="readings of a JPEG of 12 megapixels")
    parser.add_argument("--rounds", type=int, default=3, help="of both, in turns; the median counts")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="cmudrn-") as name:
        folder = Path(name)
        small = [draw(folder / f"{number}.jpg", 48, 64) for number in range(min(100, options.small))]
        large = draw(folder / "large.jpg", 3000, 4000)
        sets: dict[str, list[Path]] = {
            f"{options.small:,} JPEGs of 64 x 48": (small * -(-options.small // len(small)))[: options.small],
            f"{options.pictures} JPEGs of 12 megapixels": [large] * options.pictures,
        }
        print_start(small[0])
        for what, paths in sets.items():
            rounds = [(measured(read_here, paths), through_processes(paths)) for _ in range(options.rounds)]
            for way, index in (("threads", 0), ("processes", 1)):
                clock_s, used_s = (median(pair[index][unit] for pair in rounds) for unit in (0, 1))
                each = 1000 / len(paths)
                print(f"{what}, {way}: {clock_s * each:.2f} ms each, {used_s * each:.2f} ms of processor")


def draw(path: Path, height: int, width: int) -> Path:
    """Coarse noise: about as hard to decode as a photograph."""
    noise = np.random.default_rng(1).integers(0, 255, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    image = pyvips.Image.new_from_array(noise).resize(8, kernel="cubic").cast("uchar")
    image.crop(0, 0, width, height).jpegsave(str(path), Q=90)
    return path


def read_here(path: Path) -> object:
    read_header(path)
    return read_picture(path)


def through_processes(paths: Sequence[Path]) -> tuple[float, float]:
    with Decoders() as decoders:

        def read(path: Path) -> object:
            header = decoders.header(path, max_pixels=ANY)
            return decoders.picture(path, max_pixels=ANY, pixels=header.height * header.width)

        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(read, paths[:THREADS]))  # started
        before = sum(map(processor_s, decoders.pids))
        clock_s, used_s = measured(read, paths)
        return clock_s, used_s + sum(map(processor_s, decoders.pids)) - before


def measured(read: Read, paths: Sequence[Path]) -> tuple[float, float]:
    """Seconds on the clock, and of this process."""
    clock, used = time.perf_counter(), time.process_time()
    with ThreadPoolExecutor(THREADS) as pool:
        for _ in pool.map(lambda path: bool(read(path)), paths):
            pass
    return time.perf_counter() - clock, time.process_time() - used


def print_start(path: Path) -> None:
    """Until the first header is there, and what the process holds then."""
    starts, used, held = [], [], []
    for _ in range(5):
        clock = time.perf_counter()
        with Decoders() as decoders:
            decoders.header(path, max_pixels=ANY)
            starts.append(time.perf_counter() - clock)
            (pid,) = decoders.pids
            used.append(processor_s(pid))
            held.append(private_mib(pid))
    print(
        f"a decoder starts in {median(starts):.2f} s ({median(used):.2f} s of processor), "
        f"and holds {median(held):.0f} MiB of its own"
    )


def processor_s(pid: int) -> float:
    """Of a process and of its threads so far, in user and kernel mode."""
    ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return sum(map(int, ticks)) / 100


def private_mib(pid: int) -> float:
    """Memory that no other process shares."""
    kib = re.findall(r"Private_(?:Clean|Dirty):\s+(\d+)", Path(f"/proc/{pid}/smaps_rollup").read_text())
    return sum(map(int, kib)) / 1024


if __name__ == "__main__":
    main()
