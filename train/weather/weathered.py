"""What every renderer takes and gives."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cmudrn.errors import ImageError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

__all__ = ["Image", "Weathered", "check_image"]

Image = NDArray[np.float32]  # [H, W, 3] RGB in [0, 1]


class Weathered(NamedTuple):
    """A degraded image, what was added to the clean one (image - clean), and how.

    image, layer: [H, W, 3] float32. params: the renderer's parameters, a dataclass of plain values.
    """

    image: Image
    layer: Image
    params: DataclassInstance


def check_image(clean: Image) -> None:
    """Raises ImageError unless clean is [H, W, 3] float32."""
    if clean.ndim != 3 or clean.shape[2] != 3 or clean.dtype != np.float32:
        raise ImageError(
            f"a renderer got {clean.dtype} of shape {clean.shape}", fix="give [H, W, 3] float32 in [0, 1]"
        )
