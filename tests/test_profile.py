"""Profiles: what `tune` writes `infer` reads again and goes by, and nothing else is read."""

from __future__ import annotations

import json
import os
from collections.abc import Collection
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from certificates import PASSED
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from random_weights import random_checkpoint
from test_choice import shipped

from cmudrn.checkpoint import read_checkpoint, save_checkpoint
from cmudrn.cli.app import main
from cmudrn.deploy.any_size import bf16_is_certified, graph_of
from cmudrn.deploy.choice import choose
from cmudrn.deploy.job import DEFAULT_OVERLAP_PX, DEFAULT_TILE_PX, BackendName, BackendOptions, InferJob
from cmudrn.deploy.machine import describe_machine
from cmudrn.deploy.native.library import is_built, kernels_version
from cmudrn.deploy.parity.candidates import library_subject
from cmudrn.deploy.profile import Goal, Profile, Spread, Way, read_profile, write_profile
from cmudrn.deploy.profile_use import way_by_profile
from cmudrn.engines.layout import FOR_ONNX_RUNTIME, Branches, Layout
from cmudrn.engines.spec import EngineSpec, Pixel, Precision
from cmudrn.engines.store import EngineStore
from cmudrn.errors import CmudrnError, UsageError

MACHINE = describe_machine().to_json()
WEIGHTS = read_checkpoint("default").sha256
KEY = "t3-720x1280-b4-fp16-uint8-trt11.4-sm89"
ON_CPU = Way(
    loops=2, backend=BackendName.ONNX, layout=Layout(branches=Branches.DENSE, y_once=True), batch=4, threads=1
)
OF_AN_ENGINE = Way(loops=3, backend=BackendName.TENSORRT, layout=Layout(), batch=4, streams=3, engine=KEY)
USUAL = Way(loops=3, backend=BackendName.AUTO)  # the options of infer when none is given


def profile_of(way: Way = ON_CPU, **changes: Any) -> Profile:
    profile = Profile(
        way=way,
        goal=Goal(fps=30),
        height=720,
        width=1280,
        weights_sha256=WEIGHTS,
        quality_db=27.8,
        alone=Spread(200, 0.020, 0.031),
        stream=Spread(1, 0.019, 0.019),
        machine=MACHINE,
        made_at="2026-11-26T07:30:00Z",
    )
    return replace(profile, **changes)


def plain(profile: Profile | None = None) -> dict[str, Any]:
    fields = json.loads((profile or profile_of()).to_json())
    assert isinstance(fields, dict)
    return fields


# --- what is read -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "profile",
    [
        profile_of(),
        profile_of(OF_AN_ENGINE),
        profile_of(Way(loops=7, backend=BackendName.OPENVINO, tile_px=384)),
        profile_of(goal=Goal(budget_ms=12.5), quality_db=None),
    ],
    ids=lambda profile: profile.way.backend.value,
)
def test_what_is_written_is_read_again(profile: Profile, tmp_path: Path) -> None:
    write_profile(profile, tmp_path / "profile.json")
    assert read_profile(tmp_path / "profile.json") == profile
    assert [path.name for path in tmp_path.iterdir()] == ["profile.json"]


ways = st.builds(
    Way,
    loops=st.integers(1, 7),
    backend=st.sampled_from([BackendName.NATIVE, BackendName.ONNX, BackendName.OPENVINO, BackendName.TORCH]),
    layout=st.none() | st.builds(Layout, branches=st.sampled_from(Branches), y_once=st.booleans()),
    batch=st.none() | st.integers(1, 1024),
    streams=st.integers(1, 16),
    tile_px=st.none() | st.integers(79, 1_000_000),
    threads=st.none() | st.integers(1, 1024),
)
spreads = st.builds(Spread, st.integers(1, 10**6), st.floats(0, 1e6), st.floats(0, 1e6))


@given(way=ways, alone=spreads, stream=spreads, fps=st.floats(1e-3, 1e9))
@settings(deadline=None)
def test_any_profile_that_tune_can_make_is_read_again(
    way: Way, alone: Spread, stream: Spread, fps: float
) -> None:
    profile = profile_of(way, alone=alone, stream=stream, goal=Goal(fps=fps))
    assert Profile.from_json(profile.to_json(), "profile.json") == profile


def refused(data: bytes) -> str:
    """What is said of a profile that is not read: one line that a terminal shows as it is, with a way out."""
    with pytest.raises(UsageError, match=r"^profile\.json: ") as error:
        Profile.from_json(data, "profile.json")
    assert str(error.value).isprintable()
    assert "cmudrn tune" in error.value.fix
    return error.value.what


