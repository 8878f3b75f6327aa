"""Parity: the same pixels into a backend and into PyTorch, what is counted, and what is shown of it."""

from __future__ import annotations

import base64
import dataclasses
import math
import re
from collections.abc import Callable, Generator, Iterable
from contextlib import AbstractContextManager
from html.parser import HTMLParser
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pytest
import pyvips
from numpy.typing import NDArray
from random_weights import random_checkpoint

from cmudrn.checkpoint import Checkpoint
from cmudrn.deploy.backend import PixelBatch
from cmudrn.deploy.onnxruntime import OnnxBackend
from cmudrn.deploy.parity.images import fit, given_images, shipped_images
from cmudrn.deploy.parity.measure import (
    Candidate,
    Checked,
    ParityJob,
    References,
    Verdict,
    check_parity,
    exit_code,
    in_pixels,
    measure,
    reference_spec,
)
from cmudrn.deploy.parity.report import coloured, html_page, reason, table_row, to_json
from cmudrn.deploy.parity.tally import CROP_PX, Comparison, Tally, WorstPlaces, shrunk
from cmudrn.engines.certificate import ParityCertificate, ParityLimits
from cmudrn.engines.graph import dynamic_graph, typed_graph
from cmudrn.engines.spec import EngineSpec, Output, Pixel, Precision
from cmudrn.errors import DeviceError, EngineError, EnvironmentMissing, ImageError, UsageError
from cmudrn.metrics import psnr_db

HERE_AND_NOW = {"measured_on": "a backend", "measured_at": "2026-11-26T07:30:00Z"}
SPEC = EngineSpec(loops=1, height=40, width=56, batch=3, precision=Precision.FP32)
CHECKPOINT = random_checkpoint()


