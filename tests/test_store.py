"""The store of engines: written whole or not at all, and handed out only where nobody changed them."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest
from store_cases import KEY, PLAN, find, names, refused, store_with_one
from test_manifest import manifest_of

from cmudrn.engines.flavors import Flavor, Library
from cmudrn.engines.spec import EngineSpec
from cmudrn.engines.store import Engine, EngineStore
from cmudrn.errors import EngineError


@pytest.fixture
def store(tmp_path: Path) -> EngineStore:
    """With one engine in it."""
    return store_with_one(tmp_path / "store")


# What it is


def test_what_is_put_is_loaded_and_the_plan_is_a_file_of_its_own(store: EngineStore) -> None:
    assert store.load(KEY) == Engine(manifest_of(PLAN), PLAN)
    assert store.verify(KEY) == store.manifest(KEY) == manifest_of(PLAN)
    assert store.manifests() == ([manifest_of(PLAN)], [])
    assert names(store) == {f"{KEY}.engine", f"{KEY}.json"}
    assert (store.folder / f"{KEY}.engine").read_bytes() == PLAN
    assert json.loads((store.folder / f"{KEY}.json").read_text())["plan_bytes"] == 4000


def test_an_engine_takes_the_place_of_one_with_its_key(store: EngineStore) -> None:
    other = manifest_of(b"other", version="11.4.1.7", weights_sha256="3" * 64)
    assert store.put(b"other", other) == store.folder / f"{KEY}.engine"
    assert store.load(KEY) == Engine(other, b"other")
    assert names(store) == {f"{KEY}.engine", f"{KEY}.json"}


def test_a_plan_with_the_manifest_of_another_is_not_put(store: EngineStore) -> None:
    for plan in (b"plan" * 999 + b"plaN", PLAN[:-1]):
        with pytest.raises(ValueError, match="another plan"):
            store.put(plan, manifest_of(PLAN))
    with pytest.raises(EngineError, match="gpu"):
        store.put(PLAN, manifest_of(PLAN, gpu="\n"))  # could never be read again
    assert store.load(KEY).plan == PLAN


def test_asking_makes_no_folder(tmp_path: Path) -> None:
    store = EngineStore(tmp_path / "none")
    assert store.manifests() == ([], [])
    assert store.prune(keep=[]) == []
    assert store.timing_cache("H100", "11.4") is None
    for ask in (store.load, store.verify, store.manifest, store.remove):
        assert "no " in refused(lambda ask=ask: ask(KEY)).what  # type: ignore[misc]
    refused(lambda: find(store))
    assert not store.folder.exists()


def test_the_folder_is_the_one_told_or_the_environments_or_in_the_cache(
    monkeypatch: pytest.MonkeyPatch, cache: Path, tmp_path: Path
) -> None:
    monkeypatch.delenv("CMUDRN_STORE", raising=False)
    assert EngineStore.default().folder == cache / "engines"
    monkeypatch.setenv("CMUDRN_STORE", str(tmp_path / "b"))
    assert EngineStore.default().folder == tmp_path / "b"
    assert EngineStore.default(tmp_path / "a").folder == tmp_path / "a"


@pytest.mark.parametrize("umask", [0, 0o002, 0o077])
def test_only_the_owner_writes_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        store = EngineStore(tmp_path / "store")
        store.put(PLAN, manifest_of(PLAN))
        store.keep_timing_cache("H100", "11.4", b"timings")
    finally:
        os.umask(before)
    assert store.folder.stat().st_mode & 0o777 == 0o700
    modes = {path.name: path.stat().st_mode & 0o777 for path in store.folder.iterdir()}
    assert modes.pop(".lock") == 0o600
    assert set(modes.values()) == {0o644}
    assert len(modes) == 3
    assert store.load(KEY).plan == PLAN


# Whole or not at all

CHILD = """
import dataclasses, hashlib, os, random, signal, sys
from pathlib import Path
from cmudrn.engines.manifest import Manifest
from cmudrn.engines.store import EngineStore

store, described = EngineStore(Path(sys.argv[1])), Manifest.from_json(Path(sys.argv[2]).read_bytes(), "given")

def put(plan):
    sha256 = hashlib.sha256(plan).hexdigest()
    store.put(plan, dataclasses.replace(described, plan_bytes=len(plan), plan_sha256=sha256))
"""
PUT_FOR_EVER = """
chance = random.Random(int(sys.argv[3]))
while True:
    put(chance.randbytes(chance.randrange(1, 1 << chance.randrange(2, 23))))
    print(flush=True)
