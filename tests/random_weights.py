"""Random weights for tests that need a network but not a trained one."""

from __future__ import annotations

import numpy as np

from cmudrn.checkpoint import TENSOR_SHAPES, Checkpoint, NetworkKind

__all__ = ["random_checkpoint"]


def random_checkpoint(stitches: dict[str, float] | None = None, *, seed: int = 0) -> Checkpoint:
    """Weights that neither die out nor explode over seven loops, so that every tensor shows in the output."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, shape in TENSOR_SHAPES[NetworkKind.CMUDRN].items():
        spread = 0.02 if len(shape) == 1 else 0.6 / np.sqrt(np.prod(shape[1:]))
        tensors[name] = rng.normal(0, spread, shape).astype(np.float32)
    return Checkpoint(
        tensors=tensors,
        inter_loops=3,
        intra_loops=3,
        stitches={"stem": 0.5, "body": 0.5} if stitches is None else stitches,
    )
