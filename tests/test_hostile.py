"""Broken and hostile files meet `cmudrn infer`: a reason for each, and the good ones beside are restored."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hostile.build import jpeg, png, png_chunk
from hostile.case import MAX_PIXELS, Case
from hostile.corpus import CORPUS
from hostile.fuzz import examine, fuzz, unsound_file
from hostile.seeds import seeds
from hostile.table import table
from outputs import shown

from cmudrn.deploy import decoding
from cmudrn.deploy.decoding import Decoders
from cmudrn.errors import ImageError
from cmudrn.images import read_picture
from cmudrn.images.reading import MAX_METADATA_BYTES

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is counted as Linux counts it")
COMMAND = [sys.executable, "-m", "cmudrn", "infer", "--loops", "1", "--max-pixels", str(MAX_PIXELS)]
SECONDS = 10.0  # for one of these files, on a busy machine; most take a hundredth of one
MEASURED = """
import resource, subprocess, sys
code = subprocess.call(sys.argv[1:])
sys.stderr.write(f"peak {resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss}")
sys.exit(code)
"""
PEAK_MIB = 900  # of the run: code, weights, tiles and pictures in flight; none of its decoders may have more
GOOD = ("marked.jpg", "deep.png", "tiles.tif", "alpha.webp")
DOCS = Path(__file__).parent.parent / "docs" / "hostile.md"


@dataclass(frozen=True)
class Run:
    """How a process of `cmudrn infer` ended."""

    exit_code: int
    said: bytes  # on its standard output and error
    report: dict[str, Any]
    peak_mib: int  # of the run or one of its decoders, whichever is more

    def reasons(self) -> dict[str, str]:
        """By the name of what failed."""
        items = self.report["items"]
        return {Path(item["source"]).name: item["reason"] for item in items if item["status"] == "failed"}


def start(folder: Path, *arguments: str | bytes) -> subprocess.Popen[bytes]:
    """The real process, in `folder`, which is also where its report and what it says go.

    In a small process of its own: to one's child Linux counts what oneself held when it was begun.
    """
    with (folder / "said").open("wb") as said:
        command = [sys.executable, "-c", MEASURED, *COMMAND, "--report", "report.json", *arguments]
        return subprocess.Popen(command, cwd=folder, stdout=said, stderr=said)


def end_of(process: subprocess.Popen[bytes], folder: Path) -> Run:
    process.wait()
    report = folder / "report.json"
    said, _, peak_kib = (folder / "said").read_bytes().rpartition(b"peak ")
    return Run(
        exit_code=process.returncode,
        said=said,
        report=json.loads(report.read_text()) if report.exists() else {},
        peak_mib=int(peak_kib) // 1024,
    )


def infer(folder: Path, *arguments: str | bytes) -> Run:
    return end_of(start(folder, *arguments), folder)


def needs_no_terminal(said: bytes) -> bool:
    """Lines of text, and nothing that steers a terminal."""
    return all(line.isprintable() for line in said.decode().split("\n"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Some good files in in/; the command runs where in/ is."""
    (tmp_path / "in").mkdir()
    for name in GOOD:
        (tmp_path / "in" / f"good-{name}").write_bytes(seeds()[name])
    return tmp_path


@pytest.fixture(scope="module")
def decoders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Decoders]:
    """One process that has read a picture of each kind: what it loads then, no later picture takes."""
    path = tmp_path_factory.mktemp("seeds") / "image"
    with Decoders() as decoders:
        for content in seeds().values():
            path.write_bytes(content)
            assert examine(decoders, path).what == "read"
        yield decoders


@pytest.mark.parametrize("case", CORPUS, ids=lambda case: case.name)
def test_each_file_of_the_corpus_ends_as_it_should_in_time_and_memory(
    case: Case, decoders: Decoders, tmp_path: Path
) -> None:
    path = tmp_path / case.name
    path.write_bytes(case.make())
    (pid,) = decoders.pids
    began_mib = forget_peak(pid)
    since = time.monotonic()
    try:
        header = decoders.header(path, max_pixels=MAX_PIXELS)
        decoders.picture(path, max_pixels=MAX_PIXELS, pixels=header.height * header.width)
    except ImageError as exc:
        said, way_out = exc.what.removeprefix(f"{path}: "), exc.fix
    else:
        said, way_out = "", "none needed"
    assert way_out
    assert re.search(case.says or "^$", said), said
    assert "\n" not in said
    assert len(said) < 300
    assert decoders.pids == {pid}, "its process died"
    assert peak_mib(pid) - began_mib <= case.peak_mib
    assert time.monotonic() - since < SECONDS


