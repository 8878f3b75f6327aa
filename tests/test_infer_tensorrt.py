"""`cmudrn infer --backend tensorrt`, files to files, by the real pycuda, on a CUDA driver in host memory."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime as ort
import pytest
from certificates import FAILED, PASSED
from hostcuda.build import Driver, Run
from numpy.typing import NDArray
from PIL import Image
from random_weights import random_checkpoint
from test_manifest import manifest_of

from cmudrn.checkpoint import Checkpoint, read_checkpoint, save_checkpoint
from cmudrn.cli.app import main
from cmudrn.deploy.backend import PixelBatch
from cmudrn.deploy.job import BackendName
from cmudrn.deploy.native.library import is_built
from cmudrn.deploy.tiling import Restorer, TilePlan, plan_engine_tiles, restore_each
from cmudrn.engines.certificate import ParityCertificate
from cmudrn.engines.graph import typed_graph
from cmudrn.engines.spec import EngineSpec, Precision
from cmudrn.engines.store import EngineStore
from cmudrn.images import read_picture

VERSION = "11.4.0.1"  # of the stand-in
SPEC = EngineSpec(loops=1, height=32, width=40, batch=4, precision=Precision.FP32)
OVERLAP_PX = 9  # the receptive radius at T = 1: tiles equal the whole


class House(NamedTuple):
    """A folder with photographs, weights and a store."""

    folder: Path
    weights: Path
    store: EngineStore

    def photo(self, name: str, height: int, width: int) -> Path:
        path = self.folder / "photos" / name
        path.parent.mkdir(exist_ok=True)
        pixels = np.random.default_rng(len(name) + height).integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(pixels).save(path)
        return path

    def engine(
        self, spec: EngineSpec = SPEC, parity: ParityCertificate | None = PASSED, **changes: Any
    ) -> str:
        """Put into the store; returns its key. The stand-in takes a graph as a plan."""
        checkpoint = self.checkpoint
        plan = changes.pop("plan", None) or typed_graph(checkpoint, spec)
        facts = {"version": VERSION, "target": "sm89", "weights_sha256": checkpoint.sha256, "parity": parity}
        manifest = manifest_of(plan, spec, **{**facts, **changes})
        self.store.put(plan, manifest)
        return manifest.key

    @property
    def checkpoint(self) -> Checkpoint:
        return read_checkpoint(str(self.weights))

    def arguments(self, *options: str, out: str = "out") -> list[str]:
        told = ["--loops", "1", "--weights", str(self.weights), "--store", str(self.store.folder)]
        told += ["--overlap", str(OVERLAP_PX), "-o", str(self.folder / out)]
        return ["infer", str(self.folder / "photos"), *told, *options]

    def infer(self, driver: Driver, *options: str, **settings: object) -> Run:
        return driver.run(["-m", "cmudrn", *self.arguments(*options)], {"HOSTCUDA_DELAY_US": 100, **settings})

    def restored(self, name: str, out: str = "out") -> NDArray[Any]:
        return read_picture(self.folder / out / name).pixels

    def by_onnx_runtime(self, name: str, spec: EngineSpec = SPEC) -> NDArray[Any]:
        """The same graph over the same tiles."""
        graph = FixedGraph(typed_graph(self.checkpoint, spec), spec)

        def plan(height: int, width: int) -> TilePlan:
            found = plan_engine_tiles(height, width, tile=(spec.height, spec.width), overlap_px=OVERLAP_PX)
            assert found
            return found

        pixels = read_picture(self.folder / "photos" / name).pixels
        (restored,) = restore_each([pixels], Restorer(graph, plan, spec.batch))
        return restored


class FixedGraph:
    """A graph of one size on ONNX Runtime: what an engine is in the stand-in."""

    def __init__(self, graph: bytes, spec: EngineSpec) -> None:
        self.spec, self.label = spec, "the graph"
        self._session = ort.InferenceSession(graph, providers=["CPUExecutionProvider"])

    def stream(self, batches: Iterable[PixelBatch]) -> Generator[PixelBatch, None, None]:
        for batch in batches:
            filled = np.zeros((self.spec.batch, *batch.shape[1:]), batch.dtype)
            filled[: len(batch)] = batch
            yield self._session.run(None, {"image": filled})[0][: len(batch)]

    def __enter__(self) -> FixedGraph:
        return self

    def __exit__(self, *exc_info: object) -> None:
        pass


@pytest.fixture
def house(tmp_path: Path) -> House:
    save_checkpoint(random_checkpoint(), tmp_path / "mine.safetensors")
    return House(tmp_path, tmp_path / "mine.safetensors", EngineStore(tmp_path / "store"))


def clean(run: Run, exit_code: int = 0) -> str:
    """What was said; nothing was misused and nothing is left."""
    assert run.returncode == exit_code, run.output
    assert run.stats.faults == 0, run.last_fault
    assert run.stats.left == 0, run.stats
    return run.output


@pytest.mark.parametrize("streams", ["1", "3"])
def test_photographs_of_all_sizes_equal_onnx_runtimes_bit_for_bit(
    driver: Driver, house: House, streams: str
) -> None:
    sizes = {"exact.png": (32, 40), "larger.png": (75, 90), "smaller.png": (20, 13), "long.png": (9, 300)}
    for name, size in sizes.items():
        house.photo(name, *size)
    for number in range(11):
        house.photo(f"{number:02}.png", 32, 40)
    key = house.engine()
    said = clean(house.infer(driver, "--backend", "tensorrt", "--streams", streams))
    assert f"restoring with TensorRT {VERSION} (as told): {key}" in said
    assert "15 restored" in said
    for path in (house.folder / "photos").iterdir():
        assert np.array_equal(house.restored(path.name), house.by_onnx_runtime(path.name)), path.name


def test_thousands_of_batches_equal_the_onnx_backend_bit_for_bit(driver: Driver, house: House) -> None:
    house.photo("large.png", 700, 900)
    spec = replace(SPEC, batch=1)
    house.engine(spec)
    clean(house.infer(driver, "--backend", "tensorrt"))
    plan = plan_engine_tiles(700, 900, tile=(spec.height, spec.width), overlap_px=OVERLAP_PX)
    assert plan
    assert len(plan) > 2000
    assert main(house.arguments("--backend", "onnx", out="by-onnx")) == 0
    assert np.array_equal(house.restored("large.png"), house.restored("large.png", out="by-onnx"))


def test_each_photograph_gets_the_engine_that_fits_it_best(driver: Driver, house: House) -> None:
    other = replace(SPEC, height=64, width=48, batch=1)
    house.engine()
    house.engine(other)
    house.photo("small.png", 32, 40)
    house.photo("tall.png", 64, 48)
    clean(house.infer(driver, "--backend", "tensorrt"))
    assert np.array_equal(house.restored("small.png"), house.by_onnx_runtime("small.png"))
    assert np.array_equal(house.restored("tall.png"), house.by_onnx_runtime("tall.png", other))


def test_several_devices_share_the_work(driver: Driver, house: House) -> None:
    for number in range(20):
        house.photo(f"{number:02}.png", 32, 40)
    house.engine(replace(SPEC, batch=1))
    run = house.infer(driver, "--backend", "tensorrt", "--device", "0", "--device", "2", HOSTCUDA_DEVICES=3)
    clean(run)
    for number in range(20):
        name = f"{number:02}.png"
        assert np.array_equal(house.restored(name), house.by_onnx_runtime(name, replace(SPEC, batch=1)))


# --- auto -------------------------------------------------------------------------------------------------


def test_auto_takes_a_certified_engine_and_says_so(driver: Driver, house: House) -> None:
    house.photo("a.png", 32, 40)
    key = house.engine()
    run = house.infer(driver, "--report", str(house.folder / "report.json"))
    assert f"restoring with TensorRT {VERSION} (certified): {key}" in clean(run)
    report = json.loads((house.folder / "report.json").read_text())
    assert key in report["backend"]
    assert np.array_equal(house.restored("a.png"), house.by_onnx_runtime("a.png"))


@pytest.mark.parametrize("parity", [None, FAILED], ids=["uncertified", "failed"])
def test_an_engine_without_a_passed_certificate_is_used_only_when_told(
    driver: Driver, house: House, parity: ParityCertificate | None
) -> None:
    house.photo("a.png", 32, 40)
    key = house.engine(parity=parity)
    refused = house.infer(driver, "--backend", "tensorrt")
    assert "no engine with a parity certificate that it has passed" in refused.output
    assert ("a pixel is 40 grey levels off, more than 3" in refused.output) is (parity is FAILED)
    assert f"cmudrn parity-check {key}, or --allow-unverified" in refused.output
    assert refused.returncode == 2
    instead = clean(house.infer(driver))
    assert "no engine with a parity certificate" in instead
    assert "restoring with TensorRT" not in instead
    told = clean(house.infer(driver, "--backend", "tensorrt", "--allow-unverified", "--overwrite"))
    assert "restoring with TensorRT" in told


def test_an_engine_that_does_not_load_is_left_aside_with_a_line(driver: Driver, house: House) -> None:
    house.photo("a.png", 32, 40)
    key = house.engine(plan=b"no plan at all")
    said = clean(house.infer(driver))
    assert f"{key}: does not load" in said
    assert "going on without this engine" in said
    assert "1 restored" in said
    asked = house.infer(driver, "--backend", "tensorrt", "--overwrite")
    assert asked.returncode == 2
    assert "does not load" in asked.output
    assert asked.stats.left == 0


def test_what_the_left_out_engine_was_for_goes_to_the_next_best_one(driver: Driver, house: House) -> None:
    for number in range(12):
        house.photo(f"{number:02}.png", 32, 40)
    other = replace(SPEC, height=48, width=48, batch=2)
    house.engine(plan=b"no plan at all")
    house.engine(other)
    said = clean(house.infer(driver))
    assert said.count("going on without this engine") == 1
    assert "12 restored" in said
    for number in range(12):
        name = f"{number:02}.png"
        assert np.array_equal(house.restored(name), house.by_onnx_runtime(name, other))


def test_a_gpu_that_fails_half_way_leaves_a_report(driver: Driver, house: House) -> None:
    for number in range(30):
        house.photo(f"{number:02}.png", 32, 40)
    house.engine(replace(SPEC, batch=1))
    report = house.folder / "report.json"
    options = ["--backend", "tensorrt", "--no-cuda-graphs", "--report", str(report)]
    run = house.infer(driver, *options, HOSTCUDA_FAIL="run:20")
    assert run.returncode == 1
    assert "restoring: " in run.output
    done = json.loads(report.read_text())
    written = list((house.folder / "out").iterdir())
    assert done["restored"] < 30
    assert {Path(item["target"]).name for item in done["items"]} <= {path.name for path in written}


def test_sixteen_bits_want_an_engine_of_their_own(driver: Driver, house: House) -> None:
    path = house.photo("a.png", 32, 40).with_name("deep.tif")
    house.engine()
    rows = np.linspace(0, 65535, 32 * 40, dtype=np.uint16).reshape(32, 40)
    Image.fromarray(rows).save(path)
    told = house.infer(driver, "--backend", "tensorrt")
    assert "deep.tif: no engine of float32 pixels fits 32x40" in clean(told, exit_code=1)
    assert "1 restored, 1 failed" in told.output
    said = clean(house.infer(driver, "--overwrite"))
    assert "2 restored" in said
    rest = (BackendName.NATIVE if is_built() else BackendName.ONNX).label
    assert f"what fits none: {rest}" in said
    assert f"no engine of float32 pixels fits 32x40: left to {rest}" in said
    assert house.restored("deep.tif").dtype == np.uint16


def test_a_gpu_without_room_for_the_engine_is_an_error_with_a_way_out(driver: Driver, house: House) -> None:
    house.photo("a.png", 300, 300)
    house.engine(replace(SPEC, height=300, width=300))
    run = house.infer(driver, "--backend", "tensorrt", HOSTCUDA_MEMORY_MB=1)
    assert run.returncode == 1
    assert "out of memory" in run.output
    assert "-> use an engine of a smaller batch" in run.output
    assert run.stats.left == 0


def test_an_engine_gives_way_where_only_one_has_room(driver: Driver, house: House) -> None:
    """Two engines of half a megabyte each way on a GPU of two."""
    for side in (160, 168):
        house.engine(replace(SPEC, height=side, width=side, batch=1))
        house.photo(f"{side}.png", side, side)
    run = house.infer(driver, "--backend", "tensorrt", "--streams", "1", HOSTCUDA_MEMORY_MB=1)
    assert "2 restored" in clean(run)


def test_the_options_that_make_no_sense_are_refused(driver: Driver, house: House) -> None:
    house.photo("a.png", 32, 40)
    house.engine()
    for options, said in (
        (["--device", "7", "--backend", "tensorrt"], "--device 7: "),
        (["--device", "cpu", "--backend", "tensorrt"], "engines run on a GPU"),
        (["--backend", "cuda"], "--backend cuda"),
        (["--device", "7", "--backend", "onnx"], "--device 7: ONNX Runtime"),
        (["--device", "0", "--device", "1", "--backend", "onnx"], "ONNX Runtime takes one, by number"),
        (["--tile", "30", "--backend", "tensorrt"], "no engine of 30 pixels a side or less"),
    ):
        run = house.infer(driver, *options)
        assert run.returncode == 2, run.output
        assert said in run.output
