"""`cmudrn infer` as its users meet it: exit codes, lines, files. The shipped graphs, mostly at T = 1."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from random_weights import random_checkpoint

from cmudrn.checkpoint import read_checkpoint, save_checkpoint
from cmudrn.cli.app import main
from cmudrn.deploy.ledger import LEDGER_NAME
from cmudrn.deploy.native.library import is_built

COMMAND = [sys.executable, "-m", "cmudrn", "infer"]


def photo(path: Path, height: int = 20, width: int = 30) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(len(path.name))
    Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """photos/ with three images, in the folder where the command runs."""
    monkeypatch.chdir(tmp_path)
    for name in ("a.jpg", "b.PNG", "trip/c d.tif"):
        photo(tmp_path / "photos" / name)
    return tmp_path / "photos"


def files(folder: Path) -> list[str]:
    """All but the ledger of the run that wrote them."""
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(str(path) for path in found if path.name != LEDGER_NAME)


def infer(*arguments: str | Path) -> int:
    return main(["infer", "--loops", "1", *map(str, arguments)])


def test_a_folder_is_restored_beside_itself(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert infer("photos") == 0
    assert files(Path("photos-restored")) == ["a.jpg", "b.PNG", "trip/c d.tif"]
    assert files(photos) == ["a.jpg", "b.PNG", "trip/c d.tif"]
    said = capsys.readouterr()
    assert said.out == ""
    assert "3 restored in " in said.err.splitlines()[-1]


def test_another_depth_than_the_trained_ones_is_said(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_checkpoint(random_checkpoint(), Path("mine.safetensors"))  # of T = 3 alone
    assert infer("photos/a.jpg", "-o", "mine.jpg", "--weights", "mine.safetensors") == 0
    assert "trained with --loops 3, and restore worse at 1" in capsys.readouterr().err
    assert infer("photos/a.jpg", "-o", "one.jpg") == 0
    assert main(["infer", "photos/a.jpg", "-o", "three.jpg"]) == 0
    assert "note" not in capsys.readouterr().err
    assert Path("one.jpg").read_bytes() != Path("three.jpg").read_bytes()


def test_a_format_is_written_under_its_suffix(photos: Path) -> None:
    assert infer("photos", "-o", "out", "--format", "webp") == 0
    assert files(Path("out")) == ["a.webp", "b.webp", "trip/c d.webp"]
    for path in Path("out").rglob("*.webp"):
        with Image.open(path) as image:
            assert image.format == "WEBP"


def test_each_output_is_another_image(photos: Path) -> None:
    images = []
    for output in ("fused", "rain", "snow"):
        assert infer("photos/b.PNG", "-o", f"{output}.png", "--output", output) == 0
        images.append(np.asarray(Image.open(f"{output}.png")))
    assert not np.array_equal(images[0], images[1])
    assert not np.array_equal(images[1], images[2])


@pytest.mark.parametrize(("backend", "levels"), [("onnx", 0), ("native", 1)])
def test_tiles_batches_and_threads_change_no_more_than_the_rounding_at_full_overlap(
    photos: Path, backend: str, levels: int
) -> None:
    """Ours make 4x4 pixels at once, which begin elsewhere in each tile; on ONNX Runtime no bit changes."""
    if backend == "native" and not is_built():
        pytest.skip("the package has no kernels of its own here: make native")
    photo(photos / "large.png", 70, 90)
    assert infer("photos/large.png", "-o", "whole.png", "--backend", backend) == 0
    tiles = ("--tile", "40", "--overlap", "9", "--batch", "4", "--threads", "1", "--backend", backend)
    assert infer("photos/large.png", "-o", "tiled.png", *tiles) == 0
    whole, tiled = (np.asarray(Image.open(f"{name}.png")).astype(int) for name in ("whole", "tiled"))
    difference = np.abs(whole - tiled)
    assert difference.max() <= levels
    assert np.count_nonzero(difference) <= difference.size // 1000


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--precision", "fp16"), "--precision fp16: engines alone"),
        (("--precision", "int8"), "--precision int8"),
        (("--precision", "half"), "choose from fp32, bf16"),
        (("--precision", "bf16", "--backend", "onnx"), "--precision bf16: ONNX Runtime computes in fp32"),
        (("--device", "0", "--backend", "native"), "--device 0 with --backend native"),
    ],
)
def test_what_no_backend_computes_is_refused_before_the_first_image(
    photos: Path, options: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert infer("photos/b.PNG", "-o", "out.png", *options) == 2
    assert said in capsys.readouterr().err
    assert not Path("out.png").exists()


def test_float32_told_is_what_is_usual(photos: Path) -> None:
    assert infer("photos/b.PNG", "-o", "usual.png") == 0
    assert infer("photos/b.PNG", "-o", "told.png", "--precision", "fp32") == 0
    assert np.array_equal(np.asarray(Image.open("usual.png")), np.asarray(Image.open("told.png")))


def test_weights_of_ones_own_are_used(photos: Path) -> None:
    save_checkpoint(random_checkpoint(), Path("own.safetensors"))
    assert infer("photos/b.PNG", "-o", "own.png", "--weights", "own.safetensors") == 0
    assert infer("photos/b.PNG", "-o", "default.png") == 0
    assert Path("own.png").read_bytes() != Path("default.png").read_bytes()


def test_the_report_says_what_became_of_each(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (photos / "bad.jpg").write_bytes(b"")
    assert infer("photos", "-o", "out", "--report", "-") == 1
    said = capsys.readouterr()
    report = json.loads(said.out)
    assert (report["restored"], report["skipped"], report["failed"]) == (3, 0, 1)
    items = {Path(item["source"]).name: item for item in report["items"]}
    assert items["a.jpg"]["status"] == "restored"
    assert (items["a.jpg"]["height"], items["a.jpg"]["width"]) == (20, 30)
    assert items["a.jpg"]["restore_s"] > 0
    assert "empty" in items["bad.jpg"]["reason"]
    sha256 = read_checkpoint("default").sha256
    about = {"loops": 1, "output": "fused", "weights": "default", "weights_sha256": sha256}
    assert report["settings"] == about
    assert [Path(item["source"]).name for item in report["items"]] == ["a.jpg", "b.PNG", "bad.jpg", "c d.tif"]
    assert "CPU" in items["a.jpg"]["restored_by"]
    assert items["a.jpg"]["weights_sha256"] == sha256
    assert "bad.jpg: " in said.err
    assert "3 restored, 1 failed in " in said.err
    assert infer("photos", "-o", "out", "--report", "report.json", "--skip-existing") == 1
    assert json.loads(Path("report.json").read_text())["skipped"] == 3


def test_one_image_that_fails_is_exit_code_1(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (photos / "a.jpg").write_bytes((photos / "a.jpg").read_bytes()[:-100])
    assert infer("photos/a.jpg", "-o", "a.jpg") == 1
    assert "photos/a.jpg: " in capsys.readouterr().err
    assert not Path("a.jpg").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["none.jpg"], "none.jpg: No such file"),
        (["photos", "none"], "none: No such file"),
        (["empty"], "empty: no images in it"),
        (["photos", "-o", "photos"], "photos"),
        (["photos/a.jpg", "-o", "photos/a.jpg"], "photos/a.jpg would be its own target"),
        (["photos", "-o", "photos/out"], "is a source, or inside one"),
        (["photos", "-o", "file.txt/out"], "file.txt: a file is in the way"),
        (["photos/a.jpg", "-o", "there.jpg"], "there.jpg is there already"),
        (["photos", "--loops", "0"], "--loops 0"),
        (["photos", "--loops", "8"], "--loops 8"),
        (["photos", "--loops", "three"], "--loops"),
        (["photos", "--tile", "0"], "--tile 0"),
        (["photos", "--tile", "20"], "--tile 20 leaves nothing"),
        (["photos", "--overlap", "-1"], "--overlap -1"),
        (["photos", "--batch", "0"], "--batch 0"),
        (["photos", "--threads", "0"], "--threads 0"),
        (["photos", "--max-pixels", "0"], "--max-pixels 0"),
        (["photos", "--in-flight", "0"], "--in-flight 0"),
        (["photos", "--format", "bmp"], "--format bmp"),
        (["photos", "--output", "both"], "--output both"),
        (["photos", "--weights", "none.safetensors"], "none.safetensors: no such weights"),
        (["photos", "--weights", "file.txt"], "file.txt"),
        (["photos", "--overwrite", "--skip-existing"], "contradict each other"),
        (["photos", "--overwrite", "--resume"], "contradict each other"),
        (["photos/a.jpg", "--resume"], "--resume: only what goes to one folder has a ledger"),
        (["photos", "--quality", "0"], "--quality 0"),
        (["photos", "--quality", "101"], "--quality 101"),
        (["photos", "--png-level", "10"], "--png-level 10"),
        (["photos", "--png-level", "-1"], "--png-level -1"),
        (["photos", "--report", "none/report.json"], "--report none/report.json"),
        (["photos", "--colour"], "--colour"),
        ([], "SRC"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_makes_no_sense_is_one_line_with_a_way_out_and_touches_nothing(
    arguments: list[str], said: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.txt").write_text("text")
    photo(tmp_path / "there.jpg")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert main(["infer", *arguments]) == 2
    what, way_out = capsys.readouterr().err.splitlines()
    assert what.startswith("cmudrn: ")
    assert said in what
    assert way_out.startswith("  -> ")
    assert len(way_out) > 10
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "file.txt", "photos", "there.jpg"]


def start(folder: Path, *options: str) -> subprocess.Popen[str]:
    """A run of enough images to be in the middle of, and wait until some of them are written."""
    process = subprocess.Popen(
        [*COMMAND, "photos", "-o", "out", *options],
        cwd=folder,
        stderr=subprocess.PIPE,
        text=True,
        # Where the tests run in the background of a shell, children inherit a SIGINT that is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    deadline = time.monotonic() + 60
    while len(list((folder / "out").glob("*.png"))) < 3:
        assert process.poll() is None, "it ended too soon"
        assert time.monotonic() < deadline, "it wrote nothing"
        time.sleep(0.002)
    return process


@pytest.fixture
def many(tmp_path: Path) -> Path:
    for number in range(60):
        photo(tmp_path / "photos" / f"{number:03}.png", 150, 200)
    return tmp_path


def test_a_killed_run_leaves_no_half_file_and_is_gone_on_with(many: Path) -> None:
    process = start(many)
    process.kill()
    process.communicate()
    written = list((many / "out").glob("*.png"))
    assert 3 <= len(written) < 60
    for path in written:
        assert np.asarray(Image.open(path)).shape == (150, 200, 3)  # decodes to the last row
    times = {path: path.stat().st_mtime_ns for path in written}
    done = subprocess.run(
        [*COMMAND, "photos", "-o", "out", "--skip-existing", "--loops", "1"],
        cwd=many,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert f"{60 - len(written)} restored, {len(written)} skipped" in done.stderr
    assert {path: path.stat().st_mtime_ns for path in written} == times
    assert len(list((many / "out").glob("*.png"))) == 60


def test_ctrl_c_is_exit_code_130_without_a_traceback(many: Path) -> None:
    process = start(many)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in said
    assert "Traceback" not in said
    assert not [name for name in os.listdir(many / "out") if ".part" in name]  # noqa: PTH208


def test_the_console_script_and_the_module_are_the_same_command(photos: Path) -> None:
    script = Path(sys.executable).with_name("cmudrn")
    said = [
        subprocess.run([*command, "--version"], capture_output=True, text=True, check=True).stdout
        for command in ([str(script)], [sys.executable, "-m", "cmudrn"])
    ]
    assert said[0] == said[1]
    assert said[0].startswith("cmudrn ")
