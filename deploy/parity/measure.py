"""How far a backend's images are from PyTorch's in float32: measured on the very same pixels, certified.

All is counted on what leaves a backend, rounded to its pixel type; differences in grey levels of 255.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, replace
from enum import Enum
from io import FileIO
from itertools import groupby
from types import TracebackType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from cmudrn.checkpoint import Checkpoint, check_tensors
from cmudrn.deploy.backend import Backend, PixelBatch
from cmudrn.deploy.parity.images import ParityImage, ParityImages
from cmudrn.deploy.parity.tally import Comparison, Tally, WorstPlace, WorstPlaces
from cmudrn.engines.certificate import ParityCertificate, ParityLimits
from cmudrn.engines.spec import EngineSpec, Pixel, Precision
from cmudrn.errors import (
    CmudrnError,
    DeviceError,
    EngineError,
    EnvironmentMissing,
    ImageError,
    UsageError,
)
from cmudrn.files import write_all
from cmudrn.metrics import WINDOW_PX

__all__ = [
    "FLOAT32_LIMITS",
    "Candidate",
    "Checked",
    "OnImage",
    "ParityJob",
    "References",
    "Verdict",
    "check_parity",
    "exit_code",
    "measure",
]

OnImage = Callable[[str], None]  # gets a candidate's name after each of its images
PixelArray = NDArray[Any]  # [H, W, 3], uint8 or float32


class Candidate(Protocol):
    """What is to be certified."""

    @property
    def name(self) -> str: ...

    @property
    def spec(self) -> EngineSpec:
        """Images are brought to its size; its batch at once."""
        ...

    @property
    def weights_sha256(self) -> str: ...

    def backend(self) -> Backend:
        """To be entered. Raises EnvironmentMissing where it can't run here, EngineError for a broken one."""
        ...

    def certify(self, certificate: ParityCertificate) -> None:
        """Keeps it in the store. Raises EngineError."""
        ...

    def withdraw(self, label: str) -> None:
        """It has failed: no earlier certificate of it stays in the store. Raises EngineError.

        label: its backend's, once that was open; else empty.
        """
        ...


# Another order of the same sums, which may tip a value over from one grey level to the next.
FLOAT32_LIMITS = ParityLimits(difference=1.0)


class Verdict(str, Enum):
    """What became of a candidate."""

    PASSED = "passed"
    BELOW = "below"  # its certificate says by what
    FAILED = "failed"  # it broke while it was measured, or isn't to be trusted
    SKIPPED = "skipped"  # it cannot be run here


@dataclass(frozen=True, kw_only=True)
class ParityJob:
    """What all candidates of a run are compared on, with what, by which limits.

    Raises CheckpointError for weights that aren't this network's.
    """

    images: ParityImages
    checkpoint: Checkpoint
    weights: str = "default"  # as --weights took them, for messages
    limits: ParityLimits  # of candidates in half precision
    float32_limits: ParityLimits = FLOAT32_LIMITS
    threads: int | None = None  # of PyTorch; None: one for each core

    def __post_init__(self) -> None:
        check_tensors(self.checkpoint, self.weights)

    def limits_of(self, precision: Precision) -> ParityLimits:
        """What a candidate that computes in it must keep."""
        return self.float32_limits if precision is Precision.FP32 else self.limits


@dataclass(frozen=True, kw_only=True, eq=False)
class Checked:
    """One candidate's end."""

    name: str
    spec: EngineSpec
    verdict: Verdict
    certificate: ParityCertificate | None = None
    places: tuple[WorstPlace, ...] = ()  # the worst first; none where every value is equal
    heatmap: NDArray[np.float32] | None = None  # [H, W] grey levels, of places[0]'s image, shrunk
    error: CmudrnError | None = None  # where it FAILED or was SKIPPED


def check_parity(
    job: ParityJob, candidates: Sequence[Candidate], *, on_image: OnImage = lambda name: None
) -> Iterator[Checked]:
    """Measures and certifies one after the other; one that fails doesn't stop the others.

    Candidates that share size, loops, pixel and output come together: PyTorch restores once for them all.
    Raises UsageError for what no candidate can help: a device that isn't there, images that can't be read, a
    temporary folder without room.
    """
    check_truth_sizes(job, candidates)
    for spec, alike in groupby(sorted(candidates, key=_order), key=lambda one: reference_spec(one.spec)):
        with References(job.checkpoint, spec, threads=job.threads) as references:
            for candidate in alike:
                yield check_one(job, candidate, references, on_image)


