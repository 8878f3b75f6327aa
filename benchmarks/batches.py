"""Whether images of one size gain by being restored several at once: milliseconds an image, by batch.

    python benchmarks/batches.py [--backend native] [--sides 64,128,256,500] [--batches 1,4,16] [--loops 1]
        [--threads 2]

Batches take turns; the least of the rounds counts, for whatever else the machine does only makes them slower.
With one thread the processor's time is taken, which a busy machine changes less than the wall's.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from machine import heading

from cmudrn.cli.values import parse_counts
from cmudrn.deploy.backends import Backends
from cmudrn.deploy.job import BackendName, BackendOptions, InferJob
from cmudrn.deploy.machine import available_cores
from cmudrn.deploy.tiling import Restorer, restore_each

IMAGES, ROUNDS = 32, 7


def seconds_of(restorer: Restorer, side: int, clock: Callable[[], float]) -> float:
    """One round of IMAGES."""
    rng = np.random.default_rng(side)
    images = [rng.integers(0, 255, (side, side, 3), np.uint8) for _ in range(IMAGES)]
    began = clock()
    for _ in restore_each(images, restorer):
        pass
    return clock() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--backend", type=BackendName, default=BackendName.NATIVE)
    parser.add_argument("--sides", default="64,128,256,500")
    parser.add_argument("--batches", default="1,4,16")
    parser.add_argument("--loops", type=int, default=1)
    parser.add_argument("--threads", type=int, default=available_cores())
    arguments = parser.parse_args()
    sides, batches = parse_counts("sides", arguments.sides), parse_counts("batches", arguments.batches)
    print(heading())
    clock = time.process_time if arguments.threads == 1 else time.perf_counter
    # No file is read, though a job names one.
    job = InferJob(
        sources=(Path("none"),),
        loops=arguments.loops,
        backend=BackendOptions(name=arguments.backend, threads=arguments.threads),
    )
    with Backends(job) as backends:
        usual = backends.restorer_for(np.uint8, 1, 1)
        print(f"{backends.label}, T = {arguments.loops}, {arguments.threads} threads, ms an image")
        print("| side | " + " | ".join(f"batch {batch}" for batch in batches) + " |")
        for side in sides:
            least = dict.fromkeys(batches, float("inf"))
            for _ in range(ROUNDS):
                for batch in batches:
                    restorer = replace(usual, batch=batch)
                    least[batch] = min(least[batch], seconds_of(restorer, side, clock))
            times = " | ".join(f"{1e3 * seconds / IMAGES:.2f}" for seconds in least.values())
            print(f"| {side} | {times} |", flush=True)


if __name__ == "__main__":
    main()
