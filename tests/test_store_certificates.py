"""Certificates in the store: in an engine's manifest, and as files of their own for libraries."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from store_cases import KEY, PLAN, names, refused, store_with_one
from test_certificate import SUBJECT, certificate_of
from test_manifest import manifest_of
from test_store_trust import make_fifo, make_huge, make_link

from cmudrn.engines.certificate import Subject, write_certificate
from cmudrn.engines.spec import Precision
from cmudrn.engines.store import Engine, EngineStore

FILE = f"{SUBJECT.key}.json"


@pytest.fixture
def store(tmp_path: Path) -> EngineStore:
    """With one engine in it."""
    return store_with_one(tmp_path / "store")


# In a manifest


def test_an_engine_is_certified_in_its_manifest_and_its_plan_is_left_alone(store: EngineStore) -> None:
    plan = store.folder / f"{KEY}.engine"
    before = plan.stat()
    certified = store.certify(store.manifest(KEY), certificate_of())
    assert certified == dataclasses.replace(manifest_of(PLAN), parity=certificate_of())
    assert store.load(KEY) == Engine(certified, PLAN)
    assert (plan.stat().st_ino, plan.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert names(store) == {f"{KEY}.engine", f"{KEY}.json"}
    assert (store.folder / f"{KEY}.json").stat().st_mode & 0o777 == 0o644
    later = certificate_of(psnr_min_db=31.0)
    assert store.certify(manifest_of(PLAN), later).parity == store.manifest(KEY).parity == later


def test_an_engine_that_was_built_anew_keeps_no_certificate(store: EngineStore) -> None:
    measured = store.certify(store.manifest(KEY), certificate_of())
    store.put(b"another", manifest_of(b"another"))
    assert store.manifest(KEY).parity is None
    error = refused(lambda: store.certify(measured, certificate_of()))
    assert "built anew" in error.what
    assert "parity-check" in error.fix
    assert store.manifest(KEY) == manifest_of(b"another")
    store.remove(KEY)
    refused(lambda: store.certify(measured, certificate_of()))
    assert names(store) == set()


def test_a_certificate_is_withdrawn_and_the_plan_is_left_alone(store: EngineStore) -> None:
    measured = store.certify(store.manifest(KEY), certificate_of())
    store.withdraw(measured)
    assert store.load(KEY) == Engine(manifest_of(PLAN), PLAN)
    store.withdraw(measured)  # again: nothing to do
    assert store.manifest(KEY).parity is None


def test_that_of_an_engine_built_anew_is_not_withdrawn(store: EngineStore) -> None:
    measured = store.certify(store.manifest(KEY), certificate_of())
    store.put(b"another", manifest_of(b"another"))
    store.certify(manifest_of(b"another"), certificate_of())
    store.withdraw(measured)
    assert store.manifest(KEY).parity == certificate_of()


def test_a_manifest_that_others_may_have_written_is_not_certified(store: EngineStore) -> None:
    (store.folder / f"{KEY}.json").chmod(0o666)
    assert "others may write it" in refused(lambda: store.certify(manifest_of(PLAN), certificate_of())).what


CERTIFY = """
import os, signal, sys
from pathlib import Path
from cmudrn.engines.store import EngineStore
from test_certificate import certificate_of

store = EngineStore(Path(sys.argv[1]))
measured = store.manifest(sys.argv[2])
HERE = ("store.py", "files.py", "trusted_files.py")
for killed_at in range(1, 1000):
    store.certify(measured, certificate_of(images=1))
    lines = 0

    def count(frame, event, argument):
        global lines
        if os.path.basename(frame.f_code.co_filename) not in HERE:
            return None
        if event == "line":
            lines += 1
            if lines == killed_at:
                os.kill(os.getpid(), signal.SIGKILL)
        return count

    child = os.fork()
    if not child:
        sys.settrace(count)
        store.certify(measured, certificate_of(images=2))
        os._exit(0)
    _, status = os.waitpid(child, 0)
    print(store.load(measured.key).manifest.parity.images, end="", flush=True)
    if status == 0:
        break
