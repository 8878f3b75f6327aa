"""The protocols by filters without learning: median, bilateral, non-local means, each at several strengths.

    python benchmarks/classical.py --data DATA [--limit N]

DATA holds bsds500/val and garg06_streaks. Each filter is given its best strength on the protocol's own
images, an advantage that the network doesn't have. Needs the extras `train` and `bench`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from cmudrn.metrics import psnr_db, ssim
from cmudrn.train.protocols import EvaluationData, open_protocol

Pixels = NDArray[np.uint8]
Filter = Callable[[Pixels], Pixels]


def median(size_px: int) -> Filter:
    return lambda image: np.asarray(cv2.medianBlur(image, size_px), np.uint8)


def bilateral(colour: float, space: float) -> Filter:
    return lambda image: np.asarray(cv2.bilateralFilter(image, -1, colour, space), np.uint8)


def non_local_means(strength: float) -> Filter:
    return lambda image: np.asarray(
        cv2.fastNlMeansDenoisingColored(image, None, strength, strength, 7, 21), np.uint8
    )


FILTERS: Mapping[str, Mapping[str, Filter]] = {
    "median": {f"{size} px": median(size) for size in (3, 5, 7, 9, 13, 17, 25)},
    "bilateral": {
        f"colour {colour}, space {space}": bilateral(colour, space)
        for colour in (25, 50, 100, 200, 400)
        for space in (2, 5, 9)
    },
    "non-local means": {f"h {strength}": non_local_means(strength) for strength in (5, 15, 30, 45, 60)},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--limit", type=int)
    arguments = parser.parse_args()
    data = EvaluationData(arguments.data)
    for protocol in (open_protocol(name, data) for name in ("bsd-rain", "bsd-snow")):
        pairs = [(item.degraded, item.clean) for item in protocol.items(arguments.limit)]
        noisy = np.mean([(psnr_db(d, c), ssim(d, c)) for d, c in pairs], axis=0)
        print(f"{protocol.id}, {len(pairs)} images: input {noisy[0]:.2f} dB, SSIM {noisy[1]:.4f}")
        for name, strengths in FILTERS.items():
            scores = {
                strength: np.mean([psnr_db(restore(degraded), clean) for degraded, clean in pairs])
                for strength, restore in strengths.items()
            }
            best = max(scores, key=lambda strength: float(scores[strength]))
            similarity = np.mean([ssim(strengths[best](degraded), clean) for degraded, clean in pairs])
            print(f"  {name:16} {scores[best]:.2f} dB, SSIM {similarity:.4f} (best strength: {best})")


if __name__ == "__main__":
    main()
