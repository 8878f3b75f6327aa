"""BSD100 under rain and snow of two other packages, as a paired dataset for `cmudrn evaluate`.

    python benchmarks/foreign_weather.py --data DATA -o OUT

DATA holds bsds500/val. Writes OUT/rainy, OUT/snowy and OUT/clean, PNG, and prints for each weather the hash
that `cmudrn evaluate OUT --weather rain --split all` will print. Needs no torch, but two packages that
belong into an environment of their own: imaug brings OpenCV twice, and neither in its newest version.
docs/evaluation.md tells what they draw.
"""

from __future__ import annotations

import argparse
import hashlib
import os
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmudrn.images import read_picture, write_picture
from cmudrn.train.pairs import natural_order

Pixels = NDArray[np.uint8]
Weather = Callable[[Pixels, np.random.Generator], Pixels]

SEED = 2211_08290
INSTALL = "pip install . imaug==0.4.3 albumentations==2.0.8"
LIBRARIES = ("albumentations", "imaug", "opencv-python-headless", "numpy")


def streaks_of(albumentations: Any) -> Weather:
    """RandomRain: straight additive streaks, alike within an image. Grey level, length, number vary."""

    def rain(clean: Pixels, rng: np.random.Generator) -> Pixels:
        grey = int(rng.integers(70, 201))  # 200 is the package's only one
        transform = albumentations.RandomRain(
            p=1,
            rain_type=("default", "heavy")[rng.integers(2)],  # a streak for every three rows, or every row
            slant_range=(-20, 20),  # pixels from head to foot, whatever the package says of degrees
            drop_length=int(rng.integers(15, 51)),
            drop_color=(grey, grey, grey),
            blur_value=3,  # of the streaks alone
            brightness_coefficient=1,  # 0.7 would darken the whole image, which is no rain
        )
        seeded = albumentations.Compose([transform], seed=int(rng.integers(2**31)))
        return np.asarray(seeded(image=clean)["image"], np.uint8)

    return rain


def flakes_of(augmenters: Any) -> Weather:
    """Snowflakes: one to three layers of moving flakes. As the package has it, but for their size."""

    def snow(clean: Pixels, rng: np.random.Generator) -> Pixels:
        # Between what the package advises for images of 192x256 and of 960x1280.
        transform = augmenters.Snowflakes(flake_size=(0.4, 0.8))
        # Not by Snowflakes(seed=...): that draws the same flakes in every layer.
        transform.seed_(int(rng.integers(2**31)))
        return np.asarray(transform(image=clean), np.uint8)

    return snow


def load_weathers() -> dict[str, Weather]:
    """The folders' names, and what fills them."""
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # else its import asks the network for a newer version
    try:
        import albumentations
        from imgaug import augmenters  # as imaug, the maintained fork, calls itself
    except ImportError as exc:
        raise SystemExit(f"{exc}; in an environment of its own: {INSTALL}") from exc
    return {"rainy": streaks_of(albumentations), "snowy": flakes_of(augmenters)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("-o", "--out", type=Path, required=True)
    arguments = parser.parse_args()
    weathers = load_weathers()
    photos = sorted(arguments.data.glob("bsds500/val/*.jpg"), key=natural_order)
    if not photos:
        raise SystemExit(f"{arguments.data}: no bsds500/val/*.jpg in it")
    for name in (*weathers, "clean"):
        (arguments.out / name).mkdir(parents=True, exist_ok=True)
    manifests = {name: hashlib.sha256() for name in weathers}
    for number, photo in enumerate(photos):
        picture = read_picture(photo)
        clean = picture.pixels.astype(np.uint8, copy=False)
        file = f"{photo.stem}.png"
        write_picture(picture, arguments.out / "clean" / file)
        for stream, (name, weather) in enumerate(weathers.items()):
            degraded = weather(clean, np.random.default_rng([SEED, number, stream]))
            write_picture(picture.with_pixels(degraded), arguments.out / name / file)
            manifests[name].update(degraded.tobytes() + clean.tobytes())
    print(", ".join(f"{library} {version(library)}" for library in LIBRARIES))
    for name, manifest in manifests.items():
        print(f"{name}, {len(photos)} images: {manifest.hexdigest()}")


if __name__ == "__main__":
    main()
