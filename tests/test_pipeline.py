"""From files to files: nothing lost, nothing half, nothing piled up. A real backend on random weights."""

from __future__ import annotations

import dataclasses
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from random_weights import random_checkpoint

from cmudrn.checkpoint import save_checkpoint
from cmudrn.deploy import pipeline
from cmudrn.deploy.backends import Backends
from cmudrn.deploy.job import BackendName, BackendOptions, Existing, InferJob
from cmudrn.deploy.ledger import LEDGER_NAME
from cmudrn.deploy.machine import available_cores
from cmudrn.deploy.pipeline import restore_images
from cmudrn.deploy.report import ItemResult, JobReport, Status
from cmudrn.deploy.run import Run
from cmudrn.deploy.sources import find_items
from cmudrn.deploy.tiling import restore_pixels
from cmudrn.errors import CmudrnError
from cmudrn.formats import ImageFormat
from cmudrn.images import Picture, read_picture, write_picture

ONE_THREAD = BackendOptions(name=BackendName.ONNX, threads=1)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("weights") / "random.safetensors"
    save_checkpoint(random_checkpoint(), path)
    return str(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    return tmp_path / "in"


def picture(
    height: int = 24,
    width: int = 30,
    *,
    seed: int = 0,
    dtype: Any = np.uint8,
    alpha: bool = False,
    orientation: int = 1,
) -> Picture:
    rng = np.random.default_rng(seed)
    high = np.iinfo(dtype).max
    return Picture(
        pixels=rng.integers(0, high, (height, width, 3), dtype),
        alpha=rng.integers(0, high, (height, width), dtype) if alpha else None,
        format=ImageFormat.PNG,
        is_grey=False,
        orientation=orientation,
        resolution=(1.0, 1.0),
        metadata={"orientation": orientation} if orientation > 1 else {},
    )


def write(folder: Path, count: int, **options: Any) -> None:
    for number in range(count):
        write_picture(picture(seed=number, **options), folder / f"{number:02}.png")


def run(folder: Path, weights: str, **options: Any) -> JobReport:
    """The whole job, as the command line runs it."""
    job = job_of(folder, weights, **options)
    report = JobReport()
    with Run(job) as run, Backends(job, images=run.total) as backends:
        run.begin(backends)
        for result in restore_images(job, run.items(), backends):
            run.record(result)
            report.add(result)
    return report


def job_of(folder: Path, weights: str, **options: Any) -> InferJob:
    defaults: dict[str, Any] = {
        "out": folder.parent / "out",
        "loops": 1,
        "weights": weights,
        "backend": ONE_THREAD,
    }
    return InferJob(sources=(folder,), **{**defaults, **options})


def by_hand(path: Path, weights: str) -> NDArray[Any]:
    job = job_of(path, weights)
    with Backends(job) as backends:
        pixels = read_picture(path).pixels
        backend = backends.restorer_for(pixels.dtype, *pixels.shape[:2]).backend
        return restore_pixels(pixels, backend, tile_px=10_000, overlap_px=0)


def left_over(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if ".part" in path.name]


def test_every_image_is_restored_as_by_hand(folder: Path, weights: str) -> None:
    write(folder, 9)
    report = run(folder, weights)
    assert report.counts == {Status.RESTORED: 9, Status.CLEAN: 0, Status.SKIPPED: 0, Status.FAILED: 0}
    assert report.exit_code == 0
    assert report.pixels == 9 * 24 * 30
    for path in folder.iterdir():
        restored = read_picture(folder.parent / "out" / path.name).pixels
        assert np.array_equal(restored, by_hand(path, weights))
        assert not np.array_equal(restored, read_picture(path).pixels)


@pytest.mark.parametrize(
    "options",
    [
        {"dtype": np.uint16},
        {"alpha": True},
        {"orientation": 6},
        {"dtype": np.uint16, "alpha": True, "orientation": 3},
    ],
    ids=str,
)
def test_depth_alpha_and_orientation_stay(folder: Path, weights: str, options: dict[str, Any]) -> None:
    write(folder, 1, **options)
    assert run(folder, weights).exit_code == 0
    source, restored = read_picture(folder / "00.png"), read_picture(folder.parent / "out" / "00.png")
    assert restored.pixels.dtype == source.pixels.dtype
    assert restored.pixels.shape == (24, 30, 3)
    assert restored.orientation == source.orientation == options.get("orientation", 1)
    assert np.array_equal(restored.pixels, by_hand(folder / "00.png", weights))
    if source.alpha is None:
        assert restored.alpha is None
    else:
        assert restored.alpha is not None
        assert np.array_equal(restored.alpha, source.alpha)


def test_grey_stays_grey(folder: Path, weights: str) -> None:
    write_picture(dataclasses.replace(picture(), is_grey=True), folder / "grey.png")
    assert run(folder, weights).exit_code == 0
    assert read_picture(folder.parent / "out" / "grey.png").is_grey


def test_eight_and_sixteen_bits_mix_in_one_job(folder: Path, weights: str) -> None:
    write_picture(picture(), folder / "a.png")
    write_picture(picture(dtype=np.uint16), folder / "b.png")
    assert run(folder, weights).counts[Status.RESTORED] == 2


def test_files_that_cannot_be_read_are_reported_and_the_rest_is_done(folder: Path, weights: str) -> None:
    write(folder, 5)
    (folder / "01.png").write_bytes((folder / "01.png").read_bytes()[:-700])
    (folder / "empty.jpg").touch()
    (folder / "text.tif").write_text("not an image")
    os.mkfifo(folder / "pipe.png")
    (folder / "gone.webp").symlink_to(folder / "nowhere")
    report = run(folder, weights)
    reasons = {item.source.name: item.reason for item in report.failures}
    assert report.counts == {Status.RESTORED: 4, Status.CLEAN: 0, Status.SKIPPED: 0, Status.FAILED: 5}
    assert report.exit_code == 1
    assert reasons.keys() == {"01.png", "empty.jpg", "text.tif", "pipe.png", "gone.webp"}
    assert "file is empty" in reasons["empty.jpg"]
    assert "not an image" in reasons["text.tif"]
    assert reasons["pipe.png"] == "not a regular file"
    assert all(reason and "\n" not in reason for reason in reasons.values())
    written = [path.name for path in (folder.parent / "out").iterdir() if path.name != LEDGER_NAME]
    assert sorted(written) == ["00.png", "02.png", "03.png", "04.png"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_reported(folder: Path, weights: str) -> None:
    write(folder, 2)
    (folder / "00.png").chmod(0)
    report = run(folder, weights)
    assert report.counts[Status.FAILED] == report.counts[Status.RESTORED] == 1
    assert "Permission denied" in report.failures[0].reason


def test_an_image_over_the_limit_is_not_decoded(folder: Path, weights: str) -> None:
    write(folder, 1)
    write_picture(picture(50, 50), folder / "bomb.png")
    report = run(folder, weights, max_pixels=2000)
    assert report.counts[Status.RESTORED] == 1
    assert "50 x 50 is 2,500 pixels, the limit is 2,000" in report.failures[0].reason
    assert "--max-pixels" in report.failures[0].reason


def test_transparency_that_the_format_cannot_hold_is_reported(folder: Path, weights: str) -> None:
    write(folder, 1, alpha=True)
    report = run(folder, weights, format=ImageFormat.JPEG)
    assert "no transparency" in report.failures[0].reason


def test_what_is_there_is_skipped_or_replaced_as_told(folder: Path, weights: str) -> None:
    write(folder, 3)
    out = folder.parent / "out"
    out.mkdir()
    (out / "01.png").write_bytes(b"old")
    assert run(folder, weights, existing=Existing.SKIP).counts[Status.SKIPPED] == 1
    assert (out / "01.png").read_bytes() == b"old"
    assert run(folder, weights, existing=Existing.OVERWRITE).counts[Status.RESTORED] == 3
    assert read_picture(out / "01.png").pixels.shape == (24, 30, 3)


def test_an_image_that_vanishes_after_the_check_is_reported(folder: Path, weights: str) -> None:
    write(folder, 2)
    job = job_of(folder, weights)
    items = list(find_items(job))
    (folder / "00.png").unlink()
    with Backends(job) as backends:
        results = list(restore_images(job, items, backends))
    assert sorted(result.status for result in results) == [Status.FAILED, Status.RESTORED]


def threads_of_the_pipeline() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("cmudrn-")]


def test_leaving_early_leaves_no_thread_and_no_half_file(folder: Path, weights: str) -> None:
    write(folder, 12)
    job = job_of(folder, weights)
    with Backends(job) as backends:
        results = restore_images(job, find_items(job), backends)
        first = next(results)
        assert threads_of_the_pipeline()
        results.close()
    assert not threads_of_the_pipeline()
    written = list((folder.parent / "out").iterdir())
    assert first.target in written
    assert len(written) < 12
    for path in written:
        assert read_picture(path).pixels.shape == (24, 30, 3)
    assert not left_over(folder.parent)


def test_items_are_drawn_as_they_are_needed(folder: Path, weights: str) -> None:
    write(folder, 1)
    job = job_of(folder, weights, existing=Existing.OVERWRITE)
    (item,) = find_items(job)
    drawn = 0

    def endless() -> Iterator[Any]:
        nonlocal drawn
        while True:
            drawn += 1
            yield item

    with Backends(job) as backends:
        results = restore_images(job, endless(), backends)
        for _ in range(10):
            next(results)
        results.close()
    threads = max(available_cores(), pipeline.LEAST_THREADS)
    assert drawn <= 10 + 2 * threads + pipeline.READ_AHEAD + pipeline.WRITE_BEHIND + 1


@pytest.mark.parametrize(("cores", "threads"), [(1, 2), (5, 5), (500, 64)])
def test_readers_and_writers_are_as_many_as_the_cores(
    cores: int, threads: int, folder: Path, weights: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "available_cores", lambda: cores)
    write(folder, 1)
    job = job_of(folder, weights)
    with Backends(job) as backends, pipeline._Line(job, backends, None) as line:
        assert line.readers._max_workers == line.writers._max_workers == threads
        assert threads < line.ahead == line.behind  # none is idle while the caller looks after the others


def test_pixels_in_flight_stay_within_the_budget(
    folder: Path, weights: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(folder, 8)
    write_picture(picture(90, 90, seed=9), folder / "large.png")  # more than the whole budget: goes alone
    budget_px = 2 * 24 * 30
    held: list[int] = []
    take = pipeline._PixelBudget.take

    def watched(self: Any, pixels: int) -> int:
        taken = take(self, pixels)
        held.append(self._held_px)
        return taken

    monkeypatch.setattr(pipeline._PixelBudget, "take", watched)
    assert run(folder, weights, in_flight_px=budget_px).counts[Status.RESTORED] == 9
    assert max(held) == 90 * 90
    assert sorted(held)[-2] <= budget_px


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux's always full device")
def test_a_full_disk_ends_the_job(folder: Path, weights: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write(folder, 6)
    plain_open = os.open

    def full(path: str, flags: int, *rest: Any, **options: Any) -> int:
        # A new file that takes no bytes, as a full disk gives one; all else is as ever.
        if flags & os.O_EXCL:
            return plain_open("/dev/full", os.O_WRONLY)
        return plain_open(path, flags, *rest, **options)

    monkeypatch.setattr(os, "open", full)
    with pytest.raises(CmudrnError, match="the disk is full") as caught:
        run(folder, weights)
    assert "--resume" in caught.value.fix
    assert not threads_of_the_pipeline()


def test_a_report_of_thousands_stays_small() -> None:
    report = JobReport()
    failed = ItemResult(source=Path("a.jpg"), target=Path("b.jpg"), status=Status.FAILED, reason="bad")
    for _ in range(5000):
        report.add(failed)
    assert report.failure_lines()[-1] == "... and 4980 more"
    assert report.counts[Status.FAILED] == 5000
    assert report.exit_code == 1
