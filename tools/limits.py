"""Makes docs/limits.jpg: what the shipped weights cannot do, for the model card.

python tools/limits.py --data DATA    (DATA holds photos/val and garg06_streaks)
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
from sheet import header, labelled, photo, row, save, with_psnr

from cmudrn.train.evaluate import restorer
from cmudrn.train.photos import to_pixels, to_scene
from cmudrn.train.protocols import EvaluationData, Pixels
from cmudrn.train.weather.rain import draw_rain, render_rain
from cmudrn.train.weather.snow import draw_snow, render_snow
from cmudrn.train.weather.streaks import (
    STRAIGHT,
    StreakDatabase,
    StreakParams,
    render_streaks,
)

SHEET = Path(__file__).parent.parent / "docs" / "limits.jpg"
SEED = 11


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True)
    data: Path = parser.parse_args().data
    restore = restorer("default")

    def strip(title: str, shown: Pixels, clean: Pixels) -> Pixels:
        return row(title, [with_psnr(shown, clean), with_psnr(restore(shown), clean), clean])

    otters, periwinkle = photo(data, "b03981_oakland-zoo-otters"), photo(data, "04809f_blue-periwinkle")
    street, trail = photo(data, "630fbf_beacon-street-sunset"), photo(data, "5ede1e_high-trestle-trail")
    left = np.abs(restore(trail).astype(int) - trail).max()
    unharmed = [labelled(trail, "no weather"), labelled(restore(trail), f"up to {left} grey levels"), trail]
    rows = [
        strip("Heavy rain over fine detail: streaks become smears", heavy_streaks(otters, data), otters),
        strip(
            "Near flakes, wider than what the network sees: grey patches stay", near_flakes(street), street
        ),
        strip("A cloudburst at 1/30 s: haze and streaks go, smears stay", cloudburst(periwinkle), periwinkle),
        row("No weather: bright thin lines are touched all the same", unharmed),
    ]
    save([header(["shown", "restored, T = 3", "clean"]), *rows], SHEET)


def heavy_streaks(clean: Pixels, data: Path) -> Pixels:
    files = EvaluationData(data).held_out_streaks()[::2]
    params = StreakParams(recipe=STRAIGHT, severity=1.15)
    rng = np.random.default_rng(SEED)
    return to_pixels(render_streaks(to_scene(clean), StreakDatabase.load(files, STRAIGHT), rng, params).image)


def near_flakes(clean: Pixels) -> Pixels:
    rng = np.random.default_rng(SEED)
    return to_pixels(render_snow(to_scene(clean), draw_snow(rng, severity=1.0, scale=4.0), rng).image)


def cloudburst(clean: Pixels) -> Pixels:
    rng = np.random.default_rng(SEED)
    shower = replace(draw_rain(rng), exposure_s=1 / 30, contrast=70.0)
    return to_pixels(render_rain(to_scene(clean), shower, rng).image)


if __name__ == "__main__":
    main()
