"""Cameras: what nobody has time for is dropped and counted, and whatever ends it, the file plays.

There is no camera where this runs. FFmpeg's own test pictures, at the pace of a clock, and a stream over TCP
stand for one.
"""

from __future__ import annotations

import io
import signal
import socket
import threading
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

av = pytest.importorskip("av", reason="PyAV is not installed: pip install 'cmudrn[video]'")

from clips import facts, frames_of, infer_signalled, make_clip  # noqa: E402

from cmudrn.deploy.backends import Backends  # noqa: E402
from cmudrn.deploy.job import BackendName, BackendOptions, InferJob  # noqa: E402
from cmudrn.deploy.report import ItemResult, Status  # noqa: E402
from cmudrn.deploy.video.live import restore_live  # noqa: E402
from cmudrn.deploy.video.names import is_live, without_password  # noqa: E402
from cmudrn.deploy.video.options import VideoOptions  # noqa: E402
from cmudrn.deploy.video.reading import ClipReader  # noqa: E402
from cmudrn.deploy.video.writing import ClipWriter  # noqa: E402
from cmudrn.errors import ImageError, UsageError  # noqa: E402

pytestmark = pytest.mark.skipif("lavfi" not in av.formats_available, reason="this PyAV has no lavfi")
ONE_THREAD = BackendOptions(name=BackendName.ONNX, threads=1)


def camera(size: str, rate: int = 25) -> str:
    return f"lavfi:testsrc=size={size}:rate={rate},realtime"


@pytest.fixture(scope="module")
def job() -> InferJob:
    return InferJob(sources=(Path("unused"),), loops=2, backend=ONE_THREAD)


@pytest.fixture(scope="module")
def backends(job: InferJob) -> Iterator[Backends]:
    with Backends(job) as opened:
        yield opened


@pytest.fixture
def restore(job: InferJob, backends: Backends, tmp_path: Path) -> Any:
    def restored(
        source: str, *, name: str = "out.mp4", stop: threading.Event | None = None, **options: Any
    ) -> tuple[Path, ItemResult]:
        target = tmp_path / name
        told = VideoOptions(**options)
        result = restore_live(job, told, source, target, backends, stop or threading.Event())
        assert not list(tmp_path.glob(".*.part"))
        return target, result

    return restored


def test_a_camera_that_is_faster_loses_the_oldest_frames_and_they_are_counted(restore: Any) -> None:
    target, result = restore(camera("320x240", rate=50), end_s=2.0)
    assert (result.status, result.height, result.width) == (Status.RESTORED, 240, 320)
    assert result.dropped > 0
    assert result.frames + result.dropped == 100
    times = [frame.pts * frame.time_base for frame in frames_of(target)]
    assert len(times) == result.frames
    assert 0 <= times[0] < 2  # the first ones may be lost, too
    assert all(time * 50 == int(time * 50) for time in times)  # each at its own time


def test_sound_evicts_no_pictures(restore: Any) -> None:
    _, result = restore("lavfi:nullsrc=size=64x48:rate=25[out0];sine[out1]", name="out.mkv", end_s=1.0)
    assert (result.status, result.frames + result.dropped) == (Status.RESTORED, 25), result.reason
    assert result.frames > 0


def test_a_camera_of_which_no_frame_came_through_has_failed(
    restore: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ClipReader, "steps", lambda reader: iter(()))
    _, result = restore(camera("64x48"), end_s=1.0)
    assert (result.status, result.reason) == (Status.FAILED, "no frame came through")


def test_a_camera_that_is_slow_enough_loses_none(restore: Any) -> None:
    _, result = restore(camera("48x32", rate=10), end_s=1.0)
    assert (result.frames, result.dropped) == (10, 0)


def test_stopping_ends_it_with_a_file_that_plays(restore: Any) -> None:
    stop = threading.Event()
    threading.Timer(0.7, stop.set).start()
    since = time.monotonic()
    target, result = restore(camera("64x48"), stop=stop)
    assert time.monotonic() - since < 10
    assert result.status is Status.RESTORED
    assert 1 <= result.frames == len(frames_of(target)) < 60


def test_the_file_is_readable_before_its_end(job: InferJob, backends: Backends, tmp_path: Path) -> None:
    """After a power cut the hidden file beside it plays up to its last key frame."""
    stop = threading.Event()
    arguments = (job, VideoOptions(), camera("64x48"), tmp_path / "out.mp4", backends, stop)
    thread = threading.Thread(target=restore_live, args=arguments)
    thread.start()
    try:
        deadline = time.monotonic() + 30
        while not any(path.stat().st_size > 600 for path in tmp_path.glob(".*.part")):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        (part,) = tmp_path.glob(".*.part")
        with av.open(io.BytesIO(part.read_bytes())) as container:
            assert container.streams.video[0].codec_context.width == 64
    finally:
        stop.set()
        thread.join()


def test_fewer_loops_follow_the_load_and_are_reported(restore: Any) -> None:
    target, result = restore(camera("160x120"), end_s=3.0, fps=100.0, adaptive=True)
    assert set(result.frames_by_loops) == {1, 2}
    assert sum(result.frames_by_loops.values()) == result.frames == len(frames_of(target))


