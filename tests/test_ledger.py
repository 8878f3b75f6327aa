"""A run that is broken off and gone on with: what is done again, what is not, and what is refused."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kill_runs import kill_runs
from PIL import Image

from cmudrn.cli.app import main
from cmudrn.deploy.job import Existing
from cmudrn.deploy.ledger import LEDGER_NAME, Ledger
from cmudrn.deploy.report import ItemResult, Status
from cmudrn.deploy.sources import Item
from cmudrn.errors import CmudrnError, UsageError

COUNT = 6


def photo(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    Image.fromarray(rng.integers(0, 255, (20, 30, 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """photos/ with COUNT images of an hour ago, in the folder where commands run."""
    monkeypatch.chdir(tmp_path)
    made = [photo(tmp_path / "photos" / f"{number}.png", number) for number in range(COUNT)]
    for path in made:
        age(path)
    return tmp_path / "photos"


def age(path: Path, seconds: int = 3600) -> None:
    """As if it had been written so long ago."""
    then = path.stat().st_mtime_ns - seconds * 10**9
    os.utime(path, ns=(then, then))


def infer(*arguments: str | Path) -> int:
    return main(["infer", "--loops", "1", *map(str, arguments)])


def state(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Bytes and times of all files but the ledger."""
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(LEDGER_NAME)
    }


def report_of(*arguments: str | Path) -> dict[str, Any]:
    infer(*arguments, "--report", "report.json")
    told: dict[str, Any] = json.loads(Path("report.json").read_text(encoding="utf-8"))
    return told


def anew(report: dict[str, Any]) -> dict[str, str]:
    """What was done again, and why."""
    return {Path(item["source"]).name: item["anew"] for item in report["items"] if not item["before"]}


def test_what_is_done_is_not_done_again(photos: Path) -> None:
    assert infer("photos", "-o", "out") == 0
    before = state(Path("out"))
    report = report_of("photos", "-o", "out", "--resume")
    assert (report["restored"], report["restored_before"]) == (COUNT, COUNT)
    assert all(item["before"] and item["decode_s"] > 0 for item in report["items"])  # seconds of then
    assert state(Path("out")) == before


def test_resume_begins_a_run_where_there_is_none(photos: Path) -> None:
    assert infer("photos", "-o", "out", "--resume") == 0
    assert len(state(Path("out"))) == COUNT


