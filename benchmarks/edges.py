"""What an engine sees beyond an image that is smaller: which padding comes closest to the image alone.

    python benchmarks/edges.py [IMAGE...] [--loops 1,3,7]

Without images: those of examples/weather. A crop of 200x240 is restored whole, and padded below and to the
right to 300x300; the table has the PSNR between the two, over the crop, and over the band that is as wide as
tiles overlap. Mean and worst of the images, dB.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from machine import heading
from numpy.typing import NDArray

from cmudrn.deploy.graphs import shipped_graph
from cmudrn.deploy.job import DEFAULT_OVERLAP_PX
from cmudrn.deploy.onnxruntime import OnnxBackend
from cmudrn.engines.spec import EngineSpec, Pixel, Precision
from cmudrn.images import read_picture
from cmudrn.metrics import psnr_db

Image = NDArray[np.uint8]
EXAMPLES = Path(__file__).parents[1] / "examples" / "weather"
HEIGHT, WIDTH, SIDE = 200, 240, 300
MODES = ("symmetric", "reflect", "edge", "constant")


def crop(path: Path) -> Image:
    pixels = read_picture(path).pixels[100 : 100 + HEIGHT, 100 : 100 + WIDTH]
    return np.array(pixels, np.uint8)


def restored(backend: OnnxBackend, image: Image) -> Image:
    (batch,) = backend.stream([image[None]])
    return np.asarray(batch[0], np.uint8)


def padded(backend: OnnxBackend, image: Image, mode: str) -> Image:
    wider = np.pad(image, ((0, SIDE - HEIGHT), (0, SIDE - WIDTH), (0, 0)), mode=mode)  # type: ignore[call-overload]
    return restored(backend, wider)[:HEIGHT, :WIDTH]


def band(image: Image, width_px: int) -> Image:
    """Along the padded sides."""
    below, right = image[-width_px:], image[:-width_px, -width_px:]
    return np.concatenate([below.reshape(-1, 3), right.reshape(-1, 3)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("images", nargs="*", type=Path)
    parser.add_argument("--loops", default="1,3,7", metavar="A,B,...")
    arguments = parser.parse_args()
    crops = [crop(path) for path in arguments.images or sorted(EXAMPLES.glob("*.jpg"))]
    print(f"{heading()}\n{len(crops)} crops of {HEIGHT}x{WIDTH} in {SIDE}x{SIDE}: mean (worst), dB.\n")
    print("| T | padding | whole crop | band |\n|---|---|---|---|")
    for loops in map(int, arguments.loops.split(",")):
        spec = EngineSpec(loops=loops, height=SIDE, width=SIDE, precision=Precision.FP32)
        with OnnxBackend(shipped_graph(loops, Pixel.UINT8), spec) as backend:
            alone = [restored(backend, image) for image in crops]
            for mode in MODES:
                found = [padded(backend, image, mode) for image in crops]
                pairs = list(zip(alone, found, strict=True))
                width_px = DEFAULT_OVERLAP_PX[loops]
                whole = [psnr_db(*pair) for pair in pairs]
                edge = [psnr_db(band(one, width_px)[None], band(two, width_px)[None]) for one, two in pairs]
                cells = (f"{np.mean(db):.1f} ({min(db):.1f})" for db in (whole, edge))
                print(f"| {loops} | {mode} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
