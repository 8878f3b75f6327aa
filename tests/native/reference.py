"""What the native kernels are held to: the model in float64, and what float32 makes of it in PyTorch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from cmudrn.engines.spec import Output
from cmudrn.model import CMUDRN, ModelConfig
from native.networks import Configuration, random_images

__all__ = ["restored"]

Images = NDArray[np.float64]


@lru_cache(maxsize=4096)
def restored(
    configuration: Configuration, shape: tuple[int, int, int], dtype: torch.dtype = torch.float64
) -> dict[Output, Images]:
    """`random_images` of a shape (batch, height, width) by PyTorch in a type: [B, H, W, 3] in [0, 1]."""
    images = torch.from_numpy(random_images(*shape)).to(torch.float64).permute(0, 3, 1, 2) / 255
    with torch.inference_mode(), one_thread():
        found = model(configuration, dtype).forward_all(images.to(dtype))
    chosen = {
        Output.FUSED: found.fused,
        Output.RAIN: found.rain_stages[-1],
        Output.SNOW: found.snow_stages[-1],
    }
    return {
        output: image.permute(0, 2, 3, 1).double().clamp(0, 1).numpy() for output, image in chosen.items()
    }


@contextmanager
def one_thread() -> Iterator[None]:
    """For images so small PyTorch's threads wait for each other more than they work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@lru_cache
def model(configuration: Configuration, dtype: torch.dtype) -> CMUDRN:
    checkpoint = configuration.checkpoint
    made = CMUDRN(
        ModelConfig(
            inter_loops=checkpoint.inter_loops,
            intra_loops=checkpoint.intra_loops,
            stitches=checkpoint.stitches,
        )
    )
    made.load_state_dict({name: torch.from_numpy(tensor) for name, tensor in checkpoint.tensors.items()})
    return made.to(dtype)
