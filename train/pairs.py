"""Pairs of degraded and clean images: what a set of them is, and how the files of two folders become pairs.

How a file's name tells its partner is a key on each side: two images are a pair when their keys are equal.
`train/layouts.py` knows which folders of which dataset are the sides, and what their keys are.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from pathlib import Path
from typing import TypeAlias

from cmudrn.errors import ImageError, TrainingError, UsageError
from cmudrn.formats import READABLE_SUFFIXES
from cmudrn.images import Picture, read_header, read_picture
from cmudrn.wording import counted, listed

__all__ = [
    "Folder",
    "Key",
    "Pair",
    "PairedSet",
    "Sides",
    "Split",
    "Weather",
    "check_pixels",
    "check_sizes",
    "images_in",
    "look_into",
    "natural_order",
    "own_name",
    "pair_up",
    "share_names",
]


class Weather(str, Enum):
    """What lies over the degraded images of a set."""

    RAIN = "rain"
    SNOW = "snow"


class Split(str, Enum):
    """Which part of a set. ALL takes it whole, whatever its folders say, and so does the paper's cut."""

    TRAIN = "train"
    TEST = "test"
    ALL = "all"
    PAPER_TRAIN = "paper-train"  # of CMUDRN's paper: the first 70 % of the whole, in order
    PAPER_TEST = "paper-test"  # and the last 30 %


@dataclass(frozen=True)
class Pair:
    """One degraded image and its clean one; several pairs may share the clean image."""

    degraded: Path
    clean: Path
    mask: Path | None = None  # where the weather lies, in sets that say so

    @property
    def files(self) -> tuple[Path, Path]:
        """Both images."""
        return self.degraded, self.clean


@dataclass(frozen=True)
class PairedSet:
    """The pairs of one dataset in natural order, and where they came from."""

    layout: str  # a name of layouts.LAYOUTS
    root: Path  # the dataset's own folder, which may lie below the one that was given
    weather: Weather | None  # None: neither the layout nor the caller says
    split: Split
    pairs: tuple[Pair, ...]

    @property
    def name(self) -> str:
        """The root's last name, without where it lies on this machine."""
        return own_name(self.root)

    def describe(self) -> str:
        """One line for reports: `CSD layout in CSD-2021, train: 8,000 pairs (snow)`."""
        weather = f" ({self.weather.value})" if self.weather else ""
        count = counted(len(self.pairs), "pair")
        return f"{self.layout} layout in {self.name}, {self.split.value}: {count}{weather}"

    def sha256(self) -> str:
        """Over the names and bytes of all degraded and clean images, in order; reads each once.

        Folders and masks stay out of it: a set that was moved, or came without masks, is the same set.
        Raises TrainingError for a file that cannot be read.
        """
        return self._sha256

    def manifest(self) -> dict[str, str | int | None]:
        """What names this set in a report, wherever it is read; goes into JSON as it is."""
        return {
            "layout": self.layout,
            "root": self.name,
            "split": self.split.value,
            "weather": self.weather.value if self.weather else None,
            "count": len(self.pairs),
            "sha256": self.sha256(),
        }

    @cached_property
    def _sha256(self) -> str:
        contents: dict[Path, bytes] = {}  # a clean image of Rain1400 stands in fourteen pairs
        digest = hashlib.sha256()
        for pair in self.pairs:
            for path in pair.files:
                if path not in contents:
                    contents[path] = _digest_of(path)
                digest.update(path.name.encode(errors="surrogateescape") + b"\0" + contents[path])
        return digest.hexdigest()


def check_sizes(pairs: Iterable[Pair], *, crop_px: int | None = None, window_px: int | None = None) -> None:
    """Compare the sizes in the headers of all pairs; nothing is decoded.

    crop_px: side of the training crop, which every image must hold. window_px: of the metrics' window.
    Raises TrainingError that names the first three bad pairs and how many there are.
    """
    sizes: dict[Path, tuple[int, int]] = {}  # height, width; a clean image may stand in many pairs
    wrong: list[str] = []
    for pair in pairs:
        try:
            for path in pair.files:
                if path not in sizes:
                    header = read_header(path)
                    sizes[path] = (header.height, header.width)
        except ImageError as exc:
            wrong.append(exc.what)
            continue
        degraded, clean = sizes[pair.degraded], sizes[pair.clean]
        if degraded != clean:
            wrong.append(f"{pair.degraded} is {_shown(degraded)}, {pair.clean} is {_shown(clean)}")
        elif crop_px is not None and min(degraded) < crop_px:
            wrong.append(f"{pair.degraded} is {_shown(degraded)}, smaller than the crop of {crop_px}")
        elif window_px is not None and min(degraded) < window_px:
            wrong.append(f"{pair.degraded} is {_shown(degraded)}, smaller than SSIM's window of {window_px}")
    if wrong:
        raise TrainingError(
            f"{counted(len(wrong), 'pair')} of no use (height x width): {listed(wrong, between='; ')}",
            fix="replace or remove both images of each" + (", or use a smaller crop" if crop_px else ""),
        )


def _only_decoded(path: Path, picture: Picture) -> None:
    """Whom a file's pixels don't interest, only that it has them all."""


