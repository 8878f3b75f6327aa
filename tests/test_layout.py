"""Names of layouts."""

from __future__ import annotations

from itertools import product

import pytest

from cmudrn.engines.layout import Branches, Layout
from cmudrn.errors import UsageError

LAYOUTS = [
    Layout(branches=branches, y_once=y_once, first_from_y=first)
    for branches, y_once, first in product(Branches, (False, True), (False, True))
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_a_layout_is_read_as_it_is_written(layout: Layout) -> None:
    assert Layout.parse(str(layout)) == layout


def test_order_and_spaces_do_not_matter_and_separate_is_understood() -> None:
    assert Layout.parse(" first-from-y , grouped") == Layout(branches=Branches.GROUPED, first_from_y=True)
    assert Layout.parse("y-once") == Layout(y_once=True)


@pytest.mark.parametrize("text", ["", "joined", "grouped,dense", "separate,sideways", "GROUPED"])
def test_other_names_are_refused_with_those_that_there_are(text: str) -> None:
    with pytest.raises(UsageError, match="--layout") as refusal:
        Layout.parse(text)
    assert all(
        name in refusal.value.fix for name in ("separate", "grouped", "dense", "y-once", "first-from-y")
    )
