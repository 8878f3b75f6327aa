"""Makes a run's weights the shipped ones: scores them, writes the figures into their metadata.

    python tools/ship_weights.py RUN/weights.safetensors --data DATA
    make graphs

DATA holds bsds500/val and garg06_streaks.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from cmudrn.checkpoint import SHIPPED, read_checkpoint, save_checkpoint
from cmudrn.train.protocols import Protocol, Score, evaluate, restorer


def figures(score: Score) -> dict[str, float | int | str]:
    return {
        "images": score.images,
        "manifest_sha256": score.manifest_sha256,
        "input_psnr_db": round(score.input_psnr_db, 3),
        "input_ssim": round(score.input_ssim, 4),
        "psnr_db": round(score.psnr_db, 3),
        "ssim": round(score.ssim, 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--limit", type=int)
    arguments = parser.parse_args()
    checkpoint = read_checkpoint(arguments.weights)
    scores = [
        evaluate(protocol, arguments.data, restorer(arguments.weights), limit=arguments.limit)
        for protocol in Protocol
    ]
    measured = {score.protocol.value: figures(score) for score in scores}
    for protocol, values in measured.items():
        print(protocol, values)
    training = {**checkpoint.training, "figures": measured}
    save_checkpoint(dataclasses.replace(checkpoint, training=training), SHIPPED / "default.safetensors")


if __name__ == "__main__":
    main()
