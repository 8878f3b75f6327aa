"""Files that are written whole or not at all, and where those are that can be made again."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import BinaryIO

from platformdirs import user_cache_path

__all__ = ["cache_folder", "copy_bytes", "replacing"]

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


def copy_bytes(source: Path, target: Path, *, mtime_ns: int | None = None) -> None:
    """The same bytes under another name, whole or not at all, and of that time. Raises OSError."""
    with source.open("rb") as file, replacing(target, durable=False) as copy:
        for chunk in iter(partial(file.read, COPY_BYTES), b""):
            left = memoryview(chunk)
            while left:  # a file without a buffer may take less than it is given
                left = left[copy.write(left) :]
        if mtime_ns is not None:
            os.utime(copy.name, ns=(time.time_ns(), mtime_ns))
