"""What a job reads and where each result goes, found out before anything is touched."""

from __future__ import annotations

import mimetypes
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NoReturn

from cmudrn.deploy.job import Existing, InferJob
from cmudrn.deploy.keep_options import HEATMAP_SUFFIX, heatmap_beside
from cmudrn.deploy.report import ItemResult
from cmudrn.deploy.video.names import MUXERS, is_clip
from cmudrn.errors import UsageError
from cmudrn.formats import READABLE_SUFFIXES, ImageFormat, writable
from cmudrn.images import is_change_map

__all__ = ["Item", "check_sources", "find_items", "output_folder"]

NAME_BYTES = 255  # of a file, on all usual file systems
Identity = tuple[int, int]  # device and inode: one file or folder, whatever its names


@dataclass(frozen=True, kw_only=True)
class Item:
    source: Path
    target: Path
    problem: str = ""  # why it cannot be read at all; the pipeline reports it as failed
    done: ItemResult | None = None  # by an earlier session, if that still holds


@dataclass(frozen=True, kw_only=True)
class _Root:
    """One source as it was given, and the file or folder that becomes of it."""

    source: Path
    target: Path
    is_folder: bool


@dataclass(frozen=True, kw_only=True)
class _Visit:
    """One folder: what it is, and its images in order of their names, lazily and once."""

    identity: Identity | None
    target: Path
    is_empty: bool = False
    items: Iterable[Item]  # a hundred thousand at once would be 80 MB


def check_sources(job: InferJob, is_ours: Callable[[Path], bool] = lambda target: False) -> int:
    """Walks all sources once, and touches nothing. Returns how many items `find_items` will give.

    is_ours: whether a target was written by the run that is gone on with, or was to be.
    Raises UsageError for all that would only surface half-way: a missing source, one that is a target or
    contains it, a target that is there already, two sources for one target, no way to write.
    """
    count = 0
    read: set[Identity] = set()
    written: dict[Identity, Path] = {}
    roots = _roots(job)
    given = [(Item(source=root.source, target=root.target), root.is_folder) for root in roots]
    _need_own_targets(
        one for item, is_folder in given for one in ([item] if is_folder else _all_written(item, job))
    )
    # Those in folders are guarded by their folders, and are too many to be held here.
    files = {_identity(root.source): root for root in roots if not root.is_folder}
    claimed = {
        _real(one.target): one.source
        for item, is_folder in given
        if not is_folder
        for one in _all_written(item, job)
    }
    for root in roots:
        before = count
        for visit in _visits(root, job):
            if visit.identity:
                read.add(visit.identity)
            if not visit.is_empty:
                written |= _writable_chain(visit.target)
            items = _with_own_targets(visit, claimed, job) if root.is_folder else visit.items
            for item in items:
                _check_item(item, job, files.keys(), is_ours)
                count += 1
        if count == before:
            raise UsageError(
                f"{root.source}: no images in it",
                fix=f"what is read: {' '.join(sorted(READABLE_SUFFIXES | MUXERS.keys()))}",
            )
    for identity in read & written.keys():
        _refuse_out_in_source(written[identity])
    return count


def find_items(job: InferJob) -> Iterator[Item]:
    """The items in order, lazily: one folder's names are in memory at a time."""
    for root in _roots(job):
        for visit in _visits(root, job):
            yield from visit.items


def output_folder(job: InferJob) -> Path | None:
    """The one folder that all results go to, in or below it; None for one image, and for several places."""
    roots = _roots(job)
    if len(roots) == 1:
        return roots[0].target if roots[0].is_folder else None
    return job.out


def _roots(job: InferJob) -> list[_Root]:
    for source in job.sources:
        try:
            source.stat()
        except OSError as exc:
            raise UsageError(f"{source}: {exc.strerror}", fix="name an image or a folder") from exc
    if job.out is None:
        return [_beside(source, job) for source in job.sources]
    if len(job.sources) > 1:
        return [_inside(job.out, source, job) for source in job.sources]
    source, out = job.sources[0], job.out
    if source.is_dir():
        return [_Root(source=source, target=out, is_folder=True)]
    if os.path.isdir(out) or not _names_a_file(out):  # noqa: PTH112 (Path's raises for long names)
        return [_inside(out, source, job)]
    if job.format and _with_format(out.name, job) != out.name:
        raise UsageError(f"-o {out} contradicts --format {job.format.value}", fix="give one of the two")
    if is_clip(source) is not is_clip(out) or not (is_clip(out) or writable(out.suffix)):
        raise UsageError(
            f"-o {out}: {out.suffix} is not written{' of a clip' if is_clip(source) else ''}",
            fix=f"name a {'.mp4, .mkv or .mov' if is_clip(source) else '.png, .jpg, .tif or .webp'} file",
        )
    return [_Root(source=source, target=out, is_folder=False)]


