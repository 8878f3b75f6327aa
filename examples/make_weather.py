"""Makes examples/weather from clean photographs: rain on half of them, snow on the other half.

python examples/make_weather.py --data DATA    (DATA holds photos/val and garg06_streaks)
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pyvips

from cmudrn.train.photos import to_pixels
from cmudrn.train.protocols import EvaluationData
from cmudrn.train.weather.snow import draw_snow, render_snow
from cmudrn.train.weather.streaks import (
    SLANTED,
    STRAIGHT,
    StreakDatabase,
    StreakParams,
    render_streaks,
)

RAINY = ("3ce3a6_casa-mila", "630fbf_beacon-street-sunset", "b03981_oakland-zoo-otters")
SNOWY = ("5ede1e_high-trestle-trail", "324074_lake-sherburne", "32d0a3_tea-gardens")
WIDTH_PX = 900


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True)
    data: Path = parser.parse_args().data
    files = EvaluationData(data).held_out_streaks()[::2]
    rains = [StreakDatabase.load(files, recipe) for recipe in (STRAIGHT, SLANTED)]
    rng = np.random.default_rng(7)
    target = Path(__file__).parent / "weather"
    target.mkdir(exist_ok=True)
    for number, name in enumerate(RAINY + SNOWY):
        photo = pyvips.Image.thumbnail(str(data / "photos" / "val" / f"{name}.jpg"), WIDTH_PX)
        clean = photo.numpy().astype(np.float32) / np.float32(255)
        if name in RAINY:
            database = rains[number % 2]
            params = StreakParams(recipe=database.recipe, severity=0.8)
            weathered = render_streaks(clean, database, rng, params)
        else:
            weathered = render_snow(clean, draw_snow(rng), rng)
        path = target / f"{name.split('_')[1]}-{'rain' if name in RAINY else 'snow'}.jpg"
        pyvips.Image.new_from_array(to_pixels(weathered.image)).copy(interpretation="srgb").jpegsave(
            str(path), Q=90
        )


if __name__ == "__main__":
    main()
