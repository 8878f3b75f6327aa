"""Clips: frames a second against the backend alone, and the memory that they take.

    python benchmarks/video.py PHOTO [--frames 48] [--size 720x1280] [--loops 1 3] [--large 8 24]

PHOTO: is panned over and rained on, to make clips. Whole processes are timed, less what an empty one takes;
the backend alone has its frames decoded. --large: frames of two clips of 2160x3840, for the peak of memory
at T = 1. Needs the extras `train` and `video`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from machine import heading
from numpy.typing import NDArray

from cmudrn.cli.values import parse_sizes
from cmudrn.deploy.backends import Backends
from cmudrn.deploy.job import InferJob
from cmudrn.deploy.tiling import restore_each
from cmudrn.images import read_picture
from cmudrn.train.weather.rain import draw_rain, render_rain

PEAK = """
import resource, sys
from cmudrn.cli.app import main
code = main(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000, file=sys.stderr)
sys.exit(code)
"""
RATE = 25


def rainy_pan(photo: Path, frames: int, height: int, width: int) -> list[NDArray[np.uint8]]:
    """A camera that moves to the right, in one shower."""
    pixels = read_picture(photo).pixels
    times = -(-max(height, width + 2 * frames) // min(pixels.shape[:2]))
    wide = np.kron(pixels, np.ones((times, times, 1), np.uint8))
    rng = np.random.default_rng(0)
    shower = draw_rain(rng, focal_px=0.87 * width)
    shown = []
    for number in range(frames):
        clean = wide[:height, 2 * number : 2 * number + width].astype(np.float32) / np.float32(255)
        shown.append((np.clip(render_rain(clean, shower, rng).image, 0, 1) * 255 + 0.5).astype(np.uint8))
    return shown


def write_clip(path: Path, frames: list[NDArray[np.uint8]], count: int) -> None:
    """count: of frames in it; the given ones again and again."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"crf": "16", "preset": "veryfast"})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, RATE)
        for number in range(count):
            frame = av.VideoFrame.from_ndarray(frames[number % len(frames)], format="rgb24")
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def alone_s(frames: list[NDArray[np.uint8]], loops: int) -> float:
    job = InferJob(sources=(Path("unused"),), loops=loops)
    with Backends(job) as backends:
        restorer = backends.restorer_for(np.uint8, *frames[0].shape[:2])
        list(restore_each(frames[:1], restorer))
        start = time.perf_counter()
        list(restore_each(frames, restorer))
    return time.perf_counter() - start


def run(clip: Path, loops: int) -> tuple[float, float]:
    """Seconds by the command's own report, and the peak of its memory in MB."""
    out, report = clip.with_name("out.mp4"), clip.with_name("report.json")
    options = ["--loops", str(loops), "--overwrite", "--report", str(report)]
    command = [sys.executable, "-c", PEAK, "infer", str(clip), "-o", str(out), *options]
    # From another folder: cmudrn/ in the checkout would hide the installed package.
    done = subprocess.run(command, cwd=clip.parent, capture_output=True, text=True, check=True)
    return json.loads(report.read_text())["seconds"], float(done.stderr.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("photo", type=Path)
    parser.add_argument("--frames", type=int, default=48)
    parser.add_argument("--size", default="720x1280")
    parser.add_argument("--loops", type=int, nargs="+", default=[1, 3])
    parser.add_argument("--large", type=int, nargs=2, default=[8, 24])
    arguments = parser.parse_args()
    print(heading())
    ((height, width),) = parse_sizes([arguments.size])
    with tempfile.TemporaryDirectory() as name:
        clip = Path(name) / "clip.mp4"
        frames = rainy_pan(arguments.photo, arguments.frames, height, width)
        write_clip(clip, frames, len(frames))
        for loops in arguments.loops:
            whole_s, peak_mb = run(clip, loops)
            backend_s = alone_s(frames, loops)
            print(
                f"{height}x{width}, T = {loops}: {len(frames) / whole_s:.2f} frames/s from file to file, "
                f"{len(frames) / backend_s:.2f} the backend alone ({backend_s / whole_s:.0%}); "
                f"peak {peak_mb:.0f} MB",
                flush=True,
            )
        large = rainy_pan(arguments.photo, 2, 2160, 3840)
        for count in arguments.large:
            write_clip(clip, large, count)
            _, peak_mb = run(clip, 1)
            print(f"2160x3840, {count} frames, T = 1: peak {peak_mb:.0f} MB", flush=True)


if __name__ == "__main__":
    main()
