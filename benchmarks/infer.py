"""`cmudrn infer` against the loop that a researcher would write, and against its own backend alone.

    python benchmarks/infer.py PHOTOS [--limit 40] [--repeats 1] [--backend onnx]

PHOTOS: a folder of JPEG photographs. Whole processes are timed, from start to the last file written; the
backend alone has its session open and its images decoded. Needs the extras `train` and `bench`.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from machine import heading

from cmudrn.deploy.backends import Backends
from cmudrn.deploy.job import BackendName, BackendOptions, InferJob
from cmudrn.deploy.tiling import restore_each
from cmudrn.images import read_picture
from cmudrn.metrics import psnr_db

LOOP = Path(__file__).with_name("eager_loop.py")


def run_infer(
    photos: list[Path], folder: Path, backend: BackendName, report: Path | None = None, *, loops: int = 3
) -> float:
    """report: where the command writes its own, as JSON."""
    command = [sys.executable, "-m", "cmudrn", "infer", *map(str, photos), "-o", str(folder), "--overwrite"]
    command += ["--backend", backend.value, "--loops", str(loops)]
    command += ["--report", str(report)] if report else []
    return seconds_of(command, folder)


def run_loop(photos: list[Path], folder: Path) -> float:
    return seconds_of([sys.executable, str(LOOP), str(folder), *map(str, photos)], folder)


def seconds_of(command: list[str], folder: Path) -> float:
    # From another folder: cmudrn/ in the checkout would hide the installed package.
    start = time.perf_counter()
    subprocess.run(command, check=True, cwd=folder, stderr=subprocess.DEVNULL)
    return time.perf_counter() - start


def run_backend(photos: list[Path], backend: BackendName, *, loops: int = 3) -> float:
    job = InferJob(sources=tuple(photos), loops=loops, backend=BackendOptions(name=backend))
    total = 0.0
    with Backends(job) as backends:
        for photo in photos:
            pixels = read_picture(photo).pixels
            restorer = backends.restorer_for(pixels.dtype, *pixels.shape[:2])
            start = time.perf_counter()
            list(restore_each([pixels], restorer))
            total += time.perf_counter() - start
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--limit", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--backend", type=BackendName, default=BackendName.ONNX)
    arguments = parser.parse_args()
    photos = sorted(arguments.photos.resolve().glob("*.jp*g"))[: arguments.limit]
    print(heading())
    seconds: dict[str, list[float]] = {"infer": [], "backend alone": [], "eager loop": []}
    with tempfile.TemporaryDirectory() as name:
        ours, theirs = Path(name, "infer"), Path(name, "loop")
        ours.mkdir()
        theirs.mkdir()
        for _ in range(arguments.repeats):
            seconds["infer"].append(run_infer(photos, ours, arguments.backend))
            seconds["backend alone"].append(run_backend(photos, arguments.backend))
            seconds["eager loop"].append(run_loop(photos, theirs))
        agreement = [
            psnr_db(*(read_picture(folder / photo.name).pixels for folder in (ours, theirs)))
            for photo in photos
        ]
        shutil.rmtree(ours)
    medians = {way: median(times) for way, times in seconds.items()}
    megapixels = sum(1e-6 * read_picture(photo).pixels.size / 3 for photo in photos)
    print(f"{len(photos)} photographs, {megapixels:.1f} megapixels, T = 3, {arguments.repeats} repeats")
    for way, value in medians.items():
        print(f"  {way:14} {value:7.1f} s  {len(photos) / value:5.2f} images/s")
    print(f"infer is {medians['eager loop'] / medians['infer']:.2f}x as fast as the eager loop,")
    print(f"and takes {medians['infer'] / medians['backend alone'] - 1:+.1%} against the backend alone;")
    print(f"their files agree to {min(agreement):.1f} dB or better")


if __name__ == "__main__":
    main()