def test_never_fewer_loops_than_told(restore: Any) -> None:
    _, result = restore(camera("160x120"), end_s=1.0, fps=100.0, adaptive=True, min_loops=2)
    assert set(result.frames_by_loops) == {2}


def serve(data: bytes) -> str:
    """The address where one viewer gets it."""
    server = socket.create_server(("127.0.0.1", 0))

    def run() -> None:
        connection, _ = server.accept()
        with server, connection:
            connection.sendall(data)

    threading.Thread(target=run, daemon=True).start()
    return f"tcp://127.0.0.1:{server.getsockname()[1]}"


def test_a_stream_from_the_network_ends_when_it_ends_and_begins_at_zero(tmp_path: Path, restore: Any) -> None:
    """Its clock has run for an hour."""
    times = [324_000_000 + 3600 * number for number in range(30)]
    clip = make_clip(
        tmp_path / "a.ts",
        times=times,
        time_base=Fraction(1, 90_000),
        codec_options={"g": "10"},
    )
    target, result = restore(serve(clip.read_bytes()))
    assert (result.status, result.dropped + result.frames) == (Status.RESTORED, 30), result.reason
    assert 0 <= facts(target).times[0] < 30 * 3600
    assert np.all(np.diff([frame.pts for frame in frames_of(target)]) > 0)


@pytest.mark.parametrize("name", ["out.mp4", "out.mov", "out.mkv"])
@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_frames_are_at_their_own_times_where_the_first_ones_were_dropped(
    name: str, codec: str, tmp_path: Path
) -> None:
    """With frames that are decoded before ones shown earlier, and without."""
    clip = make_clip(tmp_path / "a.mkv", times=60, time_base=Fraction(1, 1000))
    with (
        ClipReader(str(clip), max_pixels=10**6) as reader,
        ClipWriter(tmp_path / name, reader, VideoOptions(codec=codec), in_pieces=True) as writer,
    ):
        for step in list(reader.steps())[25:]:
            writer.write(step)
    times = [frame.pts * frame.time_base for frame in frames_of(tmp_path / name)]
    assert times == [Fraction(number, 25) for number in range(25, 60)]


def test_a_camera_that_is_not_there_is_a_line_without_its_password(restore: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    target, result = restore(f"rtsp://me:secret@127.0.0.1:{port}/stream")
    assert result.status is Status.FAILED
    assert "secret" not in f"{result.source} {result.reason}"
    assert not target.exists()
    _, result = restore("/dev/video99")
    assert result.status is Status.FAILED
    assert "cannot read" in result.reason


def test_a_stream_that_fails_on_the_way_is_a_line_without_its_password(
    tmp_path: Path, restore: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = ClipReader.steps

    def failing(reader: ClipReader) -> Iterator[Any]:
        yield next(begin(reader))
        raise ImageError(f"{reader.source}: cannot read {reader.source}")

    monkeypatch.setattr(ClipReader, "steps", failing)
    clip = make_clip(tmp_path / "a.ts", times=9, time_base=Fraction(1, 90_000))
    address = serve(clip.read_bytes()).removeprefix("tcp://")
    _, result = restore(f"tcp://me:secret@{address}")
    assert (result.status, result.reason) == (Status.FAILED, f"cannot read tcp://me@{address}")


def test_a_start_makes_no_sense(restore: Any) -> None:
    with pytest.raises(UsageError, match="--start with a camera"):
        restore(camera("64x48"), start_s=1.0)


@pytest.mark.parametrize(
    ("source", "live"),
    [
        ("/dev/video0", True),
        ("rtsp://host/stream", True),
        ("udp://@:1234", True),
        ("http://host/a.m3u8", True),
        ("photos", False),
        ("rtsp", False),
        ("/dev/video", False),
        ("a:b.mp4", False),
        ("-", False),
    ],
)
def test_cameras_are_told_by_their_address(source: str, live: bool) -> None:
    assert is_live(source) is live


def test_passwords_are_left_out_of_what_is_said() -> None:
    assert without_password("rtsp://me:se/cret:x@host:554/a") == "rtsp://me:se/cret:x@host:554/a"
    assert without_password("rtsp://me:secret@host:554/a") == "rtsp://me@host:554/a"
    assert without_password("rtsp://me:sec@r:et@host:554/a") == "rtsp://me@host:554/a"
    assert without_password("rtsp://host:554/a@b") == "rtsp://host:554/a@b"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_a_camera_with_exit_code_0_and_a_file_that_plays(
    number: signal.Signals, tmp_path: Path
) -> None:
    options = ("-o", "out.mkv", "--loops", "1", "--threads", "1")
    exit_code, said = infer_signalled(tmp_path, camera("64x48"), *options, number=number, after_s=1)
    assert exit_code == 0, said
    assert "Traceback" not in said
    assert "1 restored" in said
    assert len(frames_of(tmp_path / "out.mkv")) > 3
    assert [path.name for path in tmp_path.iterdir()] == ["out.mkv"]
