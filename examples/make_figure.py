"""Makes the picture in the README: examples/weather above, what `cmudrn infer` made of it below.

cmudrn infer examples/weather -o restored --overwrite
python examples/make_figure.py restored docs/example.jpg
"""

from __future__ import annotations

import sys
from pathlib import Path

import pyvips

SHOWN = ("casa-mila-rain.jpg", "oakland-zoo-otters-rain.jpg", "tea-gardens-snow.jpg")
WIDTH_PX, HEIGHT_PX, GAP_PX = 560, 315, 6


def cell(path: Path) -> pyvips.Image:
    return pyvips.Image.thumbnail(str(path), WIDTH_PX, height=HEIGHT_PX, crop="centre")


def main() -> None:
    restored, target = Path(sys.argv[1]), sys.argv[2]
    weather = Path(__file__).parent / "weather"
    cells = [cell(folder / name) for folder in (weather, restored) for name in SHOWN]
    figure = pyvips.Image.arrayjoin(cells, across=len(SHOWN), shim=GAP_PX, background=[255])
    figure.write_to_file(target, Q=88, strip=True)


if __name__ == "__main__":
    main()
