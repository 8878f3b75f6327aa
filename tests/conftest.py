"""Data that the tests draw themselves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import pyvips
from hostcuda.build import Driver, build_once

import cmudrn.deploy  # noqa: F401 (before any test's onnxruntime, which would report to Microsoft)


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache of the tests' own, for the commands that they start too: the user's stays as it is."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CMUDRN_CACHE", str(folder))
        yield folder


@pytest.fixture
def without_native(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the package had been built without kernels of its own."""
    monkeypatch.setenv("CMUDRN_NATIVE_LIBRARY", str(tmp_path / "none.so"))


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Driver:
    """A CUDA driver in host memory; skips, with the reason, where it cannot be built."""
    return build_once(tmp_path_factory)


@pytest.fixture(scope="session")
def streaks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten small files of upright white lines of many sizes, named as the database's."""
    folder = tmp_path_factory.mktemp("streaks")
    rng = np.random.default_rng(0)
    for number in range(1, 11):
        file = np.zeros((100, 160), np.uint8)
        for _ in range(40):
            top, left = rng.integers(90), rng.integers(155)
            file[top : top + rng.integers(3, 40), left : left + rng.integers(1, 4)] = rng.integers(120, 255)
        pyvips.Image.new_from_array(file).write_to_file(str(folder / f"{number}-4.png"))
    return folder


@pytest.fixture(scope="session")
def evaluation_data(streaks: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder laid out as the protocols want it, with three small photographs."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "garg06_streaks").symlink_to(streaks)
    (folder / "bsds500" / "val").mkdir(parents=True)
    rows, columns = np.mgrid[0:60, 0:80]
    for number in range(3):
        photo = 90 + 50 * np.sin(rows / (5 + number))[..., None] + 30 * np.cos(columns / 9)[..., None]
        image = pyvips.Image.new_from_array(np.repeat(photo, 3, axis=2).astype(np.uint8))
        image.write_to_file(str(folder / "bsds500" / "val" / f"{number}.jpg"))
    return folder
