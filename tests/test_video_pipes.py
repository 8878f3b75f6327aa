"""Frames on standard input and output: raw, and Y4M as FFmpeg itself writes and reads it."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from cmudrn.deploy.backends import Backends
from cmudrn.deploy.job import BackendName, BackendOptions, InferJob
from cmudrn.deploy.report import ItemResult, JobReport, Status
from cmudrn.deploy.tiling import restore_each
from cmudrn.deploy.video.options import RawFrames, RawOrder, VideoOptions
from cmudrn.deploy.video.pipes import restore_pipe
from cmudrn.deploy.video.y4m import read_frames, read_header
from cmudrn.errors import ImageError, ImageTooLarge

SIZE = (23, 30)
COMMAND = [sys.executable, "-m", "cmudrn", "infer", "-", "--loops", "1", "--threads", "1"]


@pytest.fixture(scope="module")
def job() -> InferJob:
    return InferJob(sources=(Path("-"),), loops=1, backend=BackendOptions(name=BackendName.ONNX, threads=1))


@pytest.fixture(scope="module")
def backends(job: InferJob) -> Iterator[Backends]:
    with Backends(job) as opened:
        yield opened


@pytest.fixture
def restore(job: InferJob, backends: Backends) -> Any:
    def restored(data: bytes, **options: Any) -> tuple[bytes, ItemResult]:
        sink = io.BytesIO()
        result = restore_pipe(job, VideoOptions(**options), backends, io.BytesIO(data), sink)
        return sink.getvalue(), result

    return restored


def noise(count: int, height: int = SIZE[0], width: int = SIZE[1]) -> NDArray[np.uint8]:
    rng = np.random.default_rng(count)
    coarse = rng.integers(60, 200, (count, height // 4 + 1, width // 4 + 1, 3), dtype=np.uint8)
    return np.ascontiguousarray(coarse.repeat(4, 1).repeat(4, 2)[:, :height, :width])


def by_hand(frames: NDArray[np.uint8], backends: Backends) -> NDArray[np.uint8]:
    restorer = backends.restorer_for(np.uint8, *frames.shape[1:3])
    return np.stack(list(restore_each(list(frames), restorer)))


def y4m(frames: NDArray[np.uint8], pix_fmt: str) -> bytes:
    """As FFmpeg's own muxer writes it."""
    av = pytest.importorskip("av", reason="PyAV is not installed: pip install 'cmudrn[video]'")
    file = io.BytesIO()
    with av.open(file, "w", format="yuv4mpegpipe", options={"strict": "-1"}) as container:
        stream = container.add_stream("wrapped_avframe", rate=25)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], pix_fmt
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format=pix_fmt)
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue()


def read_by_ffmpeg(data: bytes) -> list[Any]:
    import av

    with av.open(io.BytesIO(data), format="yuv4mpegpipe") as container:
        return list(container.decode(video=0))


@pytest.mark.parametrize("order", list(RawOrder))
def test_raw_frames_are_restored_byte_for_byte(order: RawOrder, restore: Any, backends: Backends) -> None:
    frames = noise(7)
    told = frames if order is RawOrder.RGB else frames[..., ::-1]
    out, result = restore(told.tobytes(), raw=RawFrames(height=SIZE[0], width=SIZE[1], order=order))
    assert (result.status, result.frames, result.height, result.width) == (Status.RESTORED, 7, *SIZE)
    restored = np.frombuffer(out, np.uint8).reshape(frames.shape)
    expected = by_hand(frames, backends)
    assert np.array_equal(restored if order is RawOrder.RGB else restored[..., ::-1], expected)


def test_raw_frames_need_no_pyav(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['av'] = None; from cmudrn.cli.app import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, *COMMAND[3:], "--raw-size", "30x23"]
    done = subprocess.run(command, input=noise(2).tobytes(), cwd=tmp_path, capture_output=True, check=True)
    assert len(done.stdout) == noise(2).nbytes


