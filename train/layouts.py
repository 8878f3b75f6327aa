"""Paired datasets of the field on disk, found by looking: which layout a folder has, and where its sides are.

A layout is a row of `LAYOUTS`: a name, the tree as people see it, and one function that looks at a folder and
gives its sides, or nothing; `train/pairs.py` pairs them. docs/datasets.md shows trees, papers and licences.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from cmudrn.errors import UsageError
from cmudrn.formats import READABLE_SUFFIXES
from cmudrn.train.pairs import (
    Folder,
    Key,
    Pair,
    PairedSet,
    Sides,
    Split,
    Weather,
    check_sizes,
    images_in,
    look_into,
    natural_order,
    own_name,
    pair_up,
    share_names,
)
from cmudrn.wording import counted, listed

__all__ = [
    "LAYOUTS",
    "Layout",
    "Pair",
    "PairedSet",
    "Split",
    "Weather",
    "check_sizes",
    "find_pairs",
    "refuse_pairs",
]

HALF = re.compile(r"(train|test)(ing)?[_-]?(set)?\d*")  # names of folders that hold one half
TRAIN_TENTHS = 7  # the CMUDRN paper: the first 70 % train, the last 30 % test


def find_pairs(folder: Path, *, split: Split = Split.ALL, weather: Weather | None = None) -> PairedSet:
    """Find the paired dataset that a folder is, or that lies one level below it.

    split: by the dataset's own train and test folders or names; where nothing says, cut by clean images in
    natural order, 70 to 30. The paper's is cut so whatever the folders say, train before test.
    weather: chooses in a set that holds both, and names the weather of one that does not say.
    Raises UsageError for a folder that is no dataset, or two, or holds nothing of what was asked for;
    TrainingError for images without a partner. No image is opened: see `check_sizes`.
    """
    found = _datasets(look_into(folder))
    if not found:
        raise _no_layout(folder)
    if len(found) > 1:
        names = [f"{dataset.root} ({dataset.layout.name})" for dataset in found]
        raise UsageError(
            f"{folder}: holds {len(found)} datasets: {listed(names, most=8)}",
            fix=f"give one of them, such as {found[0].root}",
        )
    dataset = _of_weather(found[0], weather)
    return PairedSet(
        layout=dataset.layout.name,
        root=dataset.root,
        weather=dataset.weather or weather,
        split=split,
        pairs=tuple(_pairs_of(dataset, split)),
    )


def refuse_pairs(folder: Path, photos: Iterable[Path]) -> None:
    """Clean photographs are looked for: a paired dataset among them would bring its rain and snow along.

    photos: all that were found below the folder.
    Raises UsageError for a layout whose two sides share names; folders that are only called so may pass.
    """
    below = {parent for photo in photos for parent in photo.parents if parent.is_relative_to(folder)}
    # Those of training first: their clean images are what the message proposes.
    for path in sorted(
        below, key=lambda path: (_split_in_name(path.name) is Split.TEST, natural_order(path))
    ):
        recognised = _recognised(look_into(path))
        if recognised and any(share_names(sides) for sides in recognised[1]):
            raise _pairs_not_photos(path, *recognised, folder)


def _pairs_not_photos(path: Path, layout: Layout, sides: Sequence[Sides], folder: Path) -> UsageError:
    is_half = HALF.fullmatch(path.name.lower()) and path != folder
    root, clean = path.parent if is_half else path, sides[0].clean
    weathers = {side.weather for side in sides}
    given = [f"--pairs {root}"]
    if len(weathers) > 1 or None in weathers:
        given = [f"--pairs {weather.value}:{root}" for weather in Weather]
    alone = "" if clean == path else f", and its clean images alone are in {clean}"
    return UsageError(
        f"{root}: pairs of degraded and clean images ({layout.name} layout), not clean photographs",
        fix=f"cmudrn train takes it as {' or '.join(given)}{alone}",
    )


# ---- The layouts


@dataclass(frozen=True)
class Layout:
    """How one family of datasets lies on disk."""

    name: str
    tree: str  # as people see it, for messages
    sides: Callable[[Folder], Sequence[Sides]]  # empty: the folder is not of this layout


_rainy = partial(Sides, weather=Weather.RAIN)
_snowy = partial(Sides, weather=Weather.SNOW)


def _side_by_side(
    folder: Folder,
    *,
    degraded: Sequence[str],
    clean: Sequence[str],
    mask: Sequence[str] = (),
    kind: Callable[..., Sides] = Sides,
) -> list[Sides]:
    """Folders next to each other, each the first of its lower-case names that is there."""
    degraded_folder, clean_folder = folder.first(degraded), folder.first(clean)
    if degraded_folder is None or clean_folder is None:
        return []
    return [kind(degraded=degraded_folder, clean=clean_folder, mask=folder.first(mask))]


def _synthesized(folder: Folder) -> list[Sides]:
    rainy = _side_by_side(folder, degraded=["rainy"], clean=["clean"], kind=_rainy)
    return rainy + _side_by_side(folder, degraded=["snowy"], clean=["clean"], kind=_snowy)


_csd = partial(_side_by_side, degraded=["snow"], clean=["gt"], mask=["mask"], kind=_snowy)
_srrs = partial(
    _side_by_side, degraded=["syn"], clean=["gt", "gt_new"], mask=["mask", "combine snow"], kind=_snowy
)


def _snow100k(folder: Folder) -> list[Sides]:
    """Itself, or the test set's three sizes of flakes: Snow100K-S, -M and -L."""
    look = partial(_side_by_side, degraded=["synthetic"], clean=["gt"], mask=["mask"], kind=_snowy)
    groups = [path for name, path in folder.folders.items() if re.fullmatch(r"snow100k-[sml]", name)]
    return look(folder) or [sides for group in groups for sides in look(look_into(group))]


