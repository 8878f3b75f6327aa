"""Weights on disk: safetensors with metadata beside the tensors, never a pickle."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from cmudrn.errors import CheckpointError, EnvironmentMissing

if TYPE_CHECKING:
    from cmudrn.model import CMUDRN

__all__ = [
    "TENSOR_SHAPES",
    "Checkpoint",
    "check_tensors",
    "load_model",
    "read_checkpoint",
    "resolve_weights",
    "save_checkpoint",
]

SHIPPED = Path(__file__).parent / "weights"
FORMAT = "cmudrn-1"


def _conv_shapes(name: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs, 3, 3), f"{name}.bias": (outputs,)}


# What a CMUDRN is made of, for those who read weights without torch; a test compares it with the model.
TENSOR_SHAPES: dict[str, tuple[int, ...]] = {
    tensor: shape
    for layer, inputs, outputs in (
        *(
            (f"{branch}.{layer}", inputs, outputs)
            for branch in ("rain", "snow")
            for layer, inputs, outputs in (
                ("conv_in", 6, 16),
                ("block1.conv1", 16, 16),
                ("block1.conv2", 16, 16),
                ("block2.conv1", 16, 16),
                ("block2.conv2", 16, 16),
                ("conv_out", 16, 3),
            )
        ),
        ("fusion.conv1", 6, 16),
        ("fusion.conv2", 16, 16),
        ("fusion.conv3", 16, 3),
    )
    for tensor, shape in _conv_shapes(layer, inputs, outputs).items()
}


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Tensors by parameter name, float32, and what was written beside them."""

    tensors: dict[str, NDArray[np.float32]]
    inter_loops: int  # trained with
    intra_loops: int
    stitches: dict[str, float]  # point: alpha
    training: dict[str, Any] = field(default_factory=dict)  # data and its hash, steps, figures, code version
    sha256: str = ""  # of the file; empty before it was saved


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
        "inter_loops": checkpoint.inter_loops,
        "intra_loops": checkpoint.intra_loops,
        "stitches": checkpoint.stitches,
    }
    metadata = {"format": FORMAT, "model": json.dumps(model), "training": json.dumps(checkpoint.training)}
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(save(checkpoint.tensors, metadata))
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


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
    config = ModelConfig(
        inter_loops=loops or checkpoint.inter_loops,
        intra_loops=loops or checkpoint.intra_loops,
        stitches=checkpoint.stitches,
    )
    model = CMUDRN(config)
    check_tensors(checkpoint, str(name_or_path))
    model.load_state_dict({name: torch.from_numpy(array) for name, array in checkpoint.tensors.items()})
    return model.eval()


def check_tensors(checkpoint: Checkpoint, name: str) -> None:
    """Raises CheckpointError for the first tensor that is missing, superfluous, misshapen or not finite."""
    fix = "give weights of CMUDRN with 16 channels"
    for tensor, shape in TENSOR_SHAPES.items():
        if tensor not in checkpoint.tensors:
            raise CheckpointError(f"{name}: tensor {tensor} {shape} is missing", fix=fix)
        found = checkpoint.tensors[tensor]
        if found.shape != shape:
            raise CheckpointError(f"{name}: tensor {tensor} has shape {found.shape}, not {shape}", fix=fix)
        if found.dtype != np.float32 or not np.isfinite(found).all():
            raise CheckpointError(f"{name}: tensor {tensor} is not finite float32", fix="train it again")
    superfluous = sorted(set(checkpoint.tensors) - set(TENSOR_SHAPES))
    if superfluous:
        raise CheckpointError(f"{name}: tensor {superfluous[0]} is not part of the model", fix=fix)
