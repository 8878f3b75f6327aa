"""Noisy pairs and their gain; and that training by it makes a network hand on less noise."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from cmudrn.model import ModelConfig
from cmudrn.train.loop import Trainer
from cmudrn.train.losses import LossWeights
from cmudrn.train.recipe import TrainRecipe
from cmudrn.train.scenes import SceneBatch, SceneSteps
from cmudrn.train.stability import EVERY_STEPS, SIGMA, NoisyPairs, noise_gain, pair_with_noise

RECIPE = TrainRecipe(
    steps=12,
    scenes=4,
    crop_px=24,
    warmup_steps=2,
    depths=(2,),
    ema=0.0,
    model=ModelConfig(inter_loops=2, intra_loops=2),
)
STABLE = replace(RECIPE, loss=LossWeights(stability=0.1))


class Squares(SceneSteps):
    """Scenes without weather, of random values, drawn from the step alone."""

    def __init__(self, recipe: TrainRecipe, *, rank: int = 0, devices: int = 1) -> None:
        super().__init__([], scenes=recipe.scenes, seed=recipe.seed, rank=rank, devices=devices)
        self.side = recipe.crop_px

    def __getitem__(self, step: int) -> SceneBatch:
        whole = np.random.default_rng(step).random((4, 3, self.side, self.side), dtype=np.float32)
        images = whole[list(self.places)]
        return SceneBatch(images, images, images)


def pairs(images: Tensor, *, step: int = 0, rank: int = 0, devices: int = 1) -> NoisyPairs:
    return pair_with_noise(images, images, images, seed=7, step=step, rank=rank, devices=devices)


def test_the_second_half_is_the_first_with_noise_and_the_same_truth() -> None:
    images = torch.rand(4, 3, 64, 64)
    made = pairs(images)
    for degraded in (made.rainy, made.snowy):
        assert torch.equal(degraded[:2], images[:2])
        assert (degraded[2:] - degraded[:2]).std().item() == pytest.approx(SIGMA, rel=0.02)
    assert torch.equal(made.clean, torch.cat([images[:2], images[:2]]))
    assert not torch.equal(made.rainy, made.snowy)
    assert not torch.equal(made.rainy, pairs(images, step=1).rainy)


def test_a_scenes_noise_is_the_same_on_whichever_device_it_is() -> None:
    images = torch.rand(4, 3, 16, 16)
    whole = pairs(images)
    for rank in (0, 1):
        share = pairs(images[rank::2], rank=rank, devices=2)
        assert torch.equal(share.rainy[1], whole.rainy[2 + rank])


@pytest.mark.parametrize("factor", [0.0, 0.5, 1.0, 3.0])
def test_the_gain_of_a_network_that_multiplies_is_the_factors_square(factor: float) -> None:
    made = pairs(torch.rand(2, 3, 128, 128))
    finals = torch.stack([factor * made.rainy, factor * made.snowy])
    assert noise_gain(finals).item() == pytest.approx(factor**2, rel=0.02)


def test_the_term_is_in_the_total_of_every_third_step_and_in_no_other(tmp_path: Path) -> None:
    trainers = [Trainer(recipe, tmp_path / str(i), {}) for i, recipe in enumerate((RECIPE, STABLE))]
    scenes = Squares(RECIPE)
    weights = {name: value.clone() for name, value in trainers[0].model.state_dict().items()}
    for step in range(2 * EVERY_STEPS):
        for trainer in trainers:
            trainer.load_weights(weights)
            trainer.step = step
        plain, stable = (trainer.train_step(scenes[step])[0].item() for trainer in trainers)
        assert (plain != stable) == (step % EVERY_STEPS == 0)


def test_a_run_with_it_is_resumed_bit_for_bit(tmp_path: Path) -> None:
    scenes = Squares(STABLE)
    through, first = (Trainer(STABLE, tmp_path / name, {}) for name in "ab")
    for step in range(10):
        through.train_step(scenes[step])
    for step in range(5):
        first.train_step(scenes[step])
    first.save()
    second = Trainer(STABLE, tmp_path / "b", {})
    assert second.resume()
    for step in range(5, 10):
        second.train_step(scenes[step])
    assert all(torch.equal(value, second.average[name]) for name, value in through.average.items())


def test_trained_by_it_a_network_hands_on_less_noise(tmp_path: Path) -> None:
    gains = []
    for name, factor in ("without", 0.0), ("with", 10.0):
        recipe = replace(
            RECIPE,
            steps=40,
            warmup_steps=5,
            loss=LossWeights(stability=factor),
        )
        trainer, scenes = Trainer(recipe, tmp_path / name, {}), Squares(recipe)
        for step in range(recipe.steps):
            trainer.train_step(scenes[step])
        made = pairs(torch.from_numpy(scenes[1000].rainy))
        with torch.no_grad():
            finals = trainer.passes(made.rainy, made.snowy).finals
        gains.append(noise_gain(finals).item())
    without, with_it = gains
    assert with_it < 0.8 * without, gains
