"""What a file does to a decoder's process stays there: crashes, hangs, memory. Real processes and signals."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import pyvips
from random_weights import random_checkpoint

from cmudrn.checkpoint import save_checkpoint
from cmudrn.deploy import decoding
from cmudrn.deploy.backends import Backends
from cmudrn.deploy.decoding import Decoders, memory_limit_bytes, time_limit_s
from cmudrn.deploy.job import BackendName, BackendOptions, InferJob
from cmudrn.deploy.pipeline import restore_images
from cmudrn.deploy.report import Status
from cmudrn.deploy.sources import Item
from cmudrn.errors import EnvironmentMissing, ImageError, ImageTooLarge
from cmudrn.images import read_header, read_picture

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the limits are those of Unix")
ALL = 10**9  # pixels: no limit


@pytest.fixture
def decoders() -> Iterator[Decoders]:
    with Decoders() as decoders:
        yield decoders


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    return draw(tmp_path / "photo.png", 40, 60)


def draw(path: Path, height: int, width: int, **options: object) -> Path:
    noise = np.random.default_rng(3).integers(0, 255, (height, width, 3), dtype=np.uint8)
    pyvips.Image.new_from_array(noise).write_to_file(str(path), **options)
    return path


def picture(decoders: Decoders, path: Path) -> object:
    return decoders.picture(path, max_pixels=ALL, pixels=0)


def wait_for(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def reads(pid: int, path: Path) -> bool:
    """Whether a process has the file open."""
    with contextlib.suppress(OSError), os.scandir(f"/proc/{pid}/fd") as links:
        return any(Path(link.path).samefile(path) for link in links)
    return False


def test_it_reads_what_is_read_here(decoders: Decoders, tmp_path: Path) -> None:
    for name in ("a.png", "b.jpg", "c.tif", "d.webp"):
        path = draw(tmp_path / name, 31, 17)
        here, there = read_picture(path), decoders.picture(path, max_pixels=ALL, pixels=31 * 17)
        assert decoders.header(path, max_pixels=ALL) == read_header(path)
        assert np.array_equal(there.pixels, here.pixels)
        assert there.pixels.flags.writeable
        assert there.metadata == here.metadata
        assert (there.format, there.orientation, there.alpha) == (here.format, here.orientation, None)


def test_errors_are_those_of_the_readers(decoders: Decoders, photo: Path, tmp_path: Path) -> None:
    with pytest.raises(ImageTooLarge) as caught:
        decoders.header(photo, max_pixels=100)
    assert "--max-pixels" in caught.value.fix
    with pytest.raises(ImageError, match="No such file"):
        decoders.header(tmp_path / "none.png", max_pixels=ALL)
    before = decoders.pids
    assert decoders.header(photo, max_pixels=ALL).width == 60
    assert decoders.pids == before  # an error is an answer


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGKILL])
def test_a_crash_costs_the_file_that_was_read(
    decoders: Decoders, photo: Path, tmp_path: Path, number: signal.Signals
) -> None:
    """Killed in the middle of a file: a pipe that nobody writes to keeps it there."""
    pipe = tmp_path / "pipe.png"
    os.mkfifo(pipe)
    picture(decoders, photo)
    (pid,) = decoders.pids
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(picture, decoders, pipe)
        writer = opened_by_a_reader(pipe)
        os.kill(pid, number)
        with pytest.raises(ImageError, match=f"signal {int(number)}, {number.name}") as caught:
            reading.result(timeout=60)
        os.close(writer)
    assert caught.value.what.startswith(f"{pipe}: the decoder crashed")
    picture(decoders, photo)
    assert pid not in decoders.pids
    assert not Path(f"/proc/{pid}").exists()


def test_one_that_is_killed_between_two_files_costs_neither(decoders: Decoders, photo: Path) -> None:
    picture(decoders, photo)
    (pid,) = decoders.pids
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    picture(decoders, photo)
    assert pid not in decoders.pids


def test_a_run_goes_on_after_a_decoder_has_crashed_in_the_middle_of_a_file(tmp_path: Path) -> None:
    others = set(children())  # of tests before
    weights = tmp_path / "random.safetensors"
    save_checkpoint(random_checkpoint(), weights)
    pipe = tmp_path / "pipe.png"  # as if it had taken a file's place after the check
    os.mkfifo(pipe)
    names = [draw(tmp_path / f"{number}.png", 20, 30) for number in range(6)]
    sources = [names[0], pipe, *names[1:]]
    items = [Item(source=source, target=tmp_path / "out" / source.name) for source in sources]
    backend = BackendOptions(name=BackendName.ONNX, threads=1)
    job = InferJob(
        sources=tuple(sources), out=tmp_path / "out", loops=1, weights=str(weights), backend=backend
    )

    def crash() -> None:
        writer = opened_by_a_reader(pipe)  # nothing is written, so it waits for more
        wait_for(lambda: any(reads(pid, pipe) for pid in children()))
        for pid in children():
            if reads(pid, pipe):
                os.kill(pid, signal.SIGSEGV)
        os.close(writer)

    with Backends(job) as backends, ThreadPoolExecutor(1) as pool:
        killing = pool.submit(crash)
        results = list(restore_images(job, items, backends))
        killing.result(timeout=60)
    restored = {result.source for result in results if result.status is Status.RESTORED}
    reasons = {result.source: result.reason for result in results if result.status is Status.FAILED}
    assert restored == set(names)
    assert reasons.keys() == {pipe}
    assert reasons[pipe].startswith("the decoder crashed (signal 11, SIGSEGV)")
    assert set(children()) <= others


def opened_by_a_reader(pipe: Path) -> int:
    """Its other end, for writing, as soon as somebody waits to read."""
    while True:
        with contextlib.suppress(OSError):
            return os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
        time.sleep(0.001)


def children() -> list[int]:
    """Processes that this one has started."""
    listed = Path(f"/proc/{os.getpid()}/task").glob("*/children")
    return [int(pid) for tasks in listed for pid in tasks.read_text().split()]


def test_a_file_that_shrinks_while_it_is_read_costs_itself(
    decoders: Decoders, photo: Path, tmp_path: Path
) -> None:
    """libvips maps JPEG and WebP files: what was cut off is a bus error, which would end the run."""
    shrinking = draw(tmp_path / "shrinking.webp", 1000, 1000, Q=95, effort=0)
    content = shrinking.read_bytes()
    picture(decoders, photo)
    for _ in range(20):  # once in a while it is read whole before it shrinks
        shrinking.write_bytes(content)
        error = error_of_reading_what_shrinks(decoders, shrinking)
        assert error is None or isinstance(error, ImageError)
        picture(decoders, photo)
        if error and "crashed (signal 7, SIGBUS" in str(error):
            return
    pytest.skip("this libvips does not map the file, or reads it too fast")


def error_of_reading_what_shrinks(decoders: Decoders, path: Path) -> BaseException | None:
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(picture, decoders, path)
        wait_for(lambda: reading.done() or any(reads(pid, path) for pid in decoders.pids))
        time.sleep(0.02)  # of the half second or so that it takes
        os.truncate(path, 4096)
        return reading.exception(timeout=60)


def test_one_that_hangs_is_ended_when_its_time_is_over(
    decoders: Decoders, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "TIME_LIMIT_S", 0.3)
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ImageError, match="took more than 0 s"):
        decoders.header(tmp_path / "pipe.png", max_pixels=ALL)
    monkeypatch.undo()
    assert decoders.header(photo, max_pixels=ALL).height == 40


def spin(path: Path) -> None:
    while True:
        path.name.encode()


def eat(path: Path, size: int) -> int:
    return np.empty(size, np.uint8).nbytes + len(path.name)


def fail(path: Path) -> None:
    raise ValueError(f"a mistake of ours: {path.name}")


def test_one_that_computes_for_ever_is_ended_too(
    decoders: Decoders, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "TIME_LIMIT_S", 0.3)
    with pytest.raises(ImageError, match="took more than"):
        decoders.ask(photo, partial(spin, photo), pixels=0)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="Linux counts this")
def test_memory_is_bounded_by_the_pixels_that_the_header_promised(decoders: Decoders, photo: Path) -> None:
    most = memory_limit_bytes(0)
    assert decoders.ask(photo, partial(eat, photo, most // 2), pixels=0) > most // 2
    with pytest.raises(ImageError, match="needs more than 512 MiB"):
        decoders.ask(photo, partial(eat, photo, 2 * most), pixels=0)
    assert decoders.ask(photo, partial(eat, photo, most), pixels=50_000_000) > most


def test_an_error_that_nobody_foresaw_costs_the_file_and_is_told(decoders: Decoders, photo: Path) -> None:
    with pytest.raises(ImageError, match=r"crashed \(ValueError: a mistake of ours: photo.png\)"):
        decoders.ask(photo, partial(fail, photo), pixels=0)
    assert decoders.header(photo, max_pixels=ALL).height == 40


def test_large_pictures_are_given_more_time_and_memory() -> None:
    assert time_limit_s(400_000_000) > time_limit_s(0) + 300
    assert memory_limit_bytes(400_000_000) > 400_000_000 * 2 * 8  # 16 bits with alpha, twice


def test_closing_ends_who_waits_and_leaves_no_process(photo: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    decoders = Decoders()
    picture(decoders, photo)
    pids = decoders.pids
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(picture, decoders, tmp_path / "pipe.png")
        wait_for(lambda: any(reads(pid, tmp_path / "pipe.png") for pid in pids) or not idle(decoders))
        decoders.close()
        with pytest.raises(CancelledError):
            reading.result(timeout=60)
    with pytest.raises(CancelledError):
        picture(decoders, photo)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def idle(decoders: Decoders) -> bool:
    return bool(decoders._idle)


def test_there_are_as_many_processes_as_threads_that_ask(decoders: Decoders, photo: Path) -> None:
    picture(decoders, photo)
    assert len(decoders.pids) == 1
    together = threading.Barrier(3)

    def ask() -> None:
        together.wait()
        for _ in range(30):
            picture(decoders, photo)

    with ThreadPoolExecutor(3) as pool:
        for asked in [pool.submit(ask) for _ in range(3)]:
            asked.result(timeout=60)
    assert 1 < len(decoders.pids) <= 3


def test_it_imports_nothing_from_the_folder_of_the_photographs(
    photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("numpy", "pyvips", "json", "cmudrn"):
        (photo.parent / f"{name}.py").write_text("import os; os._exit(66)\n")
    monkeypatch.chdir(photo.parent)
    with Decoders() as decoders:
        assert decoders.header(photo, max_pixels=ALL).height == 40


def test_where_none_can_be_started_it_is_said(
    photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no-python"))
    with pytest.raises(EnvironmentMissing, match="no process to decode in: No such file"):
        Decoders()
    monkeypatch.undo()
    monkeypatch.setattr(decoding, "START", "import nothing_of_this_name")
    with Decoders() as decoders, pytest.raises(EnvironmentMissing, match="nothing_of_this_name"):
        picture(decoders, photo)


def test_a_run_that_is_killed_takes_its_decoders_along(photo: Path) -> None:
    code = f"""
        from pathlib import Path
        from cmudrn.deploy.decoding import Decoders
        decoders = Decoders()
        decoders.header(Path({str(photo)!r}), max_pixels=10**9)
        print(*decoders.pids, flush=True)
        input()
    """
    run = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert run.stdout
    pid = int(run.stdout.readline())
    assert Path(f"/proc/{pid}").exists()
    run.kill()
    run.communicate()
    wait_for(lambda: not Path(f"/proc/{pid}").exists() or " Z " in Path(f"/proc/{pid}/stat").read_text())
