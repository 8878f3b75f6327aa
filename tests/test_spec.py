"""Engine specs and the arithmetic of the receptive field."""

from __future__ import annotations

import dataclasses

import pytest

from cmudrn.engines.spec import EngineSpec, receptive_radius
from cmudrn.errors import UsageError


@pytest.mark.parametrize(
    ("loops", "radius_px"), [(1, 9), (2, 23), (3, 45), (4, 75), (5, 113), (6, 159), (7, 213)]
)
def test_the_receptive_radius_is_the_papers_arithmetic(loops: int, radius_px: int) -> None:
    assert receptive_radius(loops) == radius_px


@pytest.mark.parametrize("name", ["loops", "height", "width", "batch"])
def test_a_spec_refuses_zero(name: str) -> None:
    with pytest.raises(UsageError, match=f"{name} = 0"):
        dataclasses.replace(EngineSpec(loops=3, height=8, width=8), **{name: 0})  # type: ignore[arg-type]


def test_equal_specs_are_one_key() -> None:
    assert len({EngineSpec(loops=3, height=8, width=8), EngineSpec(loops=3, height=8, width=8)}) == 1
