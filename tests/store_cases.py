"""What the tests of the store share."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from test_manifest import SPEC, manifest_of

from cmudrn.engines.flavors import Flavor
from cmudrn.engines.spec import EngineSpec
from cmudrn.engines.store import Engine, EngineStore, Wanted
from cmudrn.errors import EngineError

__all__ = ["KEY", "PLAN", "find", "names", "refused", "store_with_one"]

KEY = manifest_of().key
PLAN = b"plan" * 1000


def store_with_one(folder: Path) -> EngineStore:
    """A store with one engine in it."""
    store = EngineStore(folder)
    store.put(PLAN, manifest_of(PLAN))
    return store


def refused(ask: Callable[[], object]) -> EngineError:
    """The error, which is one line with a way out, and comes at once."""

    def too_late(*_: object) -> None:
        raise TimeoutError("it hangs")

    before = signal.signal(signal.SIGALRM, too_late)
    signal.alarm(20)
    try:
        with pytest.raises(EngineError) as error:
            ask()
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    assert str(error.value).isprintable()
    assert error.value.fix
    return error.value


def names(store: EngineStore) -> set[str]:
    return {path.name for path in store.folder.iterdir()} - {".lock"}


def find(
    store: EngineStore,
    spec: EngineSpec = SPEC,
    flavor: Flavor = Flavor.TENSORRT,
    version: str = "11.4.0.106",
    targets: tuple[str, ...] = ("sm90",),
    weights_sha256: str = "2" * 64,
) -> Engine:
    return store.find(
        Wanted(spec=spec, flavor=flavor, version=version, targets=targets, weights_sha256=weights_sha256)
    )
