"""Networks and images that the native kernels are tried with; without PyTorch, as they are."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from random_weights import random_checkpoint

from cmudrn.checkpoint import Checkpoint, read_checkpoint

__all__ = ["ALL_POINTS", "LAYERS", "Configuration", "random_images", "weights"]

ALL_POINTS = (("stem", 0.7), ("block1", 0.9), ("block2", 0.25), ("body", 0.6))
# Each alone may be random, the others passing on what they get.
LAYERS = ("conv_in", "block1.conv1", "block1.conv2", "block2.conv1", "block2.conv2", "conv_out")


@dataclass(frozen=True)
class Configuration:
    """A network: its depth, its stitches as (point, alpha), and whose weights; see `weights`."""

    inter: int = 1
    intra: int = 1
    stitches: tuple[tuple[str, float], ...] = ()
    weights: str = "random"

    @property
    def checkpoint(self) -> Checkpoint:
        """Weights, loops and stitches in one."""
        return replace(
            weights(self.weights),
            inter_loops=self.inter,
            intra_loops=self.intra,
            stitches=dict(self.stitches),
        )


@lru_cache
def weights(name: str) -> Checkpoint:
    """Of a name: "random", "shipped", or one of LAYERS."""
    if name == "shipped":
        return read_checkpoint("default")
    checkpoint = random_checkpoint()
    if name == "random":
        # Around the middle of its range, where nothing is clamped away.
        checkpoint.tensors["fusion.conv3.bias"] += np.float32(0.5)
        return checkpoint
    return alone(checkpoint, name)


def alone(checkpoint: Checkpoint, layer: str) -> Checkpoint:
    """Weights with which `layer` is random in both branches, and each other one passes on what it gets.

    A block whose convolutions are zero is the identity; so that one of its two shows, the other one copies.
    """
    tensors = dict(checkpoint.tensors)
    for branch in ("rain", "snow"):
        for other in LAYERS:
            if other == layer:
                continue
            shape = tensors[f"{branch}.{other}.weight"].shape
            beside = other.rpartition(".")[0] and other.rpartition(".")[0] == layer.rpartition(".")[0]
            copies = beside or other in ("conv_in", "conv_out")
            tensors[f"{branch}.{other}.weight"] = copying(shape) if copies else np.zeros(shape, np.float32)
            tensors[f"{branch}.{other}.bias"] = np.zeros(shape[0], np.float32)
    return replace(checkpoint, tensors=tensors)


def copying(shape: tuple[int, ...]) -> NDArray[np.float32]:
    """A convolution's weights [out, in, 3, 3]: output channel o is input channel o modulo their number."""
    kernel = np.zeros(shape, np.float32)
    outputs = np.arange(shape[0])
    kernel[outputs, outputs % shape[1], 1, 1] = 1
    return kernel


def random_images(batch: int, height: int, width: int) -> NDArray[np.uint8]:
    """[batch, height, width, 3]: noise, each image another, and the same for the same shape."""
    rng = np.random.default_rng([batch, height, width])
    return rng.integers(0, 256, (batch, height, width, 3), dtype=np.uint8)
