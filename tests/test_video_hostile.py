"""Clips that are broken, or not what they seem: a reason for each, and no half file."""

from __future__ import annotations

import io
import shutil
import threading
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

av = pytest.importorskip("av", reason="PyAV is not installed: pip install 'cmudrn[video]'")

from clips import facts, frames_of, make_clip, picture  # noqa: E402

from cmudrn.deploy.backends import Backends  # noqa: E402
from cmudrn.deploy.job import BackendName, BackendOptions, InferJob  # noqa: E402
from cmudrn.deploy.report import ItemResult, Status  # noqa: E402
from cmudrn.deploy.sources import Item  # noqa: E402
from cmudrn.deploy.video import line  # noqa: E402
from cmudrn.deploy.video.clips import check_codec, restore_clips  # noqa: E402
from cmudrn.deploy.video.options import VideoOptions  # noqa: E402
from cmudrn.errors import CmudrnError, UsageError  # noqa: E402

MS = Fraction(1, 1000)
ONE_THREAD = BackendOptions(name=BackendName.ONNX, threads=1)


@pytest.fixture(scope="module")
def job() -> InferJob:
    return InferJob(sources=(Path("unused"),), loops=1, backend=ONE_THREAD, max_pixels=100_000)


@pytest.fixture(scope="module")
def backends(job: InferJob) -> Iterator[Backends]:
    with Backends(job) as opened:
        yield opened


@pytest.fixture
def restore(job: InferJob, backends: Backends, tmp_path: Path) -> Any:
    def restored(source: Path, **options: Any) -> tuple[Path, ItemResult]:
        item = Item(source=source, target=tmp_path / "out" / source.name)
        (result,) = restore_clips(job, VideoOptions(**options), [item], backends)
        assert not list(tmp_path.rglob("*.part"))
        assert "\n" not in result.reason
        return item.target, result

    return restored


def cut(path: Path, share: float) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


def whole_frames(path: Path) -> list[Any]:
    """What FFmpeg decodes of the packets that are whole."""
    frames: list[Any] = []
    with av.open(str(path)) as container:
        for packet in container.demux(video=0):
            if not packet.is_corrupt:
                frames += packet.decode()
    return frames


