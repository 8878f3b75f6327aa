"""What remains of an evaluation: tables for people and programs, the worst images, and a plot over loops.

per-image.csv   every image at every loop count, with its input's scores
summary.csv, summary.md, summary.json   means, the input's first
worst.jpg       the images that gained least: input, restored, clean
loops.png       PSNR and SSIM over loops
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageDraw, ImageFont

from cmudrn import __version__
from cmudrn.errors import EnvironmentMissing, UsageError
from cmudrn.files import replacing
from cmudrn.metrics import CAP_DB, Scores
from cmudrn.train.evaluate import Evaluation, Restoration
from cmudrn.train.protocols import Pixels

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "TABLE_HEADER",
    "WorstImages",
    "check_output_folder",
    "headline",
    "markdown_table",
    "table_rows",
    "write_report",
]

TABLE_HEADER = ("loops", "PSNR RGB", "gain", "SSIM RGB", "gain", "PSNR Y", "gain", "SSIM Y", "gain")


def check_output_folder(folder: Path) -> None:
    """Makes the folder and tries it, so that nothing is evaluated in vain.

    Raises UsageError where files cannot be written, EnvironmentMissing without matplotlib.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as exc:
        raise EnvironmentMissing(
            "a report needs matplotlib", fix="pip install 'cmudrn[train]', or leave -o away"
        ) from exc
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / "summary.tried", durable=False):
            pass
        (folder / "summary.tried").unlink()
    except OSError as exc:
        raise UsageError(
            f"{folder}: cannot write there: {exc.strerror}", fix="give a folder of yours, or make room"
        ) from exc


@dataclass
class WorstImages:
    """Keeps the restorations that gained least at one loop count; `evaluate` tells it of all."""

    loops: int
    most: int = 5
    kept: list[Restoration] = field(default_factory=list)  # the worst first

    def add(self, restoration: Restoration) -> None:
        """Takes it in if it is among the worst so far."""
        if restoration.scores.loops == self.loops:
            self.kept = sorted([*self.kept, restoration], key=_badness)[: self.most]


def _badness(restoration: Restoration) -> tuple[float, float]:
    # Where the input was the truth all gains are minus infinity, and the PSNR decides.
    return restoration.scores.gain_db, restoration.scores.restored.psnr_rgb_db


def write_report(evaluation: Evaluation, worst: WorstImages, folder: Path) -> None:
    """Writes all files, each whole or not at all; older ones of the same names are replaced."""
    files = {
        "per-image.csv": _csv(_image_rows(evaluation)),
        "summary.csv": _csv(_summary_rows(evaluation)),
        "summary.md": _summary_markdown(evaluation).encode(),
        "summary.json": (json.dumps(_summary(evaluation), indent=2, allow_nan=False) + "\n").encode(),
        "worst.jpg": _worst_sheet(evaluation, worst),
        "loops.png": _loops_plot(evaluation),
    }
    for name, content in files.items():
        with replacing(folder / name) as file:
            file.write(content)


# ---- Tables


def headline(evaluation: Evaluation) -> str:
    """One line: protocol, images, hashes."""
    candidate = evaluation.candidate
    images = f"{evaluation.images} images"
    if evaluation.images < evaluation.of_images:
        images = f"the first {evaluation.images} of {evaluation.of_images} images"
    weights = f"{candidate.name} {candidate.sha256[:16]}".strip()
    return (
        f"{evaluation.protocol}, {images}, manifest {evaluation.manifest_sha256[:16]}; "
        f"{weights}, output {candidate.output}"
    )


def table_rows(evaluation: Evaluation) -> list[list[str]]:
    """The cells under TABLE_HEADER as people read them, the input's row first."""
    rows = [["input", *_cells(evaluation.inputs, None)]]
    for row in evaluation.summary():
        rows.append([str(row.loops), *_cells(row.restored, row.gain)])
    return rows


def _cells(scores: Scores, gain: Scores | None) -> list[str]:
    cells = []
    for name, value in asdict(scores).items():
        digits = 2 if name.endswith("_db") else 4
        equal = name.endswith("_db") and value == CAP_DB
        cells.append("equal" if equal else f"{value:.{digits}f}")
        cells.append(f"{getattr(gain, name):+.{digits}f}" if gain else "")
    return cells


