"""The gate tells weather from none, leaves the latter as it is, and says how sure it was."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
from numpy.typing import NDArray
from PIL import Image
from random_weights import random_checkpoint

from cmudrn.checkpoint import read_checkpoint, save_checkpoint
from cmudrn.cli.app import main
from cmudrn.deploy.backend import Backend
from cmudrn.deploy.gate import (
    MOST_WINDOWS,
    TRACES,
    WINDOW_PX,
    Gate,
    GateNumbers,
    backend_for,
    gate_path,
    open_gate,
    read_numbers,
    traces,
    windows,
)
from cmudrn.deploy.job import BackendName, BackendOptions, InferJob
from cmudrn.engines.spec import Output
from cmudrn.errors import CheckpointError, EngineError
from cmudrn.images import read_picture
from cmudrn.train.photos import to_pixels, to_scene
from cmudrn.train.weather.rain import draw_rain, render_rain
from cmudrn.train.weather.snow import draw_snow, render_snow

Pixels = NDArray[Any]
ROOT = Path(__file__).parent.parent
ONNX = BackendOptions(name=BackendName.ONNX, threads=1)
PHOTOS = ("rocket", "coffee", "chelsea", "clock")  # scikit-image's, on a dry day
SURE = "0.5"  # far below what the rocket reaches, far above the same in snow


def clear(name: str) -> Pixels:
    photo = np.asarray(getattr(skimage.data, name)())
    return np.ascontiguousarray(photo if photo.ndim == 3 else np.repeat(photo[..., None], 3, axis=2))


def rainy(name: str) -> Pixels:
    rng = np.random.default_rng(0)
    return to_pixels(
        render_rain(to_scene(clear(name)), draw_rain(rng, severity=0.7, focal_px=450.0), rng).image
    )


def snowy(name: str, severity: float = 0.5) -> Pixels:
    rng = np.random.default_rng(0)
    return to_pixels(render_snow(to_scene(clear(name)), draw_snow(rng, severity=severity), rng).image)


@pytest.fixture(scope="module")
def branches() -> Iterator[tuple[Backend, Backend]]:
    job = InferJob(sources=(ROOT,), backend=ONNX)
    with backend_for(job, Output.RAIN) as rain, backend_for(job, Output.SNOW) as snow:
        yield rain, snow


def confidences(images: list[Pixels], branches: tuple[Backend, Backend], numbers: GateNumbers) -> list[float]:
    gate = Gate(*branches, numbers, least=numbers.least_confidence)
    return [gate.confidence(image) for image in images]


def test_a_photograph_without_weather_is_left_alone_and_all_in_rain_and_snow_are_not(
    branches: tuple[Backend, Backend],
) -> None:
    numbers = read_numbers("default")
    dry, wet, white = (
        confidences([draw(name) for name in PHOTOS], branches, numbers) for draw in (clear, rainy, snowy)
    )
    assert max(dry) >= numbers.least_confidence > max(*wet, *white)
    assert min(one - max(two, three) for one, two, three in zip(dry, wet, white, strict=True)) > 0.3


def test_photographs_in_rain_and_snow_are_restored(branches: tuple[Backend, Backend]) -> None:
    numbers = read_numbers("default")
    photos = sorted((ROOT / "examples" / "weather").glob("*.jpg"))
    assert len(photos) == 6
    found = confidences([read_picture(path).pixels for path in photos], branches, numbers)
    assert max(found) < numbers.least_confidence


@pytest.mark.parametrize("trace", ["all", "peaks", "contrast"])
def test_a_coefficient_of_the_wrong_sign_would_be_found_out(
    trace: str, branches: tuple[Backend, Backend]
) -> None:
    numbers = read_numbers("default")
    signs = {name: -1 if trace in ("all", name) else 1 for name in TRACES}
    wrong = {name: signs[name] * value for name, value in numbers.coefficients.items()}
    flipped = dataclasses.replace(numbers, coefficients=wrong)
    dry, white = confidences([clear("rocket"), snowy("rocket")], branches, flipped)
    assert not dry >= numbers.least_confidence > white


def test_the_more_snow_the_less_confidence(branches: tuple[Backend, Backend]) -> None:
    shown = [snowy("coffee", severity) for severity in (0.0, 0.1, 0.3, 1.0)]
    found = confidences(shown, branches, read_numbers("default"))
    assert found == sorted(found, reverse=True)


def test_sixteen_bits_are_judged_as_eight(branches: tuple[Backend, Backend]) -> None:
    eight = snowy("clock")
    assert np.allclose(traces(eight, *branches), traces(eight.astype(np.uint16) * 257, *branches), atol=1e-4)


def test_every_backend_judges_alike(branches: tuple[Backend, Backend]) -> None:
    pixels = rainy("clock")
    torch = BackendOptions(name=BackendName.TORCH, devices=("cpu",), threads=1)
    job = InferJob(sources=(ROOT,), backend=torch)
    with backend_for(job, Output.RAIN) as rain, backend_for(job, Output.SNOW) as snow:
        assert np.allclose(traces(pixels, rain, snow), traces(pixels, *branches), atol=1e-3)


@pytest.mark.parametrize("name", [BackendName.AUTO, BackendName.TENSORRT])
def test_beside_engines_it_looks_on_the_cpu(name: BackendName) -> None:
    job = InferJob(sources=(ROOT,), backend=BackendOptions(name=name, devices=("0",), threads=1))
    with backend_for(job, Output.RAIN) as rain:
        assert "CPU" in rain.label


@pytest.mark.parametrize(
    ("height", "width", "count"),
    [
        (1, 1, 1),
        (90, 500, 3),
        (321, 481, 6),
        (500, 500, 9),
        (2000, 3000, 15),
        (8000, 130, 16),
        (130, 8000, 16),
    ],
)
def test_windows_lie_within_the_photograph_beside_each_other(height: int, width: int, count: int) -> None:
    pixels = np.zeros((height, width, 3), np.uint16)
    pixels[..., 0], pixels[..., 1] = np.mgrid[0:height, 0:width]
    shown = windows(pixels)
    assert shown.shape == (count, WINDOW_PX, WINDOW_PX, 3)
    assert count <= MOST_WINDOWS
    corners = np.round(shown[:, 0, 0, :2] * 65535).astype(int)
    for one in range(count):  # a window that lay over another would begin nearer than a side to it
        for other in range(one):
            assert np.abs(corners[one] - corners[other]).max() >= WINDOW_PX


# ---- Through `cmudrn infer`


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """photos/ with one photograph without weather and one in snow."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.fromarray(clear("rocket")).save(folder / "clear.png", dpi=(300, 300))
    Image.fromarray(snowy("rocket")).save(folder / "snow.png")
    return folder


