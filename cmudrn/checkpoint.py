"""Weights on disk: safetensors with metadata beside the tensors, never a pickle."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from cmudrn.errors import CheckpointError, EnvironmentMissing, UsageError
from cmudrn.files import replacing
from cmudrn.stitches import check_stitches

if TYPE_CHECKING:
    from cmudrn.model import CMUDRN, DRN

__all__ = [
    "TENSOR_SHAPES",
    "Checkpoint",
    "NetworkKind",
    "check_tensors",
    "load_drn",
    "load_model",
    "read_checkpoint",
    "resolve_weights",
    "save_checkpoint",
]

SHIPPED = Path(__file__).parent / "weights"
FORMAT = "cmudrn-1"


def _conv_shapes(name: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs, 3, 3), f"{name}.bias": (outputs,)}


class NetworkKind(str, Enum):
    """Which network the tensors belong to."""

    CMUDRN = "cmudrn"
    DRN = "drn"  # one branch alone, as a baseline for research; nothing else takes it


_DRN_SHAPES = {
    tensor: shape
    for layer, inputs, outputs in (
        ("conv_in", 6, 16),
        ("block1.conv1", 16, 16),
        ("block1.conv2", 16, 16),
        ("block2.conv1", 16, 16),
        ("block2.conv2", 16, 16),
        ("conv_out", 16, 3),
    )
    for tensor, shape in _conv_shapes(layer, inputs, outputs).items()
}
# What the networks are made of, for those who read weights without torch; a test compares it with the models.
TENSOR_SHAPES: dict[NetworkKind, dict[str, tuple[int, ...]]] = {
    NetworkKind.DRN: _DRN_SHAPES,
    NetworkKind.CMUDRN: {
        **{f"{branch}.{name}": shape for branch in ("rain", "snow") for name, shape in _DRN_SHAPES.items()},
        **_conv_shapes("fusion.conv1", 6, 16),
        **_conv_shapes("fusion.conv2", 16, 16),
        **_conv_shapes("fusion.conv3", 16, 3),
    },
}


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Tensors by parameter name, float32, and what was written beside them."""

    tensors: dict[str, NDArray[np.float32]]
    inter_loops: int  # trained with
    intra_loops: int
    stitches: dict[str, float]  # point: alpha
    network: NetworkKind = NetworkKind.CMUDRN
    training: dict[str, Any] = field(default_factory=dict)  # data and its hash, steps, figures, code version
    sha256: str = ""  # of the file; empty before it was saved

    @property
    def depths(self) -> tuple[int, ...]:
        """The loop counts that the weights were trained for; where nothing says, the usual one alone."""
        recipe = self.training.get("recipe")
        told = recipe.get("depths") if isinstance(recipe, dict) else None
        if not isinstance(told, list) or not all(isinstance(depth, int) for depth in told) or not told:
            return (self.inter_loops,)
        return tuple(sorted(told))


def resolve_weights(name_or_path: str | Path) -> Path:
    """A shipped name ("default") or a path. Raises CheckpointError where there is neither."""
    shipped = SHIPPED / f"{name_or_path}.safetensors"
    if shipped.is_file():
        return shipped
    path = Path(name_or_path)
    if not path.is_file():
        names = ", ".join(sorted(file.stem for file in SHIPPED.glob("*.safetensors"))) or "none"
        raise CheckpointError(
            f"{path}: no such weights", fix=f"give a .safetensors file or a shipped name: {names}"
        )
    return path