def check_pixels(
    paths: Iterable[Path],
    see: Callable[[Path, Picture], None] = _only_decoded,
    *,
    workers: int = min(8, os.cpu_count() or 1),
) -> None:
    """Decode every file once, to its end; a file that is named twice, once.

    see: gets each as it was decoded, in one of the threads.
    Raises TrainingError that names the first three that cannot be read.
    """

    def problem(path: Path) -> str | None:
        try:
            picture = read_picture(path)
        except ImageError as exc:
            return exc.what
        see(path, picture)
        return None

    with ThreadPoolExecutor(workers) as pool:
        problems = [said for said in pool.map(problem, dict.fromkeys(paths)) if said]
    if problems:
        raise TrainingError(
            listed(problems, between="; "), fix="fetch these files again, or remove them with their partners"
        )


# A file's stem in lower case -> what its partner shares with it; None: no image of this side.
Key: TypeAlias = Callable[[str], "str | None"]


@dataclass(frozen=True)
class Sides:
    """Two folders whose images belong together, and how their names say so."""

    degraded: Path
    clean: Path
    mask: Path | None = None
    weather: Weather | None = None
    degraded_key: Key = str  # equal stems, whatever the suffixes
    clean_key: Key = str
    many: bool = False  # several degraded images of one clean image


def pair_up(sides: Sides, root: Path) -> list[Pair]:
    """All pairs of two sides, in natural order of the degraded images.

    root: the dataset's folder, for messages.
    Raises TrainingError for an empty side, images without a partner, two that would be one image of a pair.
    """
    degraded = _by_key(sides.degraded, sides.degraded_key)
    clean = _by_key(sides.clean, sides.clean_key)
    masks = _by_key(sides.mask, sides.clean_key) if sides.mask else {}
    for folder, images in ((sides.degraded, degraded), (sides.clean, clean)):
        if not images:
            raise TrainingError(
                f"{folder}: no images in it", fix=f"what is read: {' '.join(sorted(READABLE_SUFFIXES))}"
            )
    alone = [path for key, paths in degraded.items() if key not in clean for path in paths]
    alone += [path for key, paths in clean.items() if key not in degraded for path in paths]
    if alone:
        raise TrainingError(
            f"{root}: {counted(len(alone), 'image')} without a partner: {_below(root, alone)}",
            fix="complete the download, or remove them; docs/datasets.md says how names are matched",
        )
    for paths in [*clean.values(), *(() if sides.many else degraded.values())]:
        if len(paths) > 1:
            raise TrainingError(
                f"{root}: {_below(root, paths)} would be the same image of one pair", fix="keep one of them"
            )
    pairs = (
        Pair(path, clean[key][0], next(iter(masks.get(key, ())), None))
        for key, paths in degraded.items()
        for path in paths
    )
    return sorted(pairs, key=lambda pair: natural_order(pair.degraded))


def share_names(sides: Sides) -> bool:
    """Whether any image of one side has its partner on the other, by their names."""
    degraded = _by_key(sides.degraded, sides.degraded_key)
    return not degraded.keys().isdisjoint(_by_key(sides.clean, sides.clean_key))


@dataclass(frozen=True)
class Folder:
    """What one look into a folder shows; hidden files and what archivers leave behind are not seen."""

    path: Path
    folders: Mapping[str, Path]  # by their lower-case names, in natural order
    images: tuple[Path, ...]  # in natural order

    def first(self, names: Iterable[str]) -> Path | None:
        """The subfolder of the first of these lower-case names that is there."""
        return next((self.folders[name] for name in names if name in self.folders), None)


def look_into(path: Path) -> Folder:
    """One folder's entries. Raises UsageError where it is none or cannot be read."""
    try:
        entries = sorted(path.iterdir(), key=natural_order)
    except OSError as exc:
        raise UsageError(f"{path}: {exc.strerror}", fix="give the folder of a dataset") from exc
    seen = [entry for entry in entries if not entry.name.startswith(".") and entry.name != "__MACOSX"]
    images = [entry for entry in seen if entry.suffix.lower() in READABLE_SUFFIXES and entry.is_file()]
    return Folder(path, {entry.name.lower(): entry for entry in seen if entry.is_dir()}, tuple(images))


def images_in(path: Path) -> tuple[Path, ...]:
    """Its images; where there are none, those of its only subfolder (Rain100's rain/X2/)."""
    folder = look_into(path)
    if not folder.images and len(folder.folders) == 1:
        folder = look_into(next(iter(folder.folders.values())))
    return folder.images


def own_name(path: Path) -> str:
    """Its last name, also for `.` and `..`; a link goes by its own name, not by its target's."""
    return path.name if path.name not in ("", "..") else path.resolve().name


def natural_order(path: Path) -> tuple[list[tuple[str, int]], str]:
    """2 before 10, and capitals beside their small letters; the path itself decides between equals."""
    parts = re.findall(r"(\D*)(\d*)", str(path).lower())
    return [(text, int(digits or -1)) for text, digits in parts], str(path)


def _by_key(folder: Path, key_of: Key) -> dict[str, list[Path]]:
    images: dict[str, list[Path]] = {}
    for path in images_in(folder):
        key = key_of(path.stem.lower())
        if key is not None:
            images.setdefault(key, []).append(path)
    return images


def _below(root: Path, paths: Sequence[Path]) -> str:
    return listed([path.relative_to(root).as_posix() for path in paths])


def _shown(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def _digest_of(path: Path) -> bytes:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    except OSError as exc:
        raise TrainingError(f"{path}: {exc.strerror}", fix="mend the file, or remove the pair") from exc
    return digest.digest()
