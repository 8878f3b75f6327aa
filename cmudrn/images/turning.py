"""Pixels set upright, and laid down again, by EXIF's orientation."""

from __future__ import annotations

from cmudrn.images.picture import Pixels

__all__ = ["laid_down", "turned"]


def turned(pixels: Pixels, orientation: int) -> Pixels:
    """A view of stored [..., H, W, C] pixels set upright."""
    if orientation >= 5:
        pixels = pixels.swapaxes(-3, -2)
    down = -1 if orientation in (3, 4, 7, 8) else 1
    across = -1 if orientation in (2, 3, 6, 7) else 1
    return pixels[..., ::down, ::across, :]


def laid_down(pixels: Pixels, orientation: int) -> Pixels:
    """A view of upright [..., H, W, C] pixels as the file holds them."""
    # Turned by 90 degrees and its inverse are each other's: 6 and 8. All others undo themselves.
    return turned(pixels, {6: 8, 8: 6}.get(orientation, orientation))
