"""JSON that is read as if an enemy had written it: one object, every value of the type that is asked for."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeVar

from cmudrn.errors import EngineError

__all__ = ["MOST_BYTES", "MOST_CHARS", "SHA256", "UTC_TIME", "VERSION", "Document", "Fields"]

MOST_BYTES = 1 << 20  # of a file: ours have two kilobytes
MOST_LEVELS = 16  # of objects in objects: ours have three, and Python's stack isn't for enemies to fill
MOST_CHARS = 200  # of one text

SHA256 = re.compile(r"[0-9a-f]{64}")
VERSION = re.compile(r"[0-9]+(\.[0-9A-Za-z]+){1,5}")
UTC_TIME = re.compile(r"[0-9]{4}(-[0-9]{2}){2}T[0-9]{2}(:[0-9]{2}){2}Z")  # \d takes digits of all scripts
Choice = TypeVar("Choice", bound=Enum)
Value = TypeVar("Value")


@dataclass(frozen=True)
class Document:
    """Which file is read, for messages."""

    name: str
    kind: str  # such as manifest
    fix: str  # what makes a new one

    def fields(self, data: bytes) -> Fields:
        """Its values, still to be asked for. Raises EngineError for what is no JSON object, or is odd."""
        return Fields(self._parse(data), self)

    def damaged(self, what: str) -> EngineError:
        """The error for values that don't go together."""
        return EngineError(f"{self.name}: a damaged {self.kind}: {what}", fix=self.fix)

    def _parse(self, data: bytes) -> dict[str, Any]:
        try:
            if len(data) > MOST_BYTES:
                raise ValueError(f"{len(data)} bytes")
            # Decoded here: json.loads would guess at UTF-16 and take it, too.
            parsed = json.loads(
                data.decode(), object_pairs_hook=_each_once, parse_float=_finite, parse_constant=_finite
            )
            if not isinstance(parsed, dict):
                raise ValueError("not an object")
            if _deeper_than(MOST_LEVELS, parsed):
                raise ValueError(f"more than {MOST_LEVELS} levels")
        except (ValueError, RecursionError) as exc:
            raise EngineError(f"{self.name}: not a {self.kind}: {exc}", fix=self.fix) from exc
        return parsed


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Where a name comes twice, one reader takes the first and another the last."""
    parsed = dict(pairs)
    if len(parsed) < len(pairs):
        raise ValueError("a name comes twice in an object")
    return parsed


def _finite(text: str) -> float:
    """Of NaN, Infinity, and of 1e999, which is infinite as well."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:20]} is not a finite number")
    return number


def _deeper_than(levels: int, value: object) -> bool:
    if not isinstance(value, (dict, list)):
        return False
    inner = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_deeper_than(levels - 1, one) for one in inner)


@dataclass(frozen=True)
class Fields:
    """Values of a JSON object, each of the type that is asked for, or an EngineError that names it."""

    values: dict[str, Any]
    document: Document
    within: str = ""  # the names of the objects around this one, each with a dot

    def wrong(self, key: str, *, fix: str | None = None) -> EngineError:
        """The error for a value that is missing, or is none that we would write."""
        shown = repr(self.values.get(key))[:60]
        what = f"{self.document.name}: a {self.document.kind} with {self.within}{key} = {shown}"
        return EngineError(what, fix=fix or self.document.fix)

    def text(self, key: str, pattern: re.Pattern[str] | None = None) -> str:
        """What a line can show, and the whole of it as the pattern says."""
        value = self.values.get(key)
        if not isinstance(value, str) or not _shown_in_a_line(value):
            raise self.wrong(key)
        if pattern and not pattern.fullmatch(value):
            raise self.wrong(key)
        return value

    def integer(self, key: str, least: int, most: int) -> int:
        """least <= value <= most."""
        value = self.values.get(key)
        if type(value) is not int or not least <= value <= most:  # True is an int, too
            raise self.wrong(key)
        return value

    def number(self, key: str, least: float, most: float) -> float:
        """least <= value <= most."""
        value = self.values.get(key)
        # Compared before it is converted: an int may be too large for a float.
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not least <= value <= most:
            raise self.wrong(key)
        return float(value)

    def choice(self, key: str, choices: type[Choice]) -> Choice:
        """By its value."""
        try:
            return choices(self.values.get(key))
        except ValueError:
            raise self.wrong(key) from None

    def maybe(self, key: str, read: Callable[[str], Value]) -> Value | None:
        """None where the value is null; a missing one is an error."""
        if key not in self.values:
            raise self.wrong(key)
        return None if self.values[key] is None else read(key)

    def inner(self, key: str) -> Fields:
        """An object within this one."""
        value = self.values.get(key)
        if not isinstance(value, dict):
            raise self.wrong(key)
        return Fields(value, self.document, f"{self.within}{key}.")

    def counts(self, key: str) -> Mapping[str, int]:
        """How many there are of each kind."""
        inner = self.inner(key)
        if not all(_shown_in_a_line(kind) for kind in inner.values):
            raise self.wrong(key)
        return {kind: inner.integer(kind, 0, 1 << 31) for kind in inner.values}


def _shown_in_a_line(text: str) -> bool:
    """Not so with line ends, or escapes that a terminal obeys."""
    return len(text) <= MOST_CHARS and text.isprintable()
