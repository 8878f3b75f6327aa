"""What can go wrong, as one tree. Every error says the way out.

CmudrnError
├── UsageError          an option or argument makes no sense            exit code 2
├── EnvironmentMissing  a package, a file of ours, a device is missing  exit code 2
├── CheckpointError     weights that cannot be read or do not fit       exit code 2
├── EngineError         an engine that is missing, does not fit or      exit code 2
│                       cannot be trusted
├── BuildError          the compiler refused, or built something else   exit code 1
├── DeviceError         a GPU that has no room, or that failed         exit code 1
├── ImageError          one image that cannot be read or written
│   └── ImageTooLarge   more pixels than allowed
└── TrainingError       training data or a training step went wrong     exit code 1

`cmudrn/cli/app.py` alone turns them into a line and an exit code.
"""

from __future__ import annotations

__all__ = [
    "INTERRUPTED",
    "BuildError",
    "CheckpointError",
    "CmudrnError",
    "DeviceError",
    "EngineError",
    "EnvironmentMissing",
    "ImageError",
    "ImageTooLarge",
    "TrainingError",
    "UsageError",
]


INTERRUPTED = 130  # the exit code after Ctrl-C: 128 + SIGINT, as shells have it


class CmudrnError(Exception):
    """Base of all errors that this package raises on purpose.

    what: one line that names the file, option or tensor. fix: what the reader can do about it.
    """

    exit_code = 1

    def __init__(self, what: str, *, fix: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.what} ({self.fix})" if self.fix else self.what


class UsageError(CmudrnError):
    """An option, argument or value that makes no sense; nothing was touched."""

    exit_code = 2


class EnvironmentMissing(CmudrnError):
    """A package, a device or a file of ours is not there."""

    exit_code = 2


class CheckpointError(CmudrnError):
    """Weights that cannot be read, or that are not those of this model."""

    exit_code = 2


class EngineError(CmudrnError):
    """An engine that is missing, is for something else, or cannot be trusted."""

    exit_code = 2


class BuildError(CmudrnError):
    """A compiler that refused a graph, or that made of it what was not asked for."""


class DeviceError(CmudrnError):
    """A GPU that has no room for what was asked, or that failed in the middle of it."""


class ImageError(CmudrnError):
    """One image could not be read or written; a job goes on with the others."""


class ImageTooLarge(ImageError):
    """The header promises more pixels than allowed; nothing was decoded."""


class TrainingError(CmudrnError):
    """Training data that is refused before the first step, or a step that failed."""