def _beside(source: Path, job: InferJob) -> _Root:
    """photos/ -> photos-restored/, a.jpg -> a-restored.jpg."""
    named = source if source.name not in ("", "..") else source.resolve()
    if not named.name:
        raise UsageError(f"{source}: nothing can stand beside it", fix="say where to write: -o OUT")
    if source.is_dir():
        return _Root(source=source, target=named.with_name(f"{named.name}-restored"), is_folder=True)
    target = Path(_with_format(source.name, job))
    return _Root(
        source=source, target=source.with_name(f"{target.stem}-restored{target.suffix}"), is_folder=False
    )


def _inside(out: Path, source: Path, job: InferJob) -> _Root:
    is_folder = source.is_dir()
    name = source.name if source.name not in ("", "..") else source.resolve().name
    return _Root(
        source=source, target=out / (name if is_folder else _with_format(name, job)), is_folder=is_folder
    )


def _names_a_file(out: Path) -> bool:
    kind, _ = mimetypes.guess_type(out.name)
    is_known = out.suffix.lower() in READABLE_SUFFIXES or is_clip(out)
    return is_known or (kind or "").startswith(("image/", "video/"))


def _with_format(name: str, job: InferJob) -> str:
    suffix = Path(name).suffix
    if job.format is None or is_clip(name) or ImageFormat.of(suffix) is job.format:
        return name
    return (name.removesuffix(suffix) if ImageFormat.of(suffix) else name) + job.format.suffix


def _visits(root: _Root, job: InferJob) -> Iterator[_Visit]:
    """The folder and all below it, depth first; a file is a visit of one item and no folder."""
    if not root.is_folder:
        problem = _problem(root.source)
        is_known = is_clip(root.target) or root.target.suffix.lower() in READABLE_SUFFIXES
        if not problem and not is_known:
            problem = "not an image by its name (to try it all the same, say what to write: --format png)"
        item = Item(source=root.source, target=root.target, problem=problem)
        yield _Visit(identity=None, target=root.target.parent, items=(item,))
        return
    # A link that leads back to what holds the source is a loop too, hence its parents.
    above = frozenset(_identity(parent) for parent in root.source.resolve().parents)
    stack = [(root.source, root.target, above)]
    while stack:
        folder, target, above = stack.pop()
        try:
            identity = _identity(folder)
            if identity in above:
                continue
            images, folders = _listing(folder)
        except OSError as exc:
            unread = Item(source=folder, target=target, problem=f"folder not read: {exc.strerror}")
            yield _Visit(identity=None, target=target.parent, items=(unread,))
            continue
        items = _items(folder, target, images, job)
        yield _Visit(identity=identity, target=target, is_empty=not images, items=items)
        below = above | {identity}
        stack.extend((folder / name, target / name, below) for name in reversed(folders))


def _items(folder: Path, target: Path, names: Iterable[str], job: InferJob) -> Iterator[Item]:
    for name in names:
        yield _item(folder / name, target / _with_format(name, job), job)


def _item(source: Path, target: Path, job: InferJob) -> Item:
    problem = _problem(source)
    item = Item(source=source, target=target, problem=problem)
    # One such name must not stop the job, for it may be a stranger's.
    too_long = [len(os.fsencode(one.target.name)) > NAME_BYTES for one in _all_written(item, job)]
    if not problem and any(too_long):
        whose = "its new name" if too_long[0] else "the name of its map"
        return replace(item, problem=f"{whose} would have more than {NAME_BYTES} bytes")
    return item


def _listing(folder: Path) -> tuple[list[str], list[str]]:
    """Names of the images and of the folders, each sorted; links are followed."""
    images, folders = [], []
    with os.scandir(folder) as entries:
        for entry in entries:
            if _is_folder(entry):
                folders.append(entry.name)
            elif _is_image_name(entry.name) and not _is_our_map(entry):
                images.append(entry.name)
    return sorted(images), sorted(folders)


def _is_our_map(entry: os.DirEntry[str]) -> bool:
    """What `--heatmap` has drawn is no photograph. A pipe of that name is not opened."""
    path = Path(entry.path)
    return entry.name.endswith(HEATMAP_SUFFIX) and not _problem(path) and is_change_map(path)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or to where we may not look
        return False


def _is_image_name(name: str) -> bool:
    """By its suffix; neither what macOS lays beside a file (._a.jpg) nor our own half-written ones."""
    hidden = name.startswith("._") or (name.startswith(".") and ".part" in name)
    return not hidden and (Path(name).suffix.lower() in READABLE_SUFFIXES or is_clip(name))


def _problem(source: Path) -> str:
    """Why a source must not even be opened: a pipe would block for ever."""
    try:
        mode = source.stat().st_mode
    except OSError as exc:
        return exc.strerror or "cannot be read"
    return "" if stat.S_ISREG(mode) else "not a regular file"


def _identity(path: Path) -> Identity:
    status = path.stat()
    return status.st_dev, status.st_ino


def _heatmap_of(item: Item) -> Item:
    """The map of its changes, as if it were an image of its own."""
    return Item(source=item.source, target=heatmap_beside(item.target), problem=item.problem)


