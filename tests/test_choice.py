"""Which backend a job gets, and which engine an image."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from certificates import FAILED, PASSED
from hypothesis import given, settings
from hypothesis import strategies as st
from random_weights import random_checkpoint
from test_manifest import manifest_of

from cmudrn.checkpoint import read_checkpoint, save_checkpoint
from cmudrn.deploy.any_size import precision_of
from cmudrn.deploy.backends import Backends
from cmudrn.deploy.choice import best_engine, choose, runs_on
from cmudrn.deploy.job import BackendName, BackendOptions, InferJob
from cmudrn.deploy.native.library import is_built
from cmudrn.deploy.parity.candidates import library_subject
from cmudrn.deploy.tiling import plan_engine_tiles
from cmudrn.engines.certificate import ParityCertificate
from cmudrn.engines.flavors import Flavor, open_library
from cmudrn.engines.gpu import Gpu
from cmudrn.engines.manifest import Manifest
from cmudrn.engines.spec import EngineSpec, Output, Pixel, Precision
from cmudrn.engines.store import EngineStore
from cmudrn.errors import CmudrnError, EngineError, EnvironmentMissing, UsageError

OVERLAP_PX = 6
NATIVE_HERE = pytest.mark.skipif(
    not is_built(), reason="the package has no kernels of its own here: make native"
)
PLAN = b"plan" * 50


def engine(height: int = 100, width: int = 100, **changes: Any) -> Manifest:
    """For T = 1; changes: of the spec, else of the manifest."""
    of_spec = {name: changes.pop(name) for name in list(changes) if name in EngineSpec.__dataclass_fields__}
    spec = EngineSpec(**{"loops": 1, "height": height, "width": width, **of_spec})
    return manifest_of(PLAN, spec, **changes)


def best(engines: list[Manifest], height: int, width: int, images: int = 1) -> Manifest | None:
    return best_engine(engines, Pixel.UINT8, (height, width), overlap_px=OVERLAP_PX, images=images)


# --- which engine an image gets ---------------------------------------------------------------------------


def test_an_exact_match_is_taken() -> None:
    engines = [engine(100, 100), engine(90, 120), engine(50, 50), engine(200, 200)]
    assert best(engines, 90, 120) is engines[1]
    assert best(list(reversed(engines)), 90, 120) is engines[1]


@pytest.mark.parametrize("images", [1, 3, 8, 100])
def test_an_exact_match_is_taken_however_many_images_there_are(images: int) -> None:
    exact, larger = engine(100, 100, batch=8), engine(102, 102, batch=1)
    assert best([larger, exact], 100, 100, images) is exact


def test_else_the_one_with_the_least_work_padding_included() -> None:
    whole, large, tiles = engine(100, 100), engine(200, 200), engine(60, 60)
    assert best([large, tiles, whole], 95, 95) is whole  # 10,000 pixels; four tiles of 60 are 14,400
    assert best([large, tiles], 95, 95) is tiles  # 14,400, and 40,000
    assert best([large, tiles], 190, 190) is large  # 40,000; sixteen tiles of 60 are 57,600


def test_of_equals_half_precision_is_first() -> None:
    engines = [engine(precision=precision) for precision in (Precision.FP32, Precision.BF16, Precision.FP16)]
    assert best(engines, 100, 100) is engines[2]
    assert best(engines[:2], 100, 100) is engines[1]


def test_large_batches_are_for_many_tiles_or_images() -> None:
    one, eight = engine(batch=1), engine(batch=8)
    assert best([one, eight], 100, 100, images=1) is one
    assert best([one, eight], 100, 100, images=800) is eight


def test_other_pixels_and_engines_without_room_between_overlaps_fit_nothing() -> None:
    assert best([engine(pixel=Pixel.FLOAT32)], 100, 100) is None
    assert best([engine(12, 12)], 100, 100) is None
    assert best([engine(12, 12)], 12, 10) is not None
    assert best([], 100, 100) is None


@given(
    sides=st.lists(
        st.tuples(st.integers(13, 400), st.integers(13, 400)), min_size=1, max_size=6, unique=True
    ),
    size=st.tuples(st.integers(1, 900), st.integers(1, 900)),
)
@settings(deadline=None)
def test_no_other_engine_computes_less(sides: list[tuple[int, int]], size: tuple[int, int]) -> None:
    chosen = best([engine(*side) for side in sides], *size)
    assert chosen

    def pixels(side: tuple[int, int]) -> int:
        plan = plan_engine_tiles(*size, tile=side, overlap_px=OVERLAP_PX)
        assert plan
        return len(plan) * side[0] * side[1]

    assert pixels((chosen.spec.height, chosen.spec.width)) == min(map(pixels, sides))


@pytest.mark.parametrize(
    ("target", "gpu", "runs"),
    [
        ("sm89", "sm89", True),
        ("sm86", "sm89", False),
        ("sm80+", "sm89", True),
        ("sm80+", "sm75", False),
        ("sm80+", "sm90", False),  # TensorRT-RTX doesn't name it among its targets
        ("sm80+", "sm121", True),
    ],
)
def test_an_engine_runs_on_the_gpus_of_its_target(target: str, gpu: str, runs: bool) -> None:
    assert runs_on(engine(target=target), Gpu("a GPU", gpu)) is runs


# --- what a job gets, and why -----------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> EngineStore:
    return EngineStore(tmp_path / "store")


def job(store: EngineStore, backend: BackendName = BackendName.TENSORRT, **options: Any) -> InferJob:
    told = {"devices", "allow_unverified"} & options.keys()
    how = BackendOptions(name=backend, store=store.folder, **{name: options.pop(name) for name in told})
    return InferJob(**{"sources": (Path("a.jpg"),), "loops": 1, "backend": how, **options})


def shipped(**changes: Any) -> Manifest:
    """Of the shipped weights, and of the TensorRT-RTX that the tests have."""
    rtx = {"flavor": Flavor.RTX, "version": open_library(Flavor.RTX).version, "target": "sm80+"}
    weights = read_checkpoint("default").sha256
    return engine(**{**rtx, "weights_sha256": weights, "parity": PASSED, **changes})


def refusal(store: EngineStore, **options: Any) -> CmudrnError:
    with pytest.raises(CmudrnError) as error:
        choose(job(store, **options))
    return error.value


def test_an_empty_store_asks_for_an_engine(store: EngineStore) -> None:
    error = refusal(store)
    assert isinstance(error, EngineError)
    assert "no engine for T = 1" in error.what
    assert error.fix == f"cmudrn build-engine --loops 1 --size 500 --store {store.folder}"


def test_the_nearest_reason_is_given_and_the_engines_that_it_leaves_out(
    store: EngineStore, tmp_path: Path
) -> None:
    save_checkpoint(random_checkpoint(), tmp_path / "mine.safetensors")
    mine = str(tmp_path / "mine.safetensors")
    store.put(PLAN, shipped())
    key = shipped().key
    reasons: list[tuple[dict[str, Any], str]] = [
        ({"loops": 2}, f"no engine for T = 2; there are {key}"),
        ({"weights": mine}, f"no engine of weights {read_checkpoint(mine).sha256[:12]}; there are {key}"),
        ({"output": Output.SNOW}, "no engine for the snow image"),
        ({"tile_px": 99}, "no engine of 99 pixels a side or less"),
    ]
    for options, reason in reasons:
        assert reason in refusal(store, **options).what
    assert f"--weights {mine}" in refusal(store, weights=mine).fix


def test_engines_of_another_version_are_none(store: EngineStore) -> None:
    store.put(PLAN, shipped(version="1.6.0.1"))
    assert f"no engine of rtx {open_library(Flavor.RTX).version}" in refusal(store).what


def test_without_a_gpu_the_engine_is_there_and_the_reason_is_the_gpu(store: EngineStore) -> None:
    store.put(PLAN, shipped())
    error = refusal(store)
    assert isinstance(error, EnvironmentMissing)
    assert "no CUDA here" in error.what


def test_auto_says_why_no_engine_is_taken(store: EngineStore) -> None:
    assert "no engine for T = 1" in choose(job(store, BackendName.AUTO)).why
    store.put(PLAN, shipped(parity=FAILED))
    choice = choose(job(store, BackendName.AUTO))
    assert "no CUDA here" in choice.why
    assert choice.backend is (BackendName.NATIVE if is_built() else BackendName.ONNX)
    assert not choice.engines


@pytest.mark.usefixtures("without_native")
def test_without_kernels_of_our_own_auto_takes_onnx_runtime(store: EngineStore) -> None:
    choice = choose(job(store, BackendName.AUTO))
    assert choice.backend is BackendName.ONNX
    assert "no engine for T = 1" in choice.why


def certify_bf16(
    store: EngineStore,
    name: BackendName,
    certificate: ParityCertificate | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a processor that has it, for the default weights; None: with a store that has no certificate."""
    if name is BackendName.OPENVINO:
        if find_spec("openvino") is None:
            pytest.skip("OpenVINO is not installed: pip install 'cmudrn[openvino]'")
        monkeypatch.setattr("cmudrn.deploy.openvino.cpu_has_bf16", lambda: True)
    else:
        monkeypatch.setattr("cmudrn.deploy.native.library.has_isa", lambda isa: True)
    store.folder.mkdir(exist_ok=True)
    if certificate:
        spec = EngineSpec(loops=1, height=1, width=1, precision=Precision.BF16)
        subject = library_subject(name, spec, read_checkpoint("default").sha256)
        store.keep_certificate(subject, certificate)


