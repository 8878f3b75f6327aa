"""Peak memory of `cmudrn infer`: few images against many, and single large ones. Linux.

    python benchmarks/memory.py [--images 50,10000] [--large 10000.jpg,10000.tif,20000.tif] [--loops 1]

Makes its own pictures; sizes differ from image to image, so that no buffer fits by chance.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from machine import heading
from PIL import Image


def write_photos(folder: Path, count: int) -> None:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(count):
        height, width = rng.integers(120, 280, 2)
        write_photo(folder / f"{i:04}.jpg", int(height), int(width))


def write_photo(path: Path, height: int, width: int) -> None:
    """A few waves with some grain: compresses about as a photograph does."""
    rng = np.random.default_rng(height * width)
    tile = rng.normal(0, 8, (64, 64, 3))
    row = np.sin(np.arange(height) / 37)[:, None] * 60
    column = np.cos(np.arange(width) / 53)[None] * 60
    with Image.new("RGB", (width, height)) as image:
        for top in range(0, height, 64):
            rows = slice(top, min(top + 64, height))
            band = (128 + row[rows] + column)[..., None]
            grain = np.tile(tile[: rows.stop - top], (1, -(-width // 64), 1))[:, :width]
            image.paste(Image.fromarray(np.clip(band + grain, 0, 255).astype(np.uint8)), (0, top))
        image.save(path, **({"quality": 90} if path.suffix == ".jpg" else {}))


def peak_mb(source: Path, out: Path, loops: int) -> float:
    """The largest resident set of one run, in megabytes (10^6 bytes)."""
    command = [sys.executable, "-m", "cmudrn", "infer", str(source), "-o", str(out), "--loops", str(loops)]
    process = subprocess.Popen(command, cwd=out.parent, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with exit code {process.returncode}")
    return usage.ru_maxrss * 1024 / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--images", default="50,10000", metavar="N,...", help="[%(default)s]")
    parser.add_argument(
        "--large", default="10000.jpg,10000.tif,20000.tif", metavar="SIDE.SUFFIX,...", help="[%(default)s]"
    )
    parser.add_argument("--loops", type=int, default=1, help="[%(default)s]")
    arguments = parser.parse_args()
    print(heading())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for count in map(int, filter(None, arguments.images.split(","))):
            write_photos(folder / str(count), count)
            peak = peak_mb(folder / str(count), folder / f"{count}-restored", arguments.loops)
            print(f"{count:5} images of 120 to 280 pixels a side: peak {peak:.0f} MB", flush=True)
        for large in filter(None, arguments.large.split(",")):
            side = int(large.partition(".")[0])
            write_photo(folder / large, side, side)
            peak = peak_mb(folder / large, folder / f"restored-{large}", arguments.loops)
            per_pixel = peak * 1e6 / side**2
            print(f"{large}, {side} x {side}: peak {peak:.0f} MB, {per_pixel:.1f} bytes a pixel", flush=True)
            (folder / large).unlink()
            (folder / f"restored-{large}").unlink()


if __name__ == "__main__":
    main()
