"""`cmudrn infer` on clips, as its users meet it: folders of both kinds, exit codes, lines, reports."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

av = pytest.importorskip("av", reason="PyAV is not installed: pip install 'cmudrn[video]'")

from clips import facts, frames_of, infer_signalled, make_clip  # noqa: E402

from cmudrn.cli.app import main  # noqa: E402
from cmudrn.cli.video_options import parse_time_s  # noqa: E402
from cmudrn.errors import UsageError  # noqa: E402

WITHOUT_AV = """
import importlib.util, sys
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "av" else find(name, *rest)
sys.modules["av"] = None
from cmudrn.cli.app import main
sys.exit(main(["infer", "--loops", "1", *sys.argv[1:]]))
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """trip/ with two photographs and two clips, in the folder where the command runs."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "trip" / "day 2").mkdir(parents=True)
    make_clip(tmp_path / "trip" / "a.mp4", times=5, sound="aac")
    make_clip(tmp_path / "trip" / "day 2" / "C.MP4", times=3)
    for name in ("b.png", "day 2/d.jpg"):
        Image.fromarray(np.full((20, 30, 3), 99, np.uint8)).save(tmp_path / "trip" / name)
    return tmp_path / "trip"


def infer(*arguments: str | Path) -> int:
    return main(["infer", "--loops", "1", "--threads", "1", *map(str, arguments)])


def files(path: Path) -> list[str]:
    """But for the run's ledger."""
    return sorted(str(one.relative_to(path)) for one in path.rglob("[!.]*") if one.is_file())