def forget_peak(pid: int) -> int:
    """The record of the most that a process has held begins anew; what it holds now, in MiB."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")
    return peak_mib(pid)


def peak_mib(pid: int) -> int:
    found = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    assert found
    return int(found[1]) // 1024


def test_a_folder_of_them_costs_none_of_the_good_files_beside_them(folder: Path) -> None:
    for case in CORPUS:
        (folder / "in" / case.name).write_bytes(case.make())
    run = infer(folder, "in", "-o", "out")
    assert run.exit_code == 1
    reasons = run.reasons()
    sure = {case.name for case in CORPUS if case.says and not re.search(case.says, "")}
    assert sure <= reasons.keys()
    for case in CORPUS:
        assert re.search(case.says or "^$", reasons.get(case.name, "")), (case.name, reasons.get(case.name))
    assert all(reason and "\n" not in reason for reason in reasons.values())
    written = set(shown(folder / "out"))
    assert written == {path.name for path in (folder / "in").iterdir()} - reasons.keys()
    assert {f"good-{name}" for name in GOOD} <= written
    assert needs_no_terminal(run.said)
    assert len(run.said.splitlines()) < 30
    assert run.peak_mib < PEAK_MIB


NAMES = (
    *("new\nline", "\x1b]0;owned\x07\x1b[2J\x1b[31mred", "\u202egpj.exe", "\r", "\t", "-rf", "--help", "-o"),
    *(
        "a[page=0]",
        "a[n=-1,shrink=8]",
        "%s%n%d",
        "$(reboot)",
        "`reboot`;reboot|reboot",
        "'\"",
        "*",
        "..",
        "~",
    ),
    *(
        "\u96e8 \u0434\u043e\u0436\u0434\u044c",
        "e\u0301",
        "\u00e9",
        "x" * 251,
        "a.jpg.part",
        " ",
        "NUL",
        "\udcff\udcfe",
    ),
)


@pytest.mark.parametrize("content", [seeds()["plain.png"], b"no image"], ids=["sound", "unsound"])
def test_names_are_names_and_nothing_else(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "in").mkdir()
    for name in NAMES:
        (tmp_path / "in" / f"{name}.png").write_bytes(content)
    run = infer(tmp_path, "in", "-o", "out")
    there = sorted(os.listdir(tmp_path / "in"))  # noqa: PTH208
    if content != b"no image":
        assert run.exit_code == 0, run.said
        assert shown(tmp_path / "out") == there
    else:
        assert run.exit_code == 1
        assert sorted(Path(item["source"]).name for item in run.report["items"]) == there
        lines = run.said.decode().splitlines()
        assert sum("not an image" in line for line in lines) == min(20, len(NAMES))
        assert shown(tmp_path / "out") == []
    assert needs_no_terminal(run.said)
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix != ".json") == ["in", "out", "said"]


def test_names_are_taken_as_they_are_on_the_command_line(tmp_path: Path) -> None:
    names = [os.fsencode(f"{name}.png") for name in NAMES]
    for name in names:
        (tmp_path / os.fsdecode(name)).write_bytes(seeds()["plain.png"])
    run = infer(tmp_path, "-o", "out", "--", *names)
    assert run.exit_code == 0, run.said
    assert shown(tmp_path / "out") == sorted(map(os.fsdecode, names))
    missing = infer(tmp_path, "-o", "out", "--", b"\x1b[2J\n\xff")
    assert missing.exit_code == 2
    assert missing.said.startswith(rb"cmudrn: \x1b[2J\n\udcff: No such file")
    assert needs_no_terminal(run.said + missing.said)


def test_a_name_that_would_become_too_long_costs_itself_alone(folder: Path) -> None:
    (folder / "in" / f"{'x' * 251}.png").write_bytes(seeds()["plain.png"])
    run = infer(folder, "in", "-o", "out", "--format", "webp")
    assert run.exit_code == 1
    assert run.reasons() == {f"{'x' * 251}.png": "its new name would have more than 255 bytes"}
    assert len(shown(folder / "out")) == len(GOOD)


def test_what_only_looks_like_an_image_is_not_opened(folder: Path) -> None:
    (folder / "in" / "zero.png").symlink_to("/dev/zero")
    (folder / "in" / "terminal.jpg").symlink_to("/dev/tty")
    (folder / "in" / "loop.png").symlink_to("loop.png")
    (folder / "in" / "gone.png").symlink_to("nowhere")
    os.mkfifo(folder / "in" / "pipe.tif")
    (folder / "in" / "folder.jpg").mkdir()
    (folder / "in" / "folder.jpg" / "up").symlink_to(folder / "in")
    (folder / "in" / "linked.png").symlink_to("good-deep.png")
    run = infer(folder, "in", "-o", "out")
    assert run.exit_code == 1
    reasons = run.reasons()
    for name in ("zero.png", "pipe.tif"):
        assert reasons.pop(name) == "not a regular file"
    assert reasons.keys() == {"terminal.jpg", "loop.png", "gone.png"}
    assert all(reasons.values())
    assert shown(folder / "out") == sorted([*(f"good-{name}" for name in GOOD), "linked.png"])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read_is_said(folder: Path) -> None:
    (folder / "in" / "secret.png").write_bytes(seeds()["plain.png"])
    (folder / "in" / "secret.png").chmod(0)
    run = infer(folder, "in", "-o", "out")
    assert (run.exit_code, list(run.reasons())) == (1, ["secret.png"])
    assert "ermission" in run.reasons()["secret.png"]


def test_files_that_change_under_the_run_are_restored_whole_or_said_to_have_failed(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    photos = [tmp_path / "in" / f"{number:03}.jpg" for number in range(150)]
    for photo in photos:
        photo.write_bytes(seeds()["plain.jpg"])
    process = start(tmp_path, "in", "-o", "out")
    change = threading.Thread(target=disturb, args=(photos, tmp_path / "out"))
    change.start()
    run = end_of(process, tmp_path)
    change.join()
    assert run.exit_code in (0, 1)
    assert len(run.report["items"]) == len(photos)
    assert run.report["restored"] + run.report["failed"] == len(photos)
    assert b"Traceback" not in run.said
    written = shown(tmp_path / "out")
    assert len(written) == run.report["restored"]
    for name in written:
        read_picture(tmp_path / "out" / name)


def disturb(photos: list[Path], out: Path) -> None:
    """From the first result on, last file first: gone, cut, grown, another picture, rubbish."""
    deadline = time.monotonic() + 60
    while not (out.exists() and shown(out)) and time.monotonic() < deadline:
        time.sleep(0.001)
    for number, photo in enumerate(reversed(photos)):
        if number % 5 == 0:
            photo.unlink()
        elif number % 5 == 1:
            os.truncate(photo, 300)
        elif number % 5 == 2:
            photo.write_bytes(photo.read_bytes() * 3)
        elif number % 5 == 3:
            photo.write_bytes(seeds()["deep.png"])
        else:
            photo.write_bytes(unsound_file(0, number))


def test_a_jpeg_of_endless_scans_costs_its_time_and_no_more(
    decoders: Decoders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "TIME_LIMIT_S", 0.5)
    monkeypatch.setattr(decoding, "TIME_A_MEGAPIXEL_S", 0.0)
    (tmp_path / "scans.jpg").write_bytes(jpeg(4000, 4000, progressive=True, scans=20_000))  # 800 kB, a minute
    with pytest.raises(ImageError, match="the decoder took more than"):
        decoders.picture(tmp_path / "scans.jpg", max_pixels=MAX_PIXELS, pixels=16_000_000)


def test_a_message_that_is_no_text_does_not_become_the_next_files(decoders: Decoders, tmp_path: Path) -> None:
    """pyvips leaves it in libvips, and from then on every message of the process would begin with it."""
    (case,) = (case for case in CORPUS if case.name == "bytes.avif")
    (tmp_path / case.name).write_bytes(case.make())
    (tmp_path / "cut.jpg").write_bytes(seeds()["plain.jpg"][:300])
    (tmp_path / "sound.png").write_bytes(seeds()["plain.png"])
    decoders.header(tmp_path / "sound.png", max_pixels=MAX_PIXELS)
    before = decoders.pids
    for name, said in (
        (case.name, "could not parse"),
        ("cut.jpg", "call jpegload_source; VipsJpeg: premature end"),
    ):
        with pytest.raises(ImageError, match=said):
            decoders.header(tmp_path / name, max_pixels=MAX_PIXELS)
    assert decoders.pids == before


def test_metadata_has_a_limit(decoders: Decoders, tmp_path: Path) -> None:
    text = png_chunk(b"eXIf", b"II*\0\x08\0\0\0".ljust(MAX_METADATA_BYTES + 1))
    (tmp_path / "long.png").write_bytes(png(8, 8, before=[text]))
    with pytest.raises(ImageError, match="32 MiB of metadata, the limit is 32"):
        decoders.picture(tmp_path / "long.png", max_pixels=MAX_PIXELS, pixels=64)


def test_ten_thousand_unsound_files_neither_crash_nor_hang_nor_eat(tmp_path: Path) -> None:
    tally = fuzz(tmp_path, seed=2026, first=0, count=10_000)
    assert not tally.findings, [(finding.number, finding.what) for finding in tally.findings]
    assert tally.inputs == 10_000
    assert tally.endings.keys() >= {"read", "refused", "too large"}
    assert tally.endings["read"] > 1000  # or nothing but headers were tried


def test_the_same_seed_and_number_are_the_same_input() -> None:
    assert [unsound_file(1, number) for number in range(50)] == [
        unsound_file(1, number) for number in range(50)
    ]
    assert len({unsound_file(seed, number) for seed in range(2) for number in range(50)}) > 90


def test_the_documentation_lists_the_corpus() -> None:
    assert table() in DOCS.read_text(encoding="utf-8")
