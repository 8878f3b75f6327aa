"""How many crops of 128x128 each renderer degrades in a second on one core.

python benchmarks/weather.py [--streaks DIR]
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from machine import heading

from cmudrn.train.scenes import draw_scale, draw_severity
from cmudrn.train.skies import ProceduralRain, ProceduralSnow, Sky, load_streak_rains, training_files

CROP_PX, SECONDS = 128, 6.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--streaks", type=Path, help="streak files of the Columbia database")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    skies: dict[str, Sky] = {"ProceduralRain": ProceduralRain(), "ProceduralSnow": ProceduralSnow()}
    if arguments.streaks:
        straight, slanted = load_streak_rains(training_files(arguments.streaks, 40))
        skies |= {"StreakRain, straight": straight, "StreakRain, slanted": slanted}
    print(heading())
    clean = np.full((CROP_PX, CROP_PX, 3), 0.4, np.float32)
    for name, sky in skies.items():
        rng, drawn, begun = np.random.default_rng(0), 0, time.process_time()
        while time.process_time() - begun < SECONDS:
            sky.render(clean, rng, severity=draw_severity(rng), scale=draw_scale(rng))
            drawn += 1
        print(f"{name}: {drawn / (time.process_time() - begun):.0f} crops/s")


if __name__ == "__main__":
    main()
