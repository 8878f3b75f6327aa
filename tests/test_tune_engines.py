"""`cmudrn tune` on engines, and `infer` by its profile: the real pycuda on a CUDA driver in host memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from hostcuda.build import Driver, Run
from test_infer_tensorrt import SPEC, VERSION, House, clean, house
from test_manifest import manifest_of

from cmudrn.deploy.job import BackendName
from cmudrn.deploy.profile import Goal, read_profile
from cmudrn.deploy.tuning.candidates import Axes
from cmudrn.deploy.tuning.frame_timing import Setting
from cmudrn.deploy.tuning.frontier import Measured
from cmudrn.deploy.tuning.search import TuneJob, Tuner
from cmudrn.engines.layout import Branches, Layout
from cmudrn.engines.manifest import Manifest
from cmudrn.engines.spec import EngineSpec
from cmudrn.engines.store import EngineStore

__all__ = ["house"]  # the fixture

SIZE = f"{SPEC.height}x{SPEC.width}"
QUICK = ("--size", SIZE, "--loops", "1", "--backend", "tensorrt", "--seconds", "0.05", "--fps", "0.5")


def tune(driver: Driver, house: House, *options: str) -> Run:
    """Only what the store has: the stand-in builds nothing."""
    told = ["--weights", str(house.weights), "--store", str(house.store.folder), "--no-build"]
    profile = str(house.folder / "profile.json")
    return driver.run(["-m", "cmudrn", "tune", *QUICK, *told, "-o", profile, *options])


def infer(driver: Driver, house: House, *options: str, **settings: object) -> Run:
    told = ["--profile", str(house.folder / "profile.json"), "--overwrite"]
    return house.infer(driver, *told, *options, **settings)


def test_engines_of_the_store_are_measured_and_the_profile_restores_by_the_best(
    driver: Driver, house: House
) -> None:
    batches = {house.engine(replace(SPEC, batch=batch)): batch for batch in (1, 4)}
    house.engine(replace(SPEC, height=300, width=400))  # far more work than the frame
    run = tune(driver, house, "--streams", "1,3", "--all")
    said = clean(run)
    for key in batches:
        assert said.count(key) >= 2  # with one stream, and with three
    assert "300x400" not in said
    assert "not certified" not in said
    profile = read_profile(house.folder / "profile.json")
    assert profile.way.engine in batches
    assert profile.way.batch == batches[profile.way.engine]
    assert profile.way.streams in (1, 3)
    house.photo("a.png", SPEC.height, SPEC.width)
    house.photo("b.png", 75, 90)
    said = clean(infer(driver, house))
    assert f"restoring with TensorRT {VERSION} (certified): {profile.way.engine}" in said
    spec = replace(SPEC, batch=profile.way.batch)
    for name in ("a.png", "b.png"):
        assert np.array_equal(house.restored(name), house.by_onnx_runtime(name, spec)), name


def test_an_engine_that_is_not_certified_is_said_so_and_infer_refuses_it(
    driver: Driver, house: House
) -> None:
    house.photo("a.png", SPEC.height, SPEC.width)
    key = house.engine(parity=None)
    said = clean(tune(driver, house))
    assert f"{key} (not certified)" in said
    assert f"before infer takes it: `cmudrn parity-check {key}`" in said
    refused = infer(driver, house)
    assert refused.returncode == 2
    assert f"cmudrn parity-check {key}, or --allow-unverified" in refused.output
    assert f"as told): {key}" in clean(infer(driver, house, "--allow-unverified"))


def test_an_engine_that_is_gone_or_does_not_fit_is_noted_and_others_are_taken(
    driver: Driver, house: House
) -> None:
    house.photo("a.png", SPEC.height, SPEC.width)
    key = house.engine()
    clean(tune(driver, house))
    other = house.engine(replace(SPEC, batch=2))
    house.store.remove(key)
    said = clean(infer(driver, house))
    assert f"no engine named {key}; there are {other}: choosing as without it" in said
    assert f"(certified): {other}" in said
    told = infer(driver, house, "--backend", "tensorrt")
    assert told.returncode == 2
    assert f"no engine named {key}" in told.output


def test_nothing_in_the_store_that_fits_is_an_honest_end(driver: Driver, house: House) -> None:
    run = tune(driver, house)
    assert run.returncode == 1
    assert f"the store has no engine for T = 1 that fits {SIZE}" in run.output
    assert "nothing could be measured" in run.output
    assert not (house.folder / "profile.json").exists()


def graphs_as_plans(spec: EngineSpec, layout: Layout, store: EngineStore) -> Manifest:
    """Instead of a compiler: the stand-in takes a graph for a plan."""
    from cmudrn.checkpoint import read_checkpoint
    from cmudrn.engines.graph import typed_graph

    checkpoint = read_checkpoint("default")
    plan = typed_graph(checkpoint, spec, layout)
    facts = {"version": VERSION, "target": "sm89", "weights_sha256": checkpoint.sha256, "layout": layout}
    store.put(plan, manifest_of(plan, spec, **facts))
    return store.manifest(manifest_of(plan, spec, **facts).key)


def tune_with_built_engines(folder: Path) -> None:
    """In a process under hostcuda."""
    store = EngineStore(folder / "store")
    job = TuneJob(
        goal=Goal(fps=0.5),
        setting=Setting(height=24, width=32, store=store.folder),
        axes=Axes(batches=(1, 2), streams=(1, 2)),
        loops=(1, 2),
        backends=(BackendName.TENSORRT,),
        seconds=0.02,
    )
    asked: list[tuple[EngineSpec, Layout]] = []

    def build(spec: EngineSpec, layout: Layout, into: EngineStore) -> Manifest:
        asked.append((spec, layout))
        return graphs_as_plans(spec, layout, into)

    with Tuner(job, build=build) as tuner:
        found = list(tuner.run())
        measured = [one for one in found if isinstance(one, Measured)]
        assert len(measured) == len(found), found
        assert not any(one.certified for one in measured)
        layouts = {one.way.layout for one in measured}
        assert {layout.branches for layout in layouts if layout} == set(Branches)
        assert len(asked) == len(set(asked))  # each engine was built once
        ways = {(one.way.loops, one.way.batch, one.way.streams) for one in measured}
        assert ways >= {(loops, batch, streams) for loops in (1, 2) for batch in (1, 2) for streams in (1, 2)}
        assert store.manifests() == ([], [])
        best = next(one.way for one in measured if one.final and one.way.loops == 2)
        assert best.engine
        assert tuner.keep(best)
    kept = store.verify(best.engine)
    assert (kept.spec.loops, kept.spec.batch, kept.layout) == (2, best.batch, best.layout)
    job = replace(
        job, layouts=(kept.layout,), loops=(2,), axes=Axes(batches=(kept.spec.batch,), streams=(1,))
    )
    asked.clear()
    with Tuner(job, build=build) as tuner:
        (once, again) = list(tuner.run())
        assert isinstance(once, Measured)
        assert isinstance(again, Measured)
        assert once.way == again.way
        assert not tuner.keep(once.way)  # it is where it belongs
    assert not asked


def test_engines_that_the_store_lacks_are_built_measured_and_kept_when_told(
    driver: Driver, tmp_path: Path
) -> None:
    code = "import pathlib, sys, test_tune_engines as t; t.tune_with_built_engines(pathlib.Path(sys.argv[1]))"
    clean(driver.run(["-c", code, tmp_path], {"HOSTCUDA_DELAY_US": 50}))
