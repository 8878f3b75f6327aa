"""The losses of the paper, eq. 3-8: L = L_local + L_recur + L_global.

Every part is (1 - SSIM) + a Frobenius term. The paper squares the Frobenius norm in L_local and L_recur and
not in L_global, and leaves the reductions open. Ours: the squared norm becomes the mean of squares, the plain
one its root, image by image, so that no term grows with the size of the crop.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import conv2d

from cmudrn.model import Restored

__all__ = ["LossTerms", "LossWeights", "cmudrn_loss", "ssim"]

WINDOW_PX, SIGMA_PX = 11, 1.5  # Wang et al. 2004
C1, C2 = 0.01**2, 0.03**2  # for values in [0, 1]


@dataclass(frozen=True, kw_only=True)
class LossWeights:
    """Factors of the parts and of the terms inside them; 0 switches one off."""

    local: float = 1.0  # the branch's last image
    recur: float = 1.0  # every stage of the branch, averaged
    global_: float = 1.0  # the fused image
    ssim: float = 0.2  # against the Frobenius terms: small, as PSNR is what the protocols ask for
    squared: float = 10.0  # mean of squares (L_local, L_recur)
    root: float = 1.0  # root of the mean of squares (L_global)


class LossTerms(NamedTuple):
    """Scalars, before their part's weight; `total` with it."""

    total: Tensor
    local: Tensor
    recur: Tensor
    global_: Tensor


def window(channels: int, like: Tensor) -> Tensor:
    offsets = torch.arange(WINDOW_PX, dtype=like.dtype, device=like.device) - WINDOW_PX // 2
    gauss = torch.exp(-(offsets**2) / (2 * SIGMA_PX**2))
    return (gauss / gauss.sum()).expand(channels, 1, 1, -1)


def blur(x: Tensor) -> Tensor:
    kernel = window(x.shape[1], x)
    return conv2d(conv2d(x, kernel, groups=x.shape[1]), kernel.transpose(2, 3), groups=x.shape[1])


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity, Wang et al. 2004: Gaussian window of 11 pixels, sigma 1.5, no padding.

    a, b: [B, 3, H, W] in [0, 1], H and W >= 11. Returns [B], averaged over channels and pixels.
    """
    mean_a, mean_b, aa, bb, ab = blur(torch.cat([a, b, a * a, b * b, a * b], dim=1)).chunk(5, dim=1)
    var_a, var_b, cov = aa - mean_a**2, bb - mean_b**2, ab - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + C1) / (mean_a**2 + mean_b**2 + C1)
    structure = (2 * cov + C2) / (var_a + var_b + C2)
    return (luminance * structure).mean(dim=(1, 2, 3))


def squared_term(restored: Tensor, clean: Tensor, weights: LossWeights) -> Tensor:
    """(1 - SSIM) + mean of squares, eq. 3-6; scalar."""
    squares = ((restored - clean) ** 2).mean()
    return weights.ssim * (1 - ssim(restored, clean)).mean() + weights.squared * squares


def root_term(restored: Tensor, clean: Tensor, weights: LossWeights) -> Tensor:
    """(1 - SSIM) + root of the mean of squares, image by image, eq. 7-8; scalar."""
    # 1e-8: the root's slope is infinite at 0, where a clean input would sit.
    roots = (((restored - clean) ** 2).mean(dim=(1, 2, 3)) + 1e-8).sqrt().mean()
    return weights.ssim * (1 - ssim(restored, clean)).mean() + weights.root * roots


def cmudrn_loss(restored: Restored, clean: Tensor, weights: LossWeights) -> LossTerms:
    """The loss of one batch whose first half was rainy and second half snowy, of the same scenes.

    restored: of the 2N degraded images, float32. clean: [N, 3, H, W]. The rainy half supervises the rain
    branch (local, recur), the snowy half the snow branch, both the fused image (global).
    """
    n = clean.shape[0]
    rain = [stage[:n] for stage in restored.rain_stages]
    snow = [stage[n:] for stage in restored.snow_stages]
    local = squared_term(rain[-1], clean, weights) + squared_term(snow[-1], clean, weights)
    everything, truth = torch.cat(rain + snow), clean.repeat(len(rain) + len(snow), 1, 1, 1)
    recur = 2 * squared_term(everything, truth, weights)
    global_ = 2 * root_term(restored.fused, clean.repeat(2, 1, 1, 1), weights)
    total = weights.local * local + weights.recur * recur + weights.global_ * global_
    return LossTerms(total, local, recur, global_)