def _rainds_key(stem: str) -> str:
    """pie-rain-7, pie-rd-rain-7, pie-norain-7 -> pie-7; the real photographs are plain numbers."""
    return re.sub(r"^(pie-)?(?:norain|rd[-_]rain|rd[-_]rs|rain)-", r"\1", stem)


def _rainds(folder: Folder) -> list[Sides]:
    """Streaks, alone and with drops on the lens; drops alone are another task."""
    kind = partial(_rainy, degraded_key=_rainds_key, clean_key=_rainds_key)
    look = partial(_side_by_side, folder, clean=["gt"], kind=kind)
    return look(degraded=["rainstreak"]) + look(degraded=["rainstreak_raindrop"])


def _rain1400_key(stem: str) -> str:
    """901_14 -> 901."""
    return stem.rpartition("_")[0] or stem


_rain1400 = partial(
    _side_by_side,
    degraded=["rainy_image"],
    clean=["ground_truth"],
    kind=partial(_rainy, degraded_key=_rain1400_key, many=True),
)


def _rain12_key(stem: str) -> str:
    """001_in and 001_gt -> 001; some copies have plain numbers."""
    return re.sub(r"_(in|gt)$", "", stem)


_rain12 = partial(
    _side_by_side,
    degraded=["input", "rainy"],
    clean=["groundtruth"],
    kind=partial(_rainy, degraded_key=_rain12_key, clean_key=_rain12_key),
)


_generic = partial(_side_by_side, degraded=["input"], clean=["target", "gt"])


def _rain_key(stem: str) -> str | None:
    """rain-001 -> 001; not rainstreak-001 nor rainregion-001, which lie beside it."""
    return stem.removeprefix("rain-") if stem.startswith("rain-") else None


def _norain_key(stem: str) -> str | None:
    return stem.removeprefix("norain-") if stem.startswith("norain-") else None


def _either_rain_key(stem: str) -> str:
    """rain-001, norain-001, and norain-001x2 (the later release's rainy images) -> 001."""
    return re.sub(r"^(?:no)?rain-|x2$", "", stem)


