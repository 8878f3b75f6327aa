"""Weights on disk."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from random_weights import random_checkpoint

import cmudrn
from cmudrn.checkpoint import Checkpoint, load_model, read_checkpoint, save_checkpoint
from cmudrn.errors import CheckpointError
from cmudrn.model import CMUDRN, ModelConfig


def checkpoint_of(model: CMUDRN) -> Checkpoint:
    config = model.config
    return Checkpoint(
        tensors={name: value.numpy().copy() for name, value in model.state_dict().items()},
        inter_loops=config.inter_loops,
        intra_loops=config.intra_loops,
        stitches=dict(config.stitches),
        training={"steps": 7},
    )


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    path = tmp_path / "w.safetensors"
    save_checkpoint(checkpoint_of(CMUDRN(ModelConfig(inter_loops=2, stitches={"block1": 0.25}))), path)
    return path


def test_what_is_saved_is_loaded(saved: Path) -> None:
    torch.manual_seed(0)
    original, loaded = CMUDRN(), load_model(saved)
    assert loaded.config == ModelConfig(inter_loops=2, stitches={"block1": 0.25})
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in original.state_dict().items())
    assert read_checkpoint(saved).training == {"steps": 7}
    assert load_model(saved, loops=5).config.intra_loops == 5


def test_the_shipped_weights_load() -> None:
    model = cmudrn.load_model("default")
    assert sum(parameter.numel() for parameter in model.parameters()) == 24_825
    assert read_checkpoint("default").training["steps"] > 0


def test_nothing_is_left_of_a_save_that_fails(saved: Path) -> None:
    before = saved.read_bytes()
    broken = dataclasses.replace(checkpoint_of(CMUDRN()), tensors={"rain": "not an array"})  # type: ignore[dict-item]
    with pytest.raises(Exception):  # noqa: B017 (whatever safetensors raises)
        save_checkpoint(broken, saved)
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


@pytest.mark.parametrize(
    ("name", "array", "says"),
    [
        (
            "rain.conv_in.weight",
            np.zeros((8, 6, 3, 3), np.float32),
            r"rain.conv_in.weight has shape \(8, 6, 3, 3\)",
        ),
        ("rain.conv_in.bias", None, "rain.conv_in.bias .* is missing"),
        ("extra", np.zeros(1, np.float32), "extra is not part"),
        ("snow.conv_out.bias", np.full(3, np.nan, np.float32), "snow.conv_out.bias is not finite"),
    ],
)
def test_what_does_not_fit_says_which_tensor(tmp_path: Path, name: str, array: object, says: str) -> None:
    checkpoint = checkpoint_of(CMUDRN())
    if array is None:
        del checkpoint.tensors[name]
    else:
        checkpoint.tensors[name] = array  # type: ignore[assignment]
    save_checkpoint(checkpoint, tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError, match=says):
        load_model(tmp_path / "w.safetensors")


def test_a_missing_a_foreign_and_a_damaged_file_are_told_apart(tmp_path: Path, saved: Path) -> None:
    with pytest.raises(CheckpointError, match="no such weights"):
        load_model(tmp_path / "nowhere.safetensors")
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(saved.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="not readable"):
        load_model(damaged)
    from safetensors.numpy import save_file

    foreign = tmp_path / "foreign.safetensors"
    save_file({"a": np.zeros(1, np.float32)}, foreign)
    with pytest.raises(CheckpointError, match="not a checkpoint of cmudrn"):
        load_model(foreign)


@pytest.mark.parametrize(
    ("training", "depths"),
    [
        ({}, (3,)),
        ({"recipe": {"depths": [5, 1]}}, (1, 5)),
        ({"recipe": {"depths": []}}, (3,)),
        ({"recipe": {"depths": ["many"]}}, (3,)),
        ({"recipe": "ours"}, (3,)),
    ],
)
def test_weights_know_the_depths_they_were_trained_for(
    training: dict[str, object], depths: tuple[int, ...]
) -> None:
    assert dataclasses.replace(random_checkpoint(), training=training).depths == depths
