"""What goes down the line: frames to restore, and what is handed on beside them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from cmudrn.images import Pixels

__all__ = ["Beside", "Frame", "Sink", "Step"]

Mark = TypeVar("Mark")  # what the sink needs to know of a frame


@dataclass(frozen=True, eq=False)
class Frame(Generic[Mark]):
    """One frame, upright."""

    pixels: Pixels  # [H, W, 3]
    mark: Mark  # its time in a clip, its header in Y4M

    @property
    def size_bytes(self) -> int:
        """That it holds while it waits."""
        return self.pixels.nbytes


@dataclass(frozen=True, eq=False)
class Beside:
    """A packet of another stream, to be copied."""

    packet: Any

    @property
    def size_bytes(self) -> int:
        """That it holds while it waits."""
        return int(self.packet.size)


Step = Frame[Any] | Beside


class Sink(Protocol):
    """Where restored frames and all else go, in order. Called from one thread."""

    def write(self, step: Step) -> None:
        """Raises OSError or ImageError where it cannot."""
        ...