def test_a_folder_may_mix_photographs_and_clips(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert infer("trip", "-o", "out", "--report", "report.json") == 0
    assert files(Path("out")) == files(folder) == ["a.mp4", "b.png", "day 2/C.MP4", "day 2/d.jpg"]
    assert "4 restored, 8 frames in " in capsys.readouterr().err
    report = json.loads(Path("report.json").read_text())
    frames = {Path(item["source"]).name: item["frames"] for item in report["items"]}
    assert frames == {"a.mp4": 5, "C.MP4": 3, "b.png": 0, "d.jpg": 0}
    assert (report["restored"], report["frames"], report["frames_by_loops"]) == (4, 8, {"1": 8})


@pytest.mark.parametrize(
    ("sources", "rate"),
    [(["trip"], ""), (["trip/b.png"], "images/s"), (["trip/a.mp4", "trip/day 2/C.MP4"], "frames/s")],
)
def test_a_rate_is_told_of_photographs_or_of_frames_not_of_both(
    sources: list[str], rate: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert infer(*sources, "-o", "out/") == 0
    said = capsys.readouterr().err
    assert [word for word in ("images/s", "frames/s") if word in said] == ([rate] if rate else [])


def test_a_clip_is_restored_beside_itself_or_where_it_is_told(folder: Path) -> None:
    assert infer("trip/a.mp4") == 0
    assert len(frames_of(folder / "a-restored.mp4")) == 5
    assert infer("trip/a.mp4", "-o", "out.mkv") == 0
    assert len(frames_of(Path("out.mkv"))) == 5
    assert infer("trip/a.mp4", "-o", "there") == 0
    assert len(frames_of(Path("there/a.mp4"))) == 5


def test_a_photographs_format_leaves_clips_alone(folder: Path) -> None:
    assert infer("trip", "-o", "out", "--format", "webp") == 0
    assert files(Path("out")) == ["a.mp4", "b.webp", "day 2/C.MP4", "day 2/d.webp"]


def test_parts_codecs_and_previews_by_their_options(folder: Path) -> None:
    options = ("--codec", "hevc", "--crf", "30", "--start", "0:00:00.08", "--end", "0.16", "--preview")
    assert infer("trip/a.mp4", "-o", "out.mp4", *options) == 0
    assert facts(Path("out.mp4")).codec == "hevc"
    assert facts(Path("out.mp4")).size == (48, 128)
    assert len(frames_of(Path("out.mp4"))) == 2


def test_a_clip_that_breaks_off_is_exit_code_1_and_its_reason(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = make_clip(folder / "cut.mp4", times=60, options={"movflags": "faststart"})
    source.write_bytes(source.read_bytes()[:-400])
    assert infer("trip", "-o", "out", "--report", "report.json") == 1
    assert "trip/cut.mp4: broken off after" in capsys.readouterr().err
    report = json.loads(Path("report.json").read_text())
    (item,) = (item for item in report["items"] if item["status"] == "failed")
    assert 0 < item["frames"] < 60
    assert len(frames_of(Path("out/cut.mp4"))) == item["frames"]


def test_existing_clips_are_refused_overwritten_or_skipped(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("out.mp4").write_bytes(b"mine")
    assert infer("trip/a.mp4", "-o", "out.mp4") == 2
    assert infer("trip/a.mp4", "-o", "out.mp4", "--skip-existing") == 0
    assert Path("out.mp4").read_bytes() == b"mine"
    assert "1 skipped" in capsys.readouterr().err
    assert infer("trip/a.mp4", "-o", "out.mp4", "--overwrite") == 0
    assert len(frames_of(Path("out.mp4"))) == 5


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["trip/a.mp4", "-o", "out.png"], "-o out.png: .png is not written of a clip"),
        (["trip/b.png", "-o", "out.mp4"], "-o out.mp4: .mp4 is not written"),
        (["trip/a.mp4", "-o", "trip/a.mp4"], "would be its own target"),
        (["trip/a.mp4", "--start", "soon"], "--start soon"),
        (["trip/a.mp4", "--start", "0:99"], "--start 0:99"),
        (["trip/a.mp4", "--start", "5", "--end", "4"], "--end 4 is not after --start 5"),
        (["trip/a.mp4", "--crf", "99"], "--crf 99"),
        (["trip/a.mp4", "--codec", "none", "-o", "o.mp4"], "--codec none: no such encoder"),
        (["trip", "--codec", "aac", "-o", "out"], "--codec aac"),
        (["trip/a.mp4", "--raw-size", "6x4"], "--raw-size with files"),
        (["/dev/video99", "--resume", "--gate", "-o", "o.mp4"], "--resume, --gate with a camera: do nothing"),
        (["/dev/video99", "--skip-existing", "-o", "o.mp4"], "--skip-existing with a camera: does nothing"),
        (["/dev/video99", "--start", "3", "-o", "o.mp4"], "--start with a camera"),
        (["/dev/video99", "--raw-size", "6x4", "-o", "o.mp4"], "--raw-size with a camera"),
        (["trip/a.mp4", "--fps", "25"], "--adaptive and --fps belong together"),
        (["trip/a.mp4", "--fps", "25", "--adaptive", "--min-loops", "2"], "--min-loops 2 is more than"),
        (["/dev/video99"], "/dev/video99: where to?"),
        (["rtsp://me:secret@nowhere/x", "-o", "out.png"], "rtsp://me@nowhere/x: where to?"),
        (["rtsp://me:s@ecret@nowhere/x", "trip"], "rtsp://me@nowhere/x and another source"),
        (["/dev/video99", "trip", "-o", "out"], "/dev/video99 and another source"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_makes_no_sense_is_one_line_with_a_way_out_and_touches_nothing(
    options: list[str], said: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files(tmp_path)
    assert infer(*options) == 2
    lines = [one for one in capsys.readouterr().err.splitlines() if one.startswith(("cmudrn: ", "  -> "))]
    assert len(lines) == 2
    assert said in lines[0]
    assert "secret" not in lines[0]
    assert files(tmp_path) == before


def test_what_is_of_photographs_alone_is_noted_with_clips_alone(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert infer("trip/a.mp4", "-o", "out.mp4", "--heatmap", "--quality", "5") == 0
    assert "note: --heatmap, --quality: of photographs alone" in capsys.readouterr().err
    assert infer("trip", "-o", "out", "--heatmap") == 0
    assert "alone" not in capsys.readouterr().err


def test_without_pyav_clips_fail_with_the_way_to_get_it_and_photographs_go_on(
    folder: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-c", WITHOUT_AV]
    done = subprocess.run(
        [*command, folder, "-o", tmp_path / "out"], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "2 restored, 2 failed" in done.stderr
    assert done.stderr.count('pip install "cmudrn[video]"') == 2
    assert files(tmp_path / "out") == ["b.png", "day 2/d.jpg"]
    done = subprocess.run(
        [*command, folder / "a.mp4", "-o", tmp_path / "out.mp4"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == '  -> pip install "cmudrn[video]"'


def test_ctrl_c_leaves_no_half_clip(tmp_path: Path) -> None:
    make_clip(tmp_path / "a.mp4", times=250, size=(240, 320), codec_options={"preset": "ultrafast"})
    exit_code, said = infer_signalled(tmp_path, "a.mp4", "-o", "out.mp4")
    assert exit_code == 130, said
    assert "Traceback" not in said
    assert "0 restored in " in said
    assert "in 0.0 s" not in said  # it took its time
    assert files(tmp_path) == ["a.mp4"]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("12.5", 12.5),
        ("1:30", 90),
        ("01:00:00", 3600),
        ("0:01:30.25", 90.25),
        ("100:00:00", 360_000),
    ],
)
def test_times_are_seconds_or_a_clock(text: str, seconds: float) -> None:
    assert parse_time_s("--start", text) == seconds


@pytest.mark.parametrize("text", ["", "-1", "1:2:3:4", "1:60", "1:60:00", "1e3", "nan", "1:", ":30", "٣"])
def test_other_times_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--start"):
        parse_time_s("--start", text)
