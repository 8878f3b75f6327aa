"""The losses of the paper, eq. 3-8: L = L_local + L_recur + L_global.

Every part is (1 - SSIM) + a Frobenius term: the norm's square in L_local and L_recur, the plain norm in
L_global. The paper prints sums. `Reduction.SUM` is those; `Reduction.MEAN`, ours, takes means, so that
neither the size of a crop, nor the batch, nor the number of stages changes the balance of the terms.
L_global may hold one term more, ours: the logarithm of the mean square, which is PSNR up to a factor (the
PSNR loss of Chen et al., HINet, CVPRW 2021). It weighs an image the more, the less there is left to remove.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

import torch
from torch import Tensor

from cmudrn.errors import UsageError

__all__ = ["LossTerms", "LossWeights", "Reduction", "Supervised", "restoration_loss", "ssim"]

WINDOW_PX, SIGMA_PX = 11, 1.5  # Wang et al. 2004
C1, C2 = 0.01**2, 0.03**2  # for values in [0, 1]
# Under the root: its slope is infinite at 0, where an image without weather would sit.
ROOT_FLOOR = 1e-8
LOG_FLOOR = 1e-5  # 50 dB: better than that is not worth another image's decibel


class Reduction(str, Enum):
    """How values, images and stages become one number."""

    MEAN = "mean"  # the mean of squares (L_local, L_recur), its root (L_global); means over images and stages
    SUM = "sum"  # the paper's: the sum of squares, the Frobenius norm; sums over images and stages


@dataclass(frozen=True, kw_only=True)
class LossWeights:
    """Factors of the three parts and of the terms inside them; 0 switches one off. Checks itself."""

    local: float = 1.0  # eq. 3-4: the branch's last image
    recur: float = 1.0  # eq. 5-6: every stage of the branch
    global_: float = 1.0  # eq. 7-8: the fused image
    ssim: float = 0.2  # in all parts; small, as PSNR is what the protocols ask for
    frobenius: float = 1.0  # in all parts, beside the two below
    squared: float = 10.0  # of the squared norm (L_local, L_recur): brings it to the size of the plain one
    root: float = 1.0  # of the plain norm (L_global)
    log: float = 0.0  # of the mean square's logarithm, to base 10 (L_global), beside the norm
    stability: float = 0.0  # of the gain of noise (stability.py), beside the parts, in some steps
    reduction: Reduction = Reduction.MEAN

    def __post_init__(self) -> None:
        factors = {name: value for name, value in vars(self).items() if name != "reduction"}
        for name, value in factors.items():
            if not 0 <= value < float("inf"):
                raise UsageError(f"loss weight {name.strip('_')} = {value}", fix="give 0 or more")
        if not (self.local or self.recur or self.global_) or not (self.ssim or self.frobenius):
            raise UsageError(
                "a loss without any part or any term",
                fix="keep one of local, recur, global and one of ssim, frobenius",
            )

    @classmethod
    def paper(cls) -> LossWeights:
        """As printed: every factor 1, sums."""
        return cls(ssim=1.0, squared=1.0, root=1.0, reduction=Reduction.SUM)


class Supervised(NamedTuple):
    """What a pass made that has a truth, for N scenes, float32, not clamped."""

    stages: Tensor  # [S, N, 3, H, W]: every stage of a branch under its own weather, in order; S = T a branch
    branches: int  # of which `stages` holds T each, one branch after the other: 2, or 1 for a lone DRN
    finals: Tensor  # [F, N, 3, H, W]: final images: of the rainy pass and of the snowy pass


class LossTerms(NamedTuple):
    """Scalars: `total`, the weighted sum, and the three parts before their weights."""

    total: Tensor
    local: Tensor
    recur: Tensor
    global_: Tensor


def window_matrix(size: int, like: Tensor) -> Tensor:
    """[size - 10, size]: row i is the Gaussian window over i ... i + 10."""
    offsets = torch.arange(WINDOW_PX, dtype=like.dtype, device=like.device) - WINDOW_PX // 2
    gauss = torch.exp(-(offsets**2) / (2 * SIGMA_PX**2))
    padded = torch.cat([gauss / gauss.sum(), gauss.new_zeros(size - WINDOW_PX + 1)])
    # Windows, each followed by size - 10 zeros: cut into rows, each begins one further right.
    return padded.repeat(size - WINDOW_PX + 1)[: (size - WINDOW_PX + 1) * size].reshape(-1, size)


def blur(x: Tensor) -> Tensor:
    """Gaussian window, no padding. x: [..., H, W]; returns [..., H - 10, W - 10]."""
    # As two products with band matrices: with convolutions, SSIM took more than half of a training step.
    return window_matrix(x.shape[-2], x) @ x @ window_matrix(x.shape[-1], x).T


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity, Wang et al. 2004: Gaussian window of 11 pixels, sigma 1.5, no padding.

    a: [..., 3, H, W], b: [N, 3, H, W] in [0, 1], H and W >= 11; a's leading axes end in N or broadcast to it.
    Returns a's leading axes, averaged over channels and pixels.
    """
    mean_a, aa, ab = blur(torch.stack([a, a * a, a * b]))
    mean_b, bb = blur(torch.stack([b, b * b]))  # once, however many stages are compared with it
    var_a, var_b, cov = aa - mean_a**2, bb - mean_b**2, ab - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + C1) / (mean_a**2 + mean_b**2 + C1)
    structure = (2 * cov + C2) / (var_a + var_b + C2)
    similar: Tensor = (luminance * structure).mean(dim=(-3, -2, -1))
    return similar


def restoration_loss(made: Supervised, clean: Tensor, weights: LossWeights) -> LossTerms:
    """The loss of one batch of scenes.

    made: the images of the rainy and of the snowy pass. clean: [N, 3, H, W] in [0, 1], float32.
    Each branch is judged under its own weather alone (local, recur), the final image under both (global).
    """
    images = torch.cat([made.stages, made.finals])  # [S + F, N, 3, H, W]
    squares = ((images - clean) ** 2).flatten(2)
    apart = weights.ssim * (1 - ssim(images, clean)) if weights.ssim else torch.zeros_like(squares[..., 0])
    of_stages, of_finals = len(made.stages), len(made.finals)
    means = squares.mean(dim=2)
    squares = squares.sum(dim=2) if weights.reduction is Reduction.SUM else means
    squared = apart[:of_stages] + weights.frobenius * weights.squared * squares[:of_stages]
    roots = (squares[of_stages:] + ROOT_FLOOR).sqrt()
    root = apart[of_stages:] + weights.frobenius * weights.root * roots
    if weights.log:
        root = root + weights.log * (means[of_stages:] + LOG_FLOOR).log10()
    by_branch = squared.reshape(made.branches, -1, squared.shape[-1])  # [branches, T, N]
    if weights.reduction is Reduction.SUM:
        local, recur, global_ = by_branch[:, -1].sum(), by_branch.sum(), root.sum()
    else:  # a sum over the branches or passes, of means over scenes and stages
        local = made.branches * by_branch[:, -1].mean()
        recur = made.branches * by_branch.mean()
        global_ = of_finals * root.mean()
    total = weights.local * local + weights.recur * recur + weights.global_ * global_
    return LossTerms(total, local, recur, global_)
