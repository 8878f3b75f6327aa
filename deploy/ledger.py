"""What a run has done so far, in SQLite beside its output: the memory of `--resume`, and the output's lock.

A row is there before its file is, so that a file without a row is not ours; and it says `restored` only after
the file took its name. Killed in between, the run leaves a file whose row says `planned`: it is done again,
and replaced by the same bytes. A commit reaches the operating system, where no kill takes it away; that of
planned rows reaches the disk, so that a power cut only takes away rows that say more than `planned`.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import replace
from datetime import datetime
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any

from cmudrn.deploy.job import Existing
from cmudrn.deploy.report import ItemResult, Status
from cmudrn.deploy.sources import Item
from cmudrn.errors import CmudrnError, EnvironmentMissing, UsageError

__all__ = ["LEDGER_NAME", "Ledger", "LedgerUnavailable"]

LEDGER_NAME = ".cmudrn-run.sqlite3"
SCHEMA = 1  # another number is another layout
COMMIT_S = 0.25  # what is done again after a kill, at most; a commit takes some 50 microseconds
PLANNED_AT_ONCE = 512  # one wait for the disk
PLANNED = "planned"  # an item's status until it has ended
SKIPPED = json.dumps({"status": Status.SKIPPED.value})
DONE = (Status.RESTORED.value, Status.CLEAN.value, Status.SKIPPED.value)

TABLES = """
CREATE TABLE run (settings TEXT NOT NULL, existing TEXT NOT NULL, began TEXT NOT NULL);
CREATE TABLE session (number INTEGER PRIMARY KEY, pid INTEGER NOT NULL, began TEXT NOT NULL, ended TEXT);
CREATE TABLE item (
    target BLOB PRIMARY KEY,     -- below the folder of the ledger, as the file system spells it
    source BLOB NOT NULL,        -- as it was given to the last session
    place INTEGER NOT NULL,      -- in the order of the sources
    session INTEGER NOT NULL,    -- the last one that came upon it
    status TEXT NOT NULL,        -- planned, restored, clean, skipped or failed
    result TEXT                  -- what became of it, as JSON
);
"""


class LedgerUnavailable(EnvironmentMissing):
    """No ledger can be kept there."""


class Ledger(AbstractContextManager["Ledger"]):
    """Items and what became of them. One process at a time has it; one thread of it uses it.

    folder: all targets lie in or below it; it is there. None: a ledger of this session alone, in a file that
    goes with it. Entering raises UsageError where another process has it, or where it is not ours to read,
    LedgerUnavailable where the file system holds no database. All methods raise CmudrnError where the disk
    is full.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._database: sqlite3.Connection | None = None
        self._session = 0
        self._committed_s = 0.0

    def __enter__(self) -> Ledger:
        path = "" if self.folder is None else str(self.folder / LEDGER_NAME)
        with self._failing(opening=True):
            self._database = sqlite3.connect(path, timeout=0, isolation_level=None)
            try:
                self._lock()
                self._check_schema()
            except BaseException:
                self._database.close()
                self._database = None
                raise
        if self.folder is not None:
            with suppress(OSError):  # it only serves a message
                self._holder.write_text(f"process {os.getpid()}, since {_now()}", encoding="utf-8")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        database, self._database = self._opened(), None
        try:
            # What cannot be written any more, on a full disk, is done again another time.
            with suppress(sqlite3.Error):
                if self._session:
                    _begun(database).execute(
                        "UPDATE session SET ended = ? WHERE number = ?", (_now(), self._session)
                    )
                _commit(database)
        finally:
            if self.folder is not None:
                with suppress(OSError):
                    self._holder.unlink()
            with suppress(sqlite3.Error):
                database.close()

    @property
    def settings(self) -> dict[str, Any] | None:
        """Those of the run that it is about; None where it is new."""
        with self._failing():
            row = self._opened().execute("SELECT settings FROM run").fetchone()
        return None if row is None else dict(json.loads(row[0]))

    @property
    def existing(self) -> Existing:
        """What the run was told to do where a target is there already, by whomever."""
        with self._failing():
            row = self._opened().execute("SELECT existing FROM run").fetchone()
        return Existing.REFUSE if row is None else Existing(row[0])

    def knows(self, target: Path) -> bool:
        """Whether the run may come upon it: it was to write it, or was told what to do with others'."""
        if self.existing is not Existing.REFUSE:
            return True
        with self._failing():
            return self._row(target) is not None

    def dead_sessions(self) -> tuple[int, ...]:
        """Process ids of sessions without an end: whoever has the ledger knows that they are gone."""
        with self._failing():
            rows = self._opened().execute("SELECT pid FROM session WHERE ended IS NULL")
            return tuple(pid for (pid,) in rows)

    def folders(self) -> set[Path]:
        """Where the run writes, as far as it has come."""
        with self._failing():
            rows = self._opened().execute("SELECT target FROM item")
            return {self._target(key).parent for (key,) in rows}

    def begin(self, settings: Mapping[str, Any], existing: Existing) -> None:
        """A session. RESUME goes on with the run that is there; all else forgets it for another one."""
        with self._failing():
            database = _begun(self._opened())
            if existing is not Existing.RESUME or self.settings is None:
                told = Existing.REFUSE if existing is Existing.RESUME else existing
                database.execute("DELETE FROM item")
                database.execute("DELETE FROM run")
                database.execute(
                    "INSERT INTO run VALUES (?, ?, ?)", (json.dumps(settings), told.value, _now())
                )
            database.execute("DELETE FROM session WHERE ended IS NULL")  # their leftovers are cleaned
            cursor = database.execute("INSERT INTO session (pid, began) VALUES (?, ?)", (os.getpid(), _now()))
            self._session = int(cursor.lastrowid or 0)
            _commit(database)

    def planned(self, items: Iterable[Item]) -> Iterator[Item]:
        """The items, each with a row before it is handed on, and with what an earlier session made of it."""
        pending, skips = enumerate(items, 1), self.existing is Existing.SKIP
        while some := list(islice(pending, PLANNED_AT_ONCE)):
            with self._failing(), self._durable() as database:
                known = []
                for place, item in some:
                    status, result = self._row(item.target) or ("", None)
                    before = bool(status)
                    if not before and skips and not item.problem and item.target.exists():
                        # Written down at once: what is there, and is only planned, is taken for ours.
                        status, result = Status.SKIPPED.value, SKIPPED
                    done = None if result is None or status not in DONE else _done(item, result)
                    known.append(replace(item, done=done and replace(done, before=before)))
                    # What is known stays until it is known better: doing it again may be broken off, too.
                    database.execute(
                        "INSERT OR REPLACE INTO item VALUES (?, ?, ?, ?, ?, ?)",
                        (
                            *(self._key(item.target), os.fsencode(item.source), place, self._session),
                            *((PLANNED, None) if done is None else (status, result)),
                        ),
                    )
            yield from known

    def record(self, result: ItemResult) -> None:
        """What became of a planned item; its file has its name by now."""
        with self._failing():
            database = _begun(self._opened())
            values = result.to_json()
            del values["source"], values["target"]
            database.execute(
                "UPDATE item SET status = ?, result = ? WHERE target = ?",
                (result.status.value, json.dumps(values), self._key(result.target)),
            )
            if time.monotonic() - self._committed_s > COMMIT_S:
                _commit(database)
                self._committed_s = time.monotonic()

    def results(self) -> Iterator[ItemResult]:
        """Of this session, in the order of the sources; those that have ended."""
        with self._failing():
            rows = self._opened().execute(
                "SELECT target, source, result FROM item WHERE session = ? AND status != ? ORDER BY place",
                (self._session, PLANNED),
            )
            for key, source, result in rows:
                yield ItemResult.from_json(
                    json.loads(result), source=Path(os.fsdecode(source)), target=self._target(key)
                )

    def gone(self) -> int:
        """How many were restored, or left alone, whose sources this session did not come upon."""
        with self._failing():
            (count,) = (
                self._opened()
                .execute(
                    "SELECT count(*) FROM item WHERE session != ? AND status IN (?, ?)",
                    (self._session, Status.RESTORED.value, Status.CLEAN.value),
                )
                .fetchone()
            )
        return int(count)

    @contextmanager
    def _durable(self) -> Iterator[sqlite3.Connection]:
        """A transaction that is on the disk when it is left."""
        database = self._opened()
        _commit(database)  # how safe a transaction is, cannot be changed within it
        database.execute("PRAGMA synchronous = FULL")
        yield _begun(database)
        _commit(database)
        database.execute("PRAGMA synchronous = NORMAL")

    def _row(self, target: Path) -> tuple[str, str | None] | None:
        """Status and result."""
        found = self._opened().execute(
            "SELECT status, result FROM item WHERE target = ?", (self._key(target),)
        )
        row: tuple[str, str | None] | None = found.fetchone()
        return row

    def _key(self, target: Path) -> bytes:
        return os.fsencode(target if self.folder is None else os.path.relpath(target, self.folder))

    def _target(self, key: bytes) -> Path:
        name = os.fsdecode(key)
        return Path(name) if self.folder is None else self.folder / name

    @property
    def _holder(self) -> Path:
        """Says who has the ledger: whoever finds it locked cannot read it in there."""
        return (self.folder or Path()) / f"{LEDGER_NAME}.holder"

    def _opened(self) -> sqlite3.Connection:
        if self._database is None:
            raise RuntimeError("the ledger is not open: use it in a `with` block")
        return self._database

    def _lock(self) -> None:
        database = self._opened()
        # Until it is closed, or its process gone, nobody else can even read it. And then WAL needs no shared
        # memory, which network file systems don't have. Where WAL cannot be all the same, SQLite keeps its
        # rollback journal: slower, and as safe.
        database.execute("PRAGMA locking_mode = EXCLUSIVE")
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = NORMAL")
        database.execute("BEGIN EXCLUSIVE").execute("COMMIT")

    def _check_schema(self) -> None:
        database = self._opened()
        (version,) = database.execute("PRAGMA user_version").fetchone()
        if version == 0 and not database.execute("SELECT 1 FROM sqlite_master").fetchone():
            database.executescript(f"BEGIN; {TABLES} PRAGMA user_version = {SCHEMA}; COMMIT;")
        elif version != SCHEMA:
            raise UsageError(
                f"{self._name}: a ledger of another version", fix=f"resume with that one, or {self._without}"
            )

    @property
    def _name(self) -> str:
        return "the ledger of this session" if self.folder is None else str(self.folder / LEDGER_NAME)

    @property
    def _without(self) -> str:
        return "remove it and go on with --skip-existing"

    @contextmanager
    def _failing(self, *, opening: bool = False) -> Iterator[None]:
        """SQLite's errors in our words. By their text: Python 3.10 doesn't give their numbers."""
        try:
            yield
        except sqlite3.DatabaseError as exc:
            if self._database is not None and self._database.in_transaction:
                with suppress(sqlite3.Error):
                    self._database.execute("ROLLBACK")
            said = str(exc)
            if "locked" in said:
                raise UsageError(
                    f"{self.folder}: another run writes there{self._whose()}",
                    fix="wait until it has ended, or give another OUT",
                ) from exc
            if "disk is full" in said:
                raise CmudrnError(
                    f"{self._name}: the disk is full", fix="make room, then run the same again with --resume"
                ) from exc
            if "not a database" in said or "malformed" in said:
                raise UsageError(f"{self._name}: {said}", fix=self._without) from exc
            if opening:
                raise LedgerUnavailable(
                    f"{self._name}: no ledger can be kept there ({said})",
                    fix="restore to another file system, or go on with --skip-existing",
                ) from exc
            raise CmudrnError(
                f"{self._name}: {said}", fix="see to the disk, then run the same again with --resume"
            ) from exc

    def _whose(self) -> str:
        try:
            return f" ({self._holder.read_text(encoding='utf-8')})"
        except (OSError, UnicodeError):
            return ""


def _done(item: Item, result: str) -> ItemResult:
    done = ItemResult.from_json(json.loads(result), source=item.source, target=item.target)
    return replace(done, anew="")


def _begun(database: sqlite3.Connection) -> sqlite3.Connection:
    if not database.in_transaction:
        database.execute("BEGIN")
    return database


def _commit(database: sqlite3.Connection) -> None:
    if database.in_transaction:
        database.execute("COMMIT")


def _now() -> str:
    return datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