@pytest.mark.parametrize("share", [0.35, 0.6, 0.8])
@pytest.mark.parametrize(
    ("name", "clip"),
    [
        ("a.mkv", {"time_base": MS}),
        ("a.mp4", {"options": {"movflags": "faststart"}}),
        ("a.avi", {"time_base": Fraction(1, 25), "codec": "mpeg4", "codec_options": {"qmax": "3"}}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_truncated_clip_gives_its_frames_up_to_the_break(
    name: str, clip: dict[str, Any], share: float, tmp_path: Path, restore: Any
) -> None:
    source = cut(make_clip(tmp_path / name, times=100, size=(96, 128), **clip), share)
    expected = whole_frames(source)
    target, result = restore(source)
    assert (result.status, result.frames) == (Status.FAILED, len(expected))
    assert 5 < result.frames < 95
    assert f"broken off after {result.frames} frames" in result.reason
    assert [frame.pts * frame.time_base for frame in frames_of(target)] == [
        frame.pts * frame.time_base for frame in expected
    ]


@pytest.mark.parametrize(
    ("end_s", "status"), [(1.0, Status.RESTORED), (3.0, Status.FAILED), (9.0, Status.FAILED)]
)
def test_a_part_is_whole_where_the_clip_breaks_after_it(
    end_s: float, status: Status, tmp_path: Path, restore: Any
) -> None:
    source = cut(make_clip(tmp_path / "a.mkv", times=100, size=(96, 128), time_base=MS), 0.5)
    _, result = restore(source, end_s=end_s)
    assert result.status is status, result.reason
    assert (result.frames == 25) is (status is Status.RESTORED)


def test_a_transport_stream_that_is_cut_gives_what_is_there(tmp_path: Path, restore: Any) -> None:
    """It has no index and no length: where it ends is its end."""
    times = [9000 + 3600 * number for number in range(60)]
    source = cut(make_clip(tmp_path / "a.ts", times=times, time_base=Fraction(1, 90_000)), 0.5)
    target, result = restore(source)
    assert 15 < result.frames < 45
    assert len(frames_of(target)) == result.frames


def test_damage_that_the_container_does_not_get_over_is_a_break(tmp_path: Path, restore: Any) -> None:
    source = make_clip(tmp_path / "a.mkv", times=60, time_base=MS)
    data = bytearray(source.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 200] = bytes(range(200))
    source.write_bytes(data)
    target, result = restore(source)
    assert (result.status, 15 < result.frames <= 60) == (Status.FAILED, True), result.reason
    assert len(frames_of(target)) == result.frames


def test_a_packet_that_was_lost_on_the_way_is_told(tmp_path: Path, restore: Any) -> None:
    times = [9000 + 3600 * number for number in range(40)]
    source = make_clip(tmp_path / "a.ts", times=times, size=(96, 128), time_base=Fraction(1, 90_000))
    data = source.read_bytes()
    packets = [data[at : at + 188] for at in range(0, len(data), 188)]
    pictures = [at for at, packet in enumerate(packets) if packet[1:3] == b"\x01\x00"]  # 256, no new frame
    del packets[pictures[len(pictures) // 2]]
    source.write_bytes(b"".join(packets))
    target, result = restore(source)
    assert result.status is Status.FAILED
    assert "damaged on the way" in result.reason
    assert result.frames >= 38
    assert len(frames_of(target)) == result.frames


@pytest.mark.parametrize(
    "content", [b"", b"not a clip at all " * 50, bytes(5000), b"\x00\x00\x00\x18ftypmp42" + bytes(100)]
)
@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi", ".ts", ".webm"])
def test_what_is_no_clip_is_one_line(content: bytes, suffix: str, tmp_path: Path, restore: Any) -> None:
    source = tmp_path / f"a{suffix}"
    source.write_bytes(content)
    target, result = restore(source)
    assert result.status is Status.FAILED
    assert result.reason
    assert not target.exists()


def test_an_mp4_without_its_index_is_no_clip(tmp_path: Path, restore: Any) -> None:
    target, result = restore(cut(make_clip(tmp_path / "a.mp4", times=50), 0.7))
    assert result.status is Status.FAILED
    assert "cannot read" in result.reason
    assert not target.exists()


def test_sound_alone_is_no_clip(tmp_path: Path, restore: Any) -> None:
    source = tmp_path / "a.mp4"
    with av.open(str(source), "w") as container:
        stream = container.add_stream("aac", rate=48_000)
        frame = av.AudioFrame.from_ndarray(np.zeros((2, 1024), np.float32), format="fltp", layout="stereo")
        frame.rate = 48_000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    target, result = restore(source)
    assert (result.status, "there is no video in it" in result.reason) == (Status.FAILED, True)
    assert not target.exists()


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_a_clip_without_frames_is_said_to_be_one(name: str, tmp_path: Path, restore: Any) -> None:
    target, result = restore(make_clip(tmp_path / name, times=0, time_base=MS, sound="aac"))
    assert result.status is Status.FAILED
    assert "no frames in it" in result.reason or "cannot read" in result.reason or "no video" in result.reason
    assert not target.exists()


def test_a_part_beyond_the_end_has_no_frames(tmp_path: Path, restore: Any) -> None:
    target, result = restore(make_clip(tmp_path / "a.mp4"), start_s=100.0)
    assert (result.status, "no frames in it" in result.reason) == (Status.FAILED, True)
    assert not target.exists()


def test_frames_that_change_their_size_end_the_clip_there(tmp_path: Path, restore: Any) -> None:
    ts: dict[str, Any] = {"time_base": Fraction(1, 90_000)}
    one = make_clip(tmp_path / "one.ts", times=[9000 + 3600 * n for n in range(20)], **ts)
    two = make_clip(tmp_path / "two.ts", times=[81_000 + 3600 * n for n in range(20)], size=(96, 128), **ts)
    both = tmp_path / "both.ts"
    both.write_bytes(one.read_bytes() + two.read_bytes())
    target, result = restore(both)
    assert (result.status, result.frames) == (Status.FAILED, 20)
    assert "the next frame is 128x96, not 64x48" in result.reason
    assert len(frames_of(target)) == 20


def test_frames_larger_than_allowed_are_not_decoded(tmp_path: Path, restore: Any) -> None:
    target, result = restore(make_clip(tmp_path / "a.mp4", times=1, size=(400, 600)))
    assert result.status is Status.FAILED
    assert "600 x 400 are 240,000 pixels, the limit is 100,000" in result.reason
    assert not target.exists()


def test_missing_timestamps_are_filled_in(tmp_path: Path, restore: Any) -> None:
    """An elementary stream has none at all."""
    file = io.BytesIO()
    with av.open(file, "w", format="h264") as container:
        stream = container.add_stream("libx264", rate=25, options={"bf": "0"})
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for number in range(12):
            frame = av.VideoFrame.from_ndarray(picture(number), format="rgb24").reformat(format="yuv420p")
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    source = tmp_path / "a.mkv"  # told by its content
    source.write_bytes(file.getvalue())
    target, result = restore(source)
    assert (result.status, result.frames) == (Status.RESTORED, 12), result.reason
    times = facts(target).times
    assert np.allclose(np.diff(times), 40, atol=1)


def test_the_others_go_on_after_a_clip_that_fails(job: InferJob, backends: Backends, tmp_path: Path) -> None:
    (tmp_path / "bad.mp4").write_bytes(b"")
    make_clip(tmp_path / "good.mp4", times=3)
    items = [Item(source=tmp_path / name, target=tmp_path / "out" / name) for name in ("bad.mp4", "good.mp4")]
    results = list(restore_clips(job, VideoOptions(), items, backends))
    assert [result.status for result in results] == [Status.FAILED, Status.RESTORED]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["good.mp4"]


@pytest.mark.parametrize(("codec", "said"), [("libnone", "no such encoder"), ("aac", "encodes audio")])
def test_an_encoder_that_is_not_there_is_refused(codec: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        check_codec(VideoOptions(codec=codec))


@pytest.mark.parametrize(("codec", "crf"), [("mpeg4", 20), ("ffv1", 3)])
def test_a_crf_for_an_encoder_that_has_none_is_said(
    codec: str, crf: int, tmp_path: Path, restore: Any
) -> None:
    source = make_clip(tmp_path / "a.mkv", times=2, time_base=MS)
    _, result = restore(source, codec=codec, crf=crf)
    assert (result.status, "it has no --crf" in result.reason) == (Status.FAILED, True)


def test_a_mistake_in_the_middle_leaves_neither_threads_nor_files(
    job: InferJob, backends: Backends, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*arguments: Any) -> Any:
        raise RuntimeError("a mistake of ours")

    monkeypatch.setattr(line, "beside_each_other", failing)
    item = Item(source=make_clip(tmp_path / "a.mp4", times=30), target=tmp_path / "out" / "a.mp4")
    with pytest.raises(RuntimeError, match="a mistake of ours"):
        list(restore_clips(job, VideoOptions(preview=True), [item], backends))
    assert list((tmp_path / "out").iterdir()) == []
    assert not [one for one in threading.enumerate() if one.name.startswith("cmudrn-")]


def test_ctrl_c_between_the_starts_of_two_threads_is_ctrl_c(
    job: InferJob, backends: Backends, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = threading.Thread.start

    def interrupted(thread: threading.Thread) -> None:
        if thread.name == "cmudrn-write-frames":
            raise KeyboardInterrupt
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    item = Item(source=make_clip(tmp_path / "a.mp4", times=30), target=tmp_path / "out" / "a.mp4")
    with pytest.raises(KeyboardInterrupt):
        list(restore_clips(job, VideoOptions(), [item], backends))
    assert list((tmp_path / "out").iterdir()) == []
    assert not [one for one in threading.enumerate() if one.name.startswith("cmudrn-")]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_stops_the_job(
    job: InferJob, backends: Backends, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from contextlib import contextmanager

    from cmudrn.deploy.video import writing

    @contextmanager
    def full(path: Path) -> Iterator[Any]:
        with Path("/dev/full").open("r+b", buffering=0) as file:
            yield file

    monkeypatch.setattr(writing, "replacing", full)
    item = Item(source=make_clip(tmp_path / "a.mkv", times=30, time_base=MS), target=tmp_path / "b.mkv")
    with pytest.raises(CmudrnError, match="the disk is full"):
        list(restore_clips(job, VideoOptions(), [item], backends))


def test_names_that_look_like_addresses_are_files(tmp_path: Path, restore: Any) -> None:
    source = tmp_path / "rtsp: 100% %03d.mp4"
    shutil.copy(make_clip(tmp_path / "a.mp4", times=2), source)
    target, result = restore(source)
    assert result.status is Status.RESTORED, result.reason
    assert len(frames_of(target)) == 2
