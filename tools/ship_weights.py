"""Makes a run's weights the shipped ones: scores them, writes the figures into their metadata.

    python tools/ship_weights.py RUN/weights.safetensors --data DATA [--images N]
    make graphs

Scores every protocol of docs/evaluation.md at the usual loop count, all images; at T = 1 to 7 all images of
the heavy ones and the first N (10) of the light ones. Prints Markdown tables for the model card. DATA holds
bsds500/val, garg06_streaks and photos/val. All seven depths cost about 15 times what T = 3 costs alone: half
an hour on two cores.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from cmudrn.checkpoint import SHIPPED, check_tensors, read_checkpoint, save_checkpoint
from cmudrn.metrics import CAP_DB, Scores
from cmudrn.train.evaluate import Evaluation, evaluate, load_restorers
from cmudrn.train.evaluation_report import headline
from cmudrn.train.protocols import RENDERED, EvaluationData, Protocol, open_protocol

SHIPPED_LOOPS = range(1, 8)


def figures(usual: Evaluation, by_depth: Evaluation, loops: int) -> dict[str, Any]:
    """What the metadata says of one protocol; psnr_db and ssim are RGB's, at the usual loop count."""
    row = next(row for row in usual.summary() if row.loops == loops)
    return {
        "images": usual.images,
        "manifest_sha256": usual.manifest_sha256,
        "input_psnr_db": round(usual.inputs.psnr_rgb_db, 3),
        "input_ssim": round(usual.inputs.ssim_rgb, 4),
        "psnr_db": round(row.restored.psnr_rgb_db, 3),
        "ssim": round(row.restored.ssim_rgb, 4),
        "by_loops": {
            "images": by_depth.images,
            "manifest_sha256": by_depth.manifest_sha256,
            "input": rounded(by_depth.inputs),
            "restored": {str(row.loops): rounded(row.restored) for row in by_depth.summary()},
        },
    }


def score(weights: Path, protocol: Protocol, loops: Sequence[int], images: int | None) -> Evaluation:
    restorers = load_restorers(weights, loops)
    items = protocol.items(images)
    done = evaluate(protocol, items, restorers.by_loops, candidate=restorers.candidate)
    print(
        headline(done), *(f"\n  T = {row.loops}: {cell(row.restored)}" for row in done.summary()), flush=True
    )
    return done


def rounded(scores: Scores) -> dict[str, float]:
    return {name: round(value, 3 if name.endswith("_db") else 4) for name, value in asdict(scores).items()}


def model_card_table(evaluations: Sequence[Evaluation]) -> str:
    """PSNR in dB and SSIM, RGB, a row for each protocol and a column for each loop count."""
    loops = evaluations[0].loops
    header = ["PSNR / SSIM", "images", "input", *(f"T = {depth}" for depth in loops)]
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
    parser.add_argument(
        "--images", type=int, default=10, metavar="N", help="of light protocols, at T = 1 to 7"
    )
    arguments = parser.parse_args()
    checkpoint = read_checkpoint(arguments.weights)
    check_tensors(checkpoint, str(arguments.weights))
    data = EvaluationData(arguments.data)
    protocols = [open_protocol(name, data) for name in RENDERED]  # all, before the first is begun
    loops = checkpoint.inter_loops
    measured: dict[str, Any] = {}
    tables: list[Evaluation] = []
    for protocol in protocols:
        rendered = RENDERED[protocol.id]
        at_usual = partial(score, arguments.weights, protocol, [loops], None)
        if rendered.weather is None:
            usual = by_depth = at_usual()
        elif rendered.severity == 1:
            usual = by_depth = score(arguments.weights, protocol, SHIPPED_LOOPS, None)
        else:
            usual, by_depth = at_usual(), score(arguments.weights, protocol, SHIPPED_LOOPS, arguments.images)
        tables += [usual, by_depth] if usual is not by_depth else [usual]
        measured[protocol.id] = figures(usual, by_depth, loops)
    for depths in ([loops], list(SHIPPED_LOOPS)):
        print(f"\n{model_card_table([done for done in tables if done.loops == depths])}", flush=True)
    training = {**checkpoint.training, "figures": measured}
    save_checkpoint(dataclasses.replace(checkpoint, training=training), SHIPPED / "default.safetensors")


if __name__ == "__main__":
    main()
