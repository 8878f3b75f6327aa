"""What every renderer takes and gives."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cmudrn.errors import ImageError

__all__ = ["Image", "Weathered", "check_image"]

Image = NDArray[np.float32]  # [H, W, 3] RGB in [0, 1]


class Weathered(NamedTuple):
    """A degraded image and what was added to the clean one (image - clean), [H, W, 3] float32 each."""

    image: Image
    layer: Image


def check_image(clean: Image) -> None:
    """Raises ImageError unless clean is [H, W, 3] float32."""
    if clean.ndim != 3 or clean.shape[2] != 3 or clean.dtype != np.float32:
        raise ImageError(
            f"a renderer got {clean.dtype} of shape {clean.shape}", fix="give [H, W, 3] float32 in [0, 1]"
        )