def read_checkpoint(name_or_path: str | Path) -> Checkpoint:
    """Reads and checks weights; needs no torch. Raises CheckpointError for what is not ours."""
    path = resolve_weights(name_or_path)
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as exc:
        raise CheckpointError(
            f"{path}: not readable as safetensors: {exc}", fix="fetch or train it again"
        ) from exc
    if metadata.get("format") != FORMAT:
        raise CheckpointError(f"{path}: not a checkpoint of cmudrn", fix="give one that `cmudrn train` wrote")
    try:
        model, training = json.loads(metadata["model"]), json.loads(metadata["training"])
        return Checkpoint(
            tensors=tensors,
            inter_loops=int(model["inter_loops"]),
            intra_loops=int(model["intra_loops"]),
            network=NetworkKind(model.get("network", "cmudrn")),  # the first weights didn't say
            stitches={str(point): float(alpha) for point, alpha in model["stitches"].items()},
            training=dict(training),
            sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as exc:
        raise CheckpointError(
            f"{path}: its metadata is damaged: {exc!r}", fix="fetch or train it again"
        ) from exc


def save_checkpoint(checkpoint: Checkpoint, path: Path) -> None:
    """Writes the file whole or not at all: a temporary name beside it, then a rename."""
    model = {
        "network": checkpoint.network.value,
        "inter_loops": checkpoint.inter_loops,
        "intra_loops": checkpoint.intra_loops,
        "stitches": checkpoint.stitches,
    }
    metadata = {"format": FORMAT, "model": json.dumps(model), "training": json.dumps(checkpoint.training)}
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        file.write(save(checkpoint.tensors, metadata))


def load_model(name_or_path: str | Path = "default", *, loops: int | None = None) -> CMUDRN:
    """The model with its weights, in evaluation mode, float32, on the CPU.

    name_or_path: "default" for the shipped weights, or a .safetensors file.
    loops: T = inter = intra; None keeps what the weights were trained with.
    Raises CheckpointError, naming tensor and shape, for weights that don't fit; EnvironmentMissing
    without torch.
    """
    try:
        import torch

        from cmudrn.model import CMUDRN, ModelConfig
    except ImportError as exc:
        raise EnvironmentMissing("load_model needs PyTorch", fix="pip install 'cmudrn[train]'") from exc
    checkpoint = read_checkpoint(name_or_path)
    check_tensors(checkpoint, str(name_or_path))
    config = ModelConfig(
        inter_loops=loops or checkpoint.inter_loops,
        intra_loops=loops or checkpoint.intra_loops,
        stitches=checkpoint.stitches,
    )
    model = CMUDRN(config)
    model.load_state_dict({name: torch.from_numpy(array) for name, array in checkpoint.tensors.items()})
    return model.eval()


def load_drn(path: str | Path, *, loops: int | None = None) -> DRN:
    """A baseline: one DRN with its weights, in evaluation mode, float32, on the CPU.

    Raises CheckpointError for weights of another network or that don't fit; EnvironmentMissing without torch.
    """
    try:
        import torch

        from cmudrn.model import DRN
    except ImportError as exc:
        raise EnvironmentMissing("load_drn needs PyTorch", fix="pip install 'cmudrn[train]'") from exc
    checkpoint = read_checkpoint(path)
    check_tensors(checkpoint, str(path), network=NetworkKind.DRN)
    model = DRN(loops or checkpoint.inter_loops, loops or checkpoint.intra_loops)
    model.load_state_dict({name: torch.from_numpy(array) for name, array in checkpoint.tensors.items()})
    return model.eval()


def check_tensors(checkpoint: Checkpoint, name: str, *, network: NetworkKind = NetworkKind.CMUDRN) -> None:
    """Raises CheckpointError for another network, else for the first stitch or tensor that does not fit."""
    if checkpoint.network is not network:
        raise CheckpointError(
            f"{name}: weights of a {checkpoint.network.value}, not of a {network.value}",
            fix="give weights of CMUDRN; a lone DRN is a baseline, for `cmudrn evaluate` only",
        )
    try:
        check_stitches(checkpoint.stitches)
    except UsageError as exc:
        raise CheckpointError(f"{name}: {exc.what}", fix=exc.fix) from exc
    fix = "give weights of CMUDRN with 16 channels"
    shapes = TENSOR_SHAPES[network]
    for tensor, shape in shapes.items():
        if tensor not in checkpoint.tensors:
            raise CheckpointError(f"{name}: tensor {tensor} {shape} is missing", fix=fix)
        found = checkpoint.tensors[tensor]
        if found.shape != shape:
            raise CheckpointError(f"{name}: tensor {tensor} has shape {found.shape}, not {shape}", fix=fix)
        if found.dtype != np.float32 or not np.isfinite(found).all():
            raise CheckpointError(f"{name}: tensor {tensor} is not finite float32", fix="train it again")
    superfluous = sorted(set(checkpoint.tensors) - set(shapes))
    if superfluous:
        raise CheckpointError(f"{name}: tensor {superfluous[0]} is not part of the model", fix=fix)