def _rain100(folder: Folder) -> list[Sides]:
    by_name = partial(_rainy, degraded_key=_either_rain_key, clean_key=_either_rain_key)
    apart = _side_by_side(folder, degraded=["rain", "rainy"], clean=["norain"], kind=by_name)
    if apart:
        return apart
    reordered = _generic(folder, kind=by_name)
    if reordered and _any_named(images_in(reordered[0].clean), _norain_key):
        return reordered
    if not _any_named(folder.images, _norain_key):
        return []
    rainy = folder.first(["rainy", "rain"])
    if rainy:
        return [_rainy(rainy, folder.path, degraded_key=_either_rain_key, clean_key=_norain_key)]
    if _any_named(folder.images, _rain_key):
        return [_rainy(folder.path, folder.path, degraded_key=_rain_key, clean_key=_norain_key)]
    return []


def _any_named(images: Iterable[Path], key_of: Key) -> bool:
    return any(key_of(path.stem.lower()) is not None for path in images)


# The first that fits is taken: names that only one dataset uses stand before names that all use.
LAYOUTS: tuple[Layout, ...] = (
    Layout("cmudrn", "rainy/ and snowy/, or one of them, with clean/", _synthesized),
    Layout("CSD", "Snow/ Gt/ (Mask/)", _csd),
    Layout("Snow100K", "synthetic/ gt/ (mask/), also in Snow100K-S/ -M/ -L/", _snow100k),
    Layout("SRRS", "Syn/ gt/ (Combine Snow/)", _srrs),
    Layout("RainDS", "rainstreak/ rainstreak_raindrop/ gt/", _rainds),
    Layout("Rain1400", "rainy_image/ ground_truth/", _rain1400),
    Layout("Rain12", "input/ groundtruth/", _rain12),
    Layout("Rain100", "rain-1.png norain-1.png, in one folder or in rain/ norain/", _rain100),
    Layout("pairs", "input/ target/ or input/ gt/", _generic),
)


# ---- Finding a dataset


@dataclass(frozen=True)
class _Dataset:
    """One dataset, before its images are paired."""

    layout: Layout
    root: Path
    parts: Mapping[Split, Sequence[Sides]]  # TRAIN and TEST, or one of them; ALL alone: nothing says

    @property
    def weather(self) -> Weather | None:
        return next(sides.weather for part in self.parts.values() for sides in part)


def _datasets(folder: Folder, *, deeper: bool = True, said: Split = Split.ALL) -> list[_Dataset]:
    """The dataset that the folder is, else those in its subfolders.

    said: the split that the names of the folders above tell.
    """
    said = _split_in_name(own_name(folder.path)) or said
    recognised = _recognised(folder)
    if recognised:
        layout, sides = recognised
        return [_Dataset(layout, folder.path, {said: sides})]
    halves = _train_and_test(folder)
    if halves:
        return [halves]
    below = list(folder.folders.values())
    if len(below) == 1 and not folder.images:  # archives wrap a dataset in folder after folder
        return _datasets(look_into(below[0]), deeper=deeper, said=said)
    if not deeper:
        return []
    return [dataset for path in below for dataset in _datasets(look_into(path), deeper=False, said=said)]


def _recognised(folder: Folder) -> tuple[Layout, Sequence[Sides]] | None:
    looked = ((layout, layout.sides(folder)) for layout in LAYOUTS)
    return next(((layout, sides) for layout, sides in looked if sides), None)


def _train_and_test(folder: Folder) -> _Dataset | None:
    """Train/ and Test/, or one of them, of one layout, and no other dataset beside them."""
    halves: dict[Split, _Dataset] = {}
    for name, path in folder.folders.items():
        half = HALF.fullmatch(name)
        if half:
            found = _datasets(look_into(path), deeper=False)
            if len(found) > 1 or (found and Split(half[1]) in halves):
                return None
            halves |= {Split(half[1]): dataset for dataset in found}
        elif not name.startswith("val") and _recognised(look_into(path)):
            return None
    if len({dataset.layout.name for dataset in halves.values()}) != 1:
        return None
    in_order = [split for split in (Split.TRAIN, Split.TEST) if split in halves]
    parts: dict[Split, Sequence[Sides]] = {
        split: [sides for part in halves[split].parts.values() for sides in part] for split in in_order
    }
    return _Dataset(halves[in_order[0]].layout, folder.path, parts)


