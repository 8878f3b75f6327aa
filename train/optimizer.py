"""Which method turns gradients into steps: the paper's Adam, or SOAP, ours."""

from __future__ import annotations

from enum import Enum

import torch
from torch import nn

from cmudrn.errors import EnvironmentMissing

__all__ = ["USUAL_RATES", "OptimizerName", "build_optimizer"]


class OptimizerName(str, Enum):
    """How weights follow their gradients."""

    # Vyas et al. 2024, arXiv 2409.11321: Adam in the eigenbasis of Shampoo's preconditioner. Through the
    # recursion some directions of weights count many times as much as others, and Adam sees axes alone.
    SOAP = "soap"
    ADAM = "adam"  # the paper's


# Highest rates; docs/measurements.md has both methods at them.
USUAL_RATES = {OptimizerName.SOAP: 5e-3, OptimizerName.ADAM: 1e-3}
# Steps between two looks at the eigenbasis. Our matrices are 16x16: the step hardly takes longer for it.
REFRESH_STEPS = 2


def build_optimizer(name: OptimizerName, model: nn.Module, learning_rate: float) -> torch.optim.Optimizer:
    """Raises EnvironmentMissing for SOAP without the library that has it."""
    if name is OptimizerName.ADAM:
        return torch.optim.Adam(model.parameters(), lr=learning_rate)
    try:
        from pytorch_optimizer import SOAP
    except ImportError as exc:
        raise EnvironmentMissing(
            "SOAP needs the package pytorch-optimizer",
            fix="pip install 'cmudrn[train]', or train with --optimizer adam",
        ) from exc
    soap: torch.optim.Optimizer = SOAP(
        model.parameters(),
        lr=learning_rate,
        weight_decay=0.0,
        precondition_frequency=REFRESH_STEPS,
        precondition_1d=True,
    )
    return soap
