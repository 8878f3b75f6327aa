"""Fits the gate of `cmudrn infer --gate` for a set of weights, and writes it beside them.

    python tools/ship_gate.py [WEIGHTS] --data DATA [--photos N]

Shows photographs of photos/train and bsds500/train, which no protocol shows: each twice without weather, once
through an ordinary camera, and three times under weather from faint to heavy, as training draws it. What is
fainter than FAINT_DB counts for neither side: restoring it costs more than it brings. The least confidence
is what leaves MISSED of the weather alone, by numbers that were fitted on other photographs. 300 photographs
take about five minutes on two cores. Needs the extra `train`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from cmudrn.checkpoint import read_checkpoint
from cmudrn.deploy.gate import TRACES, GateNumbers, backend_for, gate_path, traces
from cmudrn.deploy.job import InferJob
from cmudrn.engines.spec import Output
from cmudrn.files import replacing
from cmudrn.metrics import psnr_db
from cmudrn.train.photos import Camera, draw_camera, read_8_bits, shrink_to, to_pixels, to_scene
from cmudrn.train.scenes import draw_scale
from cmudrn.train.skies import ProceduralRain, ProceduralSnow, Sky, load_streak_rains, training_files
from cmudrn.train.weather.weathered import Image

Pixels = NDArray[np.uint8]
Values = NDArray[np.float64]

SEED = 2211_08290
FOLDERS = ("photos/train", "bsds500/train")
STREAK_FILES = 40
SEVERITY = (0.03, 1.15)  # by its logarithm
MOST_PX = 600  # side of what is shown of a photograph
FAINT_DB = 38.0  # PSNR against the clean one; these weights bring clean photographs to 35 dB
MISSED = 0.05
FOLDS = 5
RIDGE = 1e-3  # on coefficients of traces that vary by 1


class Shown(NamedTuple):
    """One photograph under one sky."""

    photo: int
    pixels: Pixels
    has_weather: bool


def shown_of(photo: int, pixels: Pixels, rains: Sequence[Sky]) -> Iterator[Shown]:
    """Two without weather and up to three with: equal photographs, equal bytes."""
    rng = np.random.default_rng([SEED, photo])
    scene = to_scene(cut(pixels, rng))
    skies: list[Sky | None] = [
        None,
        None,
        rains[int(rng.integers(len(rains)))],
        ProceduralRain(),
        ProceduralSnow(),
    ]
    for number, sky in enumerate(skies):
        plain = number == 0 or (sky is not None and rng.random() < 0.5)
        camera = Camera() if plain else draw_camera(rng)
        clean = camera.expose(scene)
        image = clean if sky is None else under(sky, clean, rng)
        grain = camera.grain(clean.shape, rng)
        truth, seen = (to_pixels(camera.develop(each, grain)) for each in (clean, image))
        if sky is None or psnr_db(seen, truth) < FAINT_DB:
            yield Shown(photo, seen, sky is not None)


def cut(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """A part of a large photograph, or a square of it shrunk: details of all sizes."""
    side_px = min(pixels.shape[:2])
    if side_px <= MOST_PX:
        return pixels
    top, left = (int(rng.integers(side - MOST_PX + 1)) for side in pixels.shape[:2])
    if rng.random() < 0.5:
        return np.ascontiguousarray(pixels[top : top + MOST_PX, left : left + MOST_PX])
    return shrink_to(np.ascontiguousarray(pixels[:side_px, :side_px]), MOST_PX)


def under(sky: Sky, clean: Image, rng: np.random.Generator) -> Image:
    severity = float(np.exp(rng.uniform(*np.log(SEVERITY))))
    return sky.render(clean, rng, severity=severity, scale=draw_scale(rng)).image


def fit(found: Values, is_clean: NDArray[np.bool_]) -> Callable[[Values], Values]:
    """Logistic regression by Newton's steps, both sides of equal weight: the evidence, linear in `found`."""
    middle, spread = found.mean(0), found.std(0)

    def scaled(values: Values) -> Values:
        return np.column_stack([(values - middle) / spread, np.ones(len(values))])

    seen, coefficients = scaled(found), np.zeros(found.shape[1] + 1)
    counts = np.where(is_clean, 0.5 / is_clean.mean(), 0.5 / (~is_clean).mean())
    ridge = np.diag([RIDGE * len(found)] * found.shape[1] + [0.0])
    for _ in range(30):
        chance = 1 / (1 + np.exp(-seen @ coefficients))
        slope = seen.T @ (counts * (chance - is_clean)) + ridge @ coefficients
        curve = seen.T @ (seen * (counts * chance * (1 - chance))[:, None]) + ridge
        coefficients -= np.linalg.solve(curve, slope)
    return lambda values: scaled(values) @ coefficients


