"""What a training run is given: opened and checked before the first step, the cheap before the expensive."""

from __future__ import annotations

from pathlib import Path

import pytest

from cmudrn.errors import UsageError
from cmudrn.train.data import parse_pairs
from cmudrn.train.pairs import Split, Weather


def lay(root: Path, *names: str) -> Path:
    """Empty files below root: nothing here looks inside."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


@pytest.mark.parametrize(
    ("prefix", "weather", "split", "count"),
    [
        ("snow:", Weather.SNOW, Split.TRAIN, 8),
        ("", None, Split.TRAIN, 8),
        ("paper:", None, Split.PAPER_TRAIN, 7),  # 70 % of ten
        ("snow:paper:", Weather.SNOW, Split.PAPER_TRAIN, 7),
        ("paper:rain:", Weather.RAIN, Split.PAPER_TRAIN, 7),
    ],
)
def test_what_stands_before_the_folder_says_weather_and_cut(
    prefix: str, weather: Weather | None, split: Split, count: int, tmp_path: Path
) -> None:
    trained = (f"train/{side}/{n}.png" for side in ("input", "target") for n in range(8))
    tested = (f"test/{side}/{n}.png" for side in ("input", "target") for n in range(2))
    found = parse_pairs(f"{prefix}{lay(tmp_path / 'mine', *trained, *tested)}")
    assert (found.weather, found.split, len(found.pairs)) == (weather, split, count)


def test_two_weathers_are_not_one(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="snow:"):
        parse_pairs(f"rain:snow:{lay(tmp_path / 'mine', 'input/1.png', 'target/1.png')}")
