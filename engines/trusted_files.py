"""Files that only their user or root can have written: how they are written, read and locked."""

from __future__ import annotations

import errno
import fcntl
import os
import shlex
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from cmudrn.errors import EngineError
from cmudrn.files import write_all

__all__ = ["BUILD_AGAIN", "fill", "locked", "read_trusted", "sync"]

# A FIFO would hold up whoever opens it, a link would lead elsewhere.
WITH_CARE = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
BUILD_AGAIN = "build the engine again"


def read_trusted(path: Path, *, least: int = 0, most: int) -> bytes:
    """The bytes of a file that only the user or root can have written; looked at and read as one open file.

    Raises EngineError for any other, and for one of fewer bytes than `least` or more than `most`.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | WITH_CARE)
        try:
            about = os.fstat(descriptor)
            if not stat.S_ISREG(about.st_mode):
                raise EngineError(f"{path}: not a regular file", fix=BUILD_AGAIN)
            if about.st_uid not in (os.geteuid(), 0):
                raise EngineError(
                    f"{path}: belongs to user {about.st_uid}, who could change it",
                    fix=f"{BUILD_AGAIN}, or if you trust it, chown it to the user who runs this",
                )
            if about.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                raise EngineError(
                    f"{path}: others may write it",
                    fix=f"{BUILD_AGAIN}, or if you trust them, chmod go-w {shlex.quote(str(path))}",
                )
            if not least <= about.st_size <= most:  # before a byte is read
                belongs = f"{most}" if least == most else f"{most} at most"
                raise EngineError(f"{path}: {about.st_size} bytes, not {belongs}", fix=BUILD_AGAIN)
            with open(descriptor, "rb", closefd=False) as file:
                return file.read(about.st_size)
        finally:
            os.close(descriptor)
    except FileNotFoundError as exc:
        raise EngineError(f"{path}: no such engine", fix="see `cmudrn engines list`") from exc
    except OSError as exc:
        why = "a symbolic link" if exc.errno == errno.ELOOP else f"cannot be read: {exc.strerror}"
        raise EngineError(f"{path}: {why}", fix=BUILD_AGAIN) from exc


def fill(file: BinaryIO, data: bytes) -> None:
    """Writes all of it to the disk, to be read by everyone and written by its owner, whatever the umask."""
    os.fchmod(file.fileno(), 0o644)
    write_all(file, data)  # one call may write less, on a disk that gets full, or beyond 2 GiB
    os.fsync(file.fileno())


def sync(folder: Path) -> None:
    """Names on the disk, too."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as exc:
        if exc.errno != errno.EINVAL:  # a file system that cannot
            raise
    finally:
        os.close(descriptor)


@contextmanager
def locked(folder: Path, flags: int, how: int) -> Iterator[None]:
    """Holds the folder's lock, at the longest until the process ends. Other users can't take it."""
    descriptor = os.open(folder / ".lock", flags | WITH_CARE, 0o600)
    try:
        fcntl.flock(descriptor, how)
        yield
    finally:
        os.close(descriptor)