@pytest.mark.parametrize(
    "pix_fmt", ["yuv420p", "yuv422p", "yuv444p", "yuvj420p", "yuv420p10le", "yuv422p10le", "yuv444p10le"]
)
def test_y4m_frames_come_back_as_the_same_kind(pix_fmt: str, restore: Any, backends: Backends) -> None:
    frames = noise(3)
    data = y4m(frames, pix_fmt)
    out, result = restore(data)
    assert (result.status, result.frames) == (Status.RESTORED, 3)
    assert len(out) == len(data)
    assert out.split(b"\n")[0] == data.split(b"\n")[0]
    before, after = read_by_ffmpeg(data), read_by_ffmpeg(out)
    assert [frame.format.name for frame in after] == [frame.format.name for frame in before]
    decoded = np.stack([frame.to_ndarray(format="rgb24") for frame in before])
    expected = by_hand(decoded, backends)
    for frame, wanted in zip(after, expected, strict=True):
        off = np.abs(frame.to_ndarray(format="rgb24").astype(float) - wanted)
        assert off.mean() < (2 if "444" in pix_fmt else 6)  # chroma at half size is not what it was


def test_the_header_and_each_frames_line_are_handed_on_as_they_are(restore: Any) -> None:
    header = b"YUV4MPEG2 W6 H4 F30000:1001 It A10:11 C444 XFOO=bar\n"
    out, result = restore(header + (b"FRAME Xmine\n" + bytes(range(72))) * 2)
    assert result.frames == 2
    assert out.startswith(header + b"FRAME Xmine\n")
    assert out.count(b"FRAME Xmine\n") == 2


def test_a_preview_is_twice_as_wide(restore: Any) -> None:
    out, _ = restore(y4m(noise(2), "yuv444p"), preview=True)
    frame = read_by_ffmpeg(out)[0]
    assert (frame.height, frame.width) == (23, 60)


def test_a_stream_that_ends_within_a_frame_gives_those_before_it(restore: Any) -> None:
    whole = noise(4).tobytes()
    out, result = restore(whole[:-10], raw=RawFrames(height=23, width=30))
    assert (result.status, result.frames) == (Status.FAILED, 3)
    assert "ends within frame 4" in result.reason
    assert len(out) == 3 * 23 * 30 * 3
    data = y4m(noise(4), "yuv420p")
    out, result = restore(data[:-10])
    assert (result.status, result.frames) == (Status.FAILED, 3)
    assert len(read_by_ffmpeg(out)) == 3


def test_what_stands_between_frames_is_a_break(restore: Any) -> None:
    data = y4m(noise(1), "yuv420p")
    _, result = restore(data + b"GARBAGE" + data)
    assert (result.status, result.frames) == (Status.FAILED, 1)
    assert "after 1 frames no other one begins" in result.reason


def test_an_empty_stream_of_frames_is_no_failure(restore: Any) -> None:
    out, result = restore(b"", raw=RawFrames(height=23, width=30))
    assert (out, result.status, result.frames) == (b"", Status.RESTORED, 0)
    header = b"YUV4MPEG2 W6 H4 F25:1 C444\n"
    assert restore(header)[0] == header
    report = JobReport()
    report.add(result)
    assert "/s)" not in report.summary()