@pytest.mark.parametrize(
    ("within", "field", "value"),
    [
        ("", "schema", 2),
        ("", "way", None),
        ("", "weights_sha256", "f6611e"),
        ("", "quality_db", "27.8"),
        ("", "made_at", "yesterday"),
        ("", "machine", []),
        ("way", "loops", 0),
        ("way", "loops", 8),
        ("way", "loops", True),
        ("way", "backend", "cuda"),
        ("way", "backend", "auto"),
        ("way", "backend", "tensorrt"),  # without an engine
        ("way", "engine", KEY),  # with ONNX Runtime
        ("way", "engine", "../../etc/passwd"),
        ("way", "device", "the first"),
        ("way", "layout", "diagonal"),
        ("way", "layout", "\u001b[2J"),
        ("way", "batch", 0),
        ("way", "batch", 1 << 20),
        ("way", "streams", 17),
        ("way", "streams", None),
        ("way", "tile", 2 * DEFAULT_OVERLAP_PX[2]),  # nothing but overlap
        ("way", "threads", -1),
        ("goal", "fps", None),  # no goal
        ("goal", "budget_ms", 40),  # two
        ("goal", "fps", 0),
        ("goal", "fps", float("nan")),
        ("size", "height", 0),
        ("measured", "alone", {"runs": 0, "median_s": 1, "p99_s": 1}),
        ("measured", "stream", None),
    ],
)
def test_a_value_that_tune_would_not_write_is_refused(within: str, field: str, value: object) -> None:
    fields = plain()
    (fields[within] if within else fields)[field] = value
    refused(json.dumps(fields).encode())


# Profiles of before have no kernels.
@pytest.mark.parametrize(
    "field", [*sorted(plain().keys() - {"kernels"}), *(f"way.{name}" for name in plain()["way"])]
)
def test_a_missing_value_is_named(field: str) -> None:
    fields = plain()
    inner, _, name = field.rpartition(".")
    del (fields[inner] if inner else fields)[name]
    assert name in refused(json.dumps(fields).encode())


@given(data=st.binary(max_size=200))
@example(data=b"")
@example(data=b"null")
@example(data=b'{"schema": 1, "schema": 1}')
@example(data=b"[" * 100_000)
@example(data=b" " * (1 << 21))
def test_bytes_that_are_no_profile_are_refused(data: bytes) -> None:
    refused(data)


@given(at=st.integers(0, 5000), by=st.binary(max_size=8), cut=st.integers(0, 8))
@settings(deadline=None)
def test_a_damaged_profile_is_read_or_refused_and_nothing_else(at: int, by: bytes, cut: int) -> None:
    whole = profile_of().to_json()
    at %= len(whole)
    data = whole[:at] + by + whole[at + cut :]
    try:
        profile = Profile.from_json(data, "profile.json")
    except UsageError:
        refused(data)
    else:
        assert profile.way.loops in DEFAULT_OVERLAP_PX
        assert 2 * DEFAULT_OVERLAP_PX[profile.way.loops] < (profile.way.tile_px or DEFAULT_TILE_PX)


def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, said in (("none.json", "No such file"), ("pipe", "not a file"), (".", "not a file")):
        with pytest.raises(UsageError, match=said):
            read_profile(tmp_path / name)


def test_a_profile_that_cannot_be_written_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none/profile\.json: cannot be written"):
        write_profile(profile_of(), tmp_path / "none" / "profile.json")


