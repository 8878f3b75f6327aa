"""From folders to scenes: photographs, paired datasets, streaks; read and checked before the first step."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cmudrn import __version__
from cmudrn.errors import UsageError
from cmudrn.train.layouts import find_pairs, refuse_pairs
from cmudrn.train.paired_scenes import PairedScenes, PairFiles, check_pairs
from cmudrn.train.pairs import PairedSet, Split, Weather
from cmudrn.train.photos import PhotoSet, find_photos
from cmudrn.train.scenes import SCENES_VERSION, PhotoScenes, SceneBatch, SceneSource, SceneSteps
from cmudrn.train.skies import ProceduralRain, ProceduralSnow, Sky, load_streak_rains, training_files

__all__ = ["Data", "OpenedData", "open_data", "parse_pairs"]

FIXED_SEED = 2211_08290  # of the validation scenes
FIXED_SCENES, FIXED_CROP_PX = 16, 128
FIXED_CROP_FIX = (
    f"mend or remove these files: validation takes crops of {FIXED_CROP_PX}, whatever --crop says"
)


@dataclass(frozen=True, kw_only=True)
class Data:
    """Where the scenes come from."""

    photos: tuple[Path, ...]  # folders of clean photographs, over which weather is laid
    streaks: Path | None = None  # the Columbia database; without it there is rain from physics alone
    pairs: tuple[PairedSet, ...] = ()  # paired datasets, of which the missing weather is rendered
    validation: Path | None = None  # clean photographs to choose weights on; never trained on
    max_streak_files: int = 220  # spread evenly over the database; more cost start-up and memory, 7 MB each


@dataclass(frozen=True)
class OpenedData:
    """Scenes to draw, fixed scenes to score on, and what goes into the checkpoint about both."""

    sources: list[SceneSource]  # drawn from in equal shares
    fixed: SceneBatch | None
    provenance: dict[str, Any]


def parse_pairs(text: str, *, split: Split = Split.TRAIN, weather: Weather | None = None) -> PairedSet:
    """`DIR`: its training half.

    With `rain:` or `snow:` before it where the dataset doesn't say, and `paper:` to cut it as the paper does.
    Raises UsageError for a folder in which no layout is found.
    """
    word, colon, rest = text.partition(":")
    if colon and word == "paper":
        return parse_pairs(rest, split=Split.PAPER_TRAIN, weather=weather)
    if colon and weather is None and word in [known.value for known in Weather]:
        return parse_pairs(rest, split=split, weather=Weather(word))
    return find_pairs(Path(text), split=split, weather=weather)


def open_data(data: Data, crop_px: int) -> OpenedData:
    """Finds all, then decodes all, then cuts streaks: seconds, before what takes minutes.

    Raises UsageError or TrainingError that names what will not do.
    """
    if not data.photos and not data.pairs:
        raise UsageError("nothing to train on", fix="give folders of clean photographs, or --pairs DIR")
    paths = find_clean(data.photos)
    held_paths = find_clean([data.validation] if data.validation else [])
    for paired in data.pairs:
        check_pairs(paired, crop_px)
    files = training_files(data.streaks, data.max_streak_files) if data.streaks else []

    photos = PhotoSet(paths, crop_px)
    held = PhotoSet(held_paths, FIXED_CROP_PX, fix=FIXED_CROP_FIX) if held_paths else None
    if held and (shared := photos.digests & held.digests):
        raise UsageError(
            f"{data.validation}: {len(shared)} of its photographs are trained on",
            fix="validate on photographs that training does not see",
        )
    pair_files = [PairFiles(paired) for paired in data.pairs]

    if not (paths or held or any(paired.weather is Weather.SNOW for paired in data.pairs)):
        files = []  # rain pairs alone: no rain is rendered
    snows: list[Sky] = [ProceduralSnow()]
    rains: list[Sky] = [ProceduralRain(), *(load_streak_rains(files) if files else ())]
    sources: list[SceneSource] = []
    if paths:
        sources.append(PhotoScenes(photos, rains=rains, snows=snows, crop_px=crop_px))
    for pairs in pair_files:
        others = snows if pairs.paired.weather is Weather.RAIN else rains
        sources.append(PairedScenes(pairs, others=others, crop_px=crop_px))
    provenance: dict[str, Any] = {
        "code_version": __version__,
        "scenes_version": SCENES_VERSION,
        "photos": len(photos.photos),
        "photos_sha256": photos.sha256,
        "streak_files": len(files),
        "streaks_sha256": hash_files(files) if files else None,
        "pairs": [paired.manifest() for paired in data.pairs],
    }
    fixed = None
    if held:
        provenance["validation_sha256"] = held.sha256
        source = PhotoScenes(held, rains=rains, snows=snows, crop_px=FIXED_CROP_PX)
        fixed = SceneSteps([source], scenes=FIXED_SCENES, seed=FIXED_SEED)[0]
    return OpenedData(sources, fixed, provenance)


def find_clean(folders: Sequence[Path]) -> list[Path]:
    """All photographs below the folders. Raises UsageError for one without any, and for paired datasets."""
    photos = find_photos(folders)
    for folder in folders:
        refuse_pairs(folder, photos)
    return photos


def hash_files(files: Sequence[Path]) -> str:
    """SHA-256 over names and contents, in order."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()
