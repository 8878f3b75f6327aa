"""Parity certificates: what is within limits, and that nothing else than what we write is read."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmudrn.engines.certificate import (
    ParityCertificate,
    ParityLimits,
    Subject,
    read_certificate,
    write_certificate,
)
from cmudrn.engines.spec import Output, Pixel, Precision
from cmudrn.errors import EngineError, UsageError

SUBJECT = Subject(
    backend="openvino",
    version="2026.4.0-12345-abcdef-releases/2026/4",
    precision=Precision.BF16,
    loops=3,
    pixel=Pixel.UINT8,
    output=Output.FUSED,
    weights_sha256="12d6" * 16,
    device="A processor @ 2.00GHz",
)
EQUAL: dict[str, Any] = {
    "psnr_min_db": None,
    "psnr_mean_db": None,
    "difference": 0.0,
    "off_by_one": 0.0,
    "off_by_more": 0.0,
}


def certificate_of(**changes: Any) -> ParityCertificate:
    """One that is passed, as `cmudrn parity-check` writes it."""
    certificate = ParityCertificate(
        images=10,
        images_sha256="a1" * 32,
        psnr_min_db=55.25,
        psnr_mean_db=61.0625,
        difference=2.0,
        off_by_one=0.03125,
        off_by_more=0.001,
        truth_psnr_change_db=-0.004,
        truth_ssim_change=0.00001,
        measured_at="2026-11-26T07:30:00Z",
        measured_on="OpenVINO 2026.4.0 on CPU in bf16",
    )
    return dataclasses.replace(certificate, **changes)


def plain(subject: Subject = SUBJECT) -> dict[str, Any]:
    fields = json.loads(write_certificate(subject, certificate_of()))
    assert isinstance(fields, dict)
    return fields


def refused(data: bytes) -> str:
    """What is said of a file that is not read: one line that a terminal shows as it is."""
    with pytest.raises(EngineError, match=r"^c\.json: ") as error:
        read_certificate(data, "c.json")
    assert str(error.value).isprintable()
    assert "parity-check" in error.value.fix
    return error.value.what


# What is passed


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, None),
        (EQUAL, None),
        ({"psnr_min_db": 50.0, "difference": 3.0, "truth_psnr_change_db": -0.01}, None),  # on every limit
        ({"psnr_min_db": 49.999}, "PSNR 49.99 dB, below 50"),
        ({"difference": 3.5}, "a pixel is 3.5 grey levels off, more than 3"),
        ({"truth_psnr_change_db": 0.011}, r"PSNR to the truth changes by \+0.011 dB"),
        ({"truth_psnr_change_db": -0.011}, "PSNR to the truth changes by -0.011 dB"),
        ({"truth_psnr_change_db": None, "truth_ssim_change": None}, None),
        ({"psnr_min_db": 49.99, "limits": ParityLimits(psnr_db=40)}, None),
    ],
)
def test_a_certificate_is_passed_within_its_limits_and_says_what_is_beyond(
    changes: dict[str, Any], says: str | None
) -> None:
    certificate = certificate_of(**changes)
    assert certificate.passed == (says is None)
    if says:
        (failure,) = certificate.failures
        assert re.fullmatch(says, failure)


def test_all_that_is_beyond_is_told() -> None:
    assert len(certificate_of(psnr_min_db=12.0, difference=200.0, truth_psnr_change_db=-3.0).failures) == 3


@pytest.mark.parametrize("name", ["psnr_db", "difference", "truth_db"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.1])
def test_a_limit_that_limits_nothing_is_refused(name: str, value: float) -> None:
    with pytest.raises(UsageError, match=f"-.* {value:g}"):
        ParityLimits(**{name: value})


@pytest.mark.parametrize(
    "changes",
    [
        {"psnr_min_db": float("nan")},  # below no limit, so it would be passed
        {"difference": float("nan")},
        {"truth_psnr_change_db": float("inf")},
        {"psnr_min_db": None},
        {**EQUAL, "difference": 1.0},
        {**EQUAL, "off_by_one": 0.5},
        {"difference": 0.0},
        {"psnr_min_db": 70.0},
        {"off_by_one": 0.9, "off_by_more": 0.2},
        {"truth_ssim_change": None},
    ],
)
def test_figures_that_contradict_each_other_make_no_certificate(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"PSNR|figure|differ|share|truth"):
        certificate_of(**changes)


# A file of its own


@pytest.mark.parametrize("changes", [{}, EQUAL, {"limits": ParityLimits(psnr_db=40.5, difference=255.0)}])
@pytest.mark.parametrize("output", Output)
def test_what_is_written_is_read_again(changes: dict[str, Any], output: Output) -> None:
    subject = dataclasses.replace(SUBJECT, output=output, device="")
    certificate = certificate_of(**changes)
    assert read_certificate(write_certificate(subject, certificate), "c.json") == (subject, certificate)


def test_the_name_says_the_subject_and_no_two_share_one() -> None:
    assert re.fullmatch(r"parity-openvino-2026\.4-bf16-t3-uint8-12d612d612d6-[0-9a-f]{8}", SUBJECT.key)
    others: dict[str, Any] = {
        "backend": "onnx",
        "version": "2026.4.1",
        "precision": Precision.FP32,
        "loops": 4,
        "pixel": Pixel.FLOAT32,
        "output": Output.SNOW,
        "weights_sha256": "0" * 64,
        "device": "another processor",
    }
    assert others.keys() == {field.name for field in dataclasses.fields(Subject)}
    keys = {dataclasses.replace(SUBJECT, **{name: value}).key for name, value in others.items()}
    assert len(keys | {SUBJECT.key}) == len(others) + 1
    odd = dataclasses.replace(SUBJECT, version="../../etc/passwd\n", device="\x1b")
    assert re.fullmatch(r"[A-Za-z0-9.-]+", odd.key)


@pytest.mark.parametrize(
    ("inner", "name", "value"),
    [
        ("parity", "images", 0),
        ("parity", "images", 3.0),
        ("parity", "images_sha256", "A" * 64),
        ("parity", "psnr_min_db", -1),
        ("parity", "psnr_min_db", 10**400),
        ("parity", "psnr_min_db", "60"),
        ("parity", "psnr_mean_db", 2001),
        ("parity", "difference", 256),
        ("parity", "difference", True),
        ("parity", "off_by_one", 1.5),
        ("parity", "off_by_more", -0.1),
        ("parity", "truth_psnr_change_db", -2001),
        ("parity", "truth_ssim_change", 3),
        ("parity", "measured_at", "today"),
        ("parity", "measured_on", "a\nb"),
        ("parity", "limits", None),
        ("parity", "limits", {"psnr_db": 50, "difference": 3}),
        ("subject", "backend", "../x"),
        ("subject", "version", "1\n"),
        ("subject", "precision", "fp8"),
        ("subject", "loops", 33),
        ("subject", "pixel", None),
        ("subject", "output", []),
        ("subject", "weights_sha256", "12d6"),
        ("subject", "device", "x" * 201),
    ],
)
def test_a_value_that_we_never_write_is_refused(inner: str, name: str, value: object) -> None:
    fields = plain()
    fields[inner][name] = value
    refused(json.dumps(fields).encode())


@pytest.mark.parametrize("inner", ["parity", "subject"])
def test_none_of_the_values_may_be_missing(inner: str) -> None:
    for name in plain()[inner]:
        fields = plain()
        del fields[inner][name]
        refused(json.dumps(fields).encode())


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "not a certificate"),
        (b"[]", "not an object"),
        (b"{}", "schema"),
        (json.dumps({**plain(), "schema": 2}).encode(), "schema = 2"),
        (json.dumps({**plain(), "parity": None}).encode(), "parity"),
        (json.dumps({**plain(), "subject": 3}).encode(), "subject"),
        (write_certificate(SUBJECT, certificate_of()).replace(b"55.25", b"NaN"), "not a finite number"),
        (write_certificate(SUBJECT, certificate_of()).replace(b"55.25", b"1e999"), "not a finite number"),
        (write_certificate(SUBJECT, certificate_of()).replace(b"55.25", b"62"), "worst PSNR above the mean"),
    ],
)
def test_what_is_no_such_json_says_so(data: bytes, says: str) -> None:
    assert says in refused(data)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_any_damage_is_read_as_a_whole_certificate_or_refused(data: st.DataObject) -> None:
    text = write_certificate(SUBJECT, certificate_of())
    where = data.draw(st.integers(0, len(text)))
    length = data.draw(st.integers(0, 20))
    damaged = text[:where] + data.draw(st.binary(max_size=20)) + text[where + length :]
    try:
        subject, certificate = read_certificate(damaged, "c.json")
    except EngineError:
        refused(damaged)
    else:
        assert read_certificate(write_certificate(subject, certificate), "again") == (subject, certificate)


# The way out


@pytest.mark.parametrize(
    ("changes", "allowed"),
    [
        ({"difference": 6.0}, 6),
        ({"difference": 3.2}, 4),  # of floats: the option is a whole number
        ({"difference": 2.0}, None),  # passed
        ({"difference": 6.0, "psnr_min_db": 31.0}, None),
        ({"difference": 6.0, "truth_psnr_change_db": 1.0}, None),
        ({"difference": 255.0}, None),  # NaN, perhaps
    ],
)
def test_the_limit_that_would_do_is_told_where_the_largest_difference_is_all(
    changes: dict[str, Any], allowed: int | None
) -> None:
    assert certificate_of(**changes).difference_to_allow == allowed
