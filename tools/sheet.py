"""Sheets of labelled photographs, for the documents."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyvips
from PIL import Image as PillowImage
from PIL import ImageDraw, ImageFont

from cmudrn.metrics import psnr_db
from cmudrn.train.protocols import Pixels

__all__ = ["HEIGHT_PX", "WIDTH_PX", "header", "labelled", "photo", "row", "save", "with_psnr"]

HEIGHT_PX, WIDTH_PX = 260, 440  # of a cell; about what scale 1 of a renderer suits
MARGIN_PX, HEADER_PX, TITLE_PX = 12, 50, 52
BIG, SMALL = (ImageFont.load_default(size) for size in (34, 26))


def photo(data: Path, name: str) -> Pixels:
    """A photograph of photos/val, cut to a cell. Those of budgie-backgrounds (CC0-1.0) may be shown."""
    path = data / "photos" / "val" / f"{name}.jpg"
    pixels: Pixels = pyvips.Image.thumbnail(str(path), WIDTH_PX, height=HEIGHT_PX, crop="centre").numpy()
    return pixels


def with_psnr(pixels: Pixels, clean: Pixels) -> Pixels:
    """Labelled with its PSNR against the clean one."""
    return labelled(pixels, f"{psnr_db(pixels, clean):.1f} dB")


def labelled(pixels: Pixels, text: str) -> Pixels:
    """With the text in the lower left corner, on white."""
    image = PillowImage.fromarray(pixels)
    draw = ImageDraw.Draw(image)
    right = draw.textlength(text, SMALL) + 16
    draw.rectangle((0, HEIGHT_PX - 36, right, HEIGHT_PX), "white")
    draw.text((8, HEIGHT_PX - 8), text, "black", SMALL, anchor="ls")
    return np.asarray(image)


def row(title: str, cells: Sequence[Pixels]) -> Pixels:
    """A title, and below it the cells side by side."""
    gap = np.full((HEIGHT_PX, MARGIN_PX, 3), 255, np.uint8)
    strip = np.concatenate([gap, *(part for cell in cells for part in (cell, gap))], axis=1)
    named = canvas(TITLE_PX, strip.shape[1])
    ImageDraw.Draw(named).text((MARGIN_PX, TITLE_PX - 8), title, "black", BIG, anchor="ls")
    return np.concatenate([np.asarray(named), strip])


def header(names: Sequence[str]) -> Pixels:
    """What the columns are."""
    named = canvas(HEADER_PX, MARGIN_PX + len(names) * (WIDTH_PX + MARGIN_PX))
    for column, name in enumerate(names):
        left = MARGIN_PX + column * (WIDTH_PX + MARGIN_PX)
        ImageDraw.Draw(named).text((left, HEADER_PX - 10), name, "black", BIG, anchor="ls")
    return np.asarray(named)


def save(parts: Sequence[Pixels], path: Path) -> None:
    """Header and rows as one JPEG; prints what it became."""
    margin = np.asarray(canvas(MARGIN_PX, parts[0].shape[1]))
    sheet = PillowImage.fromarray(np.concatenate([*parts, margin]))
    sheet.save(path, quality=75, optimize=True)
    print(f"{path}: {sheet.width} x {sheet.height}, {path.stat().st_size:,} bytes")


def canvas(height_px: int, width_px: int) -> PillowImage.Image:
    return PillowImage.new("RGB", (width_px, height_px), "white")
