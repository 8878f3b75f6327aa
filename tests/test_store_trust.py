"""A plan is code: the store hands out only what nobody else can have written."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from store_cases import KEY, PLAN, find, names, refused, store_with_one
from test_manifest import manifest_of

from cmudrn.engines.store import EngineStore


@pytest.fixture
def store(tmp_path: Path) -> EngineStore:
    """With one engine in it."""
    return store_with_one(tmp_path / "store")


def make_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def make_link(path: Path) -> None:
    path.symlink_to(path.rename(path.with_name("elsewhere")))


def make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def make_huge(path: Path) -> None:
    os.truncate(path, 1 << 40)  # without using the disk; nobody could read it in time


@pytest.mark.parametrize("kind", ["engine", "json"])
@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda path: path.chmod(0o664), "others may write it"),
        (lambda path: path.chmod(0o646), "others may write it"),
        (make_fifo, "not a regular file"),
        (make_folder, "not a regular file"),
        (make_link, "a symbolic link"),
        (make_huge, "1099511627776 bytes, not "),
        (lambda path: path.unlink(), "no such engine"),
    ],
    ids=["group", "others", "fifo", "folder", "link", "huge", "gone"],
)
def test_a_file_that_others_may_have_made_is_refused(
    store: EngineStore, kind: str, change: Callable[[Path], object], says: str
) -> None:
    path = store.folder / f"{KEY}.{kind}"
    change(path)
    error = refused(lambda: store.load(KEY))
    assert re.search(f"^{re.escape(str(path))}: ({says})", error.what)
    if "write" in says:
        assert f"chmod go-w {path}" in error.fix
        path.chmod(0o644)
        assert store.load(KEY).plan == PLAN
    elif change is not make_folder:
        store.put(PLAN, manifest_of(PLAN))  # the way out
        assert store.load(KEY).plan == PLAN


@pytest.mark.parametrize("kind", ["engine", "json"])
def test_a_file_of_another_user_is_refused(
    store: EngineStore, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    if os.geteuid() == 0:
        os.chown(store.folder / f"{KEY}.{kind}", 12345, -1)
    else:  # nobody can give files away: so it is this user who is another
        own = os.geteuid()
        monkeypatch.setattr(os, "geteuid", lambda: own + 1)
    assert "belongs to user" in refused(lambda: store.load(KEY)).what


@pytest.mark.skipif(os.geteuid() != 0, reason="only root owns root's files")
def test_a_file_of_root_is_trusted_by_everyone(store: EngineStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    assert store.load(KEY).plan == PLAN


@pytest.mark.parametrize(
    ("plan", "says"),
    [
        (PLAN[:-1] + b"m", "not the plan that was built"),
        (PLAN[:-1], "3999 bytes, not 4000"),
        (PLAN + b"!", "4001 bytes, not 4000"),
        (b"", "0 bytes, not 4000"),
    ],
)
def test_a_plan_of_other_bytes_is_refused(store: EngineStore, plan: bytes, says: str) -> None:
    (store.folder / f"{KEY}.engine").write_bytes(plan)
    assert says in refused(lambda: store.load(KEY)).what
    assert says in refused(lambda: store.verify(KEY)).what
    assert says in refused(lambda: find(store)).what
    assert store.manifest(KEY) == manifest_of(PLAN)


def test_a_manifest_of_an_unknown_schema_is_refused(store: EngineStore) -> None:
    path = store.folder / f"{KEY}.json"
    path.write_text(path.read_text().replace('"schema": 1', '"schema": 2'))
    error = refused(lambda: store.load(KEY))
    assert "schema = 2" in error.what
    assert "update cmudrn" in error.fix


@pytest.mark.parametrize(
    "key",
    ["", "../outside", "/etc/passwd", "a/b", f"{KEY}\n", "a b", "a\0b", "t٣", "\udcff", "a" * 300, "..", "."],
)
def test_a_key_is_never_a_path(store: EngineStore, key: str) -> None:
    outside = store.folder.parent / "outside.json"
    outside.write_bytes(manifest_of().to_json())
    for ask in (store.manifest, store.load, store.verify, store.remove):
        refused(lambda ask=ask: ask(key))  # type: ignore[misc]
    assert outside.exists()
    assert store.load(KEY).plan == PLAN


# Timing caches


def test_timings_are_kept_for_each_gpu_and_version(store: EngineStore) -> None:
    store.keep_timing_cache("NVIDIA H100 80GB", "11.4.0.106", b"a")
    store.keep_timing_cache("NVIDIA H100 80GB", "11.5.0.1", b"b")
    store.keep_timing_cache("../../../etc/x\n", "../1", b"c")
    assert store.timing_cache("NVIDIA H100 80GB", "11.4.0.106") == b"a"
    assert store.timing_cache("NVIDIA H100 80GB", "11.5.0.1") == b"b"
    assert store.timing_cache("../../../etc/x\n", "../1") == b"c"
    assert store.timing_cache("NVIDIA L4", "11.4.0.106") is None
    timings = {name for name in names(store) if name.startswith("timing-")}
    assert "timing-NVIDIA-H100-80GB-11.4.0.106.cache" in timings
    assert len(timings) == 3


@pytest.mark.parametrize("change", [lambda path: path.chmod(0o664), make_link, make_fifo, make_huge])
def test_timings_that_others_may_have_written_are_none(
    store: EngineStore, change: Callable[[Path], object]
) -> None:
    store.keep_timing_cache("H100", "11.4", b"timings")
    change(store.folder / "timing-H100-11.4.cache")
    assert store.timing_cache("H100", "11.4") is None