"""


def test_a_kill_at_any_line_leaves_the_old_certificate_or_the_new_one(store: EngineStore) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CERTIFY, str(store.folder), KEY],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    found = done.stdout
    assert found == "1" * found.count("1") + "2" * found.count("2")
    assert found.count("1") > 10
    assert found.count("2") > 2


# As files of their own


def test_a_librarys_certificate_is_found_by_its_subject_alone(store: EngineStore) -> None:
    assert store.certificate(SUBJECT) is None
    assert store.keep_certificate(SUBJECT, certificate_of()) == store.folder / FILE
    assert store.certificate(SUBJECT) == certificate_of()
    assert store.certificate(dataclasses.replace(SUBJECT, precision=Precision.FP32)) is None
    assert store.certificate(dataclasses.replace(SUBJECT, device="another")) is None
    later = certificate_of(psnr_min_db=31.0)
    store.keep_certificate(SUBJECT, later)
    assert store.certificate(SUBJECT) == later
    assert names(store) == {f"{KEY}.engine", f"{KEY}.json", FILE}


def test_a_librarys_certificate_is_withdrawn_and_where_there_is_none_nothing_happens(
    store: EngineStore, tmp_path: Path
) -> None:
    store.keep_certificate(SUBJECT, certificate_of())
    store.withdraw_certificate(dataclasses.replace(SUBJECT, device="another"))
    assert store.certificate(SUBJECT) == certificate_of()
    store.withdraw_certificate(SUBJECT)
    assert store.certificate(SUBJECT) is None
    EngineStore(tmp_path / "none").withdraw_certificate(SUBJECT)
    assert not (tmp_path / "none").exists()


def test_asking_for_one_makes_no_folder_and_keeping_one_makes_it(tmp_path: Path) -> None:
    store = EngineStore(tmp_path / "none")
    assert store.certificate(SUBJECT) is None
    assert not store.folder.exists()
    store.keep_certificate(SUBJECT, certificate_of())
    assert store.folder.stat().st_mode & 0o777 == 0o700
    assert store.manifests() == ([], [])


def test_a_subject_that_could_not_be_read_again_is_not_kept(store: EngineStore) -> None:
    refused(lambda: store.keep_certificate(dataclasses.replace(SUBJECT, device="\x1b"), certificate_of()))
    assert names(store) == {f"{KEY}.engine", f"{KEY}.json"}


def test_one_that_names_another_subject_is_none(store: EngineStore) -> None:
    other: Subject = dataclasses.replace(SUBJECT, device="another")
    store.keep_certificate(other, certificate_of())
    (store.folder / f"{other.key}.json").rename(store.folder / FILE)
    assert store.certificate(SUBJECT) is None


@pytest.mark.parametrize(
    "change",
    [
        make_link,
        make_fifo,
        make_huge,
        lambda path: path.chmod(0o664),
        lambda path: path.chmod(0o646),
        lambda path: path.write_text("{"),
        lambda path: path.write_text(path.read_text().replace("fp32", "fp16").replace("bf16", "fp16")),
    ],
    ids=["link", "fifo", "huge", "group", "others", "damaged", "other"],
)
def test_one_that_others_may_have_written_is_none_and_is_pruned(
    store: EngineStore, change: Callable[[Path], object]
) -> None:
    path = store.keep_certificate(SUBJECT, certificate_of())
    change(path)
    assert store.certificate(SUBJECT) is None
    assert store.prune() == [FILE]
    assert not os.path.lexists(path)


def test_the_list_is_of_engines_and_pruning_leaves_what_can_be_read(store: EngineStore) -> None:
    store.keep_certificate(SUBJECT, certificate_of(psnr_min_db=31.0))  # also where it is not passed
    (store.folder / "parity-notes.json").write_text("somebody's own")
    whole, broken = store.manifests()
    assert [one.key for one in whole] == [KEY]
    assert [name for name, _ in broken] == ["parity-notes"]
    assert store.prune() == []
    assert store.prune(keep=[]) == [f"{KEY}.engine", f"{KEY}.json"]
    assert names(store) == {FILE, "parity-notes.json"}


def test_one_is_removed_by_its_name(store: EngineStore) -> None:
    store.keep_certificate(SUBJECT, certificate_of())
    store.remove(SUBJECT.key)
    assert store.certificate(SUBJECT) is None
    assert names(store) == {f"{KEY}.engine", f"{KEY}.json"}


def test_one_that_is_kept_is_written_as_told(store: EngineStore) -> None:
    path = store.keep_certificate(SUBJECT, certificate_of())
    assert path.read_bytes() == write_certificate(SUBJECT, certificate_of())
    assert path.stat().st_mode & 0o777 == 0o644