"""


@pytest.fixture
def described(tmp_path: Path) -> Path:
    path = tmp_path / "described.json"
    path.write_bytes(manifest_of().to_json())
    return path


def python(code: str, *arguments: object) -> list[str]:
    return [sys.executable, "-c", CHILD + code, *map(str, arguments)]


@contextmanager
def putting_for_ever(folder: Path, described: Path, seed: int) -> Iterator[subprocess.Popen[bytes]]:
    """A process that has put one engine, and goes on until it is killed."""
    command = python(PUT_FOR_EVER, folder, described, seed)
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == b"\n"
            yield process
        finally:
            process.kill()


def whole_files(store: EngineStore) -> set[str]:
    """Prunes, an hour later, and returns what is left: the engines that are listed, all of them whole."""
    for path in store.folder.glob(".*.part"):
        os.utime(path, (time.time() - 4000, time.time() - 4000))
    store.prune()
    manifests, broken = store.manifests()
    assert not broken
    for manifest in manifests:
        store.verify(manifest.key)
    assert names(store) == {f"{one.key}.{kind}" for one in manifests for kind in ("engine", "json")}
    return names(store)


KILL_AT_EVERY_LINE = """
HERE = ("store.py", "files.py")
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

old, new = b"old" * 1000, b"new" * 5000
for killed_at in range(1, 1000):
    put(old)
    child = os.fork()
    if not child:
        sys.settrace(count)
        put(new)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    manifests, broken = store.manifests()
    assert not broken, broken
    plans = [store.load(one.key).plan for one in manifests]
    print({(): "-", (old,): "o", (new,): "n"}[tuple(plans)], end="", flush=True)  # before the next fork
    if status == 0:
        break
print()
"""


def test_a_put_killed_at_any_line_leaves_the_old_engine_or_none_or_the_new_one(
    tmp_path: Path, described: Path
) -> None:
    store = EngineStore(tmp_path / "store")
    done = subprocess.run(
        python(KILL_AT_EVERY_LINE, store.folder, described),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=120,
    )
    # Killed one line later each time: first nothing has changed, in the end all.
    assert re.fullmatch("o{10,}-{3,}n{3,}", done.stdout.strip())
    assert any(name.endswith(".part") for name in names(store))
    assert whole_files(store) == {f"{KEY}.engine", f"{KEY}.json"}


def test_a_kill_at_any_time_leaves_the_store_usable(tmp_path: Path, described: Path) -> None:
    store = EngineStore(tmp_path / "store")
    chance = random.Random(0)
    for seed in range(25):
        with putting_for_ever(store.folder, described, seed) as process:
            time.sleep(chance.uniform(0, 0.06))
            process.send_signal(signal.SIGKILL)
            process.wait()
        whole, broken = store.manifests()
        assert not broken
        for manifest in whole:
            store.verify(manifest.key)
        if seed % 2:
            whole_files(store)
        store.put(PLAN, manifest_of(PLAN))
        assert store.load(KEY).plan == PLAN
    assert whole_files(store) == {f"{KEY}.engine", f"{KEY}.json"}


def test_two_builders_at_once_never_mix_their_files_and_no_reader_sees_a_half(
    tmp_path: Path, described: Path
) -> None:
    store = EngineStore(tmp_path / "store")
    with (
        putting_for_ever(store.folder, described, 1) as first,
        putting_for_ever(store.folder, described, 2) as second,
    ):
        until = time.monotonic() + 1
        seen = set()
        while time.monotonic() < until:
            seen.add(store.verify(KEY).plan_sha256)
            seen.add(find(store).manifest.plan_sha256)
        assert first.poll() is None
        assert second.poll() is None
    assert len(seen) > 3
    whole, broken = store.manifests()
    assert not broken
    for manifest in whole:
        store.verify(manifest.key)
    store.put(PLAN, manifest_of(PLAN))
    assert whole_files(store) == {f"{KEY}.engine", f"{KEY}.json"}


FULL_DISK = """
import resource
from cmudrn.errors import EngineError

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]),) * 2)
try:
    put(bytes(100_000))
except EngineError as error:
    print(error.what, error.fix, sep="\\n")
