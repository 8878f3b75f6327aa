"""What a synthesis reads and where it writes, found out before the first photograph."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path

from cmudrn.errors import UsageError
from cmudrn.formats import READABLE_SUFFIXES
from cmudrn.train.layouts import refuse_pairs
from cmudrn.train.pairs import natural_order
from cmudrn.wording import listed

__all__ = ["MANIFEST", "Photo", "clear_out", "find_clean", "make_out"]

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Photo:
    """One clean photograph."""

    path: Path
    source: str  # its path below the folder that was given: the same wherever that lies
    name: str  # in OUT, without suffix; no other's, not even in other letter case


def find_clean(sources: Sequence[Path]) -> list[Photo]:
    """Every file once, each with a name of its own.

    Raises UsageError for a source that is not there, a folder without photographs or one that cannot be read,
    and for a paired dataset.
    """
    photos: dict[Path, Photo] = {}
    taken: set[str] = set()
    for source in sources:
        if not source.exists():
            raise UsageError(f"{source}: no such file or folder", fix="name photographs, or folders of them")
        is_folder = source.is_dir()
        found = list(images_below(source, set())) if is_folder else [source]
        if not found:
            raise UsageError(
                f"{source}: no photographs in it", fix=f"what is read: {' '.join(sorted(READABLE_SUFFIXES))}"
            )
        if is_folder:
            refuse_pairs(source, found)
        for path in found:
            if real(path) not in photos:
                below = path.relative_to(source).as_posix() if is_folder else path.name
                photos[real(path)] = Photo(path, below, free_name(path.stem, taken))
    return list(photos.values())


def images_below(folder: Path, seen: set[Path]) -> Iterator[Path]:
    """In natural order, a folder's own before those deeper; links are followed, no folder is seen twice."""
    seen.add(real(folder))
    try:
        entries = [path for path in sorted(folder.iterdir(), key=natural_order) if path.name[0] != "."]
    except OSError as exc:
        raise UsageError(f"{folder}: {exc.strerror}", fix="make it readable, or name other folders") from exc
    folders = [path for path in entries if path.is_dir()]
    yield from (path for path in entries if path.suffix.lower() in READABLE_SUFFIXES and not path.is_dir())
    for below in folders:
        if real(below) not in seen:
            yield from images_below(below, seen)


def real(path: Path) -> Path:
    """The path without links. Path.resolve raises RuntimeError for a link to itself; this does not."""
    return Path(os.path.realpath(path))


def free_name(stem: str, taken: set[str]) -> str:
    """The stem, with -2, -3 and so on where it is taken: pairs are matched by names without letter case."""
    stem = stem.lstrip(".") or "photo"
    names = chain([stem], (f"{stem}-{number}" for number in count(2)))
    name = next(name for name in names if name.lower() not in taken)
    taken.add(name.lower())
    return name


def make_out(out: Path, sources: Sequence[Path], photos: Sequence[Photo], *, overwrite: bool) -> None:
    """Makes OUT. Raises UsageError where it cannot be, holds what stays, or lies with the sources."""
    inside = [source for source in sources if source.is_dir() and real(out).is_relative_to(real(source))]
    inside += [photo.path for photo in photos if real(photo.path).is_relative_to(real(out))]
    if inside:
        raise UsageError(f"{out} and the source {inside[0]}: one lies in the other", fix="give another OUT")
    replaced_files(out, overwrite=overwrite)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise UsageError(f"{out}: {exc.strerror}", fix="give another OUT") from exc
    if not os.access(out, os.W_OK | os.X_OK):
        raise UsageError(f"{out}: no permission to write there", fix="give another OUT")


def replaced_files(out: Path, *, overwrite: bool) -> list[Path]:
    """What an earlier run made in OUT, the manifest first. Raises UsageError for anything else in it."""
    if not out.is_dir() or not any(out.iterdir()):
        return []
    if not overwrite:
        raise UsageError(f"{out} is not empty", fix="give another OUT, or --overwrite to replace a dataset")
    made = files_of_manifest(out / MANIFEST)
    there = sorted(out.rglob("*"))
    others = [name for path in there if (name := path.relative_to(out).as_posix()) not in made]
    if others:
        raise UsageError(
            f"{out} holds files that the manifest of no earlier run lists: {listed(others)}",
            fix="give another OUT, or remove them yourself: a run that was cut off leaves no manifest",
        )
    return sorted((path for path in there if not path.is_dir()), key=lambda path: path.name != MANIFEST)


def clear_out(out: Path, *, overwrite: bool) -> None:
    """Removes what an earlier run made there. Raises UsageError as make_out does."""
    files = replaced_files(out, overwrite=overwrite)
    for file in files:
        file.unlink()
    for folder in {file.parent for file in files} - {out}:  # an empty rainy/ would pass for a dataset of rain
        folder.rmdir()


def files_of_manifest(path: Path) -> set[str]:
    """All that it lists, their folders and itself; nothing where it is none of ours."""
    try:
        images = json.loads(path.read_text(encoding="utf-8"))["images"]
        sides = [side for image in images for side in image.values() if isinstance(side, dict)]
        files = [str(side["file"]) for side in sides]
        return {MANIFEST, *files, *(file.partition("/")[0] for file in files)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return set()
