"""What the system and libvips say, as errors of ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyvips

from cmudrn.errors import ImageError
from cmudrn.formats import CODECS, ImageFormat

__all__ = ["failing_as_image_error", "other_format"]


@contextmanager
def failing_as_image_error(path: Path, verb: str) -> Iterator[None]:
    """Turn what the system or libvips says, often in several lines, into one line with a way out."""
    try:
        yield
    except OSError as exc:
        fix = "check the name and its permissions"
        raise ImageError(f"{path}: cannot {verb}: {exc.strerror or exc}", fix=fix) from exc
    except pyvips.Error as exc:
        if verb == "write":
            fix = "check the disk's space, or " + other_format()
        elif path.suffix.lower() in CODECS[ImageFormat.HEIF].suffixes:
            fix = "convert it to JPEG or PNG, or use a libvips with an HEVC decoder"
        else:
            fix = "the file may be damaged: fetch it again, or open and save it in an editor"
        raise ImageError(f"{path}: cannot {verb}: {' '.join(str(exc).split())}", fix=fix) from exc


def other_format() -> str:
    """The way out for who wants to write what cannot be written."""
    return "use --format " + ", ".join(form.value for form in ImageFormat if form.writable)