def test_sources_that_are_new_are_done_and_those_that_are_gone_are_said(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert infer("photos", "-o", "out") == 0
    (photos / "0.png").unlink()
    photo(photos / "new.png")
    report = report_of("photos", "-o", "out", "--resume")
    assert anew(report) == {"new.png": ""}
    assert (report["restored"], report["sources_gone"]) == (COUNT, 1)
    assert "1 source of this run no longer there; what became of them stays" in capsys.readouterr().err
    assert "0.png" in state(Path("out"))


def test_a_source_that_changed_is_done_anew_and_said(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert infer("photos", "-o", "out") == 0
    old = state(Path("out"))
    photo(photos / "1.png", 99)
    report = report_of("photos", "-o", "out", "--resume")
    assert anew(report) == {"1.png": "its source has changed"}
    assert report["done_anew"] == 1
    assert "1.png: its source has changed" in capsys.readouterr().err
    new = state(Path("out"))
    assert {name for name in new if new[name] != old[name]} == {"1.png"}
    assert infer("photos", "-o", "fresh") == 0
    assert new["1.png"][0] == state(Path("fresh"))["1.png"][0]
    assert not report_of("photos", "-o", "out", "--resume")["done_anew"]


def test_a_source_that_was_touched_alone_is_not_done_again(photos: Path) -> None:
    assert infer("photos", "-o", "out") == 0
    (photos / "1.png").touch()
    assert anew(report_of("photos", "-o", "out", "--resume")) == {}


def test_a_change_that_keeps_size_and_time_is_noticed(photos: Path) -> None:
    """As `cp -p` over it makes one; a bitmap's size doesn't depend on what it shows."""
    for name, seed in (("a.tif", 1), ("b.tif", 2)):
        Image.fromarray(np.full((20, 30, 3), seed, np.uint8)).save(photos / name)
        age(photos / name)
    assert infer("photos", "-o", "out") == 0
    status = (photos / "a.tif").stat()
    assert status.st_size == (photos / "b.tif").stat().st_size
    (photos / "a.tif").write_bytes((photos / "b.tif").read_bytes())
    os.utime(photos / "a.tif", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (photos / "a.tif").stat().st_mtime_ns == status.st_mtime_ns
    assert anew(report_of("photos", "-o", "out", "--resume")) == {"a.tif": "its source has changed"}


def test_a_source_as_young_as_a_clocks_tick_is_compared_by_its_bytes(tmp_path: Path) -> None:
    from cmudrn.deploy.fingerprint import Stamp, fingerprint_of

    path = tmp_path / "a"
    path.write_bytes(b"one")
    young = fingerprint_of(path)
    path.write_bytes(b"two")
    stamp = Stamp.of(path)
    # A file system whose clock did not move in between gives the second the first one's times.
    same = type(young)(**stamp._asdict(), seen_ns=stamp.mtime_ns + 1000, sha256=young.sha256)
    assert not same.is_still(path)


def test_a_source_that_changes_while_it_is_read_fails(tmp_path: Path) -> None:
    from cmudrn.deploy.fingerprint import Stamp, fingerprint_of

    path = tmp_path / "a"
    path.write_bytes(b"one")
    before = Stamp.of(path)
    path.write_bytes(b"longer")
    with pytest.raises(CmudrnError, match="changed while it was read"):
        fingerprint_of(path, since=before)


@pytest.mark.parametrize("how", ["gone", "cut", "other"])
def test_a_target_that_is_not_as_recorded_is_made_again(photos: Path, how: str) -> None:
    assert infer("photos", "-o", "out") == 0
    before = contents("out")
    target = Path("out", "3.png")
    if how == "gone":
        target.unlink()
    elif how == "cut":
        target.write_bytes(target.read_bytes()[:-9])
    else:
        target.write_bytes(bytes(reversed(target.read_bytes())))
    said = {"gone": "its target is gone"}.get(how, "its target has changed")
    assert anew(report_of("photos", "-o", "out", "--resume")) == {"3.png": said}
    assert contents("out") == before


def test_a_file_that_no_row_knows_is_never_replaced_by_resume(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert infer("photos", "-o", "out") == 0
    photo(photos / "mine.png")
    Path("out", "mine.png").write_bytes(b"mine")
    assert infer("photos", "-o", "out", "--resume") == 2
    assert "mine.png is there already, and not of the run" in capsys.readouterr().err
    assert Path("out", "mine.png").read_bytes() == b"mine"
    Path("out", LEDGER_NAME).unlink()
    assert infer("photos", "-o", "out", "--resume") == 2
    assert infer("photos", "-o", "out", "--skip-existing") == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--loops", "2"), "loops 1, now 2"),
        (("--output", "rain"), "output fused, now rain"),
        (("--tile", "64"), "tile as usual, now 64"),
        (("--overlap", "9"), "overlap as usual, now 9"),
        (("--format", "webp"), "format as usual, now webp"),
        (("--quality", "80"), "quality 95, now 80"),
        (("--png-level", "1"), "png level 6, now 1"),
        (("--backend", "onnx"), "backend own kernels"),
    ],
    ids=" ".join,
)
def test_other_settings_are_refused_with_the_difference(
    photos: Path, options: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = () if options[0] != "--backend" else ("--backend", "native")
    assert infer("photos", "-o", "out", *given) == 0
    before = state(Path("out"))
    assert infer("photos", "-o", "out", "--resume", *options) == 2
    told = capsys.readouterr().err
    assert "--resume: the run in out was another one" in told
    assert said in told
    assert "--overwrite" in told
    assert state(Path("out")) == before


def test_other_sources_are_refused_and_the_same_ones_named_otherwise_are_not(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert infer("photos", "-o", "out") == 0
    photo(Path("more/new.png"))
    assert infer("more", "-o", "out", "--resume") == 2
    assert "sources ../photos, now ../more" in capsys.readouterr().err
    assert report_of(photos, "-o", Path("out").resolve(), "--resume")["restored_before"] == COUNT


def test_what_moves_together_is_gone_on_with(photos: Path, tmp_path: Path) -> None:
    assert infer("photos", "-o", "out") == 0
    (tmp_path / "moved").mkdir()
    for name in ("photos", "out"):
        (tmp_path / name).rename(tmp_path / "moved" / name)
    assert report_of("moved/photos", "-o", "moved/out", "--resume")["restored_before"] == COUNT


def test_skip_existing_leaves_what_is_there_and_resume_goes_on_so(photos: Path) -> None:
    Path("out").mkdir()
    Path("out", "2.png").write_bytes(b"mine")
    report = report_of("photos", "-o", "out", "--skip-existing")
    assert (report["restored"], report["skipped"]) == (COUNT - 1, 1)
    assert not any(item["before"] for item in report["items"])
    report = report_of("photos", "-o", "out", "--resume")
    assert (report["restored_before"], report["skipped"]) == (COUNT - 1, 1)
    assert Path("out", "2.png").read_bytes() == b"mine"


def test_overwrite_does_all_anew_and_forgets_the_run(photos: Path) -> None:
    assert infer("photos", "-o", "out") == 0
    assert report_of("photos", "-o", "out", "--overwrite", "--loops", "2")["restored_before"] == 0
    assert report_of("photos", "-o", "out", "--resume", "--loops", "2")["restored_before"] == COUNT


def test_failures_are_tried_again(photos: Path) -> None:
    whole = (photos / "4.png").read_bytes()
    (photos / "4.png").write_bytes(whole[:-200])
    assert infer("photos", "-o", "out") == 1
    assert report_of("photos", "-o", "out", "--resume")["failed"] == 1
    (photos / "4.png").write_bytes(whole)
    report = report_of("photos", "-o", "out", "--resume")
    assert (report["restored"], report["restored_before"], report["failed"]) == (COUNT, COUNT - 1, 0)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere, file systems refuse such names")
def test_names_of_any_bytes_are_remembered(photos: Path) -> None:
    names = [b"line\nbreak.png", b'quote\'s "x".png', b"latin\xe9.png", "雨 の日.png".encode()]
    for seed, name in enumerate(names):
        photo(photos / "a.png", seed).rename(os.fsdecode(os.fsencode(photos / "x").replace(b"x", name)))
    assert infer("photos", "-o", "out") == 0
    report = report_of("photos", "-o", "out", "--resume")
    assert report["restored_before"] == COUNT + len(names)
    told = {os.fsencode(Path(item["target"]).name) for item in report["items"]}
    assert set(names) < told


def test_the_report_is_in_the_order_of_the_sources(photos: Path) -> None:
    """Whatever the order they end in: the first takes longest."""
    Image.fromarray(np.zeros((700, 900, 3), np.uint8)).save(photos / "0.png")
    for resume in ((), ("--resume",)):
        items = report_of("photos", "-o", "out", *resume)["items"]
        assert [Path(item["source"]).name for item in items] == [f"{number}.png" for number in range(COUNT)]


def test_a_second_run_into_an_output_says_whose_it_is_and_stops(photos: Path, tmp_path: Path) -> None:
    photo(tmp_path / "more" / "new.png")
    assert infer("photos", "-o", "out") == 0
    with Ledger(Path("out")) as ledger:
        ledger.begin({}, Existing.REFUSE)
        before = state(Path("out"))
        for options in (["more"], ["photos", "--resume"]):
            done = subprocess.run(
                [sys.executable, "-m", "cmudrn", "infer", *options, "-o", "out"],
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 2
            assert f"another run writes there (process {os.getpid()}, since 20" in done.stderr
            assert len(done.stderr.splitlines()) == 2
        assert state(Path("out")) == before
    assert infer("more", "-o", "out") == 0


def killed_at(step: str, *options: str) -> None:
    """A run that kills itself: once rows are planned, before a file has its name, or when it has it.

    Rows are planned two at a time.
    """
    code = f"""
import os, signal, sys
from pathlib import Path
from cmudrn.cli.app import main
from cmudrn.deploy import decoding, ledger
ledger.PLANNED_AT_ONCE = 2
place, name, count = dict(
    plan=(decoding.Decoders, "header", 0), replace=(Path, "replace", 3), record=(ledger.Ledger, "record", 3)
)[{step!r}]
usual, calls = getattr(place, name), iter(range(100))
def killed(*given, **options):
    if next(calls) == count:
        os.kill(os.getpid(), signal.SIGKILL)
    return usual(*given, **options)
setattr(place, name, killed)
main(["infer", "photos", "-o", "out", "--loops", "1", *sys.argv[1:]])
"""
    done = subprocess.run([sys.executable, "-c", code, *options], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL


def contents(folder: str) -> dict[str, bytes]:
    return {name: content for name, (content, _) in state(Path(folder)).items()}


@pytest.mark.parametrize("step", ["plan", "replace", "record"])
def test_a_kill_at_any_step_is_gone_on_from(photos: Path, step: str) -> None:
    killed_at(step)
    assert step != "replace" or list(Path("out").glob(".*.part"))
    report = report_of("photos", "-o", "out", "--resume")
    assert (report["restored"], report["failed"]) == (COUNT, 0)
    assert infer("photos", "-o", "whole") == 0
    assert contents("out") == contents("whole")


@pytest.mark.parametrize("option", ["--overwrite", "--skip-existing"])
@pytest.mark.parametrize("step", ["plan", "record"])
def test_a_run_among_others_files_is_gone_on_with_as_it_was_begun(
    photos: Path, option: str, step: str
) -> None:
    """Those that it had not come to by then, too: they are still to be replaced, or to be left."""
    Path("out").mkdir()
    for name in ("0.png", "5.png"):
        Path("out", name).write_bytes(b"another's")
    killed_at(step, option)
    report = report_of("photos", "-o", "out", "--resume")
    left = 2 if option == "--skip-existing" else 0
    assert (report["restored"], report["skipped"]) == (COUNT - left, left)
    assert sum(content == b"another's" for content in contents("out").values()) == left


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="POSIX")
def test_kills_at_random_moments_lose_and_double_nothing(tmp_path: Path) -> None:
    found = kill_runs(tmp_path, kills=16, images=40, seed=1)
    assert found.wrong == []
    assert found.kills >= 16
    assert found.kept > 0


def test_leftovers_of_others_stay(photos: Path) -> None:
    """What dead sessions of the run left is removed, by their process ids, and nothing that looks alike."""
    assert infer("photos", "-o", "out") == 0
    with sqlite3.connect(Path("out", LEDGER_NAME)) as database:
        database.execute("INSERT INTO session (pid, began) VALUES (4242, 'yesterday')")
    database.close()
    names = [
        ".3.png.4242-0123abcd.part",
        ".3.png.4243-0123abcd.part",
        ".3.png.4242-0123abcd.part.png",
        "a.part",
    ]
    for name in names:
        Path("out", name).write_bytes(b"half")
    assert infer("photos", "-o", "out", "--resume") == 0
    assert sorted(path.name for path in Path("out").glob("*.part*")) == sorted(names[1:])


@pytest.mark.parametrize("options", [(), ("--resume",), ("--overwrite",), ("--skip-existing",)])
def test_originals_are_never_written_to(photos: Path, options: tuple[str, ...]) -> None:
    for path in photos.iterdir():
        path.chmod(0o444)
    (photos / "bad.png").write_bytes(b"bad")
    before, folder = state(photos), photos.stat().st_mtime_ns
    for _ in range(2):
        infer("photos", "-o", "out", *options)
    infer("photos", *options)
    infer("photos/1.png", "photos/2.png", "-o", "single", *options)
    infer("photos/1.png", "-o", "one.png", *options)
    assert state(photos) == before
    assert photos.stat().st_mtime_ns == folder  # no file came or went, either


@pytest.mark.parametrize("content", [b"no database at all" * 100, b"SQLite format 3\0" + bytes(5000)])
def test_a_ledger_that_cannot_be_read_is_said_and_left(
    photos: Path, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    assert infer("photos", "-o", "out") == 0
    Path("out", LEDGER_NAME).write_bytes(content)
    for options in (("--resume",), ("--overwrite",)):
        assert infer("photos", "-o", "out", *options) == 2
        told = capsys.readouterr().err
        assert LEDGER_NAME in told
        assert "remove it and go on with --skip-existing" in told
    assert Path("out", LEDGER_NAME).read_bytes() == content


def test_a_ledger_of_another_version_is_refused(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert infer("photos", "-o", "out") == 0
    with sqlite3.connect(Path("out", LEDGER_NAME)) as database:
        database.execute("PRAGMA user_version = 99")
    database.close()
    assert infer("photos", "-o", "out", "--resume") == 2
    assert "a ledger of another version" in capsys.readouterr().err


def test_where_no_ledger_can_be_kept_a_run_goes_on_without_and_says_so(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder in its place: SQLite cannot open it, as on a file system without locks."""
    Path("out", LEDGER_NAME).mkdir(parents=True)
    assert infer("photos", "-o", "out") == 0
    assert "no ledger can be kept there" in capsys.readouterr().err
    assert len(state(Path("out"))) == COUNT
    assert infer("photos", "-o", "out", "--resume") == 2
    assert infer("photos", "-o", "out", "--skip-existing") == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a megabyte; its own, for the processes of the user who may mount one."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("no file system may be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(ballast: Path) -> None:
    """The rest of the disk."""
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(512)):
            continue


@pytest.mark.skipif(sys.platform != "linux", reason="mounts a tmpfs")
def test_a_ledger_on_a_full_disk_stops_the_run_and_keeps_what_it_had(small_disk: Path) -> None:
    items = [Item(source=Path(f"{number}"), target=small_disk / f"{number}.png") for number in range(2000)]
    done = ItemResult(source=items[0].source, target=items[0].target, status=Status.FAILED)
    with Ledger(small_disk) as ledger:
        ledger.begin({"loops": 1}, Existing.REFUSE)
        drawn = ledger.planned(items)
        ledger.record(replace(done, source=next(drawn).source))
        fill(small_disk / "ballast")
        with pytest.raises(CmudrnError, match="the disk is full") as caught:
            list(drawn)
    assert caught.value.exit_code == 1
    assert "--resume" in caught.value.fix
    (small_disk / "ballast").unlink()
    with Ledger(small_disk) as ledger:
        assert ledger.settings == {"loops": 1}
        assert ledger.knows(items[0].target)
        assert not ledger.knows(items[-1].target)


@pytest.mark.skipif(sys.platform != "linux", reason="mounts a tmpfs")
@pytest.mark.parametrize("fills", ["images", "ledger"])
def test_a_full_disk_stops_the_run_which_goes_on_once_there_is_room(
    photos: Path, small_disk: Path, fills: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(10, 30):  # noise of 150 x 200: 90 KB each, so that a dozen fit
        rng = np.random.default_rng(number)
        Image.fromarray(rng.integers(0, 255, (150, 200, 3), dtype=np.uint8)).save(photos / f"{number}.png")
    ballast = small_disk / "ballast"
    if fills == "ledger":
        fill(ballast)
    out = small_disk / "out"
    assert infer("photos", "-o", out) in (1, 2)
    told = capsys.readouterr().err
    assert "the disk is full" in told
    assert "--resume" in told
    assert not list(out.rglob("*.part"))
    for path in out.glob("*.png"):
        with Image.open(path) as image:
            image.load()  # whole
    written = len(list(out.glob("*.png")))
    ballast.unlink(missing_ok=True)
    subprocess.run(["mount", "-o", "remount,size=9m", str(small_disk)], check=True)
    report = report_of("photos", "-o", out, "--resume")
    assert (report["restored"], report["failed"]) == (COUNT + 20, 0)
    assert (written > 0) is (fills == "images")
    assert infer("photos", "-o", "whole") == 0
    assert contents(str(out)) == contents("whole")


def test_a_results_json_is_the_result(tmp_path: Path) -> None:
    result = ItemResult(
        source=Path("a"), target=Path("b"), status=Status.FAILED, reason="\udce9", decode_s=0.5
    )
    plain = json.loads(json.dumps(result.to_json()))
    assert ItemResult.from_json(plain | {"later": 1}, source=Path("a"), target=Path("b")) == result


def test_a_ledger_of_one_session_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with Ledger(None) as ledger:
        ledger.begin({}, Existing.REFUSE)
        items = [Item(source=Path(f"{number}"), target=Path(f"{number}.png")) for number in range(600)]
        assert list(ledger.planned(items)) == items
        for item in reversed(items):
            ledger.record(ItemResult(source=item.source, target=item.target, status=Status.RESTORED))
        assert [result.source for result in ledger.results()] == [item.source for item in items]
    assert not list(tmp_path.iterdir())


def test_two_ledgers_of_a_folder_in_one_process_are_two_runs(tmp_path: Path) -> None:
    with Ledger(tmp_path), pytest.raises(UsageError, match="another run writes there"), Ledger(tmp_path):
        pass
    with Ledger(tmp_path):
        pass


def test_hashing_a_file_gives_its_hash(tmp_path: Path) -> None:
    from cmudrn.deploy.fingerprint import CHUNK_BYTES, fingerprint_of

    for size in (0, 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES):
        content = os.urandom(size)
        (tmp_path / "a").write_bytes(content)
        began = time.time_ns()
        taken = fingerprint_of(tmp_path / "a")
        assert (taken.size, taken.sha256) == (size, hashlib.sha256(content).hexdigest())
        assert taken.seen_ns >= began
        assert taken.is_still(tmp_path / "a")