@pytest.mark.parametrize("told", [{}, {"fps": 30, "budget_ms": 40}, {"fps": 0}, {"budget_ms": float("inf")}])
def test_a_goal_is_one_of_the_two_and_a_number(told: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        Goal(**told)


# --- what is done by it -----------------------------------------------------------------------------------


def by_profile(
    profile: Profile, options: Way = USUAL, told: Collection[str] = (), weights: str = "default"
) -> tuple[Way, list[str]]:
    return way_by_profile(profile, options, told, weights=weights)


def test_without_options_all_is_as_the_profile_says() -> None:
    assert by_profile(profile_of()) == (ON_CPU, [])


def test_each_option_that_is_given_wins() -> None:
    options = Way(loops=1, backend=BackendName.ONNX, batch=2, streams=1, tile_px=500, threads=7)
    for name, field in (("loops", "loops"), ("batch", "batch"), ("tile", "tile_px"), ("threads", "threads")):
        way, notes = by_profile(profile_of(), options, {name})
        assert way == replace(ON_CPU, **{field: getattr(options, field)})
        assert notes == []
    way, _ = by_profile(profile_of(), options, {"loops", "batch", "streams", "tile", "threads", "backend"})
    assert way == replace(options, layout=ON_CPU.layout)


def test_another_backend_takes_only_the_loop_count() -> None:
    options = replace(USUAL, backend=BackendName.TORCH, threads=3)
    way, notes = by_profile(profile_of(), options, {"backend"})
    assert way == replace(options, loops=ON_CPU.loops)
    assert notes == ["--backend torch: of the profile, measured with onnx, only the loop count is used"]
    way, _ = by_profile(profile_of(), replace(options, loops=5), {"backend", "loops"})
    assert way.loops == 5


def test_an_engine_may_be_replaced_by_others_unless_tensorrt_is_asked_for() -> None:
    found = replace(OF_AN_ENGINE, batch=None, layout=None)
    assert by_profile(profile_of(OF_AN_ENGINE)) == (replace(found, backend=BackendName.AUTO), [])
    options = replace(USUAL, backend=BackendName.TENSORRT, batch=2)
    assert by_profile(profile_of(OF_AN_ENGINE), options, {"backend"})[0] == found
    assert by_profile(profile_of(OF_AN_ENGINE), options, {"batch"})[0].batch == 2


def test_another_machine_and_other_weights_are_noted(tmp_path: Path) -> None:
    machine = {**MACHINE, "cores": 1000}
    way, notes = by_profile(profile_of(machine=machine))
    assert way == ON_CPU
    assert notes == ["the profile was measured on another machine: its figures may not hold here"]
    assert by_profile(profile_of(machine={}))[1] == notes
    save_checkpoint(random_checkpoint(), tmp_path / "mine.safetensors")
    _, notes = by_profile(profile_of(), weights=str(tmp_path / "mine.safetensors"))
    assert notes == [f"the profile was measured with other weights, {WEIGHTS[:12]}"]


@pytest.mark.skipif(not is_built(), reason="the package has no kernels of its own here: make native")
def test_kernels_of_another_library_or_instruction_set_are_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CMUDRN_ISA", raising=False)
    ours = Way(loops=2, backend=BackendName.NATIVE)
    tuned = profile_of(ours, kernels=kernels_version(Precision.FP32))
    assert Profile.from_json(tuned.to_json(), "profile.json") == tuned
    assert by_profile(tuned) == (ours, [])
    monkeypatch.setenv("CMUDRN_ISA", "direct")
    [note] = by_profile(tuned)[1]
    assert f"other kernels, {tuned.kernels}; here they are" in note
    before = plain(profile_of(ours))
    del before["kernels"]  # as profiles of before
    assert Profile.from_json(json.dumps(before).encode(), "profile.json").kernels is None


def test_newer_libraries_make_no_other_machine() -> None:
    assert by_profile(profile_of(machine={**MACHINE, "versions": {"onnxruntime": "9.9"}}))[1] == []


def test_a_library_that_is_gone_is_noted_and_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cmudrn.deploy.profile_use.find_spec", lambda name: None)
    way, notes = by_profile(profile_of(Way(loops=2, backend=BackendName.OPENVINO, layout=Layout(), batch=4)))
    assert way == Way(loops=2, backend=BackendName.AUTO, batch=4)
    assert notes == ["the profile's openvino is not installed: choosing as without it"]
    way, notes = by_profile(profile_of())
    assert way == replace(ON_CPU, layout=None)
    assert "dense,y-once needs onnx" in notes[0]
    grouped = replace(ON_CPU, layout=Layout(branches=Branches.GROUPED))  # as it is shipped
    assert by_profile(profile_of(grouped)) == (grouped, [])


# --- an engine that is named ------------------------------------------------------------------------------


def named(store: EngineStore, key: str, backend: BackendName = BackendName.AUTO, **told: Any) -> InferJob:
    options = BackendOptions(name=backend, store=store.folder, engine=key, **told)
    return InferJob(sources=(Path("a.jpg"),), loops=1, backend=options)


def test_an_engine_that_is_not_there_or_does_not_fit_gives_way_with_a_note(tmp_path: Path) -> None:
    store = EngineStore(tmp_path / "store")
    choice = choose(named(store, KEY))
    assert f"no engine named {KEY}" in choice.note
    assert choice.backend in (BackendName.NATIVE, BackendName.OPENVINO, BackendName.ONNX)
    with pytest.raises(CmudrnError, match=f"no engine named {KEY}"):
        choose(named(store, KEY, BackendName.TENSORRT))
    manifest = shipped(parity=PASSED)
    store.put(b"plan" * 50, manifest)
    assert f"there are {manifest.key}" in choose(named(store, KEY)).note
    job = named(store, manifest.key)
    assert "no engine for T = 2" in choose(replace(job, loops=2)).note
    assert choose(named(store, manifest.key, devices=("cpu",))).note == (
        f"--device cpu: without the engine {manifest.key}"
    )


# --- the command ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "said"),
    [
        (None, "profile.json: No such file"),
        (b"{}", "profile.json: a profile with schema"),
        (profile_of().to_json()[:-20], "profile.json: not a profile"),
        (json.dumps({**plain(), "schema": 7}).encode(), "profile.json: a profile with schema = 7"),
    ],
)
def test_infer_refuses_what_is_no_profile_in_a_line_with_a_way_out(
    written: bytes | None, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "profile.json"
    if written is not None:
        path.write_bytes(written)
    assert main(["infer", "a.jpg", "--profile", str(path)]) == 2
    what, way_out = capsys.readouterr().err.splitlines()
    assert said in what
    assert "cmudrn tune" in way_out


@pytest.fixture
def photo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(6).integers(0, 256, (40, 60, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    return tmp_path / "a.png"


def restored(*options: str) -> NDArray[np.uint8]:
    assert main(["infer", "a.png", "-o", "out.png", "--overwrite", *options]) == 0
    return np.asarray(Image.open("out.png"))


def test_infer_restores_as_the_profile_says_and_options_win(
    photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    way = Way(loops=2, backend=BackendName.ONNX, batch=2, tile_px=40, threads=1)
    write_profile(profile_of(way), photo.with_name("profile.json"))
    told = ("--backend", "onnx", "--batch", "2", "--threads", "1")
    one, two = (restored("--loops", loops, "--tile", "40", *told) for loops in ("1", "2"))
    whole = restored("--loops", "2", *told)
    assert not np.array_equal(two, whole)  # tiles show, a little
    capsys.readouterr()
    assert np.array_equal(restored("--profile", "profile.json"), two)
    assert capsys.readouterr().err.startswith("restoring with ONNX Runtime")
    assert np.array_equal(restored("--profile", "profile.json", "--loops", "1"), one)
    assert np.array_equal(restored("--profile", "profile.json", "--tile", "768"), whole)
    # The default, but given.
    assert not np.array_equal(restored("--profile", "profile.json", "--loops", "3"), two)


def test_a_profile_keeps_to_the_device_it_was_measured_on(
    photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    way = Way(loops=1, backend=BackendName.ONNX, device="77")
    write_profile(profile_of(way), photo.with_name("profile.json"))
    assert main(["infer", "a.png", "-o", "out.png", "--overwrite", "--profile", "profile.json"]) == 2
    assert "--device 77: ONNX Runtime" in capsys.readouterr().err
    restored("--profile", "profile.json", "--device", "cpu")


def test_a_layout_of_the_profile_is_made_of_the_weights(photo: Path) -> None:
    assert isinstance(graph_of("default", 2, Pixel.UINT8), Path)
    assert isinstance(graph_of("default", 2, Pixel.UINT8, FOR_ONNX_RUNTIME), Path)
    graph = graph_of("default", 2, Pixel.UINT8, ON_CPU.layout)
    assert isinstance(graph, bytes)
    nodes = [len(onnx.load_from_string(one).graph.node) for one in (graph, shipped_bytes())]
    assert nodes[0] != nodes[1]
    write_profile(profile_of(), photo.with_name("profile.json"))
    usual, other = restored("--loops", "2", "--backend", "onnx"), restored("--profile", "profile.json")
    assert np.abs(usual.astype(int) - other).max() <= 1  # rounding alone


def test_a_certificate_for_bfloat16_is_about_the_usual_layout_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if find_spec("openvino") is None:  # not importorskip, which would import it, and be reported
        pytest.skip("OpenVINO is not installed: pip install 'cmudrn[openvino]'")
    monkeypatch.setattr("cmudrn.deploy.openvino.cpu_has_bf16", lambda: True)
    store = EngineStore(tmp_path / "store")
    spec = EngineSpec(loops=2, height=768, width=768, precision=Precision.BF16)
    store.keep_certificate(library_subject(BackendName.OPENVINO, spec, WEIGHTS), PASSED)
    options = BackendOptions(name=BackendName.OPENVINO, store=store.folder)
    job = InferJob(sources=(Path("a.jpg"),), loops=2, backend=options)
    for layout, certified in ((None, True), (FOR_ONNX_RUNTIME, True), (ON_CPU.layout, False)):
        found = bf16_is_certified(BackendName.OPENVINO, replace(job, layout=layout), Pixel.UINT8)
        assert found is certified
    assert not bf16_is_certified(BackendName.OPENVINO, job, Pixel.FLOAT32)


def shipped_bytes() -> bytes:
    path = graph_of("default", 2, Pixel.UINT8)
    assert isinstance(path, Path)
    return path.read_bytes()


def test_infer_says_of_what_else_the_figures_are(photo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    machine = {**MACHINE, "cpu": "another"}
    write_profile(profile_of(machine=machine, weights_sha256="0" * 64), photo.with_name("profile.json"))
    restored("--profile", "profile.json")
    said = capsys.readouterr().err
    assert "note: the profile was measured on another machine: its figures may not hold here" in said
    assert "note: the profile was measured with other weights, 000000000000" in said