def check_truth_sizes(job: ParityJob, candidates: Sequence[Candidate]) -> None:
    """Raises UsageError for --truth with one that is too small to compare with it."""
    if not job.images.with_truth:
        return
    for name, spec in ((one.name, one.spec) for one in candidates):
        if min(spec.height, spec.width) < WINDOW_PX:
            raise UsageError(
                f"--truth: {name} has {spec.height}x{spec.width} pixels, SSIM needs {WINDOW_PX} a side",
                fix="name larger engines, by --size or by key, or leave --truth out",
            )


def reference_spec(spec: EngineSpec) -> EngineSpec:
    """What PyTorch is to compute; one image at a time."""
    return replace(spec, batch=1, precision=Precision.FP32)


def _order(candidate: Candidate) -> tuple[Any, ...]:
    spec = reference_spec(candidate.spec)
    return (
        *(spec.loops, spec.height, spec.width, spec.pixel.value, spec.output.value),
        candidate.name,
    )


def check_one(
    job: ParityJob, candidate: Candidate, references: References, on_image: OnImage = lambda name: None
) -> Checked:
    """Measures, and keeps the certificate; of one that fails none is left."""
    label = ""

    def ended(verdict: Verdict, **found: Any) -> Checked:
        return Checked(name=candidate.name, spec=candidate.spec, verdict=verdict, **found)

    def failed(error: CmudrnError, **found: Any) -> Checked:
        return ended(Verdict.FAILED, error=withdrawn(candidate, label, error), **found)

    if candidate.weights_sha256 != job.checkpoint.sha256:
        return ended(Verdict.SKIPPED, error=other_weights(job, candidate))
    try:
        with candidate.backend() as opened:
            label = opened.label
            tally, worst = measure(opened, job.images, references, on_image=lambda: on_image(candidate.name))
    except UsageError:
        raise
    except EnvironmentMissing as exc:
        return ended(Verdict.SKIPPED, error=exc)
    except CmudrnError as exc:
        return failed(exc)
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    certificate = tally.certificate(
        job.limits_of(candidate.spec.precision), measured_on=label, measured_at=now
    )
    found = {"certificate": certificate, "places": worst.places, "heatmap": worst.heatmap}
    try:
        candidate.certify(certificate)
    except EngineError as exc:
        return failed(exc, **found)
    return ended(Verdict.PASSED if certificate.passed else Verdict.BELOW, **found)


def withdrawn(candidate: Candidate, label: str, error: CmudrnError) -> CmudrnError:
    """Withdraws what an earlier run found of one that has failed; the error, and whether that failed, too."""
    try:
        candidate.withdraw(label)
    except EngineError as exc:
        return EngineError(f"{error.what}; an earlier certificate stays: {exc.what}", fix=exc.fix)
    return error


def exit_code(results: Sequence[Checked], *, is_named: Callable[[str], bool] = lambda name: False) -> int:
    """0, or 1 where one is below its limits or broke, or 2 where a named one, or none at all, can be run."""
    if any(one.verdict in (Verdict.BELOW, Verdict.FAILED) for one in results):
        return 1
    skipped = [one.name for one in results if one.verdict is Verdict.SKIPPED]
    return 2 if len(skipped) == len(results) or any(map(is_named, skipped)) else 0


def other_weights(job: ParityJob, candidate: Candidate) -> EngineError:
    """An engine is compared with the model of its own weights, or not at all."""
    theirs, ours = candidate.weights_sha256[:12], job.checkpoint.sha256[:12]
    return EngineError(
        f"{candidate.name}: of weights {theirs}; --weights {job.weights} are {ours}",
        fix="give the weights that it was built with: --weights FILE",
    )


def measure(
    backend: Backend,
    images: ParityImages,
    references: References,
    *,
    on_image: Callable[[], None] = lambda: None,
) -> tuple[Tally, WorstPlaces]:
    """Sends all images through an opened backend, in its batches, and compares. Holds what is on its way."""
    spec, tally, worst = backend.spec, Tally(), WorstPlaces()
    on_their_way: deque[tuple[ParityImage, PixelArray]] = deque()
    with closing(backend.stream(_batches(images, spec, on_their_way))) as stream:
        for batch in stream:
            for restored in batch:
                image, given = on_their_way.popleft()
                compared = Comparison(image.name, restored, references.of(tally.images, given))
                tally.add(given, compared, image.truth)
                worst.add(compared)
                on_image()
    if on_their_way:
        raise DeviceError(f"{len(on_their_way)} images went in and did not come out", fix="report it")
    return tally, worst


