"""The map tells the change of every pixel exactly, and is known again."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from skimage.color import rgb2lab

from cmudrn.errors import ImageError
from cmudrn.formats import ImageFormat
from cmudrn.images import Picture, is_change_map, write_change_map


def picture(pixels: Any, *, is_grey: bool = False) -> Picture:
    return Picture(pixels, None, ImageFormat.PNG, is_grey, 1, None, {})


def levels(path: Path) -> Any:
    with Image.open(path) as opened:
        assert opened.mode == "P"
        return np.asarray(opened)


def test_the_index_is_the_largest_change_of_the_three_channels(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    before, after = rng.integers(0, 256, (2, 150, 70, 3), dtype=np.uint8)
    write_change_map(before, picture(after), tmp_path / "a.png")
    expected = np.abs(before.astype(int) - after).max(axis=2)
    assert expected.max() > 200
    assert np.array_equal(levels(tmp_path / "a.png"), expected)


def test_sixteen_bits_are_told_in_levels_of_eight(tmp_path: Path) -> None:
    before = np.zeros((1, 65_536, 3), np.uint16)
    after = before.copy()
    after[0, :, 1] = np.arange(65_536)
    write_change_map(before, picture(after), tmp_path / "a.png")
    assert np.array_equal(levels(tmp_path / "a.png")[0], np.rint(np.arange(65_536) / 257))


def test_a_grey_picture_is_compared_as_it_is_written(tmp_path: Path) -> None:
    before = np.full((4, 4, 3), 100, np.uint8)
    after = before + np.array([0, 30, 60], np.uint8)
    write_change_map(before, picture(after, is_grey=True), tmp_path / "a.png")
    assert np.all(levels(tmp_path / "a.png") == 30)


def test_pages_stand_one_below_the_other(tmp_path: Path) -> None:
    before = np.zeros((3, 5, 7, 3), np.uint8)
    after = before + np.arange(3, dtype=np.uint8)[:, None, None, None]
    write_change_map(before, picture(after), tmp_path / "a.png")
    assert np.array_equal(levels(tmp_path / "a.png"), np.repeat([0, 1, 2], 5)[:, None].repeat(7, axis=1))


def test_colours_grow_lighter_evenly_and_the_scale_is_told(tmp_path: Path) -> None:
    pixels = np.zeros((2, 2, 3), np.uint8)
    write_change_map(pixels, picture(pixels), tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as opened:
        palette = np.array(opened.getpalette()).reshape(-1, 3)
        brightest = int(opened.info["cmudrn:BrightestLevel"])
        assert "64 levels or more" in opened.info["Description"]
    assert tuple(palette[0]) == (0, 0, 4)
    assert np.all(palette[brightest:] == palette[brightest])
    lightness = rgb2lab(palette[None] / 255)[0, : brightest + 1, 0]
    steps = np.diff(lightness)
    assert steps.min() > 0
    assert steps.max() < 3 * steps.mean()


def test_a_map_is_known_by_its_content_alone(tmp_path: Path) -> None:
    pixels = np.zeros((2, 2, 3), np.uint8)
    write_change_map(pixels, picture(pixels), tmp_path / "any name.png")
    Image.fromarray(pixels).save(tmp_path / "photo-heatmap.png")
    assert is_change_map(tmp_path / "any name.png")
    assert not is_change_map(tmp_path / "photo-heatmap.png")
    assert not is_change_map(tmp_path / "missing.png")
    assert not is_change_map(tmp_path)


def test_it_takes_no_second_picture_of_memory(tmp_path: Path) -> None:
    before = np.zeros((8_000, 1_000, 3), np.uint8)
    after = picture(before + 1)
    tracemalloc.start()
    write_change_map(before, after, tmp_path / "a.png")
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < before.nbytes / 4


def test_two_sizes_do_not_compare(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="differ"):
        write_change_map(
            np.zeros((2, 2, 3), np.uint8), picture(np.zeros((2, 3, 3), np.uint8)), tmp_path / "a.png"
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux's always full device")
def test_a_full_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from contextlib import contextmanager

    from cmudrn.images import change_map

    @contextmanager
    def full(*_: object, **__: object) -> Any:
        with open("/dev/full", "wb", buffering=0) as file:  # noqa: PTH123
            yield file

    monkeypatch.setattr(change_map, "replacing", full)
    pixels = np.zeros((2, 2, 3), np.uint8)
    with pytest.raises(ImageError, match="No space left"):
        write_change_map(pixels, picture(pixels), tmp_path / "a.png")
