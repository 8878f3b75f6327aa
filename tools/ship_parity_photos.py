"""Makes deploy/parity/photos, what `cmudrn parity-check` compares on, of the photographs of examples/weather.

python tools/ship_parity_photos.py
"""

from __future__ import annotations

from pathlib import Path

import pyvips

ROOT = Path(__file__).parents[1]
PHOTOS = (
    "beacon-street-sunset-rain",
    "casa-mila-rain",
    "high-trestle-trail-snow",
    "oakland-zoo-otters-rain",
    "tea-gardens-snow",
)
LONGEST_SIDE_PX = 560
QUALITY = 78  # all five together in less than 300 kB


def main() -> None:
    target = ROOT / "deploy" / "parity" / "photos"
    total = 0
    for name in PHOTOS:
        source = ROOT / "examples" / "weather" / f"{name}.jpg"
        small = pyvips.Image.thumbnail(str(source), LONGEST_SIDE_PX)
        path = target / f"{name}.jpg"
        small.jpegsave(str(path), Q=QUALITY, optimize_coding=True, strip=True)
        total += path.stat().st_size
        print(f"{path.name}: {small.width}x{small.height}, {path.stat().st_size:,} bytes")
    print(f"{total:,} bytes")


if __name__ == "__main__":
    main()