def infer(*arguments: str) -> int:
    return main(["infer", "photos", "--loops", "1", *arguments])


def test_what_has_no_weather_is_copied_byte_for_byte(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert infer("-o", "out", "--gate", "--gate-confidence", SURE, "--report", "report.json") == 0
    assert Path("out/clear.png").read_bytes() == (photos / "clear.png").read_bytes()
    assert not np.array_equal(read_picture("out/snow.png").pixels, snowy("rocket"))
    assert "1 restored, 1 left alone: no weather in " in capsys.readouterr().err
    report = json.loads(Path("report.json").read_text())
    assert (report["restored"], report["clean"]) == (1, 1)
    items = {Path(item["source"]).stem: item for item in report["items"]}
    assert (items["clear"]["status"], items["snow"]["status"]) == ("clean", "restored")
    assert items["snow"]["confidence"] < float(SURE) <= items["clear"]["confidence"]


def test_in_another_format_it_keeps_its_pixels(photos: Path) -> None:
    assert infer("-o", "out", "--gate", "--gate-confidence", SURE, "--format", "tiff") == 0
    assert np.array_equal(read_picture("out/clear.tif").pixels, clear("rocket"))


def test_the_confidence_that_is_asked_for_decides(photos: Path) -> None:
    assert infer("-o", "out", "--gate", "--gate-confidence", "0.000001", "--report", "report.json") == 0
    assert json.loads(Path("report.json").read_text())["clean"] == 2


def test_without_the_gate_all_is_restored_and_no_confidence_claimed(photos: Path) -> None:
    assert infer("-o", "out", "--report", "report.json") == 0
    report = json.loads(Path("report.json").read_text())
    assert (report["restored"], report["clean"]) == (2, 0)
    assert [item["confidence"] for item in report["items"]] == [None, None]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--gate-confidence", "0.9"), "--gate-confidence without --gate"),
        (("--gate", "--gate-confidence", "1"), "--gate-confidence 1"),
        (("--gate", "--weights", "mine.safetensors"), "no gate was fitted for these weights"),
    ],
)
def test_what_cannot_gate_is_refused_before_the_first_image(
    photos: Path, options: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    save_checkpoint(random_checkpoint(), Path("mine.safetensors"))
    assert infer("-o", "out", *options) == 2
    assert said in capsys.readouterr().err
    assert not Path("out").exists()


# ---- The numbers on disk


def test_the_shipped_gate_is_that_of_the_shipped_weights() -> None:
    numbers = read_numbers("default")
    assert numbers.weights_sha256 == read_checkpoint("default").sha256
    assert GateNumbers.from_json(numbers.to_json().encode(), "again") == numbers
    assert 0 < numbers.least_confidence < 1


def test_a_gate_of_other_weights_is_refused(tmp_path: Path) -> None:
    weights = tmp_path / "mine.safetensors"
    save_checkpoint(random_checkpoint(), weights)
    gate_path(str(weights)).write_text(read_numbers("default").to_json())
    with pytest.raises(CheckpointError, match="the gate of other weights"):
        read_numbers(str(weights))


@pytest.mark.parametrize(
    "change",
    [{"schema": 0}, {"bias": "none"}, {"coefficients": {TRACES[0]: 1.0}}, {"least_confidence": 2}],
    ids=str,
)
def test_numbers_that_are_not_ours_are_refused(change: dict[str, Any]) -> None:
    plain = {**json.loads(read_numbers("default").to_json()), **change}
    with pytest.raises(EngineError, match="mine: a gate with"):
        GateNumbers.from_json(json.dumps(plain).encode(), "mine")


def test_a_job_without_a_gate_opens_none() -> None:
    with open_gate(InferJob(sources=(ROOT,), weights="nothing there")) as gate:
        assert gate is None
