"""What the contestants' speed costs: their images beside PyTorch's, on the package's photographs.

Twice: large crops in floats, and what `cmudrn parity-check` takes by default, 256x256 in grey levels, with
its noise and extremes. Each has images that the other lacks, so a bar of PSNR holds where both keep it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cmudrn.checkpoint import load_model
from cmudrn.deploy.parity.candidates import DEFAULT_SIZE
from cmudrn.deploy.parity.images import PHOTOS, fit, shipped_images
from cmudrn.deploy.parity.tally import Comparison
from cmudrn.engines.spec import Precision
from cmudrn.errors import CmudrnError
from cmudrn.images import read_picture
from contest.bars import Bar
from contest.contestants import Contestant, Program, Work
from contest.workers import Worker

__all__ = ["Quality", "exact", "measure_quality", "photographs", "quality_bars"]

HEIGHT, WIDTH = 315, 560  # that of the smallest photograph
FLOAT_LIMIT, LEVEL_LIMIT = 1e-5, 1
BF16_BEHIND_DB = 1.5
OURS_IN_BF16, THEIRS_IN_BF16 = "native-avx512bf16", "openvino-bf16"


@dataclass(frozen=True, kw_only=True)
class Quality:
    """One contestant at one depth; of all photographs the worst."""

    contestant: str
    loops: int
    difference: float  # of images in [0, 1] from PyTorch's in float32
    difference_float64: float  # from PyTorch's in float64
    levels: int  # of images in uint8 from PyTorch's in float32, grey levels
    psnr_db: float  # of images in [0, 1], against float32; infinite for equal ones
    mean_psnr_db: float  # of those that differ, as in the next
    parity_psnr_db: float  # of parity-check's images in uint8, against float32
    parity_mean_psnr_db: float


def photographs() -> list[NDArray[np.uint8]]:
    """Those of the package, [HEIGHT, WIDTH, 3]."""
    return [
        fit(np.asarray(read_picture(path).pixels, np.uint8), HEIGHT, WIDTH)
        for path in sorted(PHOTOS.glob("*.jpg"))
    ]


def exact(loops: int, image: NDArray[np.float32], weights: str) -> NDArray[np.float64]:
    """PyTorch's in float64, [H, W, 3], clamped to [0, 1]. image: [H, W, 3] in [0, 1]."""
    import torch

    model = load_model(weights, loops=loops).double()
    with torch.inference_mode():
        restored = model(torch.from_numpy(image).double().permute(2, 0, 1)[None])
    return np.asarray(restored[0].clamp(0, 1).permute(1, 2, 0).numpy())


def measure_quality(
    contestants: Sequence[Contestant], depths: Sequence[int], threads: int, weights: str
) -> Iterator[Quality]:
    """Of each, at each depth; PyTorch's own difference from float64 is what float32 costs anyway.

    Contestants that fail are left out: the grid says why.
    """
    levels = photographs()
    floats = [np.divide(one, 255, dtype=np.float32) for one in levels]
    given = [*levels, *floats, *(image.pixels for image in shipped_images().at(*DEFAULT_SIZE))]
    reference = Contestant(name="torch", program=Program.TORCH)
    for loops in depths:
        work = Work(loops, HEIGHT, WIDTH, threads)
        truths = [exact(loops, image, weights) for image in floats]
        expected = restored_by(reference, work, given, weights)
        for contestant in contestants:
            try:
                found = restored_by(contestant, work, given, weights)
            except CmudrnError:
                continue
            yield judged(contestant, loops, found, expected, truths)


def restored_by(
    contestant: Contestant,
    work: Work,
    images: Sequence[NDArray[np.uint8] | NDArray[np.float32]],
    weights: str,
) -> list[NDArray[np.uint8] | NDArray[np.float32]]:
    with Worker(contestant, weights) as worker:
        return [worker.restore(image[None], work)[0] for image in images]


