"""What the system and libvips say, as errors of ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyvips

from cmudrn.errors import ImageError
from cmudrn.formats import CODECS, ImageFormat

__all__ = ["failing_as_image_error", "other_format"]

REASON_LETTERS = 240  # of what libvips says; it may repeat itself for as long as a file is broken


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
        raise ImageError(f"{path}: cannot {verb}: {_shortened(str(exc))}", fix=fix) from exc
    except UnicodeError as exc:
        said = _taken_message() or "it holds text that is no UTF-8"
        raise ImageError(
            f"{path}: cannot {verb}: {_shortened(said)}", fix="save it anew in an editor"
        ) from exc


def _taken_message() -> str:
    """What libvips wants to say, for pyvips cannot read it where a file's own bytes are in it.

    It must be taken: pyvips leaves it there, and every later picture of this process would fail by it.
    """
    said: bytes = pyvips.ffi.string(pyvips.vips_lib.vips_error_buffer())
    pyvips.vips_lib.vips_error_clear()
    return said.decode(errors="backslashreplace")


def _shortened(said: str) -> str:
    """In one line and not too long; what libvips says more than once, once."""
    lines = dict.fromkeys(" ".join(line.split()) for line in said.splitlines())
    reason = "; ".join(line for line in lines if line and not line.startswith("source: bad seek"))
    return reason if len(reason) <= REASON_LETTERS else f"{reason[:REASON_LETTERS]}..."


def other_format() -> str:
    """The way out for who wants to write what cannot be written."""
    return "use --format " + ", ".join(form.value for form in ImageFormat if form.writable)