@pytest.mark.parametrize(
    ("start", "said"),
    [
        (b"", "nothing comes"),
        (b"\x00\x00\x00\x18ftypmp42", "neither Y4M nor told to be raw"),
        (b"YUV4MPEG2 W10 H10", "neither Y4M"),
        (b"YUV4MPEG2 H10\n", "without a size"),
        (b"YUV4MPEG2 W0 H10\n", "without a size"),
        (b"YUV4MPEG2 W-5 H10\n", "without a size"),
        (b"YUV4MPEG2 W99999999999 H10\n", "without a size"),
        (b"YUV4MPEG2 W10 H10 C411\n", "colour space 411"),
        (b"YUV4MPEG2 W10 H10 C420p12\n", "colour space 420p12"),
        (b"YUV4MPEG2 W10 H10 Cmono\n", "colour space mono"),
        (b"YUV4MPEG2 " + b"X" * 5000, "neither Y4M"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
def test_other_streams_are_refused_with_a_reason(start: bytes, said: str) -> None:
    with pytest.raises(ImageError, match=said):
        read_header(io.BytesIO(start), max_pixels=10_000)


def test_a_header_that_promises_too_much_is_refused_before_memory_is_taken() -> None:
    with pytest.raises(ImageTooLarge, match="10,000,000,000 pixels"):
        read_header(io.BytesIO(b"YUV4MPEG2 W100000 H100000\n"), max_pixels=400_000_000)


def test_odd_sizes_have_the_chroma_of_the_next_even_one() -> None:
    header = read_header(io.BytesIO(b"YUV4MPEG2 W5 H3 C420jpeg\n"), max_pixels=100)
    assert header.frame_bytes == 15 + 2 * (2 * 3)
    (frame,) = read_frames(io.BytesIO(b"FRAME\n" + bytes(27)), header)
    assert len(frame.planes) == 27


def test_nothing_but_frames_is_on_standard_output(tmp_path: Path) -> None:
    frames = noise(5)
    command = [*COMMAND, "--raw-size", "30x23", "--report", "report.json"]
    done = subprocess.run(command, input=frames.tobytes(), cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout) == frames.nbytes
    assert b"5 frames in" in done.stderr
    assert b'"frames": 5' in (tmp_path / "report.json").read_bytes()


def test_a_reader_that_goes_away_ends_it_cleanly(tmp_path: Path) -> None:
    command = [*COMMAND, "--raw-size", "30x23"]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path
    )
    assert process.stdin
    assert process.stdout
    assert process.stderr
    process.stdin.write(noise(3).tobytes())
    process.stdin.flush()
    assert process.stdout.read(23 * 30 * 3)
    process.stdout.close()
    with suppress(BrokenPipeError):
        for _ in range(400):  # more than pipes and queues hold; then who writes to us is told, too
            process.stdin.write(noise(3).tobytes())
            process.stdin.flush()
            time.sleep(0.005)
    assert process.wait(30) == 1
    said = process.stderr.read().decode()
    assert "standard output was closed by its reader after" in said
    assert "Traceback" not in said
    assert "Exception" not in said
    process.stderr.close()
    with suppress(BrokenPipeError):
        process.stdin.close()


@pytest.fixture
def piped(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """One that has restored a frame, and waits for the next ones."""
    with subprocess.Popen(
        [*COMMAND, "--raw-size", "30x23"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=tmp_path,
        bufsize=0,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:
        try:
            send(process, 1)
            assert process.stdout
            assert len(process.stdout.read(23 * 30 * 3)) == 23 * 30 * 3
            yield process
        finally:
            process.kill()


def send(process: subprocess.Popen[bytes], frames: int) -> None:
    assert process.stdin
    process.stdin.write(noise(frames).tobytes())


def test_ctrl_c_ends_it_where_nothing_comes(piped: subprocess.Popen[bytes]) -> None:
    time.sleep(0.1)
    piped.send_signal(signal.SIGINT)
    assert piped.wait(20) == 130


def test_a_reader_that_goes_away_ends_it_where_nothing_more_comes(piped: subprocess.Popen[bytes]) -> None:
    assert piped.stdout
    piped.stdout.close()
    send(piped, 1)
    assert piped.wait(20) == 1


def test_ctrl_c_ends_it_where_nobody_reads(piped: subprocess.Popen[bytes]) -> None:
    assert piped.stdin
    os.set_blocking(piped.stdin.fileno(), False)
    frames, sent, taken = noise(200).tobytes(), 0, -1
    while sent != taken:  # until all pipes and queues are full
        taken = sent
        time.sleep(0.5)
        sent += piped.stdin.write(frames[sent:]) or 0
    piped.send_signal(signal.SIGINT)
    assert piped.wait(20) == 130


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["-o", "out.mp4"], "frames go to standard output"),
        (["--start", "5", "--codec", "h264", "--crf", "3"], "--start, --codec, --crf with SRC -: do nothing"),
        (["--end", "5"], "--end with SRC -: does nothing there"),
        (["--strip", "--resume", "--gate"], "--strip, --resume, --gate with SRC -"),
        (["--format", "webp"], "--format with SRC -"),
        (["--report", "-"], "frames go to standard output"),
        (["--raw-size", "30"], "--raw-size 30"),
        (["--raw-size", "0x5"], "--raw-size 0x5"),
        (["--raw-size", "30x23", "--raw-format", "yuyv"], "--raw-format yuyv"),
        (["photo.jpg"], "- and another source"),
        ([], "neither Y4M nor told to be raw"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_makes_no_sense_is_one_line_with_a_way_out(
    options: list[str], said: str, tmp_path: Path
) -> None:
    done = subprocess.run(
        [*COMMAND, *options], input=b"no frames", cwd=tmp_path, capture_output=True, check=False
    )
    assert done.returncode == 2
    lines = [line for line in done.stderr.decode().splitlines() if not line.startswith("restoring")]
    assert said in lines[0]
    assert lines[1].startswith("  -> ")
    assert done.stdout == b""
    assert os.listdir(tmp_path) == []  # noqa: PTH208
