"""Makes docs/weather.jpg: every renderer at three severities, beside the clean photograph.

python tools/contact_sheet.py --data DATA    (DATA holds photos/val and garg06_streaks)
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyvips
from PIL import Image as PillowImage
from PIL import ImageDraw, ImageFont

from cmudrn.metrics import psnr_db
from cmudrn.train.photos import to_pixels, to_scene
from cmudrn.train.protocols import Pixels
from cmudrn.train.weather.rain import draw_rain, render_rain
from cmudrn.train.weather.snow import draw_snow, render_snow
from cmudrn.train.weather.streaks import (
    SLANTED,
    STRAIGHT,
    RainRecipe,
    StreakDatabase,
    StreakParams,
    is_held_out,
    render_streaks,
    streak_files,
)
from cmudrn.train.weather.weathered import Image

Lay = Callable[[Image, float, np.random.Generator], Image]  # photograph, severity, chance

SHEET = Path(__file__).parent.parent / "docs" / "weather.jpg"
SEVERITIES = {"light": 0.2, "medium": 0.6, "heavy": 1.0}
HEIGHT_PX, WIDTH_PX = 260, 440  # of a cell; about what scale 1 suits, so nothing is resized after rendering
MARGIN_PX, HEADER_PX, TITLE_PX = 12, 50, 52
BIG, SMALL = (ImageFont.load_default(size) for size in (34, 26))
SEED = 11


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True)
    data: Path = parser.parse_args().data
    files = [file for file in streak_files(data / "garg06_streaks") if is_held_out(file)][::4]
    # Photographs of budgie-backgrounds 3.0 (CC0-1.0), none of them trained on.
    rows: list[tuple[str, str, Lay]] = [
        (
            "StreakDatabase, straight: the paper's generator",
            "b03981_oakland-zoo-otters",
            streaks(files, STRAIGHT),
        ),
        ("StreakDatabase, slanted: its second recipe", "da50d3_roman-colosseum", streaks(files, SLANTED)),
        ("ProceduralRain, shutter open for 1/250 s", "5ede1e_high-trestle-trail", rain(1 / 250)),
        ("ProceduralRain, shutter open for 1/30 s", "04809f_blue-periwinkle", rain(1 / 30)),
        ("ProceduralSnow", "630fbf_beacon-street-sunset", snow),
    ]
    strips = [strip(title, photo(data, name), lay) for title, name, lay in rows]
    width_px = strips[0].shape[1]
    parts = [header(width_px), *strips, np.asarray(canvas(MARGIN_PX, width_px))]
    sheet = PillowImage.fromarray(np.concatenate(parts))
    sheet.save(SHEET, quality=75, optimize=True)
    print(f"{SHEET}: {sheet.width} x {sheet.height}, {SHEET.stat().st_size:,} bytes")


def photo(data: Path, name: str) -> Pixels:
    path = data / "photos" / "val" / f"{name}.jpg"
    pixels: Pixels = pyvips.Image.thumbnail(str(path), WIDTH_PX, height=HEIGHT_PX, crop="centre").numpy()
    return pixels


def streaks(files: Sequence[Path], recipe: RainRecipe) -> Lay:
    database = StreakDatabase.load(files, recipe)

    def lay(clean: Image, severity: float, rng: np.random.Generator) -> Image:
        return render_streaks(clean, database, rng, StreakParams(recipe=recipe, severity=severity)).image

    return lay


def rain(exposure_s: float) -> Lay:
    def lay(clean: Image, severity: float, rng: np.random.Generator) -> Image:
        drawn = draw_rain(rng, severity=severity)
        # draw_rain raises contrast with exposure, so that long streaks show.
        longer = max(1.0, exposure_s * 300) / max(1.0, drawn.exposure_s * 300)
        shower = replace(drawn, exposure_s=exposure_s, contrast=drawn.contrast * longer)
        return render_rain(clean, shower, rng).image

    return lay


def snow(clean: Image, severity: float, rng: np.random.Generator) -> Image:
    return render_snow(clean, draw_snow(rng, severity=severity), rng).image


def strip(title: str, clean: Pixels, lay: Lay) -> Pixels:
    """A title, and below it the photograph clean and under the three severities, all of one chance."""
    cells = [clean]
    for severity in SEVERITIES.values():
        shown = to_pixels(lay(to_scene(clean), severity, np.random.default_rng(SEED)))
        cells.append(labelled(shown, f"{psnr_db(shown, clean):.1f} dB"))
    gap = np.full((HEIGHT_PX, MARGIN_PX, 3), 255, np.uint8)
    row = np.concatenate([gap, *(part for cell in cells for part in (cell, gap))], axis=1)
    named = canvas(TITLE_PX, row.shape[1])
    ImageDraw.Draw(named).text((MARGIN_PX, TITLE_PX - 8), title, "black", BIG, anchor="ls")
    return np.concatenate([np.asarray(named), row])


def labelled(pixels: Pixels, text: str) -> Pixels:
    """With the text in the lower left corner, on white."""
    image = PillowImage.fromarray(pixels)
    draw = ImageDraw.Draw(image)
    right = draw.textlength(text, SMALL) + 16
    draw.rectangle((0, HEIGHT_PX - 36, right, HEIGHT_PX), "white")
    draw.text((8, HEIGHT_PX - 8), text, "black", SMALL, anchor="ls")
    return np.asarray(image)


def header(width_px: int) -> Pixels:
    """What the columns are."""
    named = canvas(HEADER_PX, width_px)
    names = ["clean", *(f"{name}: severity {severity:g}" for name, severity in SEVERITIES.items())]
    for column, name in enumerate(names):
        left = MARGIN_PX + column * (WIDTH_PX + MARGIN_PX)
        ImageDraw.Draw(named).text((left, HEADER_PX - 10), name, "black", BIG, anchor="ls")
    return np.asarray(named)


def canvas(height_px: int, width_px: int) -> PillowImage.Image:
    return PillowImage.new("RGB", (width_px, height_px), "white")


if __name__ == "__main__":
    main()
