"""The trainer on photographs and streaks that the tests draw."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import pyvips
import torch
from torch import nn

from cmudrn.checkpoint import load_drn, load_model, read_checkpoint, save_checkpoint
from cmudrn.errors import CheckpointError, TrainingError, UsageError
from cmudrn.model import CMUDRN, ModelConfig
from cmudrn.train.loop import Trainer, draw_depth, learning_rate
from cmudrn.train.monitor import Monitor
from cmudrn.train.optimizer import OptimizerName, build_optimizer
from cmudrn.train.passes import start_as_identity
from cmudrn.train.photos import PhotoSet, find_photos
from cmudrn.train.recipe import Network, Schedule, TrainRecipe
from cmudrn.train.scenes import PhotoScenes, SceneBatch, SceneSteps
from cmudrn.train.skies import ProceduralSnow, StreakRain
from cmudrn.train.weather.streaks import STRAIGHT, StreakDatabase

TINY = TrainRecipe(
    steps=6,
    scenes=2,
    crop_px=24,
    warmup_steps=2,
    depths=(1, 2),
    model=ModelConfig(inter_loops=1, intra_loops=1),
)


@pytest.fixture
def source(tmp_path: Path) -> PhotoScenes:
    rng = np.random.default_rng(0)
    for number in range(3):
        photo = rng.integers(0, 200, (40, 50, 3), dtype=np.uint8)
        pyvips.Image.new_from_array(photo).write_to_file(str(tmp_path / f"{number}.png"))
    layers = [[rng.integers(0, 255, (60, 60), dtype=np.uint8) for _ in STRAIGHT.layers] for _ in range(8)]
    photos = PhotoSet(find_photos([tmp_path]), TINY.crop_px)
    rains = [StreakRain(StreakDatabase(STRAIGHT, layers))]
    return PhotoScenes(photos, rains=rains, snows=[ProceduralSnow()], crop_px=TINY.crop_px)


@pytest.fixture
def scenes(source: PhotoScenes) -> SceneSteps:
    return SceneSteps([source], scenes=TINY.scenes, seed=0)


def run_of(trainer: Trainer, scenes: SceneSteps, *, workers: int = 0) -> Iterator[int]:
    for progress in trainer.run(scenes, workers=workers, report_every=2, save_every=100):
        yield progress.step


def test_it_starts_near_the_identity() -> None:
    torch.manual_seed(0)
    model = CMUDRN()
    start_as_identity(model)
    y = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        mse = ((model(y) - y) ** 2).mean().item()
    assert -10 * np.log10(mse) > 15  # dB; plain initialisation lies near 5


@pytest.mark.parametrize("network", list(Network))
def test_training_lowers_the_loss(network: Network, scenes: SceneSteps, tmp_path: Path) -> None:
    recipe = replace(TINY, network=network, depths=(1,), steps=30, learning_rate=3e-3)
    trainer = Trainer(recipe, tmp_path / "run", {})
    losses = [trainer.train_step(scenes[0])[0].item() for _ in range(30)]
    assert losses[-1] < 0.8 * losses[0]


def test_the_run_ends_at_its_last_step_with_weights_that_load(scenes: SceneSteps, tmp_path: Path) -> None:
    trainer = Trainer(TINY, tmp_path / "run", {"photos": 3})
    assert list(run_of(trainer, scenes)) == [2, 4, 6]
    assert load_model(tmp_path / "run" / "weights.safetensors").config == TINY.model
    training = read_checkpoint(tmp_path / "run" / "weights.safetensors").training
    assert training["steps"] == 6
    assert training["photos"] == 3
    assert training["recipe"] == TINY.to_json()


def test_a_baseline_is_a_drn_and_not_taken_for_the_unified_network(
    scenes: SceneSteps, tmp_path: Path
) -> None:
    trainer = Trainer(replace(TINY, network=Network.DRN_SNOW), tmp_path, {})
    assert list(run_of(trainer, scenes)) == [2, 4, 6]
    drn = load_drn(tmp_path / "weights.safetensors", loops=2)
    assert len(drn(torch.rand(1, 3, 16, 16))) == 2
    with pytest.raises(CheckpointError, match="weights of a drn, not of a cmudrn"):
        load_model(tmp_path / "weights.safetensors")


@pytest.mark.parametrize("optimizer", list(OptimizerName))
def test_twenty_steps_are_ten_and_ten_more_bit_for_bit(
    optimizer: OptimizerName, scenes: SceneSteps, tmp_path: Path
) -> None:
    recipe = replace(TINY, steps=20, float32_steps=5, optimizer=optimizer)
    through = Trainer(recipe, tmp_path / "a", {})
    assert list(run_of(through, scenes))[-1] == 20

    first = run_of(Trainer(recipe, tmp_path / "b", {}), scenes)
    assert [next(first) for _ in range(5)][-1] == 10
    first.close()  # type: ignore[attr-defined]
    second = Trainer(recipe, tmp_path / "b", {})
    assert second.resume()
    # With a worker now: neither processes nor prefetched scenes change what a step sees.
    assert list(run_of(second, scenes, workers=2)) == [12, 14, 16, 18, 20]
    for ours, theirs in (
        (through.average, second.average),
        (through.model.state_dict(), second.model.state_dict()),
    ):
        assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_a_report_after_resuming_is_of_the_steps_since(scenes: SceneSteps, tmp_path: Path) -> None:
    recipe = replace(TINY, steps=10)
    through = Trainer(recipe, tmp_path / "a", {})
    expected = [through.train_step(scenes[step])[0].item() for step in range(10)]

    first = Trainer(recipe, tmp_path / "b", {})
    for step in range(8):
        first.train_step(scenes[step])
    first.save()
    second = Trainer(recipe, tmp_path / "b", {})
    assert second.resume()
    (report,) = second.run(scenes, workers=0, report_every=10, save_every=100)
    assert report.total == pytest.approx(np.mean(expected[8:]), rel=1e-5)


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_for_the_step_and_the_run_goes_on_exactly(
    stop: signal.Signals, scenes: SceneSteps, tmp_path: Path
) -> None:
    before = signal.signal(stop, signal.default_int_handler)  # whatever runs the tests may have it ignored
    try:
        trainer = Trainer(TINY, tmp_path, {})
        running = run_of(trainer, scenes)
        assert next(running) == 2
        os.kill(os.getpid(), stop)
        with pytest.raises(KeyboardInterrupt):
            list(running)
    finally:
        left = signal.signal(stop, before)
    assert left is signal.default_int_handler  # as it was before the run
    resumed = Trainer(TINY, tmp_path, {})
    assert resumed.resume()
    assert resumed.step == trainer.step
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name])


def test_a_closed_run_has_saved_its_state(scenes: SceneSteps, tmp_path: Path) -> None:
    running = run_of(Trainer(TINY, tmp_path / "run", {}), scenes)
    assert next(running) == 2
    running.close()  # type: ignore[attr-defined]
    resumed = Trainer(TINY, tmp_path / "run", {})
    assert resumed.resume()
    assert resumed.step == 2


def test_a_run_is_not_resumed_with_another_recipe_or_other_data(tmp_path: Path) -> None:
    Trainer(TINY, tmp_path, {"photos": 3}).save()
    with pytest.raises(UsageError, match="begun with scenes = 2, not 4"):
        Trainer(replace(TINY, scenes=4), tmp_path, {"photos": 3}).resume()
    with pytest.raises(UsageError, match="begun with data"):
        Trainer(TINY, tmp_path, {"photos": 4}).resume()
    assert Trainer(replace(TINY, steps=7), tmp_path, {"photos": 3}).resume()  # longer is allowed


def test_a_state_that_is_not_one_is_named(tmp_path: Path) -> None:
    (tmp_path / "state.pt").write_bytes(b"not a state")
    with pytest.raises(CheckpointError, match=r"state\.pt: not the state of a run"):
        Trainer(TINY, tmp_path, {}).resume()


def test_a_run_may_begin_with_the_weights_of_another(tmp_path: Path) -> None:
    other = Trainer(replace(TINY, seed=7), tmp_path / "other", {})
    trainer = Trainer(TINY, tmp_path / "run", {})
    trainer.start_from(other.checkpoint(), "other")
    assert all(torch.equal(value, trainer.average[name]) for name, value in other.average.items())
    assert trainer.step == 0
    told = trainer.checkpoint().training["started_from"]
    assert (told["steps"], told["stitches"]) == (0, dict(TINY.model.stitches))
    trainer.save()
    resumed = Trainer(TINY, tmp_path / "run", {})
    assert resumed.resume()
    assert resumed.checkpoint().training["started_from"] == told
    baseline = Trainer(replace(TINY, network=Network.DRN_RAIN), tmp_path / "drn", {})
    with pytest.raises(CheckpointError, match="weights of another network"):
        trainer.start_from(baseline.checkpoint(), "drn")


def test_a_disk_that_refuses_is_said_and_keeps_what_was_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Trainer(TINY, tmp_path, {})
    trainer.save()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)  # where a full disk shows at the latest
    trainer.step = 5
    with pytest.raises(TrainingError, match=r"cannot save step 5: .*No space left"):
        trainer.save()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_loss_that_is_not_finite_names_its_step_and_term_and_keeps_the_weights(tmp_path: Path) -> None:
    trainer = Trainer(TINY, tmp_path / "run", {})
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    nan = np.full((1, 3, 24, 24), np.nan, np.float32)
    with pytest.raises(TrainingError, match="step 0: not finite: local nan, recur nan, global nan"):
        trainer.train_step(SceneBatch(nan, nan, nan))
    assert all(torch.equal(before[name], value) for name, value in trainer.model.state_dict().items())


def test_the_rate_warms_up_and_falls_to_its_last_value_or_stays() -> None:
    recipe = TrainRecipe(steps=1000, warmup_steps=100, learning_rate=1e-3)
    assert learning_rate(recipe, 0) == pytest.approx(1e-5)
    assert learning_rate(recipe, 100) == pytest.approx(1e-3)
    assert learning_rate(recipe, 1000) == pytest.approx(1e-5)
    constant = replace(recipe, schedule=Schedule.CONSTANT)
    assert learning_rate(constant, 1000) == pytest.approx(1e-3)
    short = replace(recipe, steps=40)
    assert learning_rate(short, 10) == pytest.approx(1e-3)  # after a quarter of its steps
    low = replace(recipe, learning_rate=1e-6)
    assert max(learning_rate(low, step) for step in range(1000)) == 1e-6


@pytest.mark.parametrize(
    ("usual", "expected"),
    [
        (2, (0.6 * 0.453, 0.4 + 0.6 * 0.320, 0.6 * 0.227)),  # 0.4 to the usual depth, the rest as 1/sqrt(T)
        (3, (0.453, 0.320, 0.227)),  # the usual one isn't trained: as 1/sqrt(T)
    ],
)
def test_the_usual_depth_is_drawn_most_and_of_the_others_the_cheaper(
    usual: int, expected: tuple[float, ...]
) -> None:
    recipe = TrainRecipe(depths=(1, 2, 4), model=ModelConfig(inter_loops=usual, intra_loops=usual))
    drawn = np.array([draw_depth(recipe, step) for step in range(3000)])
    shares = [float((drawn == depth).mean()) for depth in recipe.depths]
    assert shares == pytest.approx(expected, abs=0.03)  # three standard deviations


def test_the_papers_recipe_is_the_papers() -> None:
    recipe = TrainRecipe.paper(steps=10)
    assert recipe.learning_rate == learning_rate(recipe, 0) == learning_rate(recipe, 9) == 1e-4
    assert (recipe.depths, recipe.ema, recipe.clip_norm) == ((3,), 0, 0)
    assert set(recipe.model.stitches.values()) == {0.5}
    adam = build_optimizer(recipe.optimizer, nn.Linear(2, 2), recipe.learning_rate)
    assert isinstance(adam, torch.optim.Adam)


def test_without_an_average_the_last_weights_are_kept(scenes: SceneSteps, tmp_path: Path) -> None:
    trainer = Trainer(replace(TINY, ema=0.0), tmp_path, {})
    trainer.train_step(scenes[0])
    for name, value in trainer.model.state_dict().items():
        assert torch.allclose(trainer.average[name], value, atol=1e-7)


def fixed_scenes() -> SceneBatch:
    rng = np.random.default_rng(5)
    rainy, snowy, clean = (rng.random((2, 3, 32, 32), dtype=np.float32) for _ in range(3))
    return SceneBatch(rainy, snowy, clean)


def test_the_best_weights_of_a_run_stay_the_best_when_it_is_resumed(tmp_path: Path) -> None:
    fixed = fixed_scenes()
    trainer = Trainer(TINY, tmp_path, {})
    trainer.step = 1
    with Monitor(trainer, fixed) as monitor:
        monitor.validate()
    trainer.save()
    best = (tmp_path / "best.safetensors").read_bytes()
    worse = Trainer(TINY, tmp_path, {})
    assert worse.resume()
    worse.average = {name: value * 3 for name, value in worse.average.items()}
    with Monitor(worse, fixed) as monitor:
        monitor.validate()
    assert (tmp_path / "best.safetensors").read_bytes() == best


def test_tensorboard_gets_losses_rate_scores_and_triples(scenes: SceneSteps, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer = Trainer(TINY, tmp_path, {})
    with Monitor(trainer, fixed_scenes()) as monitor:
        for progress in trainer.run(scenes, workers=0, report_every=3, save_every=100):
            monitor.log(progress)
        scores = {score.loops: score for score in monitor.validate()}
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    tags = events.Tags()
    for name in ("loss/total", "loss/local", "loss/recur", "loss/global", "learning_rate", "steps_per_s"):
        assert [event.step for event in events.Scalars(name)] == [3, 6], name
    assert events.Scalars("loss/total")[-1].value == pytest.approx(progress.total)
    for loops, score in scores.items():
        assert events.Scalars(f"validation/psnr_db_t{loops}")[0].value == pytest.approx(score.psnr_db)
        assert events.Scalars(f"validation/ssim_t{loops}")[0].value == pytest.approx(score.ssim)
        assert any(tag.startswith(f"rainy_restored_clean/t{loops}") for tag in tags["images"])
        assert any(tag.startswith(f"snowy_restored_clean/t{loops}") for tag in tags["images"])


def test_the_devices_shares_of_a_step_are_the_step(source: PhotoScenes) -> None:
    whole = SceneSteps([source], scenes=4, seed=0)[3]
    shares = [SceneSteps([source], scenes=4, seed=0, rank=rank, devices=2)[3] for rank in (0, 1)]
    assert np.array_equal(whole.rainy[0::2], shares[0].rainy)
    assert np.array_equal(whole.snowy[1::2], shares[1].snowy)


def test_photographs_that_will_not_do_are_refused_by_name_before_the_first_step(tmp_path: Path) -> None:
    pyvips.Image.black(10, 40, bands=3).write_to_file(str(tmp_path / "small.png"))
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no more")
    with pytest.raises(TrainingError, match=r"broken\.jpg.*small\.png: 10x40 is smaller"):
        PhotoSet(find_photos([tmp_path]), 24)
    with pytest.raises(UsageError, match="no photographs"):
        find_photos([tmp_path / "nowhere"])


def test_grey_sixteen_bit_and_transparent_photographs_are_taken_as_rgb(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 40 * 40).reshape(40, 40)
    pyvips.Image.new_from_array(ramp.astype(np.uint16)).copy(interpretation="grey16").write_to_file(
        str(tmp_path / "deep.png")
    )
    grey = (ramp / 257).astype(np.uint8)
    pyvips.Image.new_from_array(grey).write_to_file(str(tmp_path / "grey.png"))
    rgba = np.dstack([grey, grey, grey, 255 - grey])
    pyvips.Image.new_from_array(rgba).copy(interpretation="srgb").write_to_file(str(tmp_path / "rgba.png"))
    deep, *others = PhotoSet(find_photos([tmp_path]), 24).photos
    for photo in (deep, *others):
        assert photo.shape == (40, 40, 3)
        assert photo.dtype == np.uint8
        assert np.abs(photo[..., 0].astype(int) - np.round(ramp / 257)).max() <= 1


def test_weights_of_an_old_checkpoint_start_a_run(tmp_path: Path) -> None:
    trainer = Trainer(TINY, tmp_path / "run", {})
    save_checkpoint(trainer.checkpoint(), tmp_path / "w.safetensors")
    trainer.start_from(read_checkpoint(tmp_path / "w.safetensors"), "w")
