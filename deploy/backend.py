"""What every backend is to the rest: batches of pixels in, restored ones out."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import AbstractContextManager
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from cmudrn.engines.spec import EngineSpec

__all__ = ["Backend", "PixelBatch"]

PixelBatch: TypeAlias = (
    "NDArray[np.uint8] | NDArray[np.float32]"  # [B, H, W, 3], C-contiguous, the spec's pixel
)


class Backend(AbstractContextManager["Backend"], Protocol):
    """Restores batches. Entering takes the device, leaving frees it."""

    @property
    def spec(self) -> EngineSpec: ...

    @property
    def label(self) -> str:
        """What restores and where, for people: the library, its version, the device. Once entered."""
        ...

    def stream(self, batches: Iterable[PixelBatch]) -> Generator[PixelBatch, None, None]:
        """Each batch restored, in order, same shape and dtype; reads ahead as far as it has buffers.

        Closing it early leaves the backend ready for another stream.
        """
        ...
