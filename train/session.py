"""A training run put together from folders: photographs, streaks, recipe, trainer."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from cmudrn import __version__
from cmudrn.train.loop import Trainer
from cmudrn.train.recipe import TrainRecipe
from cmudrn.train.scenes import PhotoSet, WeatheredScenes, find_photos
from cmudrn.train.weather.streaks import SLANTED, STRAIGHT, StreakDatabase, is_held_out, streak_files

__all__ = ["open_run"]


def open_run(
    recipe: TrainRecipe, folder: Path, *, photos: Sequence[Path], streaks: Path, max_streak_files: int = 220
) -> tuple[Trainer, WeatheredScenes]:
    """Reads and checks all data, then resumes the folder's run or begins one.

    photos: folders of clean photographs. streaks: the Columbia database.
    max_streak_files: spread evenly over the database; more cost start-up time and memory (7 MB each).
    """
    files = [file for file in streak_files(streaks) if not is_held_out(file)]
    files = files[:: max(1, len(files) // max_streak_files)][:max_streak_files]
    photo_set = PhotoSet(find_photos(photos), recipe.crop_px)
    rains = [StreakDatabase.load(files, rain) for rain in (STRAIGHT, SLANTED)]
    streak_hash = hashlib.sha256(
        b"".join(file.name.encode() + file.read_bytes() for file in files)
    ).hexdigest()
    provenance = {
        "code_version": __version__,
        "photos": len(photo_set.photos),
        "photos_sha256": photo_set.sha256,
        "streak_files": len(files),
        "streaks_sha256": streak_hash,
    }
    trainer = Trainer(recipe, folder, provenance)
    trainer.resume()
    scenes = WeatheredScenes(
        photo_set,
        rains,
        crop_px=recipe.crop_px,
        scenes=recipe.scenes,
        seed=recipe.seed,
        first_step=trainer.step,
    )
    return trainer, scenes