@pytest.mark.usefixtures("without_native")
@pytest.mark.parametrize(("certificate", "backend"), [(PASSED, "openvino"), (FAILED, "onnx"), (None, "onnx")])
def test_auto_takes_openvino_only_with_certified_bfloat16(
    store: EngineStore, monkeypatch: pytest.MonkeyPatch, certificate: ParityCertificate | None, backend: str
) -> None:
    certify_bf16(store, BackendName.OPENVINO, certificate, monkeypatch)
    assert choose(job(store, BackendName.AUTO, devices=("cpu",))).backend.value == backend
    with_a_gpu_named = choose(job(store, BackendName.AUTO, devices=("0",)))
    assert with_a_gpu_named.backend is BackendName.ONNX


@NATIVE_HERE
def test_on_the_cpu_our_kernels_go_before_openvino_and_a_gpu_that_is_named_to_onnx_runtime(
    store: EngineStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    certify_bf16(store, BackendName.OPENVINO, PASSED, monkeypatch)
    assert choose(job(store, BackendName.AUTO)).backend is BackendName.NATIVE
    assert choose(job(store, BackendName.AUTO, devices=("cpu",))).backend is BackendName.NATIVE
    assert choose(job(store, BackendName.AUTO, devices=("0",))).backend is BackendName.ONNX


@NATIVE_HERE
@pytest.mark.parametrize(
    ("package", "gpus", "chosen"),
    [
        ("onnxruntime-gpu", 1, BackendName.ONNX),
        ("onnxruntime-gpu", 0, BackendName.NATIVE),
        ("onnxruntime-directml", 0, BackendName.ONNX),
    ],
)
def test_where_onnx_runtime_has_a_gpu_it_goes_first_unless_the_cpu_is_told(
    store: EngineStore, monkeypatch: pytest.MonkeyPatch, package: str, gpus: int, chosen: BackendName
) -> None:
    monkeypatch.setattr("cmudrn.deploy.choice.library_version", {package: "1.32.0"}.get)
    monkeypatch.setattr("cmudrn.deploy.choice.count_gpus", lambda: gpus)
    assert choose(job(store, BackendName.AUTO)).backend is chosen
    assert choose(job(store, BackendName.AUTO, devices=("cpu",))).backend is BackendName.NATIVE


@NATIVE_HERE
def test_an_instruction_set_that_is_not_here_is_refused_whoever_chooses(
    store: EngineStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CMUDRN_ISA", "z80")
    for name in (BackendName.AUTO, BackendName.NATIVE):
        with pytest.raises(UsageError, match="CMUDRN_ISA=z80"), Backends(job(store, name)):
            pass


@NATIVE_HERE
@pytest.mark.parametrize("name", [BackendName.AUTO, BackendName.NATIVE])
def test_our_bfloat16_is_taken_only_if_told_and_certified_or_told_to_go_without(
    store: EngineStore, monkeypatch: pytest.MonkeyPatch, name: BackendName
) -> None:
    told = {"precision": Precision.BF16, "devices": ("cpu",)}
    for certificate in (None, FAILED):
        certify_bf16(store, BackendName.NATIVE, certificate, monkeypatch)
        with pytest.raises(EngineError, match="own kernels in bf16: no parity certificate") as refused:
            choose(job(store, name, **told))
        failures = f"({', '.join(FAILED.failures)})"
        assert refused.value.what.endswith(failures) is (certificate is FAILED)
        assert refused.value.fix == (
            "cmudrn parity-check --backend native --precision bf16 --loops 1 "
            f"--store {store.folder}, or --allow-unverified"
        )
        assert choose(job(store, name, allow_unverified=True, **told)).backend is BackendName.NATIVE
    certify_bf16(store, BackendName.NATIVE, PASSED, monkeypatch)
    assert choose(job(store, name, **told)).backend is BackendName.NATIVE
    told_nothing = job(store, name, devices=("cpu",))
    assert precision_of(BackendName.NATIVE, told_nothing, Pixel.UINT8) is Precision.FP32


def test_bfloat16_goes_to_openvino_where_our_kernels_have_none(
    store: EngineStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    certify_bf16(store, BackendName.OPENVINO, PASSED, monkeypatch)
    monkeypatch.setattr("cmudrn.deploy.native.library.has_isa", lambda isa: False)
    told = job(store, BackendName.AUTO, devices=("cpu",), precision=Precision.BF16)
    assert choose(told).backend is BackendName.OPENVINO

    unverified = job(
        store, BackendName.AUTO, devices=("cpu",), precision=Precision.BF16, allow_unverified=True
    )
    assert choose(unverified).backend is BackendName.OPENVINO


@pytest.mark.usefixtures("without_native")
def test_auto_tells_of_kernels_that_are_there_and_broken_and_not_of_absent_ones(
    store: EngineStore, tmp_path: Path
) -> None:
    assert choose(job(store, BackendName.AUTO)).note == ""
    (tmp_path / "none.so").write_bytes(b"no library")
    for told in ({}, {"devices": ("cpu",)}):
        choice = choose(job(store, BackendName.AUTO, **told))
        assert choice.backend is BackendName.ONNX
        assert "none.so: not a library of ours" in choice.note
    assert choose(job(store, BackendName.AUTO, devices=("0",))).note == ""  # left to ONNX Runtime anyhow
    named = BackendOptions(store=store.folder, engine="t1")
    note = choose(InferJob(sources=(Path("a.jpg"),), loops=1, backend=named)).note
    assert "no engine named t1" in note
    assert "not a library of ours" in note


@NATIVE_HERE
def test_a_wrong_instruction_set_is_refused_beside_engines_that_fit_too(
    store: EngineStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cmudrn.deploy.choice.usable_engines", lambda job: (engine(),))
    assert choose(job(store, BackendName.AUTO)).otherwise is BackendName.NATIVE
    half = choose(job(store, BackendName.AUTO, devices=("0",), precision=Precision.BF16))
    assert (half.backend, half.otherwise) == (BackendName.TENSORRT, None)
    monkeypatch.setenv("CMUDRN_ISA", "z80")
    with pytest.raises(UsageError, match="CMUDRN_ISA=z80"):
        choose(job(store, BackendName.AUTO))


@pytest.mark.parametrize(("device", "notes"), [("cpu", 0), ("0", 1)])
def test_only_who_named_a_gpu_is_told_that_the_cpu_restores_instead(
    store: EngineStore, monkeypatch: pytest.MonkeyPatch, device: str, notes: int
) -> None:
    def nothing_opens(*_: object) -> None:
        raise EnvironmentMissing("nothing opens", fix="none")

    monkeypatch.setattr("cmudrn.deploy.backends.open_backend", nothing_opens)
    said: list[str] = []
    auto = job(store, BackendName.AUTO, devices=(device,))
    with pytest.raises(EnvironmentMissing, match="nothing opens"), Backends(auto, on_note=said.append):
        pass
    assert said == ["nothing opens: on the CPU instead"] * notes


@pytest.mark.parametrize(
    ("name", "told", "said"),
    [
        (BackendName.ONNX, {}, "ONNX Runtime computes in fp32"),
        (BackendName.TORCH, {}, "PyTorch computes in fp32"),
        (BackendName.AUTO, {"devices": ("0",)}, "ONNX Runtime computes in fp32"),  # to which a GPU is left
    ],
)
def test_a_precision_that_a_backend_does_not_have_is_refused(
    store: EngineStore, name: BackendName, told: dict[str, Any], said: str
) -> None:
    with pytest.raises(UsageError, match=f"--precision bf16: {said}") as refused:
        choose(job(store, name, precision=Precision.BF16, **told))
    assert refused.value.fix == ("give --precision fp32" if told else "--backend native")  # on no GPU


def test_an_engine_of_another_precision_than_told_is_none(store: EngineStore) -> None:
    store.put(PLAN, shipped())
    error = refusal(store, precision=Precision.BF16)
    assert "no engine of bf16" in error.what
    assert "--precision bf16" in error.fix


def test_told_to_stay_on_the_cpu_it_does_not_look_for_engines(store: EngineStore) -> None:
    choice = choose(job(store, BackendName.AUTO, devices=("cpu",)))
    assert choice.why == "told to stay on the CPU"


@pytest.mark.parametrize(
    "name", [BackendName.NATIVE, BackendName.ONNX, BackendName.OPENVINO, BackendName.TORCH]
)
def test_what_is_asked_for_is_taken(store: EngineStore, name: BackendName) -> None:
    choice = choose(job(store, name))
    assert (choice.backend, choice.why) == (name, "as told")


def test_a_store_that_cannot_be_read_in_part_says_so(store: EngineStore) -> None:
    store.put(PLAN, shipped())
    (store.folder / f"{shipped().key}.json").write_text("{}")
    assert "1 manifest cannot be read" in refusal(store).what