def markdown_table(evaluation: Evaluation) -> str:
    """The table alone, to be pasted."""
    rows = [TABLE_HEADER, ["---:"] * len(TABLE_HEADER), *table_rows(evaluation)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _summary_markdown(evaluation: Evaluation) -> str:
    candidate = evaluation.candidate
    weights = f"{candidate.name}, SHA-256 `{candidate.sha256}`" if candidate.sha256 else candidate.name
    return f"""# {evaluation.protocol}

{headline(evaluation)}

{markdown_table(evaluation)}

Means over the images, 8 bits, whole image, PSNR in dB; Y is BT.601 luma (16 to 235). An image equal to the
truth counts {CAP_DB:.0f} dB.

- protocol: {evaluation.protocol}, {evaluation.about}
- manifest: SHA-256 `{evaluation.manifest_sha256}` over all inputs and clean images
- weights: {weights}
- kernels: {candidate.kernels or "none"}
- cmudrn {__version__}, {_now()}
"""


def _image_rows(evaluation: Evaluation) -> Iterable[dict[str, Any]]:
    for result in evaluation.results:
        yield {
            "protocol": evaluation.protocol,
            "weights_sha256": evaluation.candidate.sha256,
            "output": evaluation.candidate.output,
            "loops": result.loops,
            "name": result.name,
            **_rounded(result.input, "input_"),
            **_rounded(result.restored),
        }


def _summary_rows(evaluation: Evaluation) -> Iterable[dict[str, Any]]:
    common = {
        "protocol": evaluation.protocol,
        "manifest_sha256": evaluation.manifest_sha256,
        "weights_sha256": evaluation.candidate.sha256,
        "output": evaluation.candidate.output,
        "images": evaluation.images,
    }
    no_gain = dict.fromkeys(_rounded(evaluation.inputs, "gain_"), "")
    yield {**common, "loops": "input", **_rounded(evaluation.inputs), **no_gain}
    for row in evaluation.summary():
        gain = _rounded(row.gain, "gain_") if row.gain else no_gain
        yield {**common, "loops": row.loops, **_rounded(row.restored), **gain}


def _summary(evaluation: Evaluation) -> dict[str, Any]:
    candidate = evaluation.candidate
    return {
        "protocol": evaluation.protocol,
        "about": evaluation.about,
        "images": evaluation.images,
        "of_images": evaluation.of_images,
        "manifest_sha256": evaluation.manifest_sha256,
        "weights": candidate.name,
        "weights_sha256": candidate.sha256,
        "output": candidate.output,
        "kernels": candidate.kernels,
        "psnr_cap_db": CAP_DB,
        "input": _rounded(evaluation.inputs),
        "restored": [
            {
                "loops": row.loops,
                **_rounded(row.restored),
                "gain": _rounded(row.gain) if row.gain else None,
            }
            for row in evaluation.summary()
        ],
        "code_version": __version__,
        "date": _now(),
    }


def _rounded(scores: Scores, prefix: str = "") -> dict[str, float]:
    # Six digits: beyond them libraries and processors disagree.
    return {prefix + name: round(value, 6) for name, value in asdict(scores).items()}


def _csv(rows: Iterable[Mapping[str, Any]]) -> bytes:
    rows = list(rows)
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode(errors="surrogateescape")


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


# ---- Pictures

COLUMN_PX, ROW_PX, GAP_PX, LINE_PX, TEXT_PX = 480, 360, 12, 30, 17
INK, PAPER, FAINT = "#1a1a1a", "#ffffff", "#6b6b6b"


def _worst_sheet(evaluation: Evaluation, worst: WorstImages) -> bytes:
    """Rows of input, restored, clean, each at most 480x360 pixels; JPEG."""
    rows = [_worst_row(restoration) for restoration in worst.kept]
    width = 3 * COLUMN_PX + 4 * GAP_PX
    height = 2 * LINE_PX + sum(row.height + GAP_PX for row in rows)
    sheet = Image.new("RGB", (width, height), PAPER)
    what = "highest loss" if evaluation.inputs_are_the_truth else "least gain"
    count = f"the {len(rows)} images of" if len(rows) > 1 else "the image of"
    title = f"{evaluation.protocol}, T = {worst.loops}: {count} {what}, the worst first"
    ImageDraw.Draw(sheet).text((GAP_PX, LINE_PX // 2), title, INK, _font(TEXT_PX + 5))
    top = 2 * LINE_PX
    for row in rows:
        sheet.paste(row, (GAP_PX, top))
        top += row.height + GAP_PX
    file = io.BytesIO()
    sheet.save(file, "JPEG", quality=92, subsampling=0)
    return file.getvalue()


def _worst_row(restoration: Restoration) -> Image.Image:
    scores, item = restoration.scores, restoration.item
    images = [_fitted(pixels) for pixels in (item.degraded, restoration.restored, item.clean)]
    gain = "" if scores.input.psnr_rgb_db == float("inf") else f" ({scores.gain_db:+.2f})"
    captions = (
        f"{item.name}: input {_shown(scores.input)}",
        f"restored {_shown(scores.restored, gain)}",
        "clean",
    )
    row = Image.new("RGB", (3 * COLUMN_PX + 2 * GAP_PX, LINE_PX + images[0].height), PAPER)
    pen, font = ImageDraw.Draw(row), _font(TEXT_PX)
    for column, (image, caption) in enumerate(zip(images, captions, strict=True)):
        left = column * (COLUMN_PX + GAP_PX)
        pen.text((left, 4), _shortened(caption, font), INK, font)
        row.paste(image, (left, LINE_PX))
    return row


def _shown(scores: Scores, gain: str = "") -> str:
    if scores.psnr_rgb_db == float("inf"):
        return "equal to clean"
    return f"{scores.psnr_rgb_db:.2f} dB{gain}, SSIM {scores.ssim_rgb:.3f}"


def _shortened(caption: str, font: ImageFont.FreeTypeFont) -> str:
    """Long names lose their beginning: their end tells files of a folder apart."""
    cut = 0
    while font.getlength(shown := ("…" if cut else "") + caption[cut:]) > COLUMN_PX:
        cut += 1
    return shown


def _fitted(pixels: Pixels) -> Image.Image:
    image = Image.fromarray(pixels)
    scale = min(COLUMN_PX / image.width, ROW_PX / image.height)
    if scale < 1:
        size = (max(round(image.width * scale), 1), max(round(image.height * scale), 1))
        image = image.resize(size, Image.Resampling.LANCZOS)
    return image


def _font(size_px: int) -> ImageFont.FreeTypeFont:
    import matplotlib

    # The one font that is sure to be there: matplotlib brings it.
    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf")), size_px)


PANELS = (("PSNR, dB", "psnr_{}_db"), ("SSIM", "ssim_{}"))
COLOURS = {"rgb": "#0b6fa4", "y": "#c2571a"}


def _loops_plot(evaluation: Evaluation) -> bytes:
    """PSNR and SSIM over loops, RGB and luma, the input's level as a dashed line; PNG."""
    # A Figure of its own draws with Agg; pyplot would keep global state and look for a screen.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    title = f"{headline(evaluation).partition(';')[0]}\n{headline(evaluation).partition('; ')[2]}"
    figure.suptitle(title, fontsize=9, color=FAINT)
    for axes, (label, metric) in zip(figure.subplots(1, 2), PANELS, strict=True):
        for channels, colour in COLOURS.items():
            _draw_curve(axes, evaluation, metric.format(channels), channels.upper(), colour)
        axes.set_xlabel("loops T")
        axes.set_ylabel(label)
        axes.set_xticks(evaluation.loops)
        axes.grid(axis="y", color="#e5e5e5")
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(x=0.08, y=0.12)
        axes.legend(frameon=False, fontsize=9)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=120, metadata={"Software": None})
    return file.getvalue()


def _draw_curve(axes: Axes, evaluation: Evaluation, metric: str, label: str, colour: str) -> None:
    values: Sequence[float] = [getattr(row.restored, metric) for row in evaluation.summary()]
    axes.plot(evaluation.loops, values, color=colour, marker="o", label=f"restored, {label}")
    if not evaluation.inputs_are_the_truth:  # whose level is the cap, far above all curves
        level = getattr(evaluation.inputs, metric)
        axes.axhline(level, color=colour, linestyle="--", linewidth=1, label=f"input, {label}")
