"""What `--gate` leaves alone: clean photographs, the protocols, other generators' weather, faint to heavy.

    python benchmarks/gate.py --data DATA [--foreign FOREIGN] [--images N] [-o CSV]
    python benchmarks/gate.py --data DATA --time

DATA holds bsds500/val, photos/val and garg06_streaks, FOREIGN what benchmarks/foreign_weather.py made. No
image of them was fitted on. Prints a row for each set: its images, the mean PSNR of what is shown, of all
restored at T = 3 and behind the gate, and the share that the gate leaves alone; below, the area under the
curve of each weather against bsds500/val as it is. Our own kernels. A row a photograph goes to CSV.
--time: only the core seconds of looking, beside those of restoring.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from machine import heading
from numpy.typing import NDArray

from cmudrn.deploy.backends import Backends
from cmudrn.deploy.gate import Gate, open_gate
from cmudrn.deploy.job import BackendName, BackendOptions, InferJob
from cmudrn.deploy.tiling import Restorer, restore_each
from cmudrn.metrics import CAP_DB, psnr_db
from cmudrn.train.photos import Camera, read_8_bits, to_pixels, to_scene
from cmudrn.train.protocols import RENDERED, EvaluationData, open_protocol
from cmudrn.train.weather.snow import draw_snow, render_snow
from cmudrn.train.weather.streaks import StreakParams, render_streaks

Pixels = NDArray[np.uint8]

SEED = 2211_08290
CLEAN = "bsds500/val"
CAMERAS = {
    "clean, noise 0.01": Camera(noise=0.01),
    "clean, noise 0.02": Camera(noise=0.02),
    "clean, JPEG 70": Camera(jpeg_quality=70),
    "clean, dusk": Camera(exposure=0.4),
}
SIZES = ((321, 481), (500, 500), (853, 1280), (2000, 3000))
TIMED = 3
SEVERITIES = (0.025, 0.05, 0.1, 0.2, 0.4)


class Shown(NamedTuple):
    """One image, the set it belongs to, and the truth."""

    set: str
    name: str
    pixels: Pixels
    clean: Pixels


class Judged(NamedTuple):
    """What became of it; PSNR is at most CAP_DB."""

    set: str
    name: str
    confidence: float
    left_alone: bool
    shown_db: float
    restored_db: float

    @property
    def gated_db(self) -> float:
        return self.shown_db if self.left_alone else self.restored_db


def clean_photographs(data: EvaluationData, count: int) -> Iterator[Shown]:
    for path in data.photos(CLEAN)[:count]:
        clean = read_8_bits(path)
        yield Shown(CLEAN, path.stem, clean, clean)
    for number, path in enumerate(data.photos(CLEAN)[:count]):
        for name, camera in CAMERAS.items():
            scene = camera.expose(to_scene(read_8_bits(path)))
            grain = camera.grain(scene.shape, np.random.default_rng([SEED, number]))
            taken = to_pixels(camera.develop(scene, grain))
            yield Shown(name, path.stem, taken, taken)


def protocols(data: EvaluationData, count: int) -> Iterator[Shown]:
    for name in RENDERED:
        for item in open_protocol(name, data).items(count):
            yield Shown(name, item.name, item.degraded, item.clean)


def severities(data: EvaluationData, count: int) -> Iterator[Shown]:
    """The protocols' weather, fainter and fainter, over every second of their photographs."""
    for number, path in islice(enumerate(data.photos(CLEAN)[:count]), 0, None, 2):
        clean = read_8_bits(path)
        scene, streaks = to_scene(clean), data.rain(number)
        for severity in SEVERITIES:
            rng = np.random.default_rng([SEED, number])
            rain = render_streaks(scene, streaks, rng, StreakParams(recipe=streaks.recipe, severity=severity))
            yield Shown(f"rain {severity:5.3f}", path.stem, to_pixels(rain.image), clean)
            rng = np.random.default_rng([SEED, number])
            snow = render_snow(scene, draw_snow(rng, severity=severity), rng)
            yield Shown(f"snow {severity:5.3f}", path.stem, to_pixels(snow.image), clean)


def foreign(folder: Path, count: int) -> Iterator[Shown]:
    for weather in ("rainy", "snowy"):
        for path in sorted((folder / weather).glob("*.png"))[:count]:
            clean = read_8_bits(folder / "clean" / path.name)
            yield Shown(f"foreign {weather}", path.stem, read_8_bits(path), clean)


