"""`cmudrn infer` from the first file read to the last one written, and where that time goes."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from cmudrn.deploy.backends import Backends
from cmudrn.deploy.benchmark.contestants import Conditions
from cmudrn.deploy.benchmark.table import Terms
from cmudrn.deploy.job import BackendName, BackendOptions, Existing, InferJob
from cmudrn.deploy.pipeline import restore_images
from cmudrn.deploy.report import JobReport
from cmudrn.deploy.sources import check_sources, find_items
from cmudrn.errors import ImageError, UsageError
from cmudrn.files import replacing
from cmudrn.formats import ImageFormat
from cmudrn.images import Picture, Pixels, read_picture, write_picture

__all__ = [
    "EndToEnd",
    "jobs_of",
    "make_photos",
    "median_pass",
    "photos_or_made",
    "run_end_to_end",
    "write_passes",
]

PHOTO_HEIGHT, PHOTO_WIDTH, MADE = 640, 960, 8


@dataclass(frozen=True, kw_only=True)
class EndToEnd:
    """One pass over all images. The stages work at the same time: their seconds may add up to more."""

    backend: str  # what restored, in words
    loops: int
    images: int
    megapixels: float
    open_s: float  # before the first image: libraries, weights, engines
    wall_s: float  # from then to the last file
    decode_s: float  # of work, in all threads
    restore_s: float
    encode_s: float

    @property
    def images_per_s(self) -> float:
        return self.images / self.wall_s

    @property
    def megapixels_per_s(self) -> float:
        return self.megapixels / self.wall_s

    @property
    def restoring_share(self) -> float:
        """Of the wall's time: near 1, decoding and encoding hide behind the restoring."""
        return self.restore_s / self.wall_s


def run_end_to_end(job: InferJob, *, passes: int) -> Iterator[EndToEnd]:
    """Each pass opens all anew, as the command does, and writes into a folder that is removed after it.

    job: what is to be restored, and how; its `out` is not used.
    Raises ImageError where an image fails, and what the backend raises.
    """
    for _ in range(passes):
        with TemporaryDirectory(prefix="cmudrn-benchmark-") as folder:
            yield _pass(replace(job, out=Path(folder, "out"), existing=Existing.OVERWRITE))


def median_pass(passes: list[EndToEnd]) -> EndToEnd:
    """The one of the median wall time."""
    return min(passes, key=lambda one: abs(one.wall_s - statistics.median(each.wall_s for each in passes)))


def _pass(job: InferJob) -> EndToEnd:
    began, total = time.perf_counter(), check_sources(job)
    found_s = time.perf_counter() - began
    first = first_pixels(job)
    began = time.perf_counter()
    with Backends(job, images=total) as backends:
        if first is not None:
            open_for(first, backends)
        opened_s = found_s + time.perf_counter() - began
        report = JobReport()
        with closing(restore_images(job, find_items(job), backends)) as results:
            for result in results:
                report.add(result)
        what = backends.label
    if report.failures:
        raise ImageError(f"not restored: {report.failure_lines()[0]}", fix="leave it out")
    return EndToEnd(
        backend=what,
        loops=job.loops,
        images=total,
        megapixels=report.pixels / 1e6,
        open_s=opened_s,
        wall_s=report.seconds,
        **{f"{stage}_s": seconds for stage, seconds in report.stage_s.items()},
    )


def first_pixels(job: InferJob) -> Pixels | None:
    """Of the first image, to choose an engine by. None where it can't be read: the pass itself tells why."""
    try:
        return read_picture(next(find_items(job)).source).pixels
    except ImageError:
        return None


def open_for(pixels: Pixels, backends: Backends) -> None:
    """An engine is opened when the first image asks for it: loading it is no restoring."""
    height, width, _ = pixels.shape
    with suppress(ImageError):  # no engine fits, and the pass itself tells
        backends.restorer_for(pixels.dtype, height, width)


@contextmanager
def photos_or_made(photos: Path | None) -> Iterator[Path]:
    """The folder told, or one of made-up photographs that is removed at the end."""
    if photos is not None:
        yield photos
        return
    with TemporaryDirectory(prefix="cmudrn-benchmark-") as folder:
        make_photos(Path(folder, "photos"), MADE)
        yield Path(folder, "photos")


def jobs_of(
    folder: Path, backends: Sequence[BackendName], depths: Sequence[int], conditions: Conditions
) -> list[InferJob]:
    """A job for each backend and depth; engines count without a certificate, too."""
    return [
        InferJob(
            sources=(folder,),
            loops=loops,
            weights=conditions.weights,
            backend=BackendOptions(
                name=backend,
                devices=() if conditions.device is None else (conditions.device,),
                threads=conditions.threads,
                allow_unverified=True,
                store=conditions.store,
            ),
        )
        for backend in backends
        for loops in depths
    ]


def write_passes(passes: Sequence[EndToEnd], terms: Terms, folder: Path) -> None:
    """end-to-end.json, whole or not at all. Raises UsageError where it can't be written."""
    rows = [
        asdict(one)
        | {"images_per_s": one.images_per_s, "megapixels_per_s": one.megapixels_per_s}
        | {"restoring_share": one.restoring_share}
        for one in passes
    ]
    text = json.dumps({"terms": terms.to_json(), "passes": rows}, indent=1) + "\n"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / "end-to-end.json") as file:
            file.write(text.encode())
    except OSError as exc:
        raise UsageError(f"{folder}: {exc.strerror}", fix="give another folder: -o OUT") from exc


def make_photos(folder: Path, count: int) -> None:
    """JPEG files of waves with some grain, which decode and compress about as photographs do."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    rows = np.sin(np.arange(PHOTO_HEIGHT) / 37)[:, None, None] * 60
    columns = np.cos(np.arange(PHOTO_WIDTH) / 53)[None, :, None] * 60
    for number in range(count):
        grain = rng.normal(0, 8, (PHOTO_HEIGHT, PHOTO_WIDTH, 3))
        pixels = np.clip(128 + rows + columns + grain, 0, 255).astype(np.uint8)
        picture = Picture(pixels, None, ImageFormat.JPEG, False, 1, (1.0, 1.0), {})
        write_picture(picture, folder / f"{number:03}.jpg")
