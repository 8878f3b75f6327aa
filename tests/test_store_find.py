"""Which engine fits, and what is said where none does."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from store_cases import KEY, PLAN, find, refused, store_with_one
from test_manifest import SPEC, manifest_of

from cmudrn.checkpoint import read_checkpoint
from cmudrn.engines.flavors import Flavor
from cmudrn.engines.spec import EngineSpec, Output, Pixel, Precision
from cmudrn.engines.store import Engine, EngineStore, Wanted


@pytest.fixture
def store(tmp_path: Path) -> EngineStore:
    """With one engine in it."""
    return store_with_one(tmp_path / "store")


def test_the_first_target_with_an_engine_is_taken(store: EngineStore) -> None:
    portable = manifest_of(b"portable", target="sm80+")
    store.put(b"portable", portable)
    assert find(store).plan == PLAN
    assert find(store, targets=("sm80+", "sm90")).plan == b"portable"
    assert find(store, targets=("sm89", "sm90", "sm80+")).plan == PLAN
    store.remove(KEY)
    assert find(store, targets=("sm90", "sm80+")) == Engine(portable, b"portable")


def test_the_command_names_the_gpu_and_weights_that_are_not_the_shipped_ones() -> None:
    def command(**changes: Any) -> str:
        wanted = Wanted.like(manifest_of(), version="11.5.0.1", targets=["sm90"])
        return dataclasses.replace(wanted, **changes).build_command(None)

    usual = "cmudrn build-engine --loops 3 --size 500x400 --batch 8"
    assert command() == f"{usual} --weights FILE --flavor tensorrt"
    assert command(device="0000:41:00.0") == f"{usual} --weights FILE --flavor tensorrt --device 0000:41:00.0"
    rtx = command(device="1", flavor=Flavor.RTX)
    assert rtx == f"{usual} --weights FILE --flavor rtx --target sm90"
    shipped = manifest_of(weights_sha256=read_checkpoint("default").sha256)
    like = Wanted.like(shipped, version="11.5.0.1", targets=["sm90"])
    assert like.build_command(None) == f"{usual} --flavor tensorrt"


def at(loops: int, height: int, width: int) -> EngineSpec:
    return EngineSpec(loops=loops, height=height, width=width, batch=8)


FIT = "those for T = 3 at 500x400"


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"spec": at(4, 500, 400)}, "no engine for T = 4 at 500x400; those here are for T = 3 at 500x400"),
        ({"spec": at(3, 400, 500)}, "no engine for T = 3 at 400x500; those here are for T = 3 at 500x400"),
        (
            {"spec": EngineSpec(loops=3, height=500, width=400)},
            "no engine with batch 1, fp16, uint8 pixels, fused output; "
            f"{FIT} are with batch 8, fp16, uint8 pixels, fused output",
        ),
        ({"flavor": Flavor.RTX}, f"no engine of rtx 11.4.0.106; {FIT} are of tensorrt 11.4.0.106"),
        (
            {"version": "11.4.0.107", "weights_sha256": "3" * 64},
            f"no engine of tensorrt 11.4.0.107; {FIT} are of tensorrt 11.4.0.106",
        ),
        ({"targets": ("sm89", "sm80+")}, f"no engine for sm89 or for sm80+; {FIT} are for sm90"),
        (
            {"weights_sha256": "3" * 64},
            f"no engine of weights 333333333333; {FIT} are of weights 222222222222",
        ),
    ],
)
def test_where_none_fits_the_nearest_reason_is_said(
    store: EngineStore, asked: dict[str, object], says: str
) -> None:
    error = refused(lambda: find(store, **asked))  # type: ignore[arg-type]
    assert error.what == f"{store.folder}: {says}"
    assert error.fix.startswith("cmudrn build-engine --loops ")


def test_the_sizes_and_loops_that_there_are_are_listed_in_order_up_to_a_point(tmp_path: Path) -> None:
    store = EngineStore(tmp_path)
    assert refused(lambda: find(store)).what.endswith("no engine for T = 3 at 500x400; the store holds none")
    for height in (100, 90, 1000, 80, 70, 60, 50, 40, 30, 20):
        spec = EngineSpec(loops=1 + height // 1000, height=height, width=64)
        store.put(PLAN, manifest_of(PLAN, spec))
    listed = ", ".join(f"for T = 1 at {height}x64" for height in (20, 30, 40, 50, 60, 70, 80, 90))
    assert refused(lambda: find(store)).what.endswith(f"; those here are {listed}, and 2 more")


def test_an_engine_that_would_fit_but_is_not_trusted_says_so(store: EngineStore) -> None:
    (store.folder / f"{KEY}.json").chmod(0o666)
    assert "others may write it" in refused(lambda: find(store)).what


@pytest.mark.parametrize(
    ("changes", "command"),
    [
        ({}, "--loops 3 --size 500x400 --batch 8 --flavor rtx"),
        ({"spec": EngineSpec(loops=3, height=500, width=400)}, "--loops 3 --size 500x400 --flavor rtx"),
        ({"flavor": Flavor.TENSORRT}, "--loops 3 --size 500x400 --batch 8 --flavor tensorrt"),
        ({"targets": ["sm75"]}, "--loops 3 --size 500x400 --batch 8 --flavor rtx --target sm75"),
        (
            {"weights": "my own.safetensors"},
            "--loops 3 --size 500x400 --batch 8 --weights 'my own.safetensors' --flavor rtx",
        ),
        (
            {
                "spec": EngineSpec(
                    loops=1,
                    height=9,
                    width=8,
                    precision=Precision.BF16,
                    pixel=Pixel.FLOAT32,
                    output=Output.RAIN,
                )
            },
            "--loops 1 --size 9x8 --precision bf16 --pixel float32 --output rain --flavor rtx",
        ),
    ],
)
def test_the_command_that_builds_one_names_what_is_not_as_usual(
    changes: dict[str, Any], command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = Wanted(
        spec=SPEC, flavor=Flavor.RTX, version="1.7", targets=["sm86", "sm80+"], weights_sha256="2" * 64
    )
    wanted = dataclasses.replace(usual, **changes)
    monkeypatch.setenv("CMUDRN_STORE", str(tmp_path))
    assert EngineStore(tmp_path).build_command(wanted) == f"cmudrn build-engine {command}"
    elsewhere = EngineStore(tmp_path / "my store").build_command(wanted)
    assert elsewhere == f"cmudrn build-engine {command} --store '{tmp_path}/my store'"
