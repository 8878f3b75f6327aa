"""The smallest overlap of tiles whose PSNR against the whole image is at least 60 dB, for each T.

    python benchmarks/overlap.py PHOTOS [--limit N] [--crop PIXELS]

What is kept of each tile is 96 pixels a side whatever the overlap, so that seams lie equally close: far
closer than with the tiles of `cmudrn infer`. The worst of the photographs counts. The shipped weights.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from machine import heading

from cmudrn.deploy.graphs import shipped_graph
from cmudrn.deploy.onnxruntime import OnnxBackend
from cmudrn.deploy.tiling import restore_pixels
from cmudrn.engines.spec import EngineSpec, Pixel, Precision, receptive_radius
from cmudrn.images import Pixels, read_picture
from cmudrn.metrics import psnr_db

KEPT_PX = 96
LEAST_DB = 60.0


class Seams:
    """What tiles of one depth do to a set of photographs; each overlap is measured once."""

    def __init__(self, backend: OnnxBackend, photos: list[Pixels]) -> None:
        self.backend, self.photos = backend, photos
        self.whole = [restore_pixels(photo, backend, tile_px=10**6, overlap_px=0) for photo in photos]
        self.measured: dict[int, tuple[float, int]] = {}

    def at(self, overlap_px: int) -> tuple[float, int]:
        """The worst PSNR in dB, and the largest difference in grey levels."""
        if overlap_px not in self.measured:
            worst_db, largest = float("inf"), 0
            for photo, whole in zip(self.photos, self.whole, strict=True):
                tile_px = KEPT_PX + 2 * overlap_px
                tiled = restore_pixels(photo, self.backend, tile_px=tile_px, overlap_px=overlap_px)
                worst_db = min(worst_db, psnr_db(whole, tiled))
                largest = max(largest, int(np.abs(whole.astype(int) - tiled).max()))
            self.measured[overlap_px] = worst_db, largest
        return self.measured[overlap_px]

    def smallest(self, radius_px: int) -> int:
        """By bisection: more overlap was never seen to be worse."""
        low, high = -1, radius_px
        while high - low > 1:
            middle = (low + high) // 2
            if self.at(middle)[0] >= LEAST_DB:
                high = middle
            else:
                low = middle
        return high


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--limit", type=int, default=6)
    parser.add_argument("--crop", type=int, default=480)
    parser.add_argument("--loops", type=int, nargs="+", default=list(range(1, 8)))
    arguments = parser.parse_args()
    print(heading())
    paths = sorted(arguments.photos.iterdir())[: arguments.limit]
    photos = [read_picture(path).pixels[: arguments.crop, : arguments.crop] for path in paths]
    print("T   R(T)  overlap  worst PSNR  largest difference")
    for loops in arguments.loops:
        spec = EngineSpec(loops=loops, height=KEPT_PX, width=KEPT_PX, precision=Precision.FP32)
        with OnnxBackend(shipped_graph(loops, Pixel.UINT8), spec) as backend:
            seams = Seams(backend, photos)
            radius_px = receptive_radius(loops)
            overlap_px = seams.smallest(radius_px)
            worst_db, largest = seams.at(overlap_px)
        print(
            f"{loops}  {radius_px:5}  {overlap_px:7}  {worst_db:7.1f} dB  {largest:6} grey levels", flush=True
        )


if __name__ == "__main__":
    main()
