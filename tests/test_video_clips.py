"""A clip through the network: every frame once, at its time, and all that is no frame as it was."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

av = pytest.importorskip("av", reason="PyAV is not installed: pip install 'cmudrn[video]'")

from clips import RGB, facts, frames_of, make_clip, picture  # noqa: E402
from numpy.typing import NDArray  # noqa: E402

from cmudrn.deploy.backends import Backends  # noqa: E402
from cmudrn.deploy.job import BackendName, BackendOptions, InferJob  # noqa: E402
from cmudrn.deploy.keep_options import KeepOptions  # noqa: E402
from cmudrn.deploy.report import ItemResult, Status  # noqa: E402
from cmudrn.deploy.sources import Item  # noqa: E402
from cmudrn.deploy.tiling import restore_each  # noqa: E402
from cmudrn.deploy.video.clips import restore_clips  # noqa: E402
from cmudrn.deploy.video.frames import Frame  # noqa: E402
from cmudrn.deploy.video.options import VideoOptions  # noqa: E402
from cmudrn.deploy.video.reading import ClipReader  # noqa: E402

ROTATED = (0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30)  # shown a quarter turn clockwise
MIRRORED = (-65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30)
MS = Fraction(1, 1000)


@pytest.fixture(scope="module")
def job() -> InferJob:
    return InferJob(
        sources=(Path("unused"),), loops=1, backend=BackendOptions(name=BackendName.ONNX, threads=1)
    )


@pytest.fixture(scope="module")
def backends(job: InferJob) -> Iterator[Backends]:
    with Backends(job) as opened:
        yield opened


@pytest.fixture
def restore(job: InferJob, backends: Backends, tmp_path: Path) -> Any:
    def restored(source: Path, target: str = "out.mkv", **options: Any) -> tuple[Path, ItemResult]:
        item = Item(source=source, target=tmp_path / "out" / target)
        (result,) = restore_clips(job, VideoOptions(**options), [item], backends)
        assert not list(tmp_path.rglob("*.part"))
        return item.target, result

    return restored


def by_hand(pixels: list[NDArray[Any]], backends: Backends) -> list[NDArray[Any]]:
    restorer = backends.restorer_for(pixels[0].dtype, *pixels[0].shape[:2])
    return list(restore_each(pixels, restorer))


@pytest.mark.parametrize(
    ("name", "clip"),
    [
        ("a.mp4", {}),
        ("b-frames.mp4", {"times": 40, "codec_options": {"bf": "3", "g": "12"}}),
        ("ticks.mp4", {"time_base": Fraction(1, 25), "options": {"video_track_timescale": "25"}}),
        ("variable.mp4", {"times": [0, 512, 700, 3000, 3001, 9000, 9512, 20_000]}),
        ("late.mp4", {"times": [5120, 5632, 6144, 7000]}),
        ("ntsc.mov", {"time_base": Fraction(1, 30_000), "times": [1001 * n for n in range(9)], "rate": 30}),
        ("variable.mkv", {"time_base": MS, "times": [0, 40, 41, 90, 400, 1234]}),
        ("vp9.webm", {"time_base": MS, "codec": "libvpx-vp9"}),
        ("hevc.mp4", {"codec": "libx265", "codec_options": {"x265-params": "log-level=none"}}),
        ("mpeg4.avi", {"time_base": Fraction(1, 25), "codec": "mpeg4"}),
        ("stream.ts", {"time_base": Fraction(1, 90_000), "times": [9000 + 3600 * n for n in range(20)]}),
        ("flash.flv", {"time_base": MS, "codec": "flv"}),
        ("one.mp4", {"times": 1}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_frame_comes_once_at_its_own_time(
    name: str, clip: dict[str, Any], tmp_path: Path, restore: Any
) -> None:
    source = make_clip(tmp_path / name, **clip)
    target, result = restore(source, name)
    before, after = facts(source), facts(target)
    assert result.status is Status.RESTORED, result.reason
    assert result.frames == len(before.times) == len(after.times) == len(frames_of(target))
    assert [time * after.time_base for time in after.times] == [
        time * before.time_base for time in before.times
    ]
    assert after.time_base == before.time_base
    assert after.codec == before.codec
    assert after.pix_fmt == before.pix_fmt


@pytest.mark.parametrize("count", [1, 2, 3])
def test_clips_shorter_than_the_encoder_looks_ahead_are_written(
    count: int, tmp_path: Path, restore: Any
) -> None:
    """x265 leaves the times of decoding unset there, now and then."""
    source = make_clip(tmp_path / "short.mp4", times=count)
    target, result = restore(source, "short.mp4", codec="libx265")
    assert result.status is Status.RESTORED, result.reason
    assert facts(target).times == facts(source).times


def test_frames_of_avi_which_has_no_timestamps_come_in_order(
    tmp_path: Path, restore: Any, backends: Backends
) -> None:
    source = make_clip(tmp_path / "b.avi", times=20, time_base=Fraction(1, 25), codec_options={"bf": "3"})
    target, result = restore(source, "b.avi")
    assert result.frames == 20
    assert {later.pts - frame.pts for frame, later in pairwise(frames_of(target))} == {1}
    decoded = [frame.to_ndarray(format="rgb24") for frame in frames_of(source)]
    for frame, wanted in zip(frames_of(target), by_hand(decoded, backends), strict=True):
        off = np.abs(frame.to_ndarray(format="rgb24").astype(float) - wanted)
        assert off.mean() < 4  # neighbours in time differ by the line, and by 10 and more


@pytest.mark.parametrize(
    ("name", "clip"),
    [
        ("film.mp4", {"sound": "aac", "subtitles": "mov_text"}),
        ("film.mkv", {"sound": "aac", "subtitles": "ass", "time_base": MS}),
        ("film.webm", {"sound": "libopus", "codec": "libvpx-vp9", "time_base": MS}),
    ],
)
def test_sound_and_subtitles_are_copied_byte_for_byte(
    name: str, clip: dict[str, Any], tmp_path: Path, restore: Any
) -> None:
    source = make_clip(tmp_path / name, times=30, metadata={"title": "rain"}, **clip)
    target, result = restore(source, name)
    assert result.status is Status.RESTORED, result.reason
    before, after = facts(source), facts(target)
    assert after.copied == before.copied
    assert set(after.copied) == {"audio", *(["subtitle"] if "subtitles" in clip else [])}
    assert after.languages == before.languages
    assert after.languages["audio"] == "deu"
    assert after.metadata["title"] == "rain"


def test_the_files_time_is_kept(tmp_path: Path, restore: Any) -> None:
    source = make_clip(tmp_path / "a.mp4", times=2)
    os.utime(source, ns=(10**18, 10**18))
    target, _ = restore(source, "a.mp4")
    assert target.stat().st_mtime_ns == 10**18


@pytest.mark.parametrize("name", ["film.mp4", "film.mkv"])
def test_strip_leaves_out_what_tells_of_place_time_and_people(
    name: str, job: InferJob, backends: Backends, tmp_path: Path
) -> None:
    told = {"title": "my Sunday", "location": "+48.1+011.5/", "artist": "me", "comment": "at home"}
    plain = make_clip(tmp_path / f"plain {name}", times=5, sound="aac", metadata=told)
    source = tmp_path / name
    with av.open(str(plain)) as one, av.open(str(source), "w") as other:
        other.set_chapters(
            [{"id": 1, "start": 0, "end": 90, "time_base": MS, "metadata": {"title": "our garden"}}]
        )
        other.metadata.update(told)
        copies = {stream.index: other.add_stream_from_template(stream) for stream in one.streams}
        copies[1].metadata["language"], copies[1].metadata["title"] = "deu", "our voices"
        for packet in one.demux():
            if packet.size:
                packet.stream = copies[packet.stream.index]
                other.mux(packet)
    os.utime(source, ns=(10**18, 10**18))
    for strip in (False, True):
        target = tmp_path / f"{strip} {name}"
        own = replace(job, keep=KeepOptions(strip=strip))
        (result,) = restore_clips(own, VideoOptions(), [Item(source=source, target=target)], backends)
        assert result.status is Status.RESTORED, result.reason
        with av.open(str(target)) as container:
            assert bool(container.chapters()) is not strip
        after = facts(target)
        assert after.languages["audio"] == "deu"
        assert ("title" in after.metadata) is not strip
        assert (target.stat().st_mtime_ns == 10**18) is not strip
        data = target.read_bytes()
        assert any(name.lower().startswith("location") for name in after.metadata) is not strip
        words = (b"our garden", b"my Sunday", b"at home")
        assert [word for word in words if (word in data) is strip] == []


def test_frames_are_what_the_network_gives_for_the_decoded_ones(
    tmp_path: Path, restore: Any, backends: Backends
) -> None:
    source = make_clip(tmp_path / "a.mkv", time_base=MS, **RGB)
    target, _ = restore(source)
    expected = by_hand([picture(number) for number in range(12)], backends)
    restored = [frame.to_ndarray(format="rgb24") for frame in frames_of(target)]
    assert facts(target).pix_fmt == "bgr0"
    assert all(np.array_equal(one, other) for one, other in zip(restored, expected, strict=True))
    assert not np.array_equal(restored[0], picture(0))


def samples(frame: Any) -> NDArray[Any]:
    """[3, 48, 64]: of 4:4:4."""
    dtype = np.uint16 if "10" in frame.format.name else np.uint8
    planes = [np.frombuffer(plane, dtype).reshape(48, -1)[:, :64] for plane in frame.planes]
    return np.stack(planes).astype(float)


def by_definition(frame: Any, colour: tuple[int, int, int, int]) -> NDArray[Any]:
    """[H, W, 3] in 0..1, of 4:4:4: H.273's equations."""
    red, blue = {1: (0.2126, 0.0722), 6: (0.299, 0.114), 9: (0.2627, 0.0593)}[colour[3]]
    unit = 1 << (10 - 8 if "10" in frame.format.name else 0)
    luma, cb, cr = samples(frame) / unit
    y = luma / (256 - 1 / unit) if colour[0] == 2 else (luma - 16) / 219
    pb, pr = ((chroma - 128) / ((256 - 1 / unit) if colour[0] == 2 else 224) for chroma in (cb, cr))
    r, b = y + 2 * (1 - red) * pr, y + 2 * (1 - blue) * pb
    g = (y - red * r - blue * b) / (1 - red - blue)
    return np.asarray(np.clip(np.stack([r, g, b], axis=-1), 0, 1))


