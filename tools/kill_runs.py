"""`cmudrn infer --resume` killed at random moments, until as many kills are done as told: what is lost?

    python tools/kill_runs.py [--kills 100] [--images 60] [--seed 0]

Makes its own photographs. A run is started, killed (SIGKILL) at a moment drawn from the whole length of an
undisturbed one, started again with --resume, and so on until one comes to its end; then all files are
compared with those of the undisturbed run, and a new run begins. Exit code 1 where anything differs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from cmudrn.deploy.ledger import LEDGER_NAME
from cmudrn.formats import ImageFormat
from cmudrn.images import Picture, write_picture

__all__ = ["Found", "kill_runs", "make_photos"]

SIDE_PX = (60, 200)  # at random between these
BROKEN = "broken.jpg"  # one file that cannot be read: it fails in every run, and is counted in each


@dataclass(kw_only=True)
class Found:
    """What kills have led to."""

    kills: int = 0
    runs: int = 0  # that came to their end, and were compared
    kept: int = 0  # images that a later session found done
    half: int = 0  # `.part` files that a kill left, for the next session to remove
    wrong: list[str] = field(default_factory=list)  # what differed, in words


def make_photos(folder: Path, count: int, seed: int) -> None:
    """PNG and JPEG by turns, of many sizes, in two folders; one is no image."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        below = folder / ("first", "second")[number % 2]
        below.mkdir(parents=True, exist_ok=True)
        height, width = rng.integers(*SIDE_PX, 2)
        pixels = rng.integers(0, 255, (height, width, 3), np.uint8)
        kind, suffix = ((ImageFormat.JPEG, "jpg"), (ImageFormat.PNG, "png"))[number // 2 % 2]
        write_picture(Picture(pixels, None, kind, False, 1, (1.0, 1.0), {}), below / f"{number:04}.{suffix}")
    (folder / BROKEN).write_bytes(b"\xff\xd8\xff")


def kill_runs(folder: Path, *, kills: int, images: int, seed: int) -> Found:
    """In that folder, which is empty. POSIX."""
    make_photos(folder / "photos", images, seed)
    sources = contents(folder / "photos")
    began = time.monotonic()
    process = start(folder, "whole")
    _, said = process.communicate()
    length_s = time.monotonic() - began
    whole, found, draw = contents(folder / "whole"), Found(), random.Random(seed)
    if process.returncode != 1 or len(whole) != images:
        raise SystemExit(f"the undisturbed run: {said}")
    while found.kills < kills:
        out, longest_s = folder / f"out{found.runs}", length_s
        while not killed(folder, out, draw.uniform(0, longest_s), found, images):
            longest_s *= 1.1  # where the machine has become slower, no session would come to its end
        found.runs += 1
        if contents(out) != whole:
            found.wrong.append(f"{out.name}: other files than the undisturbed run's")
        if contents(folder / "photos") != sources:
            found.wrong.append("a source was written to")
    return found


def killed(folder: Path, out: Path, after_s: float, found: Found, images: int) -> bool:
    """One session. True where it came to its end before it was killed."""
    process = start(folder, out.name, "--resume")
    try:
        _, said = process.communicate(timeout=after_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        found.kills += 1
        found.half += len(list(out.rglob("*.part")))
        return False
    report = json.loads((folder / f"{out.name}.json").read_text(encoding="utf-8"))
    found.kept += report["restored_before"]
    if process.returncode != 1 or (report["restored"], report["failed"]) != (images, 1):
        found.wrong.append(f"{out.name}: exit code {process.returncode}, {said.splitlines()[-1]}")
    statuses = [item["status"] for item in report["items"]]
    if (statuses.count("restored"), statuses.count("failed"), len(statuses)) != (images, 1, images + 1):
        found.wrong.append(f"{out.name}: the report has {len(statuses)} items")
    return True


def start(folder: Path, out: str, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "cmudrn", "infer", "photos", "-o", out, "--loops", "1"]
    return subprocess.Popen(
        [*command, "--report", f"{out}.json", *options], cwd=folder, stderr=subprocess.PIPE, text=True
    )


def contents(folder: Path) -> dict[str, str]:
    """All files but the ledger's, by their hashes."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(LEDGER_NAME)
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--images", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="cmudrn-kills-") as name:
        found = kill_runs(Path(name), kills=arguments.kills, images=arguments.images, seed=arguments.seed)
    print(
        f"{found.kills} kills in {found.runs} runs of {arguments.images} images: {found.kept} images were "
        f"found done, {found.half} half-written files removed, {len(found.wrong)} differences"
    )
    print(*found.wrong, sep="\n")
    sys.exit(bool(found.wrong))


if __name__ == "__main__":
    main()
