"""The shipped graphs, for the backends that run them: where they lie, and what their outputs are called."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from cmudrn.checkpoint import SHIPPED
from cmudrn.engines.spec import Output, Pixel
from cmudrn.errors import EnvironmentMissing

__all__ = ["GRAPH_OUTPUTS", "shipped_graph", "shipped_graph_path"]

# As `engines.graph` names them, which needs onnx.
GRAPH_OUTPUTS: Mapping[Output, str] = {Output.FUSED: "restored", Output.RAIN: "rain", Output.SNOW: "snow"}


def shipped_graph_path(loops: int, pixel: Pixel) -> Path:
    """Where the package keeps the default weights as a graph."""
    return SHIPPED / f"default-t{loops}-{pixel.value}.onnx"


def shipped_graph(loops: int, pixel: Pixel) -> Path:
    """The graph file that came with the package. Raises EnvironmentMissing where it didn't."""
    path = shipped_graph_path(loops, pixel)
    if not path.is_file():
        raise EnvironmentMissing(
            f"{path}: no such graph", fix="install cmudrn again, or `make graphs` in a checkout"
        )
    return path