def noise(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def write(path: Path, pixels: NDArray[Any]) -> Path:
    path.parent.mkdir(exist_ok=True)
    image = pyvips.Image.new_from_array(pixels)
    image.copy(interpretation="rgb16" if pixels.dtype == np.uint16 else "srgb").write_to_file(str(path))
    return path


def job_of(checkpoint: Checkpoint = CHECKPOINT, **changes: Any) -> ParityJob:
    job = ParityJob(images=shipped_images(), checkpoint=checkpoint, limits=ParityLimits(), threads=1)
    return dataclasses.replace(job, **changes)


def compared(restored: NDArray[Any], reference: NDArray[Any]) -> ParityCertificate:
    """The certificate of one image."""
    tally = Tally()
    tally.add(reference, Comparison("one", restored, reference))
    return tally.certificate(ParityLimits(), **HERE_AND_NOW)


# The images


def test_a_larger_image_gives_its_middle_and_a_smaller_one_is_mirrored() -> None:
    row = np.arange(5, dtype=np.uint8)
    image = np.repeat(row[None, :, None], 3, axis=2)  # [1, 5, 3]
    assert fit(image, 1, 3)[0, :, 0].tolist() == [1, 2, 3]
    assert fit(image, 1, 2)[0, :, 0].tolist() == [1, 2]
    assert fit(image, 1, 9)[0, :, 0].tolist() == [1, 0, 0, 1, 2, 3, 4, 4, 3]
    assert fit(image, 1, 16)[0, :, 0].tolist() == [*(4, 3, 2, 1, 0), *(0, 1, 2, 3, 4), *(4, 3, 2, 1, 0), 0]
    assert fit(image, 3, 5)[:, 2, 0].tolist() == [2, 2, 2]
    assert fit(noise(7, 9), 4, 30).flags.c_contiguous


@pytest.mark.parametrize("size", [(1, 1), (12, 700), (400, 300)])
def test_the_packages_images_come_at_any_size_and_always_the_same(size: tuple[int, int]) -> None:
    images = shipped_images()
    first, again = list(images.at(*size)), list(images.at(*size))
    assert len(first) == len(images) == 10
    assert all(image.pixels.shape == (*size, 3) and image.pixels.dtype == np.uint8 for image in first)
    assert all(np.array_equal(one.pixels, two.pixels) for one, two in zip(first, again, strict=True))
    assert len({image.name for image in first}) == len(first)
    assert len({image.pixels.tobytes() for image in first}) > 1


def test_photographs_noise_and_extremes_are_among_them() -> None:
    images = {image.name: image.pixels for image in shipped_images().at(64, 64)}
    photos = [pixels for name, pixels in images.items() if name.endswith(".jpg")]
    assert len(photos) >= 4
    assert all(10 < pixels.std() < 100 for pixels in photos)
    assert (images["black"] == 0).all()
    assert (images["white"] == 255).all()
    assert np.unique(images["checkerboard"]).tolist() == [0, 255]
    assert not np.array_equal(images["noise 0"], images["noise 1"])


def test_sixteen_bits_become_eight_rounded(tmp_path: Path) -> None:
    levels = np.array([0, 128, 129, 257, 65535], np.uint16)
    write(tmp_path / "a.png", np.repeat(levels[None, :, None], 3, axis=2))
    (image,) = given_images(tmp_path).at(1, 5)
    assert image.pixels[0, :, 0].tolist() == [0, 0, 1, 1, 255]


def test_given_images_come_by_name_with_the_truth_cut_alike(tmp_path: Path) -> None:
    for name, seed in (("b.png", 1), ("a.png", 2)):
        write(tmp_path / "in" / name, noise(30, 40, seed))
        write(tmp_path / "truth" / Path(name).with_suffix(".tiff"), noise(30, 40, seed))
    (tmp_path / "in" / "notes.txt").write_text("no image")
    found = list(given_images(tmp_path / "in", tmp_path / "truth").at(20, 50))
    assert [image.name for image in found] == ["a.png", "b.png"]
    for image in found:
        assert image.truth is not None
        assert np.array_equal(image.pixels, image.truth)
    assert np.array_equal(found[0].pixels, fit(noise(30, 40, 2), 20, 50))


def test_images_without_their_truth_are_refused_before_anything_is_measured(tmp_path: Path) -> None:
    write(tmp_path / "in" / "a.png", noise(30, 40))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no images"):
        given_images(tmp_path / "empty")
    with pytest.raises(UsageError, match="No such file"):
        given_images(tmp_path / "absent")
    with pytest.raises(UsageError, match=r"--truth .*a\.png"):
        given_images(tmp_path / "in", tmp_path / "empty")
    write(tmp_path / "truth" / "a.png", noise(30, 41))
    with pytest.raises(ImageError, match=r"30x41 pixels, .* has 30x40"):
        given_images(tmp_path / "in", tmp_path / "truth")
    (tmp_path / "in" / "b.png").write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"b\.png"):
        given_images(tmp_path / "in")
    whole = write(tmp_path / "in" / "b.png", noise(30, 40)).read_bytes()
    (tmp_path / "in" / "b.png").write_bytes(whole[: len(whole) // 2])  # its header is whole
    with pytest.raises(ImageError, match=r"b\.png"):
        given_images(tmp_path / "in")


# What is counted


def test_equal_images_leave_nothing() -> None:
    found = compared(noise(9, 9), noise(9, 9))
    assert (found.psnr_min_db, found.psnr_mean_db, found.difference) == (None, None, 0)
    assert (found.off_by_one, found.off_by_more) == (0, 0)
    assert found.passed


def test_psnr_and_shares_are_those_of_the_values() -> None:
    reference = noise(10, 10) // 2
    restored = reference.copy()
    restored.reshape(-1)[:30] += 1  # of 300
    restored.reshape(-1)[30:33] += 2
    restored.reshape(-1)[33] += 100
    found = compared(restored, reference)
    squares = (30 * 1 + 3 * 4 + 100**2) / 300
    assert found.psnr_min_db == pytest.approx(10 * math.log10(255**2 / squares))
    assert found.psnr_min_db == pytest.approx(psnr_db(restored, reference))
    assert (found.difference, found.off_by_one, found.off_by_more) == (100, 30 / 300, 4 / 300)


@pytest.mark.parametrize(("up", "down"), [(3, 250), (250, 3)])
def test_differences_never_wrap_around(up: int, down: int) -> None:
    found = compared(np.full((4, 4, 3), up, np.uint8), np.full((4, 4, 3), down, np.uint8))
    assert found.difference == 247


def test_floats_are_counted_in_grey_levels() -> None:
    reference = np.full((10, 10, 3), 0.5, np.float32)
    restored = reference.copy()
    restored[0] += 0.4 / 255
    restored[1] += 1.4 / 255
    restored[2] -= 1.6 / 255
    found = compared(restored, reference)
    assert found.difference == pytest.approx(1.6, abs=1e-4)
    assert (found.off_by_one, found.off_by_more) == (0.1, 0.1)
    squares = (0.4**2 + 1.4**2 + 1.6**2) / 10
    assert found.psnr_min_db == pytest.approx(10 * math.log10(255**2 / squares), abs=1e-3)


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf, 1e30, 3e38])
def test_what_is_no_brightness_is_as_wrong_as_can_be(wrong: float) -> None:
    reference = np.full((10, 10, 3), 0.5, np.float32)
    restored = reference.copy()
    restored[4, 4, 1] = wrong
    found = compared(restored, reference)
    assert found.difference == 255
    assert found.off_by_more == 1 / 300
    assert not found.passed


