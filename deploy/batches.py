"""What a batch must be, for the libraries that would take another one and misread it."""

from __future__ import annotations

import numpy as np

from cmudrn.deploy.backend import PixelBatch
from cmudrn.engines.spec import EngineSpec, Pixel
from cmudrn.errors import ImageError

__all__ = ["check_batch"]


def check_batch(batch: PixelBatch, spec: EngineSpec) -> None:
    """Raises ImageError unless it is [B, H, W, 3] in the spec's pixel, of any sizes but 0."""
    dtype = np.dtype(np.uint8 if spec.pixel is Pixel.UINT8 else np.float32)
    if batch.dtype != dtype or batch.ndim != 4 or batch.shape[-1] != 3 or 0 in batch.shape:
        raise ImageError(
            f"a batch of {batch.dtype} {batch.shape}",
            fix=f"give {dtype} [B, H, W, 3], or open a backend for another pixel",
        )