store.keep_timing_cache("H100", "11.4", bytes(100_000))  # says nothing
"""


@pytest.mark.parametrize("room", [0, 300, 50_000])  # for nothing, half of a manifest, half of a plan
def test_a_full_disk_is_said_and_leaves_what_was_there(
    store: EngineStore, described: Path, room: int
) -> None:
    done = subprocess.run(
        python(FULL_DISK, store.folder, described, room), stdout=subprocess.PIPE, text=True, check=True
    )
    what, fix = done.stdout.splitlines()
    assert what == f"{store.folder}: cannot be changed: File too large"
    assert "make room" in fix
    assert store.load(KEY).plan == PLAN
    assert names(store) == {f"{KEY}.engine", f"{KEY}.json"}


def test_a_folder_that_is_none_is_said(tmp_path: Path) -> None:
    store = EngineStore(tmp_path / "file")
    store.folder.write_text("a file")
    asks: list[Callable[[], object]] = [
        lambda: store.put(PLAN, manifest_of(PLAN)),
        lambda: store.manifests(),
        lambda: store.prune(),
        lambda: store.load(KEY),
    ]
    for ask in asks:
        assert str(store.folder) in refused(ask).what
    store.keep_timing_cache("H100", "11.4", b"timings")
    assert store.folder.read_text() == "a file"


# The list


def test_the_broken_are_listed_beside_the_whole_with_the_reason(store: EngineStore) -> None:
    small = EngineSpec(loops=1, height=64, width=64)
    store.put(b"small", manifest_of(b"small", small))
    copy = store.folder / "copy.json"
    copy.write_bytes(manifest_of(PLAN).to_json())
    (store.folder / "damaged.json").write_text("{")
    (store.folder / "a\x1b[2J\n.json").write_text("{}")
    (store.folder / "notes.txt").write_text("not ours")
    whole, broken = store.manifests()
    assert [one.key for one in whole] == sorted([KEY, manifest_of(b"small", small).key])
    reasons = {name: str(error) for name, error in broken}
    assert reasons.keys() == {"copy", "damaged"}  # a name that is no key's is none of ours
    assert f"the manifest of {KEY}" in reasons["copy"]
    assert "not a manifest" in reasons["damaged"]
    assert all(reason.isprintable() for reason in reasons.values())


def test_what_is_removed_is_gone_broken_or_not(store: EngineStore) -> None:
    store.remove(KEY)
    assert names(store) == set()
    assert f"no engine {KEY}" in refused(lambda: store.remove(KEY)).what
    (store.folder / "damaged.json").write_text("{")
    (store.folder / "alone.engine").write_text("a plan")
    store.remove("damaged")
    store.remove("alone")
    assert names(store) == set()


def library(flavor: Flavor, version: str) -> Library:
    return Library(flavor, ModuleType(flavor.module), version)


def test_pruning_takes_leftovers_and_nothing_else(store: EngineStore) -> None:
    def age(name: str, seconds: float) -> str:
        (store.folder / name).write_text("half a plan")
        os.utime(store.folder / name, (time.time() - seconds, time.time() - seconds))
        return name

    kept = {f"{KEY}.engine", f"{KEY}.json"}
    kept.add(age(".t3.engine.12-0123abcd.part", 3000))  # may be being written
    kept.add(age(".another.part", 5000))  # of other programs, as all that follow
    kept.add(age("package.json", 5000))
    kept.add(age("bert.engine", 5000))
    gone = {age(".t3.engine.12-89abcdef.part", 5000), age("t3-9x9-b1-fp16-uint8-trt11.4-sm90.engine", 0)}
    gone |= {age("t3-9x9-b1-fp16-uint8-trt11.4-sm89.json", 0), age("t3-9x9-b1-broken.json", 0)}
    gone.add(age("t3-9x9-b1-broken.engine", 0))
    no_plan = manifest_of(spec=EngineSpec(loops=3, height=9, width=8))
    (store.folder / f"{no_plan.key}.json").write_bytes(no_plan.to_json())
    gone.add(f"{no_plan.key}.json")
    store.keep_timing_cache("H100", "11.4", b"timings")
    kept.add("timing-H100-11.4.cache")
    assert set(store.prune()) == gone
    assert names(store) == kept
    assert store.prune() == []


def test_pruning_takes_engines_of_other_versions_only_where_it_is_told_to(store: EngineStore) -> None:
    rtx = manifest_of(PLAN, flavor=Flavor.RTX, version="1.7.1.116", target="sm80+")
    store.put(PLAN, rtx)
    here = [library(Flavor.TENSORRT, "11.4.0.106"), library(Flavor.RTX, "1.7.1.116")]
    assert store.prune() == store.prune(keep=here) == []
    later = [library(Flavor.TENSORRT, "11.4.0.107"), here[1]]
    assert store.prune(keep=later) == [f"{KEY}.engine", f"{KEY}.json"]
    assert store.manifests() == ([rtx], [])
