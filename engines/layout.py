"""Ways to lay the same network out as a graph; which is fastest, only a device can tell."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from cmudrn.errors import UsageError

__all__ = ["FOR_ONNX_RUNTIME", "Branches", "Layout"]


class Branches(str, Enum):
    """How the two recursive networks stand in a graph."""

    SEPARATE = "separate"  # a convolution of 16 channels for each
    GROUPED = "grouped"  # one of 32 channels in two groups, and half the nodes
    DENSE = "dense"  # one of 32 channels, block-diagonal: half of its weights are zeros


Y_ONCE, FIRST_FROM_Y = "y-once", "first-from-y"


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Rewrites of the graph, equal up to rounding."""

    branches: Branches = Branches.SEPARATE
    y_once: bool = False  # conv_in's part that sees y: once for all stages, then added in each
    first_from_y: bool = False  # in stage 1 x is y: conv_in's halves summed, 3 channels instead of 6

    @classmethod
    def parse(cls, text: str) -> Layout:
        """From names with commas between them, such as "grouped,y-once"; "separate" is the plain one.

        Raises UsageError for a name that is unknown, or that contradicts another.
        """
        names = [name.strip() for name in text.split(",") if name.strip()]
        branches = [Branches(name) for name in names if name in {kind.value for kind in Branches}]
        known = {Y_ONCE, FIRST_FROM_Y, *branches}
        unknown = [name for name in names if name not in known]
        if unknown or len(branches) > 1 or not names:
            raise UsageError(
                f"--layout {text}",
                fix=f"give one of {', '.join(kind.value for kind in Branches)}, and {Y_ONCE}, {FIRST_FROM_Y}"
                " where wanted, with commas between them",
            )
        return cls(
            branches=branches[0] if branches else Branches.SEPARATE,
            y_once=Y_ONCE in names,
            first_from_y=FIRST_FROM_Y in names,
        )

    def __str__(self) -> str:
        """As `parse` takes it."""
        flags = [(Y_ONCE, self.y_once), (FIRST_FROM_Y, self.first_from_y)]
        return ",".join([self.branches.value, *(name for name, on in flags if on)])


# On ONNX Runtime's CPU provider half the nodes, each twice as large, are faster (docs/measurements.md).
FOR_ONNX_RUNTIME = Layout(branches=Branches.GROUPED)
