"""Stability training: an image that hardly changes shall not be restored to another one.

Recursion can amplify: whether a flake that is removed only just is removed at all may then hang on a sensor's
noise, or on the rounding of half precision. In every third step a half of the scenes gives way to copies of
the other half with noise in their degraded images, and the loss holds the noise's gain: the mean square by
which the final images move, over that of the noise. It estimates the squared Frobenius norm of the network's
Jacobian over the number of values; 1 is a network that hands noise on as it is.

After stability training (Zheng et al., "Improving the Robustness of Deep Neural Networks via Stability
Training", CVPR 2016), whose distance between two outputs is here in units of the noise.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

__all__ = ["NoisyPairs", "is_due", "noise_gain", "pair_with_noise"]

EVERY_STEPS = 3
SIGMA = 2.0**-9  # half a grey level: well above half precision's rounding, well below what is seen


class NoisyPairs(NamedTuple):
    """A batch whose second half is the first with noise: [N, 3, S, S] float32 each, N even."""

    rainy: Tensor
    snowy: Tensor
    clean: Tensor


def is_due(factor: float, step: int) -> bool:
    """Whether a step has noisy pairs. factor: of the term in the loss."""
    return factor > 0 and step % EVERY_STEPS == 0


def pair_with_noise(
    rainy: Tensor, snowy: Tensor, clean: Tensor, *, seed: int, step: int, rank: int, devices: int
) -> NoisyPairs:
    """The first half of the scenes, one at least, and their noisy copies, which have the same truth.

    The noise is a function of the run's seed, the step and the scene's place in it (`SceneSteps`), whichever
    device has the scene.
    """
    kept = max(1, len(clean) // 2)

    def with_noise(images: Tensor, weather: int) -> Tensor:
        rngs = (np.random.default_rng([seed, step, rank + i * devices, weather]) for i in range(kept))
        noise = np.stack([rng.standard_normal(images.shape[1:], dtype=np.float32) for rng in rngs])
        return torch.cat([images[:kept], images[:kept] + SIGMA * torch.from_numpy(noise).to(images.device)])

    twice = torch.cat([clean[:kept], clean[:kept]])
    return NoisyPairs(with_noise(rainy, 0), with_noise(snowy, 1), twice)


def noise_gain(finals: Tensor) -> Tensor:
    """A scalar >= 0. finals: [F, N, 3, H, W] of noisy pairs, N even."""
    pairs = finals.shape[1] // 2
    return ((finals[:, pairs:] - finals[:, :pairs]) ** 2).mean() / SIGMA**2
