"""What options say in one word and commands need as values."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Sequence
from enum import Enum
from pathlib import Path
from typing import TypeVar

from cmudrn.errors import EnvironmentMissing, UsageError

__all__ = [
    "need_onnx",
    "need_positive",
    "need_torch",
    "need_writable",
    "one_of",
    "parse_counts",
    "parse_depths",
    "parse_factors",
    "parse_sizes",
]

Choice = TypeVar("Choice", bound=Enum)
COUNT = re.compile(r"[0-9]{1,9}")
DEPTHS = re.compile(r"([0-9]{1,2})(?:-([0-9]{1,2}))?")
SIZE = re.compile(r"([0-9]{1,7})(?:x([0-9]{1,7}))?")
SIDES = re.compile(r"([0-9]{1,5})-([0-9]{1,5}):([0-9]{1,5})")  # first, last, step


def need_positive(**options: int | None) -> None:
    """Raises UsageError for the first option below 1."""
    for name, value in options.items():
        if value is not None and value < 1:
            raise UsageError(f"--{name.replace('_', '-')} {value}", fix="give 1 or more")


def need_torch() -> None:
    """Raises EnvironmentMissing without PyTorch."""
    try:
        import torch  # noqa: F401
    except ImportError as exc:
        raise EnvironmentMissing("this command needs PyTorch", fix="pip install 'cmudrn[train]'") from exc


def need_onnx() -> None:
    """Raises EnvironmentMissing without the package that writes graphs."""
    try:
        import onnx  # noqa: F401
    except ImportError as exc:
        raise EnvironmentMissing(
            "this command needs onnx", fix="pip install 'cmudrn[rtx]' or 'cmudrn[tensorrt]'"
        ) from exc


def need_writable(option: str, path: Path) -> None:
    """Found out before the work, not after it. Raises UsageError."""
    there = path if path.exists() else path.parent
    if not path.parent.is_dir() or not os.access(there, os.W_OK):
        raise UsageError(f"{option} {path}: cannot be written", fix="name a file in a folder that is there")
    if path.exists() and not path.is_file():  # a device or a pipe would be replaced by a file
        raise UsageError(f"{option} {path}: not a regular file", fix="name a file, or none that is there")


def one_of(choices: type[Choice], option: str, value: str, *, offered: Collection[Choice] = ()) -> Choice:
    """The choice that an option names. offered: where not all are. Raises UsageError."""
    if value not in [choice.value for choice in choices]:
        raise UsageError(
            f"{option} {value}",
            fix="choose from " + ", ".join(choice.value for choice in offered or choices),
        )
    return choices(value)


def parse_depths(text: str) -> tuple[int, ...]:
    """`3`, `1-7` or `1,3,5-7` as loop counts, in order, each once."""
    depths: set[int] = set()
    for part in text.split(","):
        ends = DEPTHS.fullmatch(part.strip())
        span = range(int(ends[1]), int(ends[2] or ends[1]) + 1) if ends else range(0)
        if not span or span[0] < 1:
            raise UsageError(f"--loops {text}", fix="give loop counts like 3, 1-7 or 1,3,7")
        depths |= set(span)
    return tuple(sorted(depths))


def parse_counts(option: str, text: str) -> tuple[int, ...]:
    """`1` or `1,8` as numbers, each once."""
    parts = [part.strip() for part in text.split(",")]
    if not all(COUNT.fullmatch(part) and int(part) for part in parts):
        raise UsageError(
            f"--{option} {text}", fix="give a number from 1 on, or several with commas between them"
        )
    return tuple(dict.fromkeys(map(int, parts)))


def parse_factors(option: str, text: str) -> dict[str, float]:
    """`a=1,b=0.5` as a mapping; the empty string is an empty one."""
    factors = {}
    for part in filter(None, text.split(",")):
        name, equals, value = part.partition("=")
        try:
            factors[name.strip()] = float(value)
        except ValueError:
            equals = ""
        if not equals:
            raise UsageError(f"--{option} {text}", fix="give NAME=NUMBER pairs with commas between them")
    return factors


def parse_sizes(texts: Sequence[str]) -> list[tuple[int, int]]:
    """`500`, `720x1280`, height first, or `100-1000:50`, squares; also with commas between them.

    Returns (height, width), each once, in order.
    """
    sizes = [size for given in texts for text in given.split(",") for size in _sizes_of(text.strip().lower())]
    return list(dict.fromkeys(sizes))


def _sizes_of(text: str) -> list[tuple[int, int]]:
    sizes = []
    if sides := SIZE.fullmatch(text):
        sizes = [(int(sides[1]), int(sides[2] or sides[1]))]
    elif (ends := SIDES.fullmatch(text)) and int(ends[3]):
        sizes = [(side, side) for side in range(int(ends[1]), int(ends[2]) + 1, int(ends[3]))]
    if not sizes or min(map(min, sizes)) < 1:
        raise UsageError(
            f"--size {text}",
            fix="give a side like 500, height x width like 720x1280, or sides like 100-1000:50",
        )
    return sizes