@pytest.mark.parametrize("matrix", [ROTATED, MIRRORED], ids=["rotated", "mirrored"])
def test_a_turned_clip_is_restored_upright_and_keeps_its_turn(
    matrix: tuple[int, ...], tmp_path: Path, restore: Any, backends: Backends
) -> None:
    exact: dict[str, Any] = {"codec": "libx264rgb", "pix_fmt": "rgb24", "codec_options": {"qp": "0"}}
    source = make_clip(tmp_path / "a.mp4", matrix=matrix, times=3, **exact)
    target, result = restore(source, "a.mp4", codec="libx264rgb", crf=0)
    assert facts(target).matrix == facts(source).matrix == matrix
    assert facts(target).size == (48, 64)
    assert (result.height, result.width) == ((64, 48) if matrix == ROTATED else (48, 64))

    def upright(stored: NDArray[Any]) -> NDArray[Any]:
        return np.ascontiguousarray(np.rot90(stored, -1) if matrix == ROTATED else stored[:, ::-1])

    expected = by_hand([upright(picture(number)) for number in range(3)], backends)
    for frame, wanted in zip(frames_of(target), expected, strict=True):
        assert np.array_equal(upright(frame.to_ndarray(format="rgb24")), wanted)


@pytest.mark.parametrize(
    "colour",
    [(1, 1, 1, 1), (2, 1, 13, 6), (1, 6, 6, 6), (1, 5, 6, 5), (1, 9, 16, 9), (0, 2, 2, 2)],
    ids=["709", "601 full", "525", "625", "2020 PQ", "untagged"],
)
@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv420p10le"])
def test_colour_tags_stay(
    colour: tuple[int, int, int, int], pix_fmt: str, tmp_path: Path, restore: Any
) -> None:
    source = make_clip(tmp_path / "a.mp4", times=2, colour=colour, pix_fmt=pix_fmt)
    target, result = restore(source, "a.mp4")
    assert result.status is Status.RESTORED, result.reason
    assert facts(target).colour == facts(source).colour
    assert facts(target).pix_fmt == facts(source).pix_fmt