def judged(
    contestant: Contestant,
    loops: int,
    found: Sequence[NDArray[np.uint8] | NDArray[np.float32]],
    expected: Sequence[NDArray[np.uint8] | NDArray[np.float32]],
    truths: Sequence[NDArray[np.float64]],
) -> Quality:
    """found, expected: the photographs in uint8, the same in float32, then parity-check's images in uint8."""
    count = len(truths)
    levels, floats, parity = slice(count), slice(count, 2 * count), slice(2 * count, None)
    worst, mean = psnr_of(found[floats], expected[floats])
    parity_worst, parity_mean = psnr_of(found[parity], expected[parity])
    return Quality(
        contestant=contestant.name,
        loops=loops,
        difference=furthest(found[floats], expected[floats]),
        difference_float64=furthest(found[floats], truths),
        levels=int(furthest(found[levels], expected[levels])),
        psnr_db=worst,
        mean_psnr_db=mean,
        parity_psnr_db=parity_worst,
        parity_mean_psnr_db=parity_mean,
    )


def psnr_of(
    ours: Sequence[NDArray[np.uint8] | NDArray[np.float32]],
    theirs: Sequence[NDArray[np.uint8] | NDArray[np.float32]],
) -> tuple[float, float]:
    """The worst, and the mean of images that differ, as a certificate has them; infinite where none does."""
    found = [Comparison("", one, other).psnr_db for one, other in zip(ours, theirs, strict=True)]
    differing = [psnr for psnr in found if psnr < np.inf]
    return (min(differing), float(np.mean(differing))) if differing else (np.inf, np.inf)


def furthest(ours: Sequence[NDArray[np.generic]], theirs: Sequence[NDArray[np.generic]]) -> float:
    return max(
        float(np.abs(one.astype(np.float64) - other.astype(np.float64)).max())
        for one, other in zip(ours, theirs, strict=True)
    )


def quality_bars(qualities: Sequence[Quality], contestants: Sequence[Contestant]) -> list[Bar]:
    exact_ones = {
        one.name for one in contestants if one.program is Program.NATIVE and one.precision is Precision.FP32
    }
    ours = [one for one in qualities if one.contestant in exact_ones]
    difference = max((one.difference for one in ours), default=0.0)
    levels = max((one.levels for one in ours), default=0)
    return [
        Bar(
            what="ours in float32 against PyTorch, float images",
            bar=f"<= {FLOAT_LIMIT:.0e}",
            found=f"{difference:.1e}" if ours else "",
            kept=difference <= FLOAT_LIMIT if ours else None,
        ),
        Bar(
            what="ours in float32 against PyTorch, uint8",
            bar=f"<= {LEVEL_LIMIT} grey level",
            found=str(levels) if ours else "",
            kept=levels <= LEVEL_LIMIT if ours else None,
        ),
        bf16_bar(qualities),
    ]


def bf16_bar(qualities: Sequence[Quality]) -> Bar:
    """Of all depths that where ours is furthest behind; kept where the worst image of both sets keeps it."""
    by_name = {(one.contestant, one.loops): one for one in qualities}
    pairs = [
        (one, by_name[THEIRS_IN_BF16, loops])
        for (name, loops), one in by_name.items()
        if name == OURS_IN_BF16 and (THEIRS_IN_BF16, loops) in by_name
    ]
    what = f"{OURS_IN_BF16} against {THEIRS_IN_BF16}, PSNR"
    wanted = f"worst at most {BF16_BEHIND_DB:g} dB behind"
    if not pairs:
        return Bar(what=what, bar=wanted, found="", kept=None)
    crops = max(behind(mine.psnr_db, theirs.psnr_db) for mine, theirs in pairs)
    crops_mean = max(behind(mine.mean_psnr_db, theirs.mean_psnr_db) for mine, theirs in pairs)
    parity = max(behind(mine.parity_psnr_db, theirs.parity_psnr_db) for mine, theirs in pairs)
    parity_mean = max(behind(mine.parity_mean_psnr_db, theirs.parity_mean_psnr_db) for mine, theirs in pairs)
    return Bar(
        what=what,
        bar=wanted,
        found=f"{HEIGHT}x{WIDTH} crops: worst {in_words(crops)}, mean {in_words(crops_mean)}; "
        f"parity-check's images: worst {in_words(parity)}, mean {in_words(parity_mean)}",
        kept=max(crops, parity) <= BF16_BEHIND_DB,
    )


def behind(mine_db: float, theirs_db: float) -> float:
    """By how many dB; below zero: ahead. Both may be infinite."""
    return 0.0 if mine_db == theirs_db else theirs_db - mine_db


def in_words(behind_db: float) -> str:
    return f"{abs(behind_db):.1f} dB {'behind' if behind_db > 0 else 'ahead'}"
