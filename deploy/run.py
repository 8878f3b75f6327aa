"""A job as a run that can be broken off and gone on with: its ledger, its settings, what a dead one left."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import Any

from cmudrn import __version__
from cmudrn.checkpoint import read_checkpoint
from cmudrn.deploy.backends import Backends
from cmudrn.deploy.job import Existing, InferJob
from cmudrn.deploy.ledger import LEDGER_NAME, Ledger, LedgerUnavailable
from cmudrn.deploy.report import ItemResult
from cmudrn.deploy.sources import Item, check_sources, find_items, output_folder
from cmudrn.errors import CmudrnError, UsageError
from cmudrn.wording import listed

__all__ = ["Run", "settings_of"]

# Of InferJob: what changes no byte of a result. All else does, whatever is added to it.
NOT_IN_THE_BYTES = frozenset(
    {"sources", "out", "existing", "max_pixels", "in_flight_px", "batch", "backend", "weights"}
)
# As `cmudrn.files.replacing` names what it has not finished: its process's id, and four random bytes.
HALF_WRITTEN = re.compile(r"\..{1,40}\.(\d+)-[0-9a-f]{8}\.part", re.DOTALL)


class Run(AbstractContextManager["Run"]):
    """A job that has been checked, and whose output nobody else writes to.

    Entering touches nothing but the folder of the output and the ledger in it, and these only once all is
    known to be well. It raises UsageError for what `check_sources` refuses, for an output that another
    run writes to, and for `--resume` where no run can be gone on with.
    also: what decides about bytes beside the job, by name. on_note: gets a line for people.
    """

    def __init__(
        self,
        job: InferJob,
        *,
        also: Mapping[str, Any] | None = None,
        on_note: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.job = job
        self._also = also or {}
        self.total = 0  # items, once entered
        self._on_note = on_note
        self._taken = ExitStack()
        self._ledger = Ledger(None)

    def __enter__(self) -> Run:
        folder = output_folder(self.job)
        if folder is None and self.job.existing is Existing.RESUME:
            raise UsageError(
                "--resume: only what goes to one folder has a ledger to go by",
                fix="go on with --skip-existing; next time give -o FOLDER, or a folder to restore",
            )
        with ExitStack() as taken:
            self._ledger = self._opened(folder, taken)
            self._taken = taken.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._taken.close()

    def begin(self, backends: Backends) -> None:
        """Once it is known what restores. Raises UsageError where the run to resume was another one's."""
        now = settings_of(self.job, backends, self._ledger.folder, self._also)
        then = self._ledger.settings
        if self.job.existing is Existing.RESUME and then and (differences := _differences(then, now)):
            raise UsageError(
                f"--resume: the run in {self._ledger.folder} was another one: {listed(differences)}",
                fix="give the same as then, or --overwrite to do all anew",
            )
        remove_leftovers(self._ledger)
        self._ledger.begin(now, self.job.existing)

    def items(self) -> Iterator[Item]:
        """In order, lazily, with what is known of them."""
        return self._ledger.planned(find_items(self.job))

    def record(self, result: ItemResult) -> None:
        """What became of one of them."""
        self._ledger.record(result)

    def results(self) -> Iterator[ItemResult]:
        """What has been recorded of them, in order, lazily."""
        return self._ledger.results()

    def gone(self) -> int:
        """How many images the run has restored whose sources are gone. Once all items are drawn."""
        return self._ledger.gone()

    def _opened(self, folder: Path | None, taken: ExitStack) -> Ledger:
        """Checks, and takes the ledger: before the check where it is there, so that a run that is going on is
        named, and not the files it has written."""
        if folder is None:
            self.total = check_sources(self.job)
            return taken.enter_context(Ledger(None))
        try:
            ledger: Ledger | None = None
            if (folder / LEDGER_NAME).is_file():
                ledger = taken.enter_context(Ledger(folder))
                self.total = check_sources(self.job, ledger.knows)
                return ledger
            self.total = check_sources(self.job)
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as exc:  # a full disk, for one
                raise CmudrnError(
                    f"{folder}: {exc.strerror}", fix="see to the disk, or give another OUT"
                ) from exc
            ledger = taken.enter_context(Ledger(folder))
        except LedgerUnavailable as exc:
            if self.job.existing is Existing.RESUME:
                raise
            self._on_note(f"note: {exc.what}: --resume will not be possible")
            self.total = check_sources(self.job)
            return taken.enter_context(Ledger(None))
        if ledger.settings is not None:  # another run has begun and ended since the check
            self.total = check_sources(self.job, ledger.knows)
        return ledger


def settings_of(
    job: InferJob, backends: Backends, folder: Path | None, also: Mapping[str, Any]
) -> dict[str, Any]:
    """All that decides about a result's bytes beside its source, as plain values, by name.

    folder: sources are named from there, so that both may move together.
    """
    of_job = {one.name: getattr(job, one.name) for one in fields(job) if one.name not in NOT_IN_THE_BYTES}
    told: dict[str, Any] = {}
    for name, one in {**of_job, **also}.items():
        value = _plain(one)
        told |= value if isinstance(value, dict) else {name: value}
    choice = backends.choice
    return {
        **told,
        "sources": [_from(folder, source) for source in job.sources],
        "weights": read_checkpoint(job.weights).sha256,
        "backend": backends.label,
        "engines": sorted(engine.key for engine in choice.engines),
        "otherwise": _plain(choice.otherwise),
        "version": __version__,
    }


def remove_leftovers(ledger: Ledger) -> None:
    """What killed sessions had half written: ours by its name, theirs by the process, where they wrote."""
    dead = ledger.dead_sessions()
    if not dead or ledger.folder is None:
        return
    for folder in ledger.folders():
        try:
            with os.scandir(folder) as entries:
                names = [entry.name for entry in entries]
        except OSError:  # not made yet, or no longer there
            continue
        for name in names:
            half = HALF_WRITTEN.fullmatch(name)
            if half and int(half[1]) in dead:
                with suppress(OSError):
                    (folder / name).unlink()


def _differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What is not as it was, in words."""
    return [
        f"{name.removesuffix('_px').replace('_', ' ')} {_short(then.get(name))}, now {_short(now.get(name))}"
        for name in sorted(then.keys() | now.keys())
        if then.get(name) != now.get(name)
    ]


def _short(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value)) or "none"
    if isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value):
        return value[:12]
    return "as usual" if value is None else str(value)


def _plain(value: Any) -> Any:
    """As it comes back from JSON."""
    if isinstance(value, Enum):
        return value.value
    if is_dataclass(value) and not isinstance(value, type):
        return {one.name: _plain(getattr(value, one.name)) for one in fields(value)}
    if isinstance(value, (tuple, list)):
        return [_plain(one) for one in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def _from(folder: Path | None, source: Path) -> str:
    try:
        return os.path.relpath(source, folder)
    except ValueError:  # on another drive
        return str(source.absolute())
