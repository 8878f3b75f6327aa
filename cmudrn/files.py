"""Files that are written whole or not at all, and where those are that can be made again."""

from __future__ import annotations

import hashlib
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, BinaryIO

from platformdirs import user_cache_path

from cmudrn.errors import ImageError

__all__ = ["cache_folder", "copy_bytes", "replacing", "write_all"]

COPY_BYTES = 2**20  # at once


def cache_folder() -> Path:
    """`CMUDRN_CACHE`, or a folder in the user's cache; not made yet. All in it may be removed at any time."""
    told = os.environ.get("CMUDRN_CACHE")
    return Path(told) if told else user_cache_path("cmudrn")


@contextmanager
def replacing(path: Path, *, durable: bool = True, mode: int = 0o666) -> Iterator[BinaryIO]:
    """A new file that takes the name `path` when all went well, and is gone otherwise.

    durable: the bytes are on the disk before the name is; without it, a power cut may leave an empty file.
    mode: who may do what with it, less what the umask takes away.
    """
    # Hidden, so that a folder being read never shows it; cut, so that long names stay within 255 bytes.
    temporary = path.with_name(f".{path.name[:40]}.{os.getpid()}-{secrets.token_hex(4)}.part")
    try:
        with open(temporary, "x+b", buffering=0, opener=partial(os.open, mode=mode)) as file:
            yield file
            if durable:
                os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_all(file: IO[bytes], content: bytes | memoryview) -> None:
    """To a file or pipe without a buffer, which may take less than it is given. Raises OSError."""
    left = memoryview(content)
    while left:
        left = left[file.write(left) :]


def copy_bytes(source: Path, target: Path, *, sha256: str, mtime_ns: int | None = None) -> None:
    """The same bytes under another name, whole or not at all, and of that time.

    Raises OSError, and ImageError where they have another hash by now.
    """
    digest = hashlib.sha256()
    with source.open("rb") as file, replacing(target, durable=False) as copy:
        for chunk in iter(partial(file.read, COPY_BYTES), b""):
            digest.update(chunk)
            write_all(copy, chunk)
        if digest.hexdigest() != sha256:
            raise ImageError(
                f"{source}: changed while it was read", fix="--resume restores it once nobody writes to it"
            )
        if mtime_ns is not None:
            os.utime(copy.name, ns=(time.time_ns(), mtime_ns))
