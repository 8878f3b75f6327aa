"""How long `cmudrn --help` and `cmudrn infer` of one small image take in all.

python benchmarks/startup.py [--repeats 9]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from machine import heading
from memory import write_photo

COMMAND = Path(sys.executable).with_name("cmudrn")


def seconds_of(folder: Path, *arguments: str) -> float:
    start = time.perf_counter()
    subprocess.run([COMMAND, *arguments], check=True, cwd=folder, capture_output=True)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repeats", type=int, default=9)
    repeats = range(parser.parse_args().repeats)
    print(heading())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_photo(folder / "small.jpg", 160, 240)
        infer = ("infer", "small.jpg", "-o", "out.jpg", "--overwrite")
        print(f"cmudrn --help: {median(seconds_of(folder, '--help') for _ in repeats):.2f} s")
        print(f"cmudrn infer, 240 x 160: {median(seconds_of(folder, *infer) for _ in repeats):.2f} s")


if __name__ == "__main__":
    main()
