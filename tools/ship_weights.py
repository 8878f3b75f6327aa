"""Makes a run's weights the shipped ones: scores them, writes the figures into their metadata.

    python tools/ship_weights.py RUN/weights.safetensors --data DATA [--images N]
    make graphs

Scores T = 1 to 7 on every protocol of docs/evaluation.md and prints a Markdown table for the model card.
DATA holds bsds500/val, garg06_streaks and photos/val. All seven depths cost about 14 times what T = 3 costs
alone, hours on a small machine: --images keeps it short.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cmudrn.checkpoint import SHIPPED, check_tensors, read_checkpoint, save_checkpoint
from cmudrn.metrics import CAP_DB, Scores
from cmudrn.train.evaluate import Evaluation, evaluate, load_restorers
from cmudrn.train.evaluation_report import headline
from cmudrn.train.protocols import RENDERED, EvaluationData, open_protocol

SHIPPED_LOOPS = range(1, 8)


def figures(evaluation: Evaluation, usual_loops: int) -> dict[str, Any]:
    """What the metadata says of one protocol; psnr_db and ssim are RGB's, at the usual loop count."""
    by_loops = {row.loops: row.restored for row in evaluation.summary()}
    usual = by_loops[usual_loops]
    return {
        "images": evaluation.images,
        "manifest_sha256": evaluation.manifest_sha256,
        "input_psnr_db": round(evaluation.inputs.psnr_rgb_db, 3),
        "input_ssim": round(evaluation.inputs.ssim_rgb, 4),
        "psnr_db": round(usual.psnr_rgb_db, 3),
        "ssim": round(usual.ssim_rgb, 4),
        "loops": {str(loops): rounded(scores) for loops, scores in by_loops.items()},
    }


def rounded(scores: Scores) -> dict[str, float]:
    return {name: round(value, 3 if name.endswith("_db") else 4) for name, value in asdict(scores).items()}


def model_card_table(evaluations: Sequence[Evaluation]) -> str:
    """PSNR in dB and SSIM, RGB, a row for each protocol and a column for each loop count."""
    header = ["PSNR / SSIM", "images", "input", *(f"T = {loops}" for loops in SHIPPED_LOOPS)]
    rows = [header, ["---", *["---:"] * (len(header) - 1)]]
    for evaluation in evaluations:
        scores = [evaluation.inputs, *(row.restored for row in evaluation.summary())]
        rows.append([evaluation.protocol, str(evaluation.images), *map(cell, scores)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def cell(scores: Scores) -> str:
    psnr = "equal" if scores.psnr_rgb_db == CAP_DB else f"{scores.psnr_rgb_db:.2f}"
    return f"{psnr} / {scores.ssim_rgb:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--images", type=int, metavar="N", help="only the first of each protocol")
    arguments = parser.parse_args()
    checkpoint = read_checkpoint(arguments.weights)
    check_tensors(checkpoint, str(arguments.weights))
    restorers = load_restorers(arguments.weights, SHIPPED_LOOPS)
    data = EvaluationData(arguments.data)
    protocols = [open_protocol(name, data) for name in RENDERED]  # all, before the first is begun
    evaluations = []
    for protocol in protocols:
        items = protocol.items(arguments.images)
        evaluation = evaluate(protocol, items, restorers.by_loops, candidate=restorers.candidate)
        evaluations.append(evaluation)
        print(headline(evaluation), flush=True)
    print(model_card_table(evaluations))
    measured = {done.protocol: figures(done, restorers.usual_loops) for done in evaluations}
    training = {**checkpoint.training, "figures": measured}
    save_checkpoint(dataclasses.replace(checkpoint, training=training), SHIPPED / "default.safetensors")


if __name__ == "__main__":
    main()