def _split_in_name(name: str) -> Split | None:
    """RainTrainL, train, train2500, Snow100K-training; likewise test, and well-known test sets."""
    name = name.lower()
    said = re.search(r"(?<![a-z])(train|test)(ing)?(set)?(?![a-z])", name)
    if said:
        return Split(said[1])
    if re.fullmatch(r"raintrain[hl]", name):
        return Split.TRAIN
    return Split.TEST if re.fullmatch(r"rain100[hl]|rain12|snow100k-[sml]", name) else None


def _of_weather(dataset: _Dataset, weather: Weather | None) -> _Dataset:
    """The dataset without its other weather. Raises UsageError where that leaves nothing, or two."""
    held = {sides.weather for part in dataset.parts.values() for sides in part}
    if weather is None and len(held) > 1:
        raise UsageError(f"{dataset.root}: holds rain and snow", fix="choose the weather: rain or snow")
    if weather is None or held == {None}:
        return dataset
    if weather not in held:
        raise UsageError(
            f"{dataset.root}: the {dataset.layout.name} layout holds no {weather.value}",
            fix="choose the other weather; if these pairs are your own, name the folders input/ and target/",
        )
    parts = {
        split: [sides for sides in part if sides.weather is weather] for split, part in dataset.parts.items()
    }
    return replace(dataset, parts=parts)


def _pairs_of(dataset: _Dataset, split: Split) -> list[Pair]:
    if split in dataset.parts:
        return _paired(dataset, split)
    if split is Split.ALL:
        return [pair for part in dataset.parts for pair in _paired(dataset, part)]
    if len(dataset.parts) == 1 and Split.ALL not in dataset.parts:
        (only,) = dataset.parts
        other = Split.TEST if only is Split.TRAIN else Split.TRAIN
        lacking = f"the {other.value} set" if split is other else "the folder that holds both"
        raise UsageError(
            f"{dataset.root}: is a {only.value} set, with no {other.value} set beside it",
            fix=f"give {lacking}, or choose the split all to take this one whole",
        )
    return _cut([_paired(dataset, part) for part in dataset.parts], split, dataset.root)


def _paired(dataset: _Dataset, part: Split) -> list[Pair]:
    return [pair for sides in dataset.parts[part] for pair in pair_up(sides, dataset.root)]


def _cut(parts: Sequence[Sequence[Pair]], split: Split, root: Path) -> list[Pair]:
    """The first 70 % of the clean images with all their pairs, or the rest: no scene stands on both sides."""
    # Part by part: by their paths alone, Test/ would stand before Train/.
    in_order = (sorted({pair.clean for pair in pairs}, key=natural_order) for pairs in parts)
    cleans = [clean for part in in_order for clean in part]
    trained = set(cleans[: len(cleans) * TRAIN_TENTHS // 10])
    first = split in (Split.TRAIN, Split.PAPER_TRAIN)
    part = [pair for pairs in parts for pair in pairs if (pair.clean in trained) is first]
    if not part:
        raise UsageError(
            f"{root}: {counted(len(cleans), 'scene')} cannot be cut into train and test",
            fix="choose the split all",
        )
    return part


def _no_layout(folder: Path) -> UsageError:
    seen = look_into(folder)
    if seen.images:
        return UsageError(
            f"{folder}: {counted(len(seen.images), 'photograph')}, not pairs of degraded and clean images",
            fix="train on it directly: rain and snow are rendered on clean photographs",
        )
    if not any(path.suffix.lower() in READABLE_SUFFIXES for path in folder.rglob("[!.]*")):
        return UsageError(f"{folder}: no images in it", fix="give the folder of a dataset")
    known = "; ".join(f"{layout.name}: {layout.tree}" for layout in LAYOUTS)
    names = [f"{path.name}/" for path in seen.folders.values()]
    return UsageError(
        f"{folder}: no known layout of pairs in {listed(names, most=8)}",
        fix=f"lay the folders out as one of these. {known}. Clean photographs alone are trained on directly",
    )