@pytest.mark.parametrize(
    "colour", [(1, 1, 1, 1), (2, 1, 13, 6), (1, 9, 16, 9)], ids=["709", "601 full", "2020"]
)
@pytest.mark.parametrize("depth", [8, 10])
def test_colours_come_back_as_they_went(
    colour: tuple[int, int, int, int], depth: int, tmp_path: Path, restore: Any, backends: Backends
) -> None:
    """Against matrix and range in numpy. A wrong one of either is off by 10 levels and more."""
    pix_fmt = "yuv444p" if depth == 8 else "yuv444p10le"
    source = make_clip(
        tmp_path / "a.mkv", times=2, time_base=MS, colour=colour, codec="ffv1", pix_fmt=pix_fmt
    )
    target, _ = restore(source)
    assert facts(target).colour == facts(source).colour == colour
    peak = 255 if depth == 8 else 65535
    decoded = [by_definition(frame, colour) for frame in frames_of(source)]
    dtype = np.uint8 if depth == 8 else np.uint16
    expected = by_hand([np.floor(rgb * peak + 0.5).astype(dtype) for rgb in decoded], backends)
    for frame, wanted in zip(frames_of(target), expected, strict=True):
        off = np.abs(by_definition(frame, colour) * 255 - wanted.astype(float) * 255 / peak)
        assert off.mean() < 1
        assert np.quantile(off, 0.99) < 3  # YUV holds not every RGB