def restored(pixels: Pixels, restorer: Restorer) -> Pixels:
    (image,) = restore_each([pixels], restorer)
    return np.asarray(image, np.uint8)


def judge(shown: Shown, gate: Gate, restorer: Restorer) -> Judged:
    confidence = gate.confidence(shown.pixels)
    images = shown.pixels, restored(shown.pixels, restorer)
    before, after = (min(CAP_DB, psnr_db(image, shown.clean)) for image in images)
    return Judged(shown.set, shown.name, confidence, gate.leaves_alone(confidence), before, after)


def pooled_db(values: Sequence[float]) -> float:
    """PSNR of the mean squared error: what is equal to the truth counts as no error, not as CAP_DB."""
    errors = [0.0 if value >= CAP_DB else 10 ** (-value / 10) for value in values]
    return float(-10 * np.log10(np.mean(errors))) if any(errors) else CAP_DB


def area(clean: Sequence[Judged], weather: Sequence[Judged]) -> float:
    """Chance that the gate is surer of a clean photograph than of one with weather."""
    mine, others = (np.array([one.confidence for one in some]) for some in (clean, weather))
    return float(np.mean(mine[:, None] > others[None]) + np.mean(mine[:, None] == others[None]) / 2)


def core_seconds(work: Callable[[], object]) -> float:
    """The least of TIMED; of all threads, so that what else runs on the machine counts little."""
    taken = []
    for _ in range(TIMED):
        begun = time.process_time()
        work()
        taken.append(time.process_time() - begun)
    return min(taken)


def print_times(folder: Path) -> None:
    """On one thread: one that waits for another would spin, and count."""
    one_thread = BackendOptions(name=BackendName.NATIVE, threads=1)
    job = InferJob(sources=(folder,), gate=True, backend=one_thread)
    with open_gate(job) as gate, Backends(job) as backends:
        assert gate is not None  # the job has one
        restorer = backends.restorer_for(np.uint8, 1, 1)
        for height, width in SIZES:
            pixels = np.random.default_rng(SEED).integers(0, 255, (height, width, 3), dtype=np.uint8)
            look_s = core_seconds(partial(gate.confidence, pixels))
            restore_s = core_seconds(partial(restored, pixels, restorer))
            print(
                f"{width}x{height}: looking {look_s:.3f}, restoring {restore_s:.3f}: {look_s / restore_s:.1%}"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--foreign", type=Path)
    parser.add_argument("--images", type=int, default=100, metavar="N", help="of each set, at most")
    parser.add_argument("-o", "--out", type=Path)
    parser.add_argument("--time", action="store_true")
    arguments = parser.parse_args()
    if arguments.time:
        print(heading())
        print_times(arguments.data)
        return
    data, job = EvaluationData(arguments.data), InferJob(sources=(arguments.data,), gate=True)
    sets: dict[str, list[Judged]] = defaultdict(list)
    with ExitStack() as opened:
        gate, backends = opened.enter_context(open_gate(job)), opened.enter_context(Backends(job))
        assert gate is not None  # the job has one
        restorer = backends.restorer_for(np.uint8, 1, 1)
        for source in (clean_photographs, protocols, severities):
            for shown in source(data, arguments.images):
                sets[shown.set].append(judge(shown, gate, restorer))
        for shown in foreign(arguments.foreign, arguments.images) if arguments.foreign else ():
            sets[shown.set].append(judge(shown, gate, restorer))
    print(f"{heading()}\nleft alone from a confidence of {gate.least} on")
    print("set                 images   shown  restored  gated  (of the mean error: restored  gated)  alone")
    for name, judged in sets.items():
        before, after, behind = (
            [getattr(one, f"{what}_db") for one in judged] for what in ("shown", "restored", "gated")
        )
        means = f"{np.mean(before):6.2f}  {np.mean(after):8.2f}  {np.mean(behind):5.2f}"
        pooled = f"{pooled_db(after):26.2f}  {pooled_db(behind):5.2f}"
        alone = np.mean([one.left_alone for one in judged])
        print(f"{name:18}  {len(judged):6}  {means}  {pooled}  {alone:6.0%}")
    for name, judged in sets.items():
        if np.mean([one.shown_db for one in judged]) < CAP_DB:
            print(f"{name:18}  area under the curve {area(sets[CLEAN], judged):.3f}")
    if arguments.out:
        with arguments.out.open("w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            rows.writerow(Judged._fields)
            rows.writerows(one for judged in sets.values() for one in judged)


if __name__ == "__main__":
    main()
