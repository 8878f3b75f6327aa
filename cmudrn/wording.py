"""Numbers, lists and other libraries' errors in messages."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["counted", "listed", "one_line", "printable"]


def counted(count: int, noun: str) -> str:
    """`1 pair`, `7,000 pairs`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def listed(names: Sequence[str], *, most: int = 3, between: str = ", ") -> str:
    """The first few, and how many more there are."""
    more = f"{between}and {len(names) - most:,} more" if len(names) > most else ""
    return between.join(names[:most]) + more


def one_line(error: BaseException) -> str:
    """What another library says, however many lines it took for that."""
    return " ".join(str(error).split())


def printable(text: str) -> str:
    r"""For a terminal: what would steer it, of a name or a library, stands there as `\x1b` or `\u202e`.

    Letters of all scripts stay; a byte of a name that is no UTF-8 is `\udcXX`, as Python has it.
    """
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii") for letter in text
    )
