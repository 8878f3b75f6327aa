"""What the tests of the native kernels open, and what they skip."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sanitize import Missing, Program, Variant, build_program

from cmudrn.deploy.native.library import NativeNetwork, NativeSession, has_isa, load_library
from cmudrn.errors import EnvironmentMissing
from native.networks import Configuration

__all__ = ["ISAS", "built", "need_isa", "need_library", "opened"]

# All that there are; the last rounds more than float32 does.
ISAS = ("direct", "base", "avx2", "avx512", "avx512bf16")


def need_library() -> None:
    """Skips the test where the kernels were not built."""
    try:
        load_library()
    except EnvironmentMissing as exc:
        pytest.skip(f"no native kernels: {exc}")


def need_isa(isa: str) -> str:
    """Itself; skips the test where the library or this processor doesn't have it."""
    need_library()
    if not has_isa(isa):
        pytest.skip(f"{isa}: not of this processor, or not of this build")
    return isa


@contextmanager
def opened(configuration: Configuration, isa: str, threads: int = 1) -> Iterator[NativeSession]:
    """A session on a network of its own."""
    checkpoint = configuration.checkpoint
    with (
        NativeNetwork(checkpoint.tensors, checkpoint, isa) as network,
        NativeSession(network, threads) as session,
    ):
        yield session


_built: dict[tuple[str, Variant], Program] = {}


def built(source: str, variant: Variant, factory: pytest.TempPathFactory) -> Program:
    """One of the programs in tests/native/ with its library, once for all tests; skips where it cannot be."""
    if (source, variant) not in _built:
        folder: Path = factory.mktemp(f"native-{variant.name}")
        try:
            _built[source, variant] = build_program(source, variant, folder)
        except Missing as exc:
            pytest.skip(f"not {variant.name}: {exc}")
    return _built[source, variant]
