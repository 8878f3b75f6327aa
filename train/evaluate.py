"""Scores of restored images over a protocol, at several loop counts side by side.

What restores is any function of one image; `load_restorers` makes such functions of weights.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from enum import Enum
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from cmudrn.checkpoint import NetworkKind, load_drn, load_model, read_checkpoint
from cmudrn.errors import UsageError
from cmudrn.metrics import Scores, Truth, mean_psnr_db
from cmudrn.model import DRN
from cmudrn.train.kernels import Kernels, accelerate, choose_kernels
from cmudrn.train.photos import to_pixels
from cmudrn.train.protocols import EvaluationItem, Pixels, Protocol

__all__ = [
    "Candidate",
    "Evaluation",
    "ImageScores",
    "LoopSummary",
    "Output",
    "Restoration",
    "Restore",
    "Restorers",
    "evaluate",
    "load_restorers",
    "mean_scores",
    "restorer",
]

Restore: TypeAlias = Callable[[Pixels], Pixels]  # [H, W, 3] uint8 to the same shape


class Output(str, Enum):
    """Which image of the network counts."""

    FUSED = "fused"
    RAIN = "rain"  # the rain branch's last stage
    SNOW = "snow"


@dataclass(frozen=True)
class Candidate:
    """What is evaluated, for those who read the figures later."""

    name: str
    sha256: str = ""  # of the weights' file; empty for a function without weights
    output: str = Output.FUSED.value
    kernels: str = ""  # whose convolutions; empty for a function without weights


@dataclass(frozen=True)
class ImageScores:
    """One image at one loop count."""

    name: str
    loops: int
    input: Scores  # of the degraded image as it is
    restored: Scores

    @property
    def gain_db(self) -> float:
        """PSNR in RGB won; minus infinity where an input that was the truth was changed."""
        before, after = self.input.psnr_rgb_db, self.restored.psnr_rgb_db
        return 0.0 if before == after else after - before


@dataclass(frozen=True)
class Restoration:
    """One image at one loop count with its pixels, as it is told while an evaluation goes."""

    scores: ImageScores
    item: EvaluationItem
    restored: Pixels


@dataclass(frozen=True)
class LoopSummary:
    """Means over a protocol's images at one loop count."""

    loops: int
    restored: Scores
    gain: Scores | None  # over the input's means; None where inputs are the truth and nothing can be won


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """All scores of one candidate on one protocol."""

    protocol: str  # its id
    about: str
    of_images: int  # in the whole protocol
    candidate: Candidate
    manifest_sha256: str  # over every degraded and clean image shown, in order
    results: tuple[ImageScores, ...]  # image by image, and each by loop count

    @property
    def loops(self) -> list[int]:
        return sorted({result.loops for result in self.results})

    @property
    def images(self) -> int:
        """Shown."""
        return len(self.results) // len(self.loops)

    @property
    def inputs(self) -> Scores:
        """Means of the degraded images as they are."""
        return mean_scores([result.input for result in self.at(self.loops[0])])

    @property
    def inputs_are_the_truth(self) -> bool:
        """Whether nothing can be won, as nothing was degraded."""
        return all(result.input.psnr_rgb_db == float("inf") for result in self.results)

    def at(self, loops: int) -> list[ImageScores]:
        """The results at one loop count, in the protocol's order."""
        return [result for result in self.results if result.loops == loops]

    def summary(self) -> list[LoopSummary]:
        """Means at each loop count, ascending."""
        rows = []
        for loops in self.loops:
            restored = mean_scores([result.restored for result in self.at(loops)])
            gain = None if self.inputs_are_the_truth else difference(restored, self.inputs)
            rows.append(LoopSummary(loops, restored, gain))
        return rows


def mean_scores(scores: Sequence[Scores]) -> Scores:
    """Metric by metric; PSNR is averaged in decibels, image by image, each counted with at most 100 dB."""
    columns = {field.name: [getattr(score, field.name) for score in scores] for field in fields(Scores)}
    return Scores(
        **{
            name: mean_psnr_db(column) if name.endswith("_db") else float(np.mean(column))
            for name, column in columns.items()
        }
    )


def difference(a: Scores, b: Scores) -> Scores:
    return Scores(*(x - y for x, y in zip(astuple(a), astuple(b), strict=True)))


def ignore(_: Restoration) -> None:
    """Tells nobody."""


