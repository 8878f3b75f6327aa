"""What the loss needs of a network: each weather's pass, and which of its images have a truth."""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor, nn

from cmudrn.model import CMUDRN, DRN
from cmudrn.train.kernels import Kernels, accelerate
from cmudrn.train.losses import Supervised
from cmudrn.train.recipe import Network, TrainRecipe

__all__ = ["BaselinePass", "Passes", "UnifiedPasses", "build_passes", "start_as_identity"]


class UnifiedPasses(nn.Module):
    """CMUDRN's two passes of eq. 3-8, as one batch: the rainy images first, then the snowy ones."""

    def __init__(self, model: CMUDRN) -> None:
        super().__init__()
        self.model = model

    def forward(self, rainy: Tensor, snowy: Tensor) -> Supervised:
        """rainy, snowy: [N, 3, H, W] of the same scenes. Stages are those of each branch's own weather."""
        n = rainy.shape[0]
        # One batch of 2N, channels last: the fastest of what was measured on CPUs (docs/measurements.md).
        degraded = torch.cat([rainy, snowy]).contiguous(memory_format=torch.channels_last)
        restored = self.model.forward_all(degraded)
        rain = [stage[:n] for stage in restored.rain_stages]
        snow = [stage[n:] for stage in restored.snow_stages]
        finals = restored.fused.reshape(2, n, *rainy.shape[1:])
        # float32 again: SSIM's variances are differences of nearly equal numbers.
        return Supervised(torch.stack(rain + snow).float(), 2, finals.float())


class BaselinePass(nn.Module):
    """A lone DRN under its own weather: the baselines DRN@rain and DRN@snow."""

    def __init__(self, model: DRN, network: Network) -> None:
        super().__init__()
        self.model, self.network = model, network

    def forward(self, rainy: Tensor, snowy: Tensor) -> Supervised:
        """The other weather is left out. The last stage is the final image."""
        degraded = rainy if self.network is Network.DRN_RAIN else snowy
        stages = torch.stack(self.model(degraded.contiguous(memory_format=torch.channels_last))).float()
        return Supervised(stages, 1, stages[-1:])


Passes: TypeAlias = UnifiedPasses | BaselinePass


def build_passes(recipe: TrainRecipe, kernels: Kernels = Kernels.TORCH) -> Passes:
    """The network that the recipe asks for, with weights drawn from its seed. kernels: not AUTO."""
    torch.manual_seed(recipe.seed)
    passes: Passes
    if recipe.network is Network.CMUDRN:
        passes = UnifiedPasses(CMUDRN(recipe.model))
    else:
        loops = recipe.model.inter_loops, recipe.model.intra_loops
        passes = BaselinePass(DRN(*loops), recipe.network)
    if recipe.identity_start:
        start_as_identity(passes.model)
    if kernels is Kernels.WINOGRAD:
        accelerate(passes.model)
    return passes.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def start_as_identity(model: CMUDRN | DRN) -> None:
    """Makes an untrained model return its input, nearly: changes its weights in place.

    The fusion head has no skip connection: from plain initialisation it spends thousands of steps on learning
    the image itself. Its centre taps are set to carry both branches' images through and to average them; all
    else in it, and conv_out, is scaled by a tenth. Channel c carries the rain branch, c + 3 the snow branch.
    """
    branches = [model] if isinstance(model, DRN) else [model.rain, model.snow]
    fusion = [] if isinstance(model, DRN) else [model.fusion.conv1, model.fusion.conv2, model.fusion.conv3]
    with torch.no_grad():
        for conv in (*(branch.conv_out for branch in branches), *fusion):
            assert conv.bias is not None
            conv.weight *= 0.1
            conv.bias *= 0.0
        for c in range(6 if fusion else 0):
            fusion[0].weight[c, c, 1, 1] += 1
            fusion[1].weight[c, c, 1, 1] += 1
            fusion[2].weight[c % 3, c, 1, 1] += 0.5
