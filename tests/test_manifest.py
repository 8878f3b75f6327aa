"""Manifests of engines: what is written is read again, and nothing else is."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_certificate import certificate_of

from cmudrn.engines.flavors import PORTABLE, Flavor
from cmudrn.engines.gpu import Gpu
from cmudrn.engines.layers import LayerSummary
from cmudrn.engines.layout import Branches, Layout
from cmudrn.engines.manifest import Frontend, Manifest, certified_on, engine_key
from cmudrn.engines.spec import EngineSpec, Output, Pixel, Precision
from cmudrn.errors import EngineError

PLAN = b"a plan"
SPEC = EngineSpec(loops=3, height=500, width=400, batch=8)


def manifest_of(plan: bytes = PLAN, spec: EngineSpec = SPEC, **changes: Any) -> Manifest:
    """A manifest as `build-engine` writes it."""
    manifest = Manifest(
        spec=spec,
        layout=Layout(branches=Branches.GROUPED, y_once=True),
        frontend=Frontend.ONNX,
        flavor=Flavor.TENSORRT,
        version="11.4.0.106",
        target="sm90",
        gpu="NVIDIA H100 80GB HBM3",
        plan_sha256=hashlib.sha256(plan).hexdigest(),
        plan_bytes=len(plan),
        graph_sha256="1" * 64,
        weights_sha256="2" * 64,
        optimization_level=None,
        workspace_mb=512,
        built_at="2026-11-26T07:30:00Z",
        seconds=12.5,
        layers=LayerSummary(
            kinds={"correlation": 14, "kgen": 2}, computing=16, in_precision=15, convolving=14
        ),
    )
    return dataclasses.replace(manifest, **changes)


def plain(manifest: Manifest) -> dict[str, Any]:
    fields = json.loads(manifest.to_json())
    assert isinstance(fields, dict)
    return fields


def refused(data: bytes) -> str:
    """What is said of a manifest that is not read: one line that a terminal shows as it is."""
    with pytest.raises(EngineError, match=r"^engine\.json: ") as error:
        Manifest.from_json(data, "engine.json")
    assert str(error.value).isprintable()
    assert error.value.fix
    return error.value.what


def read_or_refused(data: bytes) -> None:
    """There is no third way."""
    try:
        manifest = Manifest.from_json(data, "engine.json")
    except EngineError:
        refused(data)
    else:
        assert Manifest.from_json(manifest.to_json(), "again") == manifest
        assert re.fullmatch(r"[A-Za-z0-9.+-]+", manifest.key)  # a file's name, and never a path
        assert 0 <= manifest.layers.share <= 1


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"gpu": None, "workspace_mb": None, "optimization_level": 5, "flavor": Flavor.RTX, "target": "sm80+"},
        {"parity": certificate_of()},
        {"parity": certificate_of(truth_psnr_change_db=None, truth_ssim_change=None)},
        {"layout": Layout(), "frontend": Frontend.TORCH_TENSORRT, "seconds": 0.0},
    ],
)
def test_what_is_written_is_read_again(changes: dict[str, Any]) -> None:
    manifest = manifest_of(**changes)
    assert Manifest.from_json(manifest.to_json(), "engine.json") == manifest


@pytest.mark.parametrize(
    ("spec", "flavor", "version", "target", "key"),
    [
        (SPEC, Flavor.TENSORRT, "11.4.0.106", "sm90", "t3-500x400-b8-fp16-uint8-trt11.4-sm90"),
        (
            EngineSpec(loops=1, height=9, width=8, precision=Precision.FP32, pixel=Pixel.FLOAT32),
            Flavor.RTX,
            "1.7.1.116",
            "sm80+",
            "t1-9x8-b1-fp32-float32-rtx1.7-sm80+",
        ),
        (
            EngineSpec(loops=2, height=9, width=8, output=Output.SNOW),
            Flavor.TENSORRT,
            "10.13",
            "sm89",
            "t2-9x8-b1-fp16-uint8-snow-trt10.13-sm89",
        ),
    ],
)
def test_keys_say_what_an_engine_is_for(
    spec: EngineSpec, flavor: Flavor, version: str, target: str, key: str
) -> None:
    assert engine_key(spec, flavor, version, target) == key
    assert manifest_of(spec=spec, flavor=flavor, version=version, target=target).key == key


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("schema", 2),
        ("schema", True),
        ("version", "../../etc"),
        ("version", "11.4/../../x"),
        ("version", "11.4\n"),
        ("version", "11.4 "),
        ("target", "sm90/.."),
        ("target", "sm٩٠"),  # digits, but not ours
        ("plan_sha256", "A" * 64),
        ("plan_sha256", "a" * 63),
        ("plan_bytes", 0),
        ("plan_bytes", 1 << 40),
        ("plan_bytes", 6.0),
        ("built_at", "٢٠٢٦-11-26T07:30:00Z"),
        ("built_at", "yesterday"),
        ("seconds", -1),
        ("seconds", True),
        ("seconds", "1"),
        ("seconds", 10**400),  # no float is that large
        ("gpu", "\x1b[2J"),
        ("gpu", "H100\n"),
        ("gpu", "H" * 201),
        ("optimization_level", 6),
        ("workspace_mb", 0),
        ("layout", "diagonal"),
        ("layout", ["grouped"]),
        ("frontend", ["onnx"]),
        ("flavor", {}),
        ("spec", None),
        ("parity", []),
        ("parity", {}),
    ],
)
def test_a_value_that_no_build_writes_is_refused_by_name(field: str, value: object) -> None:
    what = refused(json.dumps({**plain(manifest_of()), field: value}).encode())
    assert field in what


@pytest.mark.parametrize(
    ("inner", "field", "value"),
    [
        ("spec", "loops", 0),
        ("spec", "height", 10**30),
        ("spec", "batch", True),
        ("spec", "precision", "fp8"),
        ("layers", "kinds", {"a": -1}),
        ("layers", "kinds", {"a\nb": 1}),  # dropped before, and the rest was read
        ("layers", "kinds", {"a" * 201: 1}),
        ("layers", "in_precision", 17),  # of 16 that compute
        ("parity", "psnr_min_db", "60"),
        ("parity", "psnr_min_db", 62),  # above the mean
        ("parity", "difference", 10**400),
        ("parity", "limits", {}),
    ],
)
def test_so_is_one_within_another(inner: str, field: str, value: object) -> None:
    fields = plain(manifest_of(parity=certificate_of()))
    fields[inner][field] = value
    refused(json.dumps(fields).encode())


@pytest.mark.parametrize("field", sorted(plain(manifest_of())))
def test_none_of_the_values_may_be_missing(field: str) -> None:
    fields = plain(manifest_of())
    del fields[field]
    assert field in refused(json.dumps(fields).encode())


def test_a_value_from_a_later_version_of_the_same_schema_is_left_aside() -> None:
    data = json.dumps({**plain(manifest_of()), "colour": "blue"}).encode()
    assert Manifest.from_json(data, "engine.json") == manifest_of()


TEXT = manifest_of().to_json().decode()


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "Expecting value"),
        (b"[]", "not an object"),
        (b"[" * 200_000, "not a manifest"),
        (b'{"a":' * 200_000, "not a manifest"),
        (b'{"schema": \xff}', "codec can't decode"),
        (TEXT.encode("utf-16"), "codec can't decode"),
        (TEXT.encode("utf-8-sig"), "BOM"),
        (TEXT.replace("12.5", "NaN").encode(), "NaN is not a finite number"),
        (TEXT.replace("12.5", "-Infinity").encode(), "-Infinity is not a finite number"),
        (TEXT.replace("null", '{"psnr": 1e999}').encode(), "1e999 is not a finite number"),
        (TEXT.replace("12.5", "9" * 5000).encode(), "4300 digits"),
        (TEXT.replace('"schema": 1', '"schema": 1, "schema": 1').encode(), "comes twice"),
        (TEXT.replace('"kgen": 2', '"kgen": 2, "kgen": 3').encode(), "comes twice"),
        (TEXT.encode()[:-3], "Expecting"),
        (TEXT.encode() + b" " * (1 << 20), "bytes"),
    ],
)
def test_what_is_no_such_json_says_so(data: bytes, says: str) -> None:
    assert says in refused(data)


def test_sixteen_levels_are_read_and_no_more() -> None:
    def nested(levels: int) -> bytes:  # the manifest is one, what a later version says in it the next
        inside = '{"a": ' * (levels - 2) + "{}" + "}" * (levels - 2)
        return TEXT.replace('"parity": null', f'"parity": null, "more": {inside}').encode()

    assert Manifest.from_json(nested(16), "engine.json") == manifest_of()
    assert "more than 16 levels" in refused(nested(17))


ODD_TEXTS = st.sampled_from(["", "../x", "/", "a\nb", "\x1b[2J", "\ud800", "x" * 201, "11.4", "sm90", "onnx"])
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([0, 1, 1 << 20, 1 << 31, 10**400, -(10**400)])
    | st.floats()
    | st.text()
    | ODD_TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text() | ODD_TEXTS, inner, max_size=4),
    max_leaves=12,
)
CERTIFIED = plain(manifest_of(parity=certificate_of()))
PLACES = [(name,) for name in CERTIFIED] + [
    (outer, name) for outer in ("spec", "layers", "parity") for name in CERTIFIED[outer]
]


@settings(max_examples=400, deadline=None)
@given(place=st.sampled_from(PLACES), value=VALUES)
@example(place=("layers", "kinds"), value={"\ud800": 1})
@example(place=("parity",), value={"\ud800": "\ud800"})
@example(place=("seconds",), value=10**400)
def test_any_value_in_any_place_is_read_or_refused(place: tuple[str, ...], value: object) -> None:
    fields = plain(manifest_of(parity=certificate_of()))
    inner = fields
    for name in place[:-1]:
        inner = inner[name]
    inner[place[-1]] = value
    read_or_refused(json.dumps(fields).encode())


@settings(max_examples=200, deadline=None)
@given(value=VALUES)
def test_any_json_is_refused(value: object) -> None:
    refused(json.dumps(value).encode())


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_so_are_any_bytes_and_any_damage_is_read_or_refused(data: st.DataObject) -> None:
    refused(data.draw(st.binary()))
    where = data.draw(st.integers(0, len(TEXT)))
    length = data.draw(st.integers(0, 20))
    text = TEXT.encode()
    read_or_refused(text[:where] + data.draw(st.binary(max_size=20)) + text[where + length :])


# Where a certificate holds

L4, RTX_4090, H100 = (
    Gpu("NVIDIA L4", "sm89"),
    Gpu("NVIDIA GeForce RTX 4090", "sm89"),
    Gpu("NVIDIA H100", "sm90"),
)


def test_a_portable_plan_is_certified_on_the_model_of_gpu_that_it_was_measured_on_alone() -> None:
    parity = certificate_of(measured_on=f"TensorRT-RTX 1.7.1.116 on {L4.name}")
    portable = manifest_of(flavor=Flavor.RTX, version="1.7.1.116", target=PORTABLE, parity=parity)
    assert [certified_on(portable, gpu) for gpu in (L4, RTX_4090, H100)] == [True, False, False]
    unknown = dataclasses.replace(portable, parity=certificate_of(measured_on=""))
    assert not certified_on(unknown, L4)


def test_a_plan_of_one_target_is_certified_on_every_gpu_of_it() -> None:
    parity = certificate_of(measured_on=f"TensorRT 11.4.0.106 on {L4.name}")
    exact = manifest_of(target="sm89", parity=parity)
    assert [certified_on(exact, gpu) for gpu in (L4, RTX_4090, H100)] == [True, True, False]


def test_without_a_certificate_that_was_passed_it_is_certified_nowhere() -> None:
    for parity in (None, certificate_of(psnr_min_db=31.0)):
        assert not certified_on(manifest_of(target="sm89", parity=parity), L4)
