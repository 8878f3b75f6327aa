"""Makes docs/weather.jpg: every renderer at three severities, beside the clean photograph.

python tools/contact_sheet.py --data DATA    (DATA holds photos/val and garg06_streaks)
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from sheet import header, photo, row, save, with_psnr

from cmudrn.train.photos import to_pixels, to_scene
from cmudrn.train.protocols import EvaluationData, Pixels
from cmudrn.train.weather.rain import draw_rain, render_rain
from cmudrn.train.weather.snow import draw_snow, render_snow
from cmudrn.train.weather.streaks import (
    SLANTED,
    STRAIGHT,
    RainRecipe,
    StreakDatabase,
    StreakParams,
    render_streaks,
)
from cmudrn.train.weather.weathered import Image

Lay = Callable[[Image, float, np.random.Generator], Image]  # photograph, severity, chance

SHEET = Path(__file__).parent.parent / "docs" / "weather.jpg"
SEVERITIES = {"light": 0.2, "medium": 0.6, "heavy": 1.0}
SEED = 11


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True)
    data: Path = parser.parse_args().data
    files = EvaluationData(data).held_out_streaks()[::2]
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
    names = ["clean", *(f"{name}: severity {severity:g}" for name, severity in SEVERITIES.items())]
    save([header(names), *strips], SHEET)


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
    """The photograph clean and under the three severities, all of one chance."""
    shown = [
        to_pixels(lay(to_scene(clean), severity, np.random.default_rng(SEED)))
        for severity in SEVERITIES.values()
    ]
    return row(title, [clean, *(with_psnr(pixels, clean) for pixels in shown)])


if __name__ == "__main__":
    main()