def evaluate(
    protocol: Protocol,
    items: Iterable[EvaluationItem],
    restore_by_loops: Mapping[int, Restore],
    *,
    candidate: Candidate,
    tell: Callable[[Restoration], None] = ignore,
) -> Evaluation:
    """Scores functions that restore one image; they need not be networks.

    items: of the protocol, all or the first ones; each is taken once and restored at every loop count.
    tell: gets every restoration with its pixels, which are not kept otherwise.
    Raises UsageError without an image or a function; ImageError for what cannot be compared.
    """
    if not restore_by_loops:
        raise UsageError("nothing to evaluate", fix="give at least one loop count")
    digest = hashlib.sha256()
    results = []
    for item in items:
        digest.update(item.degraded.tobytes() + item.clean.tobytes())
        truth = Truth(item.clean)
        before = truth.score(item.degraded)
        for loops, restore in sorted(restore_by_loops.items()):
            restored = restore(item.degraded)
            scores = ImageScores(item.name, loops, before, truth.score(restored))
            results.append(scores)
            tell(Restoration(scores, item, restored))
    if not results:
        raise UsageError(f"{protocol.id}: no images", fix="give a dataset with images, and a limit above 0")
    return Evaluation(
        protocol=protocol.id,
        about=protocol.about,
        of_images=protocol.count,
        candidate=candidate,
        manifest_sha256=digest.hexdigest(),
        results=tuple(results),
    )


@dataclass(frozen=True)
class Restorers:
    """Weights as functions of one image, by loop count."""

    candidate: Candidate
    trained_loops: int
    by_loops: Mapping[int, Restore]

    @property
    def usual_loops(self) -> int:
        """The loop count that stands for all: the one trained with, or else the highest."""
        return self.trained_loops if self.trained_loops in self.by_loops else max(self.by_loops)


def load_restorers(
    weights: str | Path,
    loops: Sequence[int] | None = None,
    output: Output = Output.FUSED,
    kernels: Kernels = Kernels.AUTO,
) -> Restorers:
    """Weights at several loop counts; None: at the one they were trained with. Raises as `restorer` does."""
    checkpoint = read_checkpoint(weights)
    chosen = choose_kernels(kernels, device="cpu", bfloat16=False)
    return Restorers(
        candidate=Candidate(Path(weights).name, checkpoint.sha256, output.value, chosen.value),
        trained_loops=checkpoint.inter_loops,
        by_loops={
            depth: restorer(weights, loops=depth, output=output, kernels=chosen)
            for depth in loops or [checkpoint.inter_loops]
        },
    )


def restorer(
    weights: str | Path = "default",
    *,
    loops: int | None = None,
    output: Output = Output.FUSED,
    kernels: Kernels = Kernels.AUTO,
) -> Restore:
    """The PyTorch model, or a baseline DRN: float32 inside, the whole image at once, rounded half up.

    Raises CheckpointError for weights that cannot be used, UsageError for an output that they don't have.
    """
    forward = _forward_of(weights, loops, output, choose_kernels(kernels, device="cpu", bfloat16=False))

    def restore(degraded: Pixels) -> Pixels:
        planes = torch.from_numpy(degraded).permute(2, 0, 1)[None].float() / 255
        with torch.inference_mode():
            restored = forward(planes)[0].permute(1, 2, 0)
        return to_pixels(restored.numpy())

    return restore


def _forward_of(
    weights: str | Path, loops: int | None, output: Output, kernels: Kernels
) -> Callable[[Tensor], Tensor]:
    """[1, 3, H, W] in [0, 1] to the same shape, not clamped."""
    alone = read_checkpoint(weights).network is NetworkKind.DRN
    if alone and output is not Output.FUSED:
        raise UsageError(f"{weights}: a lone DRN has no {output.value} branch", fix="leave the output away")
    model = load_drn(weights, loops=loops) if alone else load_model(weights, loops=loops)
    if kernels is Kernels.WINOGRAD:
        accelerate(model)
    if isinstance(model, DRN):
        drn = model
        return lambda image: drn(image)[-1]
    unified = model
    if output is Output.FUSED:
        return unified
    if output is Output.RAIN:
        return lambda image: unified.forward_all(image).rain_stages[-1]
    return lambda image: unified.forward_all(image).snow_stages[-1]
