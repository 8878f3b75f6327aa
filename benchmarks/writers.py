"""What limits `cmudrn infer` where restoring is quick: threads that read and write against cores in use.

    python benchmarks/writers.py [--images 120] [--side 400] [--threads 1,2,4] [--loops 1] [--format png]

Photographs of that side become files of that format; each row is a process with so many readers and as many
writers. With all cores in use the processor limits, whatever the threads; with fewer, something waits. Linux.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from machine import heading
from memory import write_photo

from cmudrn.cli.values import parse_counts
from cmudrn.deploy.machine import available_cores

CODE = """
import sys
from cmudrn.cli.app import main
from cmudrn.deploy import pipeline
pipeline.LEAST_THREADS = pipeline.MOST_THREADS = int(sys.argv[1])
sys.exit(main(["infer", *sys.argv[2:]]))
"""


def measure(threads: int, arguments: list[str]) -> tuple[float, float]:
    """Seconds of the wall and of all cores together."""
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-c", CODE, str(threads), *arguments], stderr=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"infer {' '.join(arguments)} ended with exit code {process.returncode}")
    return time.perf_counter() - began, usage.ru_utime + usage.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--images", type=int, default=120)
    parser.add_argument("--side", type=int, default=400)
    parser.add_argument("--threads", default="1,2,4")
    parser.add_argument("--loops", type=int, default=1)
    parser.add_argument("--format", default="png")
    told = parser.parse_args()
    print(heading())
    print(f"{told.images} photographs of {told.side} x {told.side} to {told.format}, T = {told.loops}")
    print("| readers, writers | seconds | of all cores | cores in use |")
    with tempfile.TemporaryDirectory() as name:
        photos = Path(name, "photos")
        photos.mkdir()
        for number in range(told.images):
            write_photo(photos / f"{number:04}.jpg", told.side, told.side + number % 16)
        for threads in parse_counts("threads", told.threads):
            options = ["-o", f"{name}/out{threads}", "--loops", str(told.loops), "--format", told.format]
            wall_s, cpu_s = measure(threads, [str(photos), *options])
            used = f"{cpu_s / wall_s:.2f} of {available_cores()}"
            print(f"| {threads} | {wall_s:.1f} | {cpu_s:.1f} | {used} |", flush=True)


if __name__ == "__main__":
    main()
