"""What a file was when it was looked at, to tell later whether it is still the same."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from cmudrn.errors import ImageError

__all__ = ["Fingerprint", "Stamp", "fingerprint_of"]

CHUNK_BYTES = 1 << 20
# A file that is written to again within one tick of its file system's clock keeps its times; FAT's tick is
# the longest, two seconds. Of a file that was younger than that when it was read, times prove nothing.
LONGEST_TICK_NS = 2_000_000_000


class Stamp(NamedTuple):
    """What a look at the folder tells; no byte of the file is read."""

    size: int
    mtime_ns: int
    ctime_ns: int  # on Unix of the last change of any kind, which no program can set back

    @classmethod
    def of(cls, path: Path) -> Stamp:
        """Raises OSError."""
        status = path.stat()
        return cls(status.st_size, status.st_mtime_ns, status.st_ctime_ns)


@dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """A file's stamp and its content's hash."""

    size: int
    mtime_ns: int
    ctime_ns: int
    seen_ns: int  # when that was looked at
    sha256: str

    def is_still(self, path: Path, *, written_by_us: bool = False) -> bool:
        """Whether the file has the same bytes: by its stamp, and where the times differ by its hash.

        written_by_us: it was young when it was looked at, but nobody else had it. Raises OSError.
        """
        now = Stamp.of(path)
        if now.size != self.size:
            return False
        ripe = written_by_us or self.seen_ns - self.mtime_ns > LONGEST_TICK_NS
        if ripe and now == (self.size, self.mtime_ns, self.ctime_ns):
            return True
        return _sha256(path) == self.sha256

    def to_json(self) -> dict[str, Any]:
        return dict(vars(self))

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Fingerprint:
        return cls(**values)


def fingerprint_of(path: Path, *, since: Stamp | None = None) -> Fingerprint:
    """Reads the file once.

    since: its stamp before it was decoded. Raises ImageError where that has changed: then nobody knows which
    bytes were decoded. Raises OSError.
    """
    before, seen_ns = since or Stamp.of(path), time.time_ns()
    sha256 = _sha256(path)
    if Stamp.of(path) != before:
        raise ImageError(
            f"{path}: changed while it was read", fix="--resume restores it once nobody writes to it"
        )
    return Fingerprint(**before._asdict(), seen_ns=seen_ns, sha256=sha256)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(min(CHUNK_BYTES, max(1, os.stat(path).st_size))))  # noqa: PTH116 (faster)
    with path.open("rb", buffering=0) as file:
        while read := file.readinto(buffer):
            digest.update(buffer[:read])
    return digest.hexdigest()
