"""The two evaluation protocols: fixed photographs, fixed weather, one hash over all that is shown to a model.

`bsd-rain`: the 100 photographs of bsds500/val; the straight recipe on even ones, the slanted on odd ones,
streaks from files that training never sees. `bsd-snow`: the same photographs, the project's own snow.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from cmudrn.checkpoint import load_model
from cmudrn.errors import UsageError
from cmudrn.images import read_picture
from cmudrn.metrics import psnr_db, ssim
from cmudrn.train.weather.snow import draw_snow, render_snow
from cmudrn.train.weather.streaks import (
    SLANTED,
    STRAIGHT,
    StreakDatabase,
    is_held_out,
    render_streaks,
    streak_files,
)
from cmudrn.train.weather.weathered import Image

__all__ = ["Protocol", "Score", "degraded_pairs", "evaluate", "restorer"]

Pixels = NDArray[np.uint8]  # [H, W, 3]
SEED = 2211_08290


class Protocol(str, Enum):
    """By the name that `cmudrn evaluate` takes."""

    BSD_RAIN = "bsd-rain"
    BSD_SNOW = "bsd-snow"


@dataclass(frozen=True, kw_only=True)
class Score:
    """Means over a protocol's images, RGB, uint8, whole image."""

    protocol: Protocol
    images: int
    manifest_sha256: str  # over every degraded and clean image, in order
    input_psnr_db: float
    input_ssim: float
    psnr_db: float
    ssim: float

    @property
    def gain_db(self) -> float:
        return self.psnr_db - self.input_psnr_db


def to_pixels(image: Image) -> Pixels:
    pixels: Pixels = np.floor(np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)
    return pixels


def degraded_pairs(
    protocol: Protocol, data: Path, *, limit: int | None = None
) -> Iterator[tuple[Pixels, Pixels]]:
    """(degraded, clean) of every image of the protocol, in order; equal bytes on every machine and every run.

    data: the folder that holds bsds500/val and garg06_streaks. limit: only the first images.
    """
    photos = sorted((data / "bsds500" / "val").glob("*.jpg"))
    if not photos:
        raise UsageError(f"{data}: no bsds500/val/*.jpg in it", fix="give the folder of the evaluation data")
    rains: list[StreakDatabase] = []
    if protocol is Protocol.BSD_RAIN:
        files = [file for file in streak_files(data / "garg06_streaks") if is_held_out(file)]
        # Every second file spans all drop sizes and types, at half the start-up time.
        rains = [StreakDatabase.load(files[::2], recipe) for recipe in (STRAIGHT, SLANTED)]
    for number, path in enumerate(photos[:limit]):
        clean = read_picture(path).pixels.astype(np.uint8)
        rng = np.random.default_rng([SEED, number])
        scene = clean.astype(np.float32) / np.float32(255)
        if protocol is Protocol.BSD_RAIN:
            degraded = render_streaks(scene, rains[number % 2], rng).image
        else:
            degraded = render_snow(scene, draw_snow(rng), rng).image
        yield to_pixels(degraded), clean


def restorer(weights: str | Path = "default", *, loops: int | None = None) -> Callable[[Pixels], Pixels]:
    """The PyTorch model as a function of one image, float32 inside, rounded half up."""
    model = load_model(weights, loops=loops)

    def restore(degraded: Pixels) -> Pixels:
        planes = torch.from_numpy(degraded).permute(2, 0, 1)[None].float() / 255
        with torch.no_grad():
            fused = model(planes)[0].permute(1, 2, 0)
        return to_pixels(fused.numpy())

    return restore


def evaluate(
    protocol: Protocol, data: Path, restore: Callable[[Pixels], Pixels], *, limit: int | None = None
) -> Score:
    """Scores a function that restores one [H, W, 3] uint8 image; it need not be a network."""
    digest = hashlib.sha256()
    rows = []
    for degraded, clean in degraded_pairs(protocol, data, limit=limit):
        digest.update(degraded.tobytes() + clean.tobytes())
        restored = restore(degraded)
        rows.append(
            (psnr_db(degraded, clean), ssim(degraded, clean), psnr_db(restored, clean), ssim(restored, clean))
        )
    input_psnr, input_ssim, psnr, similarity = np.mean(rows, axis=0).tolist()
    return Score(
        protocol=protocol,
        images=len(rows),
        manifest_sha256=digest.hexdigest(),
        input_psnr_db=input_psnr,
        input_ssim=input_ssim,
        psnr_db=psnr,
        ssim=similarity,
    )
