"""Feeds the readers of images with unsound files, for minutes or days: `make fuzz FUZZ="--minutes 60"`.

What crashes, hangs or takes memory is kept as a file with the command that reads it again; exit code 1. Each
input follows from the seed and its number; nothing else is random.
"""

from __future__ import annotations

import argparse
import secrets
import sys
import tempfile
import time
from pathlib import Path

from hostile.fuzz import Finding, Tally, examine, fuzz

from cmudrn.deploy.decoding import Decoders

ROUND = 2_000  # inputs between two looks at the clock; each round has decoders of its own


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0, help="how long; default 10")
    parser.add_argument("--inputs", type=int, help="how many, however long it takes")
    parser.add_argument(
        "--seed", type=int, default=secrets.randbelow(10**6), help="default: another each time"
    )
    parser.add_argument("--threads", type=int, default=2, help="decoders at work; default 2")
    parser.add_argument("--keep", type=Path, default=Path("fuzz-findings"), help="folder for what is found")
    parser.add_argument(
        "--replay", type=Path, metavar="FILE", help="read this file alone, and say how it ends"
    )
    options = parser.parse_args()
    if options.replay:
        with Decoders() as decoders:
            ending = examine(decoders, options.replay)
        print(f"{options.replay}: {ending.what}; its process held {ending.peak_mib} MiB at most")
        return 0 if ending.is_sound else 1
    total, began = Tally(), time.monotonic()
    print(f"seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="cmudrn-fuzz-") as folder:
        while _goes_on(options, total, began):
            count = min(ROUND, options.inputs - total.inputs) if options.inputs else ROUND
            part = fuzz(
                Path(folder), seed=options.seed, first=total.inputs, count=count, threads=options.threads
            )
            total.add(part)
            for finding in part.findings:
                _keep(finding, options.keep)
            print(_line(total, time.monotonic() - began), flush=True)
    return 1 if total.findings else 0


def _goes_on(options: argparse.Namespace, total: Tally, began: float) -> bool:
    if options.inputs:
        return bool(total.inputs < options.inputs)
    return bool(time.monotonic() - began < 60 * options.minutes)


def _keep(finding: Finding, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{finding.seed}-{finding.number}.image"
    path.write_bytes(finding.content)
    print(f'{finding.what}: make fuzz FUZZ="--replay {path}"', flush=True)


def _line(total: Tally, seconds: float) -> str:
    endings = ", ".join(f"{count:,} {ending}" for ending, count in total.endings.most_common())
    return (
        f"{total.inputs:,} inputs in {seconds:,.0f} s, {total.inputs / seconds:,.0f} a second: {endings}; "
        f"slowest {total.slowest[0]:.2f} s (number {total.slowest[1]}), "
        f"most memory {total.most_mib[0]} MiB (number {total.most_mib[1]})"
    )


if __name__ == "__main__":
    sys.exit(main())
