"""Writes a restored picture with what is kept of its source, and what shows how it was restored."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime, timezone
from pathlib import Path

import cmudrn
from cmudrn.checkpoint import read_checkpoint
from cmudrn.deploy.job import InferJob
from cmudrn.deploy.keep_options import heatmap_beside
from cmudrn.files import copy_bytes
from cmudrn.formats import ImageFormat
from cmudrn.images import Keeping, Picture, Pixels, Provenance, drawing_change_map, need_room, write_picture

__all__ = ["Keeper"]


class Keeper:
    """One job's way of writing; any thread may use it."""

    def __init__(self, job: InferJob) -> None:
        self._job = job
        # Once for a job; the files on the disk may change while it runs, what restores does not.
        self._weights_sha256 = read_checkpoint(job.weights).sha256 if job.keep.provenance else ""

    def need_room(self, picture: Picture, target: Path) -> None:
        """Raises ImageError for what the target's format cannot hold: before it is restored for nothing."""
        need_room(picture, target, self._keeping(""))

    def write(self, picture: Picture, before: Pixels | None, target: Path, restored_by: str) -> None:
        """Raises what `write_picture` raises.

        before: the pixels that were, where a map of the changes is wanted: both get their names, or neither.
        """
        with _map_beside(target, before, picture):
            write_picture(picture, target, self._keeping(restored_by), self._job.encoding)

    def leave(self, picture: Picture, source: Path, target: Path, sha256: str) -> None:
        """A picture that is not restored: the source's own bytes, unless format or --strip ask for others.

        A map, where one is wanted, shows no change. sha256: of the source when it was decoded. Raises what
        `write_picture` raises, OSError, and ImageError for a source that has changed since.
        """
        strip = self._job.keep.strip
        with _map_beside(target, picture.pixels if self._job.keep.heatmap else None, picture):
            if strip or picture.format is not ImageFormat.of(target.suffix):
                write_picture(picture, target, Keeping(strip=strip), self._job.encoding)
            else:
                copy_bytes(source, target, sha256=sha256, mtime_ns=picture.modified_ns)

    def _keeping(self, restored_by: str) -> Keeping:
        keep = self._job.keep
        if not keep.provenance:
            return Keeping(strip=keep.strip)
        provenance = Provenance(
            weights=self._job.weights if self._job.weights == "default" else Path(self._job.weights).name,
            weights_sha256=self._weights_sha256,
            restored_by=restored_by,
            loops=self._job.loops,
            output=self._job.output.value,
            version=cmudrn.__version__,
            date=_now(),
        )
        return Keeping(strip=keep.strip, provenance=provenance)


def _map_beside(target: Path, before: Pixels | None, after: Picture) -> AbstractContextManager[None]:
    return nullcontext() if before is None else drawing_change_map(before, after, heatmap_beside(target))


def _now() -> datetime:
    """SOURCE_DATE_EPOCH, where it is set: for who wants the same bytes again."""
    told = os.environ.get("SOURCE_DATE_EPOCH", "")
    if told.isascii() and told.isdecimal():
        return datetime.fromtimestamp(int(told), timezone.utc)
    return datetime.now(timezone.utc)