def test_ten_bits_are_restored_in_float_and_written_as_ten(tmp_path: Path, restore: Any) -> None:
    """Cut to 8 bits on the way, all samples would be multiples of 4, but for the rounding of the range."""
    source = make_clip(tmp_path / "ten.mkv", times=2, time_base=MS, codec="ffv1", pix_fmt="yuv444p10le")
    target, result = restore(source, "ten.mkv")
    assert result.status is Status.RESTORED
    assert facts(target).pix_fmt == "yuv444p10le"
    luma = samples(frames_of(target)[0])[0].astype(int)
    assert np.all(np.bincount(luma.ravel() % 4, minlength=4) > luma.size / 8)


def test_ten_bits_are_never_cut_to_an_encoders_eight(tmp_path: Path, restore: Any) -> None:
    source = make_clip(tmp_path / "ten.mp4", times=2, pix_fmt="yuv420p10le")
    target, result = restore(source, "out.mp4", codec="mpeg4")
    assert result.status is Status.FAILED
    assert "mpeg4 has no pixel format of 10 bits" in result.reason
    assert not target.exists()


@pytest.mark.parametrize(
    ("codec", "pix_fmt"),
    [
        *(
            ("ffv1", name)
            for name in ("yuv422p", "yuv444p", "gray", "bgr0", "yuv422p10le", "gray10le", "gbrp10le")
        ),
        ("mjpeg", "yuvj420p"),
        ("libx265", "gbrp"),
        ("prores_ks", "yuv422p10le"),
    ],
)
def test_pixel_formats_stay(
    codec: str, pix_fmt: str, tmp_path: Path, restore: Any, backends: Backends
) -> None:
    quiet = {"x265-params": "log-level=none"} if codec == "libx265" else {}
    source = make_clip(
        tmp_path / "a.mkv", times=2, time_base=MS, codec=codec, pix_fmt=pix_fmt, codec_options=quiet
    )
    target, result = restore(source)
    assert result.status is Status.RESTORED, result.reason
    assert facts(target).pix_fmt == facts(source).pix_fmt == pix_fmt
    (expected,) = by_hand([frames_of(source)[0].to_ndarray(format="rgb24")], backends)
    assert abs(frames_of(target)[0].to_ndarray(format="rgb24").mean() - expected.mean()) < 2


@pytest.mark.parametrize(
    ("size", "pix_fmt"), [((47, 63), "yuv444p"), ((48, 63), "yuv444p"), ((47, 64), "yuv422p")]
)
def test_odd_sizes_stay_where_the_encoder_has_none_of_half_the_chroma(
    size: tuple[int, int], pix_fmt: str, tmp_path: Path, restore: Any
) -> None:
    source = make_clip(tmp_path / "odd.mkv", times=2, time_base=MS, size=size, codec="ffv1")
    target, result = restore(source, "odd.mp4", codec="libx264")
    assert result.status is Status.RESTORED, result.reason
    assert facts(target).size == size
    assert facts(target).pix_fmt == pix_fmt


def test_a_preview_shows_source_and_result_side_by_side(tmp_path: Path, restore: Any) -> None:
    source = make_clip(tmp_path / "a.mkv", times=3, time_base=MS, **RGB)
    plain, _ = restore(source, "plain.mkv")
    target, result = restore(source, "beside.mkv", preview=True)
    assert result.frames == 3
    for number, (frame, restored) in enumerate(zip(frames_of(target), frames_of(plain), strict=True)):
        shown = frame.to_ndarray(format="rgb24")
        assert np.array_equal(shown[:, :64], picture(number))
        assert np.array_equal(shown[:, 64:], restored.to_ndarray(format="rgb24"))


def test_a_preview_of_a_turned_clip_lies_side_by_side_when_shown(tmp_path: Path, restore: Any) -> None:
    source = make_clip(tmp_path / "a.mp4", times=2, matrix=ROTATED)
    target, _ = restore(source, "beside.mp4", preview=True)
    assert facts(target).size == (2 * 48, 64)  # shown, 64 high and twice 48 wide
    assert facts(target).matrix == ROTATED