def _all_written(item: Item, job: InferJob) -> tuple[Item, ...]:
    """An item, and its map where one is asked for."""
    has_map = job.keep.heatmap and not is_clip(item.source)
    return (item, _heatmap_of(item)) if has_map else (item,)


def _check_item(item: Item, job: InferJob, files: Set[Identity], is_ours: Callable[[Path], bool]) -> None:
    if item.problem:
        return
    known = partial(is_ours, item.target)  # a map goes with its image
    is_left = job.existing is Existing.SKIP and item.target.exists()  # stays, and gets no map
    written = (item,) if is_left else _all_written(item, job)
    for one in written:
        _check_target(one, job, files, known, is_left=is_left)
    for one in written[1:] if job.existing is not Existing.OVERWRITE else ():
        _check_is_ours(one.target)


def _check_is_ours(drawn: Path) -> None:
    """Raises UsageError where something else than a map of ours is in a map's place."""
    if os.path.lexists(drawn) and (_problem(drawn) or not is_change_map(drawn)):
        raise UsageError(
            f"{drawn} is there already, and no map of ours", fix="move it, or leave --heatmap away"
        )


def _check_target(
    item: Item, job: InferJob, files: Set[Identity], is_ours: Callable[[], bool], *, is_left: bool
) -> None:
    suffix = item.target.suffix
    if suffix.lower() in READABLE_SUFFIXES and not writable(suffix):
        raise UsageError(
            f"{item.source}: {suffix} is read but not written", fix="say what to write: --format png"
        )
    there = _status(item.target)
    if there and stat.S_ISDIR(there.st_mode):
        raise UsageError(f"{item.target}: a folder is in the way", fix="give another OUT")
    if there and os.path.samestat(there, item.source.stat()):
        raise UsageError(
            f"{item.source} would be its own target", fix="give another OUT; sources are never replaced"
        )
    if there and (there.st_dev, there.st_ino) in files and not is_left:
        raise UsageError(
            f"{item.target} is a source, and the target of {item.source}",
            fix="give another OUT; sources are never replaced",
        )
    if job.existing in (Existing.REFUSE, Existing.RESUME) and os.path.lexists(item.target):
        if job.existing is Existing.REFUSE:
            fix = "add --resume to go on with the run that wrote it, --overwrite or --skip-existing"
            raise UsageError(f"{item.target} is there already", fix=fix)
        if not is_ours():
            fix = "move it, or go on with --skip-existing or --overwrite"
            raise UsageError(f"{item.target} is there already, and not of the run to resume", fix=fix)


def _status(target: Path) -> os.stat_result | None:
    """What is there already, links followed. Raises UsageError where nothing can be."""
    try:
        return target.stat()
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise UsageError(f"{target}: {exc.strerror}", fix="give another OUT") from exc


def _real(target: Path) -> Path:
    """One name for one place: a link is replaced, so its own name counts, but its folder's does not."""
    return target.parent.resolve() / target.name


def _need_own_targets(items: Iterable[Item]) -> None:
    """Raises UsageError where two share one."""
    seen: dict[Path, Path] = {}
    for item in items:
        target = _real(item.target)
        if target in seen:
            _refuse_shared_target(seen[target], item)
        seen[target] = item.source


def _with_own_targets(visit: _Visit, claimed: Mapping[Path, Path], job: InferJob) -> Iterator[Item]:
    """A folder's items, lazily. Raises UsageError at the second one of a target.

    claimed: targets of other sources, and whose they are.
    """
    folder = visit.target.resolve()
    seen: dict[str, str] = {}  # by name alone: one folder's items lie in one folder
    for item in visit.items:
        for one in _all_written(item, job):
            name = one.target.name
            if name in seen:
                _refuse_shared_target(item.source.with_name(seen[name]), one)
            if claimed and folder / name in claimed:
                _refuse_shared_target(claimed[folder / name], one)
            seen[name] = item.source.name
        yield item


def _refuse_shared_target(source: Path, item: Item) -> NoReturn:
    raise UsageError(
        f"{source} and {item.source} would both become {item.target}",
        fix="restore them one after the other, each to an OUT of its own",
    )


def _writable_chain(folder: Path) -> dict[Identity, Path]:
    """`folder`, where it is there, and what holds it. Raises UsageError where it cannot be written to."""
    nearest = folder
    while not os.path.lexists(nearest):
        nearest = nearest.parent
    if not nearest.is_dir():
        raise UsageError(
            f"{nearest}: a file is in the way of a folder", fix="give another OUT, or move the file"
        )
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise UsageError(f"{nearest}: no permission to write there", fix="give another OUT")
    real = nearest.resolve()
    return {_identity(path): folder for path in (real, *real.parents)}


def _refuse_out_in_source(out: Path) -> NoReturn:
    raise UsageError(
        f"{out} is a source, or inside one, and would be read again",
        fix="give an OUT beside the source: -o OUT",
    )
