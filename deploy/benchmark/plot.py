"""The table as the paper's Fig. 4: seconds over T and size, a heatmap a program, with the paper's figures."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cmudrn.deploy.benchmark.table import PAPER_FPS, Cell, Table
from cmudrn.errors import EnvironmentMissing
from cmudrn.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap, LogNorm

__all__ = ["draw_heatmaps"]

COLOURS = "viridis_r"  # the slower, the darker
INK, PAPER, FAINT, MARK = "#1a1a1a", "#ffffff", "#6b6b6b", "#d6006c"
COLUMN_IN, ROW_IN = 0.62, 0.42  # inches of a cell
MARGIN_IN, HEAD_IN, PANEL_IN, SCALE_IN = 1.2, 1.1, 0.75, 1.1
DPI = 130
CENTRED: Mapping[str, Any] = {"ha": "center", "va": "center", "fontsize": 7}


def draw_heatmaps(table: Table) -> None:
    """Writes heatmap.png beside the table, a panel for each program and batch; needs a cell at least.

    Raises EnvironmentMissing without matplotlib.
    """
    try:
        # A Figure of its own draws with Agg; pyplot would keep global state and look for a screen.
        import matplotlib
        from matplotlib.cm import ScalarMappable
        from matplotlib.colors import LogNorm
        from matplotlib.figure import Figure
    except ImportError as exc:
        raise EnvironmentMissing(
            "heatmap.png is left out: no matplotlib", fix="pip install 'cmudrn[bench]' or 'cmudrn[train]'"
        ) from exc
    cells = list(table.cells.values())
    panels = sorted({(cell.batch, cell.place, cell.backend) for cell in cells})
    loops = sorted({cell.loops for cell in cells})
    sizes = sorted({(cell.height, cell.width) for cell in cells}, key=lambda size: (size[0] * size[1], size))
    width = max(MARGIN_IN + SCALE_IN + COLUMN_IN * len(sizes), 6.0)
    height = HEAD_IN + len(panels) * (PANEL_IN + ROW_IN * len(loops))
    figure = Figure(figsize=(width, height), layout="constrained")
    seconds = [cell.seconds for cell in cells]
    scale = LogNorm(min(seconds) / 1.01, max(seconds) * 1.01)
    colours = matplotlib.colormaps[COLOURS]
    axes = list(figure.subplots(len(panels), 1, squeeze=False)[:, 0])
    for panel, (batch, place, backend) in zip(axes, panels, strict=True):
        drawn = [cell for cell in cells if (cell.batch, cell.place, cell.backend) == (batch, place, backend)]
        draw_panel(panel, drawn, loops, sizes, colours, scale)
        panel.set_title(f"{backend} on the {place.upper()}, batch {batch}", loc="left", fontsize=10)
    figure.colorbar(
        ScalarMappable(scale, colours), ax=axes, label="seconds an image", fraction=0.05, pad=0.01
    )
    figure.suptitle(headline(table, columns=int(width * 13)), x=0.01, ha="left", fontsize=8, color=FAINT)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=DPI, metadata={"Software": None})
    with replacing(table.folder / "heatmap.png", durable=False) as out:
        out.write(file.getvalue())


def headline(table: Table, *, columns: int) -> str:
    """What was measured on what, and what the marks are."""
    days = sorted({cell.began[:10] for cell in table.cells.values()})
    when = " to ".join(dict.fromkeys([days[0], days[-1]]))
    marks = "Outlined, in brackets: the paper's own, PyTorch on a GTX 1070 Ti."
    lines = [
        f"Seconds for one image, medians. {marks}",
        *textwrap.wrap(f"{table.terms.machine}; {when}", columns),
    ]
    return "\n".join(lines)


def draw_panel(
    axes: Axes,
    cells: Sequence[Cell],
    loops: Sequence[int],
    sizes: Sequence[tuple[int, int]],
    colours: Colormap,
    scale: LogNorm,
) -> None:
    """Rows are T, from below; columns are sizes. What isn't measured stays blank."""
    grid = np.full((len(loops), len(sizes)), np.nan)
    for cell in cells:
        row, column = loops.index(cell.loops), sizes.index((cell.height, cell.width))
        grid[row, column] = cell.seconds
        ink = PAPER if float(scale(cell.seconds)) > 0.45 else INK
        raised = 0.14 if (cell.loops, cell.height, cell.width) in PAPER_FPS else 0.0
        axes.text(column, row + raised, rounded(cell.seconds), color=ink, **CENTRED)
    mark_paper(axes, grid, loops, sizes, scale)
    axes.imshow(np.ma.masked_invalid(grid), cmap=colours, norm=scale, aspect="auto", origin="lower")
    axes.set_yticks(range(len(loops)), [f"T = {one}" for one in loops], fontsize=8)
    axes.set_xticks(range(len(sizes)), [name(size) for size in sizes], fontsize=8)
    axes.set_xlabel("side, or height x width, in pixels", fontsize=8, color=FAINT)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_facecolor("#f2f2f2")


def mark_paper(
    axes: Axes,
    grid: NDArray[np.float64],
    loops: Sequence[int],
    sizes: Sequence[tuple[int, int]],
    scale: LogNorm,
) -> None:
    """A frame around each of the paper's own cells, and its seconds there in brackets."""
    from matplotlib.patches import Rectangle

    for (depth, *size), fps in PAPER_FPS.items():
        if depth in loops and tuple(size) in sizes:
            row, column = loops.index(depth), sizes.index((size[0], size[1]))
            dark = not np.isnan(grid[row, column]) and float(scale(grid[row, column])) > 0.45
            text = f"({rounded(1 / fps)})"
            axes.text(column, row - 0.2, text, color=PAPER if dark else INK, **CENTRED)
            frame = Rectangle(
                (column - 0.47, row - 0.46), 0.94, 0.92, fill=False, edgecolor=MARK, linewidth=2
            )
            axes.add_patch(frame)


def name(size: tuple[int, int]) -> str:
    height, width = size
    return str(height) if height == width else f"{height}x{width}"


def rounded(seconds: float) -> str:
    """Two digits that count, or more: 0.0021, 0.040, 0.41, 4.0, 41, 410."""
    return f"{seconds:#.2g}" if seconds < 9.95 else f"{seconds:.0f}"
