"""The corpus for docs/hostile.md: `python -m hostile.table` in tests/ prints it, and a test compares."""

from __future__ import annotations

import re
from collections.abc import Iterable

from hostile.case import RESTORED, Case
from hostile.corpus import GROUPS

__all__ = ["table"]


def table() -> str:
    """In Markdown: a row for each group, a column for each way to end."""
    rows = ["| | refused with a reason | restored | either, by libvips' release |", "|---|---|---|---|"]
    for name, cases in GROUPS.items():
        ends = [[case for case in cases if _end(case) == end] for end in ("refused", "restored", "either")]
        rows.append(f"| {name} | " + " | ".join(_listed(cases) for cases in ends) + " |")
    return "\n".join(rows)


def _end(case: Case) -> str:
    if case.says == RESTORED:
        return "restored"
    return "either" if re.search(case.says, "") else "refused"


def _listed(cases: Iterable[Case]) -> str:
    return "; ".join(dict.fromkeys(case.what for case in cases))


if __name__ == "__main__":
    print(table())  # noqa: T201
