"""`cmudrn infer` from files to files against its backend alone, and what the difference is made of."""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from infer import run_backend, run_infer

from cmudrn.deploy.job import BackendName
from cmudrn.deploy.parity.images import PHOTOS, fit, image_files
from cmudrn.errors import UsageError
from cmudrn.formats import ImageFormat
from cmudrn.images import Picture, read_picture, write_picture
from contest.bars import Bar

__all__ = ["WholeWay", "measure_whole_way", "photos_made_of", "whole_way_bar"]

COUNT = 40
SMALLEST, LARGEST = (500, 500), (750, 1000)  # height and width
KEPT = 0.95


@dataclass(frozen=True, kw_only=True)
class WholeWay:
    """Medians, seconds, all images together."""

    backend: str
    loops: int
    images: int
    megapixels: float
    cores: int
    infer_s: float  # of the process, from its start to its end
    pipeline_s: float  # of that, from the first image begun to the last one written
    alone_s: float  # the backend over the same tiles, in a process that is there
    decode_s: float  # of one thread that does nothing else
    encode_s: float

    @property
    def kept(self) -> float:
        """Share of the backend's speed."""
        return self.alone_s / self.infer_s

    @property
    def losses_s(self) -> dict[str, float]:
        """By what takes them. Decoding and encoding hide behind the restoring only where a core is free."""
        start, files = self.infer_s - self.pipeline_s, (self.decode_s + self.encode_s) / self.cores
        return {
            "start and end of the process": start,
            "decoding": self.decode_s / self.cores,
            "encoding": self.encode_s / self.cores,
            "what remains: tiles, threads in each other's way": self.pipeline_s - self.alone_s - files,
        }

    @property
    def limit(self) -> str:
        """The largest loss."""
        return max(self.losses_s, key=lambda name: self.losses_s[name])


def measure_whole_way(
    photos: Path | None, backend: BackendName, loops: int, cores: int, repeats: int
) -> WholeWay:
    """The ways by turns. photos: a folder; None: photographs made of the package's own."""
    with photos_made_of(photos or PHOTOS) as given, TemporaryDirectory(prefix="cmudrn-whole-way-") as name:
        out, report = Path(name, "out"), Path(name, "report.json")
        out.mkdir()
        paths = sorted(given.iterdir())
        times: dict[str, list[float]] = {"infer": [], "pipeline": [], "alone": [], "decode": [], "encode": []}
        pictures = [read_picture(path) for path in paths]
        for _ in range(repeats):
            times["infer"].append(run_infer(paths, out, backend, report, loops=loops))
            times["pipeline"].append(float(json.loads(report.read_text(encoding="utf-8"))["seconds"]))
            times["alone"].append(run_backend(paths, backend, loops=loops))
            times["decode"].append(seconds_to_decode(paths))
            times["encode"].append(seconds_to_encode([out / path.name for path in paths]))
    medians = {way: statistics.median(seconds) for way, seconds in times.items()}
    return WholeWay(
        backend=backend.value,
        loops=loops,
        images=len(paths),
        megapixels=sum(one.pixels.shape[0] * one.pixels.shape[1] for one in pictures) / 1e6,
        cores=cores,
        **{f"{way}_s": seconds for way, seconds in medians.items()},
    )


def seconds_to_decode(paths: Sequence[Path]) -> float:
    began = time.perf_counter()
    for path in paths:
        read_picture(path)
    return time.perf_counter() - began


def seconds_to_encode(paths: Sequence[Path]) -> float:
    """Each anew, as it is there, in its place."""
    pictures = [read_picture(path) for path in paths]
    began = time.perf_counter()
    for picture, path in zip(pictures, paths, strict=True):
        write_picture(picture, path)
    return time.perf_counter() - began


@contextmanager
def photos_made_of(folder: Path) -> Iterator[Path]:
    """COUNT files, JPEG and PNG by turns, from SMALLEST to LARGEST, cut from a folder's photographs by turns.

    Smaller ones go on as their mirror image. Raises UsageError for a folder without photographs.
    """
    paths = image_files(folder)
    if not paths:
        raise UsageError(f"--photos {folder}: no photographs there", fix="name a folder with some")
    with TemporaryDirectory(prefix="cmudrn-photographs-") as name:
        for number in range(COUNT):
            height, width = (
                small + (large - small) * number // (COUNT - 1)
                for small, large in zip(SMALLEST, LARGEST, strict=True)
            )
            pixels = fit(np.asarray(read_picture(paths[number % len(paths)]).pixels, np.uint8), height, width)
            kind, suffix = ((ImageFormat.JPEG, "jpg"), (ImageFormat.PNG, "png"))[number % 2]
            picture = Picture(pixels, None, kind, False, 1, (1.0, 1.0), {})
            write_picture(picture, Path(name, f"{number:02}.{suffix}"))
        os.sync()  # what is written behind would be read and written again while others are timed
        yield Path(name)


def whole_way_bar(found: WholeWay) -> Bar:
    return Bar(
        what=f"`cmudrn infer` of {found.images} photographs at T = {found.loops} against its backend alone",
        bar=f">= {KEPT:.0%}",
        found=f"{found.kept:.1%}; most is lost to: {found.limit}",
        kept=found.kept >= KEPT,
    )