def _batches(
    images: ParityImages, spec: EngineSpec, on_their_way: deque[tuple[ParityImage, PixelArray]]
) -> Iterator[PixelBatch]:
    given: list[PixelArray] = []
    for image in _readable(images.at(spec.height, spec.width)):
        given.append(in_pixels(image.pixels, spec.pixel))
        on_their_way.append((image, given[-1]))
        if len(given) == spec.batch:
            yield np.stack(given)
            given = []
    if given:
        yield np.stack(given)


def _readable(images: Iterator[ParityImage]) -> Iterator[ParityImage]:
    """As they come. One that can't be read any more says nothing of the engine: an error of the run."""
    try:
        yield from images
    except ImageError as exc:
        raise UsageError(exc.what, fix="leave the images alone during the run, and start it again") from exc


def in_pixels(levels: NDArray[np.uint8], pixel: Pixel) -> PixelArray:
    """As they go in: 0..255 as they are, or in [0, 1]."""
    return levels if pixel is Pixel.UINT8 else np.divide(levels, 255, dtype=np.float32)


class References(AbstractContextManager["References"]):
    """PyTorch's images in float32: each is computed when it is first asked for, and kept on the disk.

    spec: batch 1, FP32. The file is temporary, of all images' size together, and gone with the process.
    Raises UsageError where it can't be made, written or read: no candidate is at fault.
    """

    def __init__(self, checkpoint: Checkpoint, spec: EngineSpec, *, threads: int | None = None) -> None:
        self.checkpoint, self.spec, self.threads = checkpoint, spec, threads
        self.computed = 0
        self._backend: Backend | None = None
        self._taken = ExitStack()

    def __enter__(self) -> References:
        # Without a buffer: what doesn't fit is refused when it is written, not when the file is closed.
        with _in_temporary_folder():
            self._file: FileIO = tempfile.TemporaryFile(buffering=0)
        self._taken.callback(self._close_file)
        return self

    def _close_file(self) -> None:
        with suppress(OSError):  # nobody wants what is in it any more
            self._file.close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._backend = None
        self._taken.close()

    def of(self, number: int, given: PixelArray) -> PixelArray:
        """The image of that number, counted from 0 in their order; `given` is what goes in."""
        if number > self.computed:
            raise ValueError(f"image {number} before image {self.computed}")
        if number < self.computed:
            kept = np.empty(given.shape, given.dtype)
            with _in_temporary_folder():
                self._file.seek(number * given.nbytes)
                _fill(self._file, kept.data.cast("B"))
            return kept
        restored = self._restore(given)
        with _in_temporary_folder():
            self._file.seek(number * given.nbytes)
            write_all(self._file, restored.tobytes())
        self.computed += 1
        return restored

    def _restore(self, given: PixelArray) -> PixelArray:
        from cmudrn.deploy.torch import TorchBackend

        if self._backend is None:
            backend = TorchBackend(self.checkpoint, self.spec, device="cpu", threads=self.threads)
            self._backend = self._taken.enter_context(backend)
        (batch,) = self._backend.stream([given[None]])
        restored: PixelArray = batch[0]
        return restored


def _fill(file: FileIO, into: memoryview) -> None:
    while into:
        count = file.readinto(into)
        if not count:
            raise OSError(None, "shorter than what was written")
        into = into[count:]


@contextmanager
def _in_temporary_folder() -> Iterator[None]:
    """What the system refuses there becomes a UsageError that names the folder."""
    try:
        yield
    except OSError as exc:
        try:
            folder = tempfile.gettempdir()
        except OSError:  # none can be written; its text, which is the error's, names those that were tried
            folder = os.environ.get("TMPDIR", "the temporary folder")
        raise UsageError(
            f"{folder}: cannot keep there what PyTorch restores: {exc.strerror}",
            fix="name a folder with room for it: TMPDIR=DIR cmudrn parity-check ...",
        ) from exc
