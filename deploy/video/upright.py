"""Frames as they lie in a clip, and as they are shown: rain falls down in the second alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cmudrn.images import Pixels

__all__ = ["Turn"]


@dataclass(frozen=True)
class Turn:
    """A display matrix's part in right angles; anything else it holds is left to players."""

    swapped: bool = False  # rows are columns
    flipped_down: bool = False  # after that
    flipped_across: bool = False

    @classmethod
    def of_matrix(cls, matrix: Sequence[int] | None) -> Turn:
        """The nine numbers of a display matrix, row by row as FFmpeg keeps them; none for upright.

        A stored pixel (across p, down q) is shown at (a p + c q + x, b p + d q + y) of [a b . c d . x y .].
        """
        if matrix is None:
            return cls()
        a, b, _, c, d = matrix[:5]
        if a and d and not b and not c:
            return cls(flipped_down=d < 0, flipped_across=a < 0)
        if b and c and not a and not d:
            return cls(swapped=True, flipped_down=b < 0, flipped_across=c < 0)
        return cls()

    def upright(self, stored: Pixels) -> Pixels:
        """[H, W, 3] as shown, C-contiguous."""
        turned = stored.swapaxes(0, 1) if self.swapped else stored
        return np.ascontiguousarray(turned[self._flips])

    def stored(self, upright: Pixels) -> Pixels:
        """The inverse."""
        turned = upright[self._flips]
        return np.ascontiguousarray(turned.swapaxes(0, 1) if self.swapped else turned)

    @property
    def _flips(self) -> tuple[slice, slice]:
        return (
            slice(None, None, -1 if self.flipped_down else 1),
            slice(None, None, -1 if self.flipped_across else 1),
        )
