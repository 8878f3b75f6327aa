"""What a run keeps in its folder for resuming, and whether another run may go on from it."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from cmudrn.errors import CheckpointError, TrainingError, UsageError

__all__ = ["STATE_NAME", "check_same_run", "first_difference", "read_state", "saving"]

STATE_NAME = "state.pt"  # in a run's folder

# What may differ when a run is resumed: where it ends.
ENDS = ("steps", "float32_steps")


def read_state(file: Path, device: torch.device) -> dict[str, Any] | None:
    """`state.pt` of a run; None where there is none. Raises CheckpointError for another file."""
    if not file.is_file():
        return None
    try:
        state: dict[str, Any] = torch.load(file, weights_only=True, map_location=device)
        if missing := {"recipe", "provenance", "model", "optimizer", "average", "step"} - state.keys():
            raise KeyError(f"no {missing.pop()} in it")
    except (OSError, RuntimeError, pickle.UnpicklingError, KeyError, AttributeError, EOFError) as exc:
        raise CheckpointError(
            f"{file}: not the state of a run: {str(exc).splitlines()[0]}", fix="give another --out"
        ) from exc
    return state


def check_same_run(folder: Path, begun: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raises UsageError that names what differs, unless it is only where the run ends."""
    changed = first_difference(begun, {name: value for name, value in now.items() if name not in ENDS})
    if changed:
        raise UsageError(
            f"{folder}: this run was begun with {changed}",
            fix="resume with the options it was begun with, or give another --out, "
            f"with --start-from {folder / 'weights.safetensors'} to go on from its weights",
        )


def first_difference(begun: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """`crop_px = 64, not 96` or `model: stitches: stem = 0.5, not 0.8`; None where all of `now` was so."""
    for name, value in now.items():
        if begun.get(name) != value:
            return difference(name, begun.get(name), value)
    return None


def difference(name: str, begun: Any, now: Any) -> str:
    """Of a mapping the first entry that differs, on either side."""
    if isinstance(begun, dict) and isinstance(now, dict):
        key = next(key for key in (*now, *begun) if begun.get(key) != now.get(key))
        return f"{name}: {difference(key, begun.get(key), now.get(key))}"
    return f"{name} = {begun}, not {now}"


@contextmanager
def saving(folder: Path, step: int) -> Iterator[None]:
    """Around writing into a run's folder. Raises TrainingError where the disk refuses."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except (OSError, RuntimeError) as exc:  # torch makes a RuntimeError of a full disk
        raise TrainingError(
            f"{folder}: cannot save step {step}: {exc}",
            fix="make room and resume: what was saved before is whole",
        ) from exc