def test_a_part_is_cut_out_and_begins_at_zero(tmp_path: Path, restore: Any) -> None:
    source = make_clip(tmp_path / "a.mkv", times=75, time_base=MS, sound="aac", codec_options={"g": "20"})
    target, result = restore(source, "part.mkv", start_s=1.0, end_s=2.0)
    assert result.status is Status.RESTORED, result.reason
    after = facts(target)
    assert after.times == [40 * number for number in range(25)]
    wanted = [one for one in facts(source).copied["audio"] if one[0] is not None and 1.0 <= one[0] < 2.0]
    assert [data for _, data in after.copied["audio"]] == [data for _, data in wanted]
    times = [at or 0.0 for at, _ in after.copied["audio"]]
    assert np.allclose(times, [(at or 0.0) - 1.0 for at, _ in wanted], atol=1e-3)


def test_a_part_of_a_clip_that_begins_late_begins_at_zero(tmp_path: Path, restore: Any) -> None:
    """As transport streams do, at 1.4 s and more."""
    times = [900_000 + 3600 * number for number in range(60)]
    source = make_clip(tmp_path / "a.ts", times=times, time_base=Fraction(1, 90_000))
    target, result = restore(source, "part.mkv", start_s=1.02, end_s=1.5)
    shown = [frame.pts * frame.time_base for frame in frames_of(target)]
    assert result.status is Status.RESTORED, result.reason
    assert len(shown) == 12
    assert 0 <= shown[0] < Fraction(1, 25)


def numbers_of(clip: Path, **part: Any) -> list[int]:
    """Which `picture`s are in a part of it."""
    pictures = [picture(number).astype(float) for number in range(100)]
    with ClipReader(str(clip), max_pixels=10**6, **part) as reader:
        frames = [step.pixels for step in reader.steps() if isinstance(step, Frame)]
    return [int(np.argmin([np.abs(pixels - one).mean() for one in pictures])) for pixels in frames]


@pytest.mark.parametrize(
    ("name", "clip"),
    [
        ("a.mp4", {}),
        ("a.mkv", {"time_base": MS}),
        ("a.avi", {"time_base": Fraction(1, 25), "codec": "mpeg4"}),
        ("a.ts", {"time_base": Fraction(1, 90_000)}),
        ("a.m2ts", {"time_base": Fraction(1, 90_000)}),
        ("a.mpg", {"time_base": Fraction(1, 25), "codec": "mpeg2video"}),
        ("a.flv", {"time_base": MS}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("between", [25, 250])
def test_a_part_has_all_its_frames_wherever_the_key_frames_are(
    name: str, clip: dict[str, Any], between: int, tmp_path: Path
) -> None:
    """FFmpeg seeks to no key frame in transport and program streams."""
    source = make_clip(tmp_path / name, times=100, codec_options={"g": str(between), "b": "2000000"}, **clip)
    assert numbers_of(source, start_s=1.52, end_s=2.6) == list(range(38, 65))


def test_sound_that_the_container_cannot_hold_is_said_before_anything_is_written(
    tmp_path: Path, restore: Any
) -> None:
    source = make_clip(tmp_path / "a.mp4", times=2, sound="aac")
    target, result = restore(source, "out.webm")
    assert result.status is Status.FAILED
    assert "webm cannot hold stream 1, audio (aac)" in result.reason
    assert not target.exists()


PEAK = """
import resource, sys
from cmudrn.cli.app import main
options = ["--loops", "1", "--threads", "1", "--codec", "mpeg4", "--overwrite"]
assert main(["infer", sys.argv[1], "-o", sys.argv[2], *options]) == 0
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_memory_does_not_grow_with_the_clip(tmp_path: Path) -> None:
    """Peak of a process that restores 20 frames and 160: what is held is bounded by queues."""
    peaks_kb = {}
    for count in (20, 160):
        fast = {"preset": "ultrafast"}
        source = make_clip(tmp_path / "a.mkv", times=count, size=(120, 160), time_base=MS, codec_options=fast)
        command = [sys.executable, "-c", PEAK, str(source), str(tmp_path / "out.mkv")]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        peaks_kb[count] = int(done.stdout)
    more_kb = 140 * 120 * 160 * 3 // 1000
    assert peaks_kb[160] - peaks_kb[20] < more_kb / 2
