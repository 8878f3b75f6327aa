"""What was cut of streak files, kept on disk: cutting takes a core's second a file, reading back a hundredth.

A folder of `<key>.npz` in the user's cache; the key is a hash of all that the cut depends on, so nothing in
it is ever stale, and it may be removed at any time.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmudrn.files import cache_folder, replacing

__all__ = ["Cut", "recall"]

Cut = list[list[NDArray[np.uint8]]]  # of one file: by angle, then by layer


def recall(make: Callable[[], Cut], *parts: bytes) -> Cut:
    """What `make` makes, from the cache where it was made before.

    parts: all that it depends on. Raises what `make` raises; a cache that cannot be used is passed over.
    """
    key = hashlib.sha256()
    for part in parts:
        key.update(hashlib.sha256(part).digest())  # of one length: parts cannot run into each other
    file = cache_folder() / "streaks" / f"{key.hexdigest()[:32]}.npz"
    try:
        return read_cut(file)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        made = make()  # not there yet, or damaged
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file, durable=False) as whole:
            arrays: dict[str, Any] = {
                f"{i}-{j}": layer for i, turned in enumerate(made) for j, layer in enumerate(turned)
            }
            np.savez_compressed(whole, **arrays)
    except OSError:
        pass  # a full disk or a home that is read-only: the next run cuts again
    return made


def read_cut(file: Path) -> Cut:
    """Raises OSError, ValueError, KeyError, EOFError or BadZipFile for what is not a whole one."""
    with file.open("rb") as opened, np.load(opened, allow_pickle=False) as arrays:
        names = sorted(arrays.files, key=lambda name: tuple(map(int, name.split("-"))))
        cut: Cut = []
        for name in names:
            angle = int(name.split("-")[0])
            if angle == len(cut):
                cut.append([])
            cut[angle].append(arrays[name])
    if not cut:
        raise ValueError("empty")
    return cut
