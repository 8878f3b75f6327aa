"""The trainer on photographs and streaks that the tests draw."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import pyvips
import torch

from cmudrn.checkpoint import load_model, read_checkpoint
from cmudrn.errors import TrainingError, UsageError
from cmudrn.model import CMUDRN, ModelConfig
from cmudrn.train.loop import Trainer, learning_rate, start_as_identity
from cmudrn.train.recipe import TrainRecipe
from cmudrn.train.scenes import PhotoSet, SceneBatch, WeatheredScenes, find_photos
from cmudrn.train.weather.streaks import STRAIGHT, StreakDatabase

TINY = TrainRecipe(
    steps=6, scenes=2, crop_px=24, warmup_steps=2, model=ModelConfig(inter_loops=1, intra_loops=1)
)


@pytest.fixture
def scenes(tmp_path: Path) -> WeatheredScenes:
    rng = np.random.default_rng(0)
    for number in range(3):
        photo = rng.integers(0, 200, (40, 50, 3), dtype=np.uint8)
        pyvips.Image.new_from_array(photo).write_to_file(str(tmp_path / f"{number}.png"))
    layers = [[rng.integers(0, 255, (60, 60), dtype=np.uint8) for _ in STRAIGHT.layers] for _ in range(8)]
    rains = [StreakDatabase(STRAIGHT, layers)]
    photos = PhotoSet(find_photos([tmp_path]), TINY.crop_px)
    return WeatheredScenes(photos, rains, crop_px=TINY.crop_px, scenes=TINY.scenes, seed=0, first_step=0)


def test_it_starts_near_the_identity() -> None:
    torch.manual_seed(0)
    model = CMUDRN()
    start_as_identity(model)
    y = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        mse = ((model(y) - y) ** 2).mean().item()
    assert -10 * np.log10(mse) > 15  # dB; plain initialisation lies near 5


def test_training_lowers_the_loss(scenes: WeatheredScenes, tmp_path: Path) -> None:
    trainer = Trainer(TINY, tmp_path / "run", {})
    batch = next(iter(scenes))
    losses = [trainer.train_step(batch)[0].item() for _ in range(30)]
    assert losses[-1] < 0.8 * losses[0]


def test_the_run_ends_at_its_last_step_with_weights_that_load(
    scenes: WeatheredScenes, tmp_path: Path
) -> None:
    trainer = Trainer(TINY, tmp_path / "run", {"photos": 3})
    progress = list(trainer.run(scenes, workers=0, report_every=3, save_every=100))
    assert [p.step for p in progress] == [3, 6]
    assert load_model(tmp_path / "run" / "weights.safetensors").config == TINY.model
    training = read_checkpoint(tmp_path / "run" / "weights.safetensors").training
    assert training["steps"] == 6
    assert training["photos"] == 3


def test_resuming_goes_on_with_the_same_bits(scenes: WeatheredScenes, tmp_path: Path) -> None:
    batches = list(islice(iter(scenes), 6))
    through = Trainer(TINY, tmp_path / "a", {})
    for batch in batches:
        through.train_step(batch)

    (tmp_path / "b").mkdir()
    first = Trainer(TINY, tmp_path / "b", {})
    for batch in batches[:3]:
        first.train_step(batch)
    first.save()
    second = Trainer(TINY, tmp_path / "b", {})
    assert second.resume()
    for batch in batches[3:]:
        second.train_step(batch)
    for name, value in through.average.items():
        assert torch.equal(value, second.average[name]), name


def test_a_closed_run_has_saved_its_state(scenes: WeatheredScenes, tmp_path: Path) -> None:
    running = Trainer(TINY, tmp_path / "run", {}).run(scenes, workers=0, report_every=2, save_every=100)
    assert next(running).step == 2
    running.close()  # type: ignore[attr-defined]
    resumed = Trainer(TINY, tmp_path / "run", {})
    assert resumed.resume()
    assert resumed.step == 2


def test_a_loss_that_is_not_finite_names_its_step_and_keeps_the_weights(tmp_path: Path) -> None:
    trainer = Trainer(TINY, tmp_path / "run", {})
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    nan = torch.full((1, 3, 24, 24), float("nan"))
    with pytest.raises(TrainingError, match="step 0: not finite: total nan"):
        trainer.train_step(SceneBatch(nan, nan, nan))
    assert all(torch.equal(before[name], value) for name, value in trainer.model.state_dict().items())


def test_the_rate_warms_up_and_falls_to_its_last_value() -> None:
    recipe = TrainRecipe(steps=1000, warmup_steps=100)
    assert learning_rate(recipe, 0) == pytest.approx(1e-5)
    assert learning_rate(recipe, 100) == pytest.approx(1e-3)
    assert learning_rate(recipe, 1000) == pytest.approx(1e-5)


def test_a_photograph_smaller_than_the_crop_is_refused_by_name(tmp_path: Path) -> None:
    pyvips.Image.black(10, 40, bands=3).write_to_file(str(tmp_path / "small.png"))
    with pytest.raises(TrainingError, match=r"small.png: 10x40"):
        PhotoSet(find_photos([tmp_path]), 24)
    with pytest.raises(UsageError, match="no photographs"):
        find_photos([tmp_path / "nowhere"])