def by_others(found: Values, is_clean: NDArray[np.bool_], photo: NDArray[np.int64]) -> Values:
    """The confidence in each, by a fit on other photographs."""
    confidence = np.empty(len(found))
    for fold in range(FOLDS):
        held_out = photo % FOLDS == fold
        evidence = fit(found[~held_out], is_clean[~held_out])(found[held_out])
        confidence[held_out] = 1 / (1 + np.exp(-evidence))
    return confidence


def numbers_of(
    found: Values, is_clean: NDArray[np.bool_], sha256: str, least: float, photos: int
) -> GateNumbers:
    evidence = fit(found, is_clean)
    bias = float(evidence(np.zeros((1, len(TRACES))))[0])
    slopes = evidence(np.eye(len(TRACES))) - bias
    return GateNumbers(
        weights_sha256=sha256,
        coefficients={name: round(float(slope), 5) for name, slope in zip(TRACES, slopes, strict=True)},
        bias=round(bias, 5),
        least_confidence=round(least, 3),
        photos=photos,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("weights", nargs="?", default="default")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument(
        "--photos", type=int, default=10**6, metavar="N", help="at most so many, spread evenly"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    checkpoint = read_checkpoint(arguments.weights)
    every = sorted(path for folder in FOLDERS for path in (arguments.data / folder).glob("*.jpg"))
    photos = [every[i] for i in np.linspace(0, len(every) - 1, min(arguments.photos, len(every))).astype(int)]
    rains = load_streak_rains(training_files(arguments.data / "garg06_streaks", STREAK_FILES), whole=True)
    job = InferJob(sources=(arguments.data,), weights=arguments.weights)
    rows: list[tuple[int, bool, Values]] = []
    with backend_for(job, Output.RAIN) as rain, backend_for(job, Output.SNOW) as snow:
        for number, path in enumerate(photos):
            for shown in shown_of(number, read_8_bits(path), rains):
                rows.append((shown.photo, not shown.has_weather, traces(shown.pixels, rain, snow)))
            if number % 20 == 0:
                print(f"{number} of {len(photos)} photographs", flush=True)
    photo, is_clean, found = (np.array(column) for column in zip(*rows, strict=True))
    confidence = by_others(found, is_clean, photo)
    least = float(np.quantile(confidence[~is_clean], 1 - MISSED))
    numbers = numbers_of(found, is_clean, checkpoint.sha256, least, len(photos))
    path = gate_path(arguments.weights)
    with replacing(path) as file:
        file.write(numbers.to_json().encode())
    above = np.mean(confidence[is_clean][:, None] > confidence[~is_clean][None])
    print(f"{is_clean.sum()} without weather, {np.sum(~is_clean)} with; by other photographs' fit:")
    print(f"area under the curve {above:.3f}; from {least:.3f} on, {MISSED:.0%} of the weather is left,")
    print(f"and {np.mean(confidence[is_clean] < least):.0%} of the clean ones are restored. {path}")


if __name__ == "__main__":
    main()
