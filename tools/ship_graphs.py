"""Writes the graphs that are shipped beside the default weights; run it whenever these change.

make graphs
"""

from __future__ import annotations

from cmudrn.checkpoint import SHIPPED, read_checkpoint
from cmudrn.deploy.graphs import shipped_graph_path
from cmudrn.engines.graph import dynamic_graph
from cmudrn.engines.spec import Pixel

SHIPPED_LOOPS = range(1, 8)


def main() -> None:
    checkpoint = read_checkpoint("default")
    for loops in SHIPPED_LOOPS:
        for pixel in Pixel:
            path = shipped_graph_path(loops, pixel)
            path.write_bytes(dynamic_graph(checkpoint, loops=loops, pixel=pixel))
            print(f"{path.relative_to(SHIPPED)}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
