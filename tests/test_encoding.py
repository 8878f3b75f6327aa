"""How well files are encoded is told by the user, format by format."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import pyvips

from cmudrn.cli.app import main
from cmudrn.errors import UsageError
from cmudrn.formats import LOSSY_QUALITY, PNG_LEVEL, Encoding, ImageFormat


@pytest.fixture
def photo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    rows, columns = np.mgrid[0:90, 0:120]
    wave = 120 + 60 * np.sin(rows / 7)[..., None] + 40 * np.cos(columns / 5)[..., None]
    grain = np.random.default_rng(0).normal(0, 4, (90, 120, 3))
    pyvips.Image.new_from_array((wave + grain).clip(0, 255).astype(np.uint8)).write_to_file("photo.png")
    return tmp_path / "photo.png"


def written(name: str, *options: str) -> bytes:
    assert main(["infer", "photo.png", "-o", name, "--loops", "1", "--overwrite", *options]) == 0
    return Path(name).read_bytes()


@pytest.mark.parametrize("name", ["out.jpg", "out.webp", "out.avif"])
def test_quality_is_that_of_the_lossy_formats(photo: Path, name: str) -> None:
    if not ImageFormat.of(Path(name).suffix).writable:  # type: ignore[union-attr]
        pytest.skip("libvips has no encoder for it here")
    low, usual, high = (written(name, *more) for more in (("--quality", "40"), (), ("--quality", "100")))
    assert len(low) < len(usual) < len(high)
    assert written(name, "--quality", str(LOSSY_QUALITY)) == usual
    assert written(name, "--png-level", "0") == usual


def test_a_png_level_changes_the_file_and_no_pixel(photo: Path) -> None:
    stored, usual, smallest = (
        written("out.png", *more) for more in (("--png-level", "0"), (), ("--png-level", "9"))
    )
    assert len(smallest) <= len(usual) < len(stored)
    images = [pyvips.Image.new_from_buffer(data, "").numpy() for data in (stored, usual, smallest)]
    assert np.array_equal(images[0], images[1])
    assert np.array_equal(images[0], images[2])
    assert written("out.png", "--png-level", str(PNG_LEVEL), "--quality", "1") == usual


@pytest.mark.parametrize("told", [{"quality": 0}, {"quality": 101}, {"png_level": -1}, {"png_level": 10}])
def test_what_no_encoder_takes_is_refused(told: dict[str, int]) -> None:
    with pytest.raises(UsageError, match=next(iter(told)).replace("_", "-")):
        Encoding(**told)