def test_the_least_difference_of_floats_is_one() -> None:
    reference = np.zeros((4, 4, 3), np.float32)
    restored = reference.copy()
    restored[0, 0, 0] = 1e-45  # float32's least
    found = compared(restored, reference)
    assert 0 < found.difference < 1e-40
    assert found.psnr_min_db is not None
    assert found.psnr_min_db > 500


def test_the_mean_is_that_of_the_images_that_differ_and_the_hash_that_of_what_went_in() -> None:
    images = [noise(8, 8, seed) // 2 for seed in range(3)]
    tally = Tally()
    for image, off in zip(images, (0, 1, 2), strict=True):
        tally.add(image, Comparison("one", image + np.uint8(off), image))
    found = tally.certificate(ParityLimits(), **HERE_AND_NOW)
    one_off, two_off = 10 * math.log10(255**2), 10 * math.log10(255**2 / 4)
    assert found.psnr_min_db == pytest.approx(two_off)
    assert found.psnr_mean_db == pytest.approx((one_off + two_off) / 2)
    assert found.images == 3

    def hashed(order: Iterable[int]) -> str:
        other = Tally()
        for number in order:
            other.add(images[number], Comparison("one", images[number], images[number]))
        return other.certificate(ParityLimits(), **HERE_AND_NOW).images_sha256

    assert hashed(range(3)) == found.images_sha256
    assert len({hashed(range(3)), hashed((1, 0, 2)), hashed(range(2))}) == 3


def test_the_mean_of_equal_figures_is_no_rounding_below_the_worst() -> None:
    image = noise(8, 8) // 2
    for count in (3, 5, 6, 7, 49):
        tally = Tally()
        for _ in range(count):
            tally.add(image, Comparison("one", image + np.uint8(3), image))
        assert tally.certificate(ParityLimits(), **HERE_AND_NOW).images == count


@pytest.mark.parametrize("pixel", Pixel)
def test_what_the_psnr_to_the_truth_changes_by_is_told(pixel: Pixel) -> None:
    truth = noise(16, 16) // 4 + np.uint8(60)
    nearer, reference = truth + np.uint8(2), truth + np.uint8(4)
    tally = Tally()
    comparison = Comparison("one", in_pixels(nearer, pixel), in_pixels(reference, pixel))
    tally.add(reference, comparison, truth)
    found = tally.certificate(ParityLimits(), **HERE_AND_NOW)
    assert found.truth_psnr_change_db == pytest.approx(20 * math.log10(2))
    assert found.truth_ssim_change is not None
    assert 0 < found.truth_ssim_change < 0.1
    assert any("truth" in failure for failure in found.failures)


def test_the_worst_value_of_all_and_the_worst_images_are_kept_to_look_at() -> None:
    worst = WorstPlaces()
    clean = np.full((100, 200, 3), 90, np.uint8)
    worst.add(Comparison("equal", clean, clean))
    assert not worst.places
    for number in range(5):  # images ever worse on the whole
        hazy = clean.copy()
        hazy[10:30, 150:170] += np.uint8(1 + number)
        worst.add(Comparison(f"hazy {number}", hazy, clean))
    spot = clean.copy()
    spot[99, 0, 1] = 150  # one value, at the corner: little on the whole
    worst.add(Comparison("spot", spot, clean))
    places = worst.places
    assert [place.image for place in places] == ["spot", "hazy 4", "hazy 3", "hazy 2"]
    assert (places[0].top, places[0].left, places[0].difference) == (100 - CROP_PX, 0, 60)
    assert places[0].differences[CROP_PX - 1, 0].tolist() == [0, 60, 0]
    assert places[0].restored[CROP_PX - 1, 0].tolist() == [90, 150, 90]
    for place in places[1:]:
        assert place.differences.sum() == pytest.approx(20 * 20 * 3 * place.difference)  # all of it is seen
    assert worst.heatmap is not None
    assert np.argwhere(worst.heatmap).tolist() == [[99, 0]]


@pytest.mark.parametrize("size", [(1, 1), (5, 300), (CROP_PX, CROP_PX)])
def test_small_images_are_shown_whole(size: tuple[int, int]) -> None:
    worst = WorstPlaces()
    worst.add(Comparison("small", np.full((*size, 3), 9, np.uint8), np.zeros((*size, 3), np.uint8)))
    for place in worst.places:
        assert place.restored.shape == (min(size[0], CROP_PX), min(size[1], CROP_PX), 3)


# Measuring


@dataclasses.dataclass
class Onnx:
    """A candidate on ONNX Runtime, whose images may be spoilt on their way out."""

    name: str = "graph"
    spec: EngineSpec = SPEC
    weights_sha256: str = CHECKPOINT.sha256
    checkpoint: Checkpoint = CHECKPOINT
    spoil: Callable[[NDArray[Any]], NDArray[Any]] = lambda batch: batch
    certificates: list[ParityCertificate] = dataclasses.field(default_factory=list)

    def backend(self) -> Any:
        graph = dynamic_graph(self.checkpoint, loops=self.spec.loops, pixel=self.spec.pixel)
        return Spoiling(OnnxBackend(graph, self.spec, threads=1), self.spoil)

    def certify(self, certificate: ParityCertificate) -> None:
        self.certificates.append(certificate)

    def withdraw(self, label: str) -> None:
        self.certificates.clear()


class Spoiling(AbstractContextManager["Spoiling"]):
    """A backend whose batches go through a function."""

    def __init__(self, inner: OnnxBackend, spoil: Callable[[NDArray[Any]], NDArray[Any]]) -> None:
        self.inner, self.spec, self.spoil, self.label = inner, inner.spec, spoil, "ONNX Runtime, spoilt"
        self.batches: list[int] = []

    def __enter__(self) -> Spoiling:
        self.inner.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.inner.__exit__(kind, error, trace)

    def stream(self, batches: Iterable[PixelBatch]) -> Generator[PixelBatch, None, None]:
        for batch in self.inner.stream(batches):
            self.batches.append(len(batch))
            yield self.spoil(batch)


def check(*candidates: Candidate, job: ParityJob | None = None) -> list[Checked]:
    return list(check_parity(job or job_of(), candidates))


@pytest.mark.parametrize("pixel", Pixel)
@pytest.mark.parametrize("output", Output)
def test_the_same_network_on_another_runtime_passes(pixel: Pixel, output: Output) -> None:
    candidate = Onnx(spec=dataclasses.replace(SPEC, pixel=pixel, output=output))
    (checked,) = check(candidate)
    assert checked.verdict is Verdict.PASSED
    assert candidate.certificates == [checked.certificate]
    assert checked.certificate
    assert checked.certificate.images == 10
    assert checked.certificate.difference <= 1
    assert checked.certificate.measured_on == "ONNX Runtime, spoilt"
    assert exit_code([checked]) == 0


def test_other_weights_under_the_same_hash_are_below() -> None:
    candidate = Onnx(checkpoint=random_checkpoint(seed=1))
    (checked,) = check(candidate)
    assert checked.verdict is Verdict.BELOW
    assert candidate.certificates[0].failures  # it is kept, for others to know
    assert checked.places
    assert exit_code([checked]) == 1


def test_batches_are_the_engines_and_the_last_is_short() -> None:
    with Onnx().backend() as backend, References(CHECKPOINT, reference_spec(SPEC), threads=1) as references:
        measure(backend, shipped_images(), references)
        assert backend.batches == [3, 3, 3, 1]


def test_a_spoilt_batch_is_found_whatever_its_place() -> None:
    seen: list[int] = []

    def spoil_the_last(batch: NDArray[Any]) -> NDArray[Any]:
        seen.append(len(batch))
        return 255 - batch if len(seen) == 4 else batch

    (checked,) = check(Onnx(spoil=spoil_the_last))
    assert checked.verdict is Verdict.BELOW
    assert checked.places[0].image == "checkerboard"  # the tenth of ten


def test_images_in_another_order_are_found(tmp_path: Path) -> None:
    (checked,) = check(Onnx(spoil=lambda batch: batch[::-1]))
    assert checked.verdict is Verdict.BELOW


def test_images_that_never_come_back_are_an_error() -> None:
    class Losing(Spoiling):
        def stream(self, batches: Iterable[PixelBatch]) -> Generator[PixelBatch, None, None]:
            list(batches)
            yield from ()

    candidate = Onnx()
    candidate.backend = lambda: Losing(OnnxBackend(dynamic_graph(CHECKPOINT, loops=1), SPEC), lambda b: b)  # type: ignore[method-assign]
    (checked,) = check(candidate)
    assert checked.verdict is Verdict.FAILED
    assert "did not come out" in str(checked.error)
    assert not candidate.certificates


def test_measured_again_a_certificate_differs_in_its_time_alone() -> None:
    checkpoint = random_checkpoint()

    def certificate() -> ParityCertificate:
        (checked,) = check(Onnx(checkpoint=random_checkpoint(seed=1)), job=job_of(checkpoint))
        assert checked.certificate
        return dataclasses.replace(checked.certificate, measured_at="2026-11-26T07:30:00Z")

    assert certificate() == certificate()


def test_pytorch_restores_once_for_all_that_share_size_loops_pixel_and_output(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from cmudrn.deploy.torch import TorchBackend

    restored: list[EngineSpec] = []
    whole = TorchBackend.stream

    def counted(self: Any, batches: Any) -> Any:
        for batch in whole(self, batches):
            restored.extend([self.spec] * len(batch))
            yield batch

    monkeypatch.setattr(TorchBackend, "stream", counted)
    alike = [Onnx(name=f"batch {size}", spec=dataclasses.replace(SPEC, batch=size)) for size in (1, 4, 16)]
    other = Onnx(name="deeper", spec=dataclasses.replace(SPEC, loops=2))
    results = check(alike[0], other, *alike[1:])
    assert [checked.name for checked in results] == ["batch 1", "batch 16", "batch 4", "deeper"]
    assert len({checked.certificate.images_sha256 for checked in results if checked.certificate}) == 1
    found = [
        dataclasses.replace(one.certificate, measured_at="2026-11-26T07:30:00Z")
        for one in results
        if one.certificate
    ]
    assert found[0] == found[1] == found[2]
    assert restored == [reference_spec(SPEC)] * 10 + [reference_spec(other.spec)] * 10


def test_references_come_from_the_disk_as_they_were() -> None:
    images = [in_pixels(noise(20, 30, seed), Pixel.FLOAT32) for seed in range(3)]
    spec = EngineSpec(loops=1, height=20, width=30, precision=Precision.FP32, pixel=Pixel.FLOAT32)
    with References(CHECKPOINT, spec, threads=1) as references:
        first = [references.of(number, image) for number, image in enumerate(images)]
        again = [references.of(number, image) for number, image in enumerate(images)]
        assert all(np.array_equal(one, two) for one, two in zip(first, again, strict=True))
        assert references.computed == 3
        with pytest.raises(ValueError, match="image 5 before image 3"):
            references.of(5, images[0])


@pytest.mark.parametrize(
    ("error", "verdict", "code"),
    [
        (EnvironmentMissing("CUDA shows no GPU", fix="x"), Verdict.SKIPPED, 2),
        (EngineError("does not load", fix="x"), Verdict.FAILED, 1),
        (DeviceError("out of memory", fix="x"), Verdict.FAILED, 1),
        (ImageError("too small", fix="x"), Verdict.FAILED, 1),
    ],
)
def test_one_that_cannot_be_run_does_not_stop_the_others(
    error: Exception, verdict: Verdict, code: int
) -> None:
    def fails(batch: NDArray[Any]) -> NDArray[Any]:
        raise error

    broken, whole = Onnx(name="a", spoil=fails), Onnx(name="b")
    results = check(broken, whole)
    assert [one.verdict for one in results] == [verdict, Verdict.PASSED]
    assert results[0].error is error
    assert exit_code(results, is_named=lambda name: name == "a") == exit_code(results[:1]) == code
    assert exit_code(results) == (0 if verdict is Verdict.SKIPPED else 1)


def test_engines_of_other_weights_are_not_compared_with_these() -> None:
    (checked,) = check(Onnx(weights_sha256="3" * 64))
    assert checked.verdict is Verdict.SKIPPED
    assert "333333333333" in str(checked.error)
    assert "--weights FILE" in str(checked.error)


def test_one_that_fails_loses_the_certificate_of_an_earlier_run() -> None:
    candidate = Onnx()
    check(candidate)
    assert candidate.certificates

    def fails(batch: NDArray[Any]) -> NDArray[Any]:
        raise DeviceError("an illegal address", fix="x")

    candidate.spoil = fails
    (checked,) = check(candidate)
    assert checked.verdict is Verdict.FAILED
    assert not candidate.certificates


def test_an_earlier_certificate_that_cannot_be_withdrawn_is_told() -> None:
    def fails(batch: NDArray[Any]) -> NDArray[Any]:
        raise DeviceError("an illegal address", fix="x")

    def refuse(label: str) -> None:
        assert label == "ONNX Runtime, spoilt"
        raise EngineError("the store is for reading only", fix="give another: --store")

    candidate = Onnx(spoil=fails)
    candidate.withdraw = refuse  # type: ignore[method-assign]
    (checked,) = check(candidate)
    assert checked.verdict is Verdict.FAILED
    assert re.search("illegal address.*earlier certificate stays.*reading only", str(checked.error))


def test_an_image_that_is_gone_meanwhile_ends_the_run_and_fails_no_engine(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{name}.png", noise(40, 56)) for name in "ab"]
    images = given_images(tmp_path)
    candidate = Onnx(certificates=[compared(noise(9, 9), noise(9, 9))])
    paths[1].unlink()
    with pytest.raises(UsageError, match=r"b\.png"):
        check(candidate, job=job_of(images=images))
    assert candidate.certificates


def test_engines_too_small_for_ssim_are_refused_with_a_truth_before_the_first_is_measured(
    tmp_path: Path,
) -> None:
    write(tmp_path / "a.png", noise(40, 56))
    small = Onnx(name="z-small", spec=dataclasses.replace(SPEC, height=10))
    whole = Onnx()
    with pytest.raises(UsageError, match=r"--truth: z-small has 10x56 pixels, SSIM needs 11"):
        check(whole, small, job=job_of(images=given_images(tmp_path, tmp_path)))
    assert not whole.certificates
    (checked,) = check(small, job=job_of(images=given_images(tmp_path)))
    assert checked.verdict is Verdict.PASSED


def test_a_certificate_that_cannot_be_kept_is_no_pass() -> None:
    candidate = Onnx()

    def refuse(certificate: ParityCertificate) -> None:
        raise EngineError("cannot be changed", fix="x")

    candidate.certify = refuse  # type: ignore[method-assign]
    (checked,) = check(candidate)
    assert checked.verdict is Verdict.FAILED
    assert exit_code([checked]) == 1


def test_half_precision_is_told_from_float32() -> None:
    """A typed graph's own FP16, on ONNX Runtime: near, and not equal."""
    spec = dataclasses.replace(SPEC, precision=Precision.FP16, batch=1)

    class Half(Onnx):
        def backend(self) -> Any:
            return OnnxBackend(typed_graph(CHECKPOINT, spec), spec, threads=1)

    (checked,) = check(Half(spec=spec))
    assert checked.certificate
    assert checked.certificate.off_by_one > 0
    assert checked.verdict is Verdict.PASSED


# What is shown


class Page(HTMLParser):
    """Checks that tags nest, and collects what a page shows."""

    VOID = ("meta", "img", "link", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.images: list[bytes] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        assert tag not in ("script", "link", "iframe")
        if tag == "img":
            head, data = (named["src"] or "").split(",")
            assert head == "data:image/png;base64"
            assert named["alt"]
            self.images.append(base64.b64decode(data, validate=True))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@pytest.fixture(scope="module")
def results() -> list[Checked]:
    """One that passed equal, one below, one that was skipped."""
    missing = Onnx(name="c", weights_sha256="3" * 64)
    below = Onnx(name="b<script>", checkpoint=random_checkpoint(seed=1))
    return check(Onnx(name="a", spec=dataclasses.replace(SPEC, loops=2)), below, missing)


def test_the_page_is_whole_html_with_all_its_images_in_it(results: list[Checked]) -> None:
    text = html_page(job_of(weights="a&b"), results)
    page = Page(text)
    assert not re.search(r"(src|href)=.?https?:|@import|url\(", text)
    shown = " ".join(page.texts)
    assert "b<script>" in shown
    assert "a&b" in shown
    assert "$" not in text
    below = next(one for one in results if one.name == "b<script>")
    decoded = [pyvips.Image.new_from_buffer(data, "").numpy() for data in page.images]
    places = sum(len(one.places) for one in results)
    assert len(decoded) == 3 * places + sum(one.heatmap is not None for one in results)
    first = below.places[0]
    enlarged = first.reference.repeat(4, axis=0).repeat(4, axis=1)
    assert any(np.array_equal(image, enlarged) for image in decoded)


def test_rows_and_json_say_what_the_certificate_says(results: list[Checked]) -> None:
    by_name = {one.name: one for one in results}
    row = table_row(by_name["b<script>"])
    found = by_name["b<script>"].certificate
    assert found
    assert found.psnr_min_db
    assert row[0] == "10"
    assert float(row[1]) == pytest.approx(found.psnr_min_db, abs=0.01)
    assert row[-1] == "below"
    assert table_row(by_name["c"])[-1] == "skipped"
    plain = to_json(job_of(), results)
    below = next(one for one in plain["results"] if one["name"] == "b<script>")
    assert below["certificate"]["psnr_min_db"] == found.psnr_min_db
    assert below["reason"] == "; ".join(found.failures)
    skipped = next(one for one in plain["results"] if one["name"] == "c")
    assert skipped["certificate"] is None
    assert "333333333333" in skipped["reason"]


def test_only_where_the_largest_difference_is_all_that_fails_the_line_says_what_would_pass() -> None:
    """Of 3 * 200 * 200 values one is 6 levels off: 93 dB."""
    reference = np.full((200, 200, 3), 90, np.uint8)

    def line(spot: int, everywhere: int = 0) -> str:
        restored = reference + np.uint8(everywhere)
        restored[7, 7, 1] += np.uint8(spot)
        found = compared(restored, reference)
        verdict = Verdict.PASSED if found.passed else Verdict.BELOW
        return reason(Checked(name="one", spec=SPEC, verdict=verdict, certificate=found))

    assert line(6) == "a pixel is 6 grey levels off, more than 3; `--max-difference 6` would certify it"
    assert line(3) == ""
    assert "--max-difference" not in line(6, everywhere=2)  # 42 dB, too


def test_a_spot_is_seen_in_a_heatmap_that_is_shrunk() -> None:
    levels = np.zeros((1700, 900), np.float32)
    levels[1699, 899] = 7
    small = shrunk(levels)
    assert max(small.shape) <= 560
    assert small.max() == 7
    colours = coloured(small / np.float32(7))
    assert colours.shape == (*small.shape, 3)
    assert colours[0, 0].max() < 10
    assert (colours.sum(axis=2) > 500).sum() == 1
