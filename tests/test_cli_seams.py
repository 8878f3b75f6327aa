"""Options of `cmudrn infer` together: maps, gates, ledgers and reports must not lose each other's files."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from outputs import shown
from PIL import Image

from cmudrn.cli.app import main
from cmudrn.deploy.decoding import Decoders
from cmudrn.errors import EnvironmentMissing, ImageError
from cmudrn.files import copy_bytes
from cmudrn.images import is_change_map

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CMUDRN_STORE", str(tmp_path / "store"))
    return tmp_path


def photo(path: str, *, alpha: bool = False) -> Path:
    Path(path).parent.mkdir(exist_ok=True)
    pixels = RNG.integers(0, 255, (24, 24, 4 if alpha else 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return Path(path)


def infer(*arguments: str) -> int:
    return main(["infer", "--loops", "1", "--threads", "1", *arguments])


def test_a_map_takes_no_strangers_place(capsys: pytest.CaptureFixture[str]) -> None:
    photo("in/a.png")
    stranger = photo("out/a-heatmap.png")
    before = stranger.read_bytes()
    for how in ("--skip-existing", "--resume"):
        assert infer("in", "-o", "out", "--heatmap", how) == 2
        assert "out/a-heatmap.png is there already" in capsys.readouterr().err
    assert stranger.read_bytes() == before


def test_a_map_does_not_take_the_place_of_a_source() -> None:
    photo("a.png")
    source = photo("a-restored-heatmap.png")
    before = source.read_bytes()
    assert infer("a.png", "a-restored-heatmap.png", "--heatmap", "--skip-existing") == 2
    assert source.read_bytes() == before


def test_what_is_left_by_skip_existing_gets_no_map() -> None:
    photo("in/a.png")
    photo("out/a.png")
    assert infer("in", "-o", "out", "--heatmap", "--skip-existing") == 0
    assert shown("out") == ["a.png"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
def test_a_pipe_that_is_named_like_a_map_holds_nobody_up() -> None:
    photo("in/a.png")
    os.mkfifo("in/b-heatmap.png")
    assert infer("in", "-o", "out") == 1
    assert shown("out") == ["a.png"]


def test_a_name_that_its_map_would_make_too_long_costs_itself_alone(
    capsys: pytest.CaptureFixture[str],
) -> None:
    photo("in/a.png")
    photo(f"in/{'x' * 245}.png")
    for how in ("--overwrite", "--resume"):
        assert infer("in", "-o", "out", "--heatmap", how) == 1
        assert "the name of its map would have more than 255 bytes" in capsys.readouterr().err
        assert shown("out") == ["a-heatmap.png", "a.png"]


def test_resume_draws_a_map_that_is_gone() -> None:
    photo("in/a.png")
    assert infer("in", "-o", "out", "--heatmap") == 0
    Path("out/a-heatmap.png").unlink()
    assert infer("in", "-o", "out", "--heatmap", "--resume", "--report", "report.json") == 0
    assert is_change_map(Path("out/a-heatmap.png"))
    assert json.loads(Path("report.json").read_text())["items"][0]["anew"] == "its map is gone"


@pytest.mark.parametrize("gate", [(), ("--gate", "--gate-confidence", "1e-12")])
def test_a_picture_that_its_format_cannot_hold_leaves_no_map_and_is_not_restored_first(
    gate: tuple[str, ...],
) -> None:
    photo("in/a.png", alpha=True)
    options = ("--format", "jpeg", "--heatmap", *gate)
    assert infer("in", "-o", "out", *options, "--report", "report.json") == 1
    assert shown("out") == []
    (item,) = json.loads(Path("report.json").read_text())["items"]
    assert item["restore_s"] == 0


def test_what_is_left_alone_and_then_gone_is_counted(capsys: pytest.CaptureFixture[str]) -> None:
    for name in "ab":
        photo(f"in/{name}.png")
    gate = ("--gate", "--gate-confidence", "1e-12")
    assert infer("in", "-o", "out", *gate) == 0
    Path("in/b.png").unlink()
    assert infer("in", "-o", "out", *gate, "--resume", "--report", "report.json") == 0
    told = json.loads(Path("report.json").read_text())
    assert (told["clean"], told["sources_gone"], told["gate_confidence"]) == (1, 1, 1e-12)
    assert "1 source of this run no longer there" in capsys.readouterr().err


def test_another_gate_is_another_run(monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    from cmudrn.deploy import gate

    photo("in/a.png")
    options = ("in", "-o", "out", "--gate", "--gate-confidence", "1e-12")
    assert infer(*options) == 0
    numbers = gate.read_numbers("default")
    monkeypatch.setattr(gate, "read_numbers", lambda weights: replace(numbers, bias=numbers.bias + 1))
    assert infer(*options, "--resume") == 2


def test_a_copy_of_what_has_changed_meanwhile_is_none(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"now")
    with pytest.raises(ImageError, match="a: changed while it was read"):
        copy_bytes(tmp_path / "a", tmp_path / "b", sha256="0" * 64)
    assert not (tmp_path / "b").exists()


def test_a_report_takes_no_pictures_place_and_fails_in_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    source = photo("a.png")
    before = source.read_bytes()
    assert infer("a.png", "-o", "b.png", "--report", "a.png") == 2
    assert source.read_bytes() == before
    if Path("/dev/full").exists():
        assert infer("a.png", "-o", "b.png", "--report", "/dev/full") == 1
        assert "--report /dev/full: No space left on device" in capsys.readouterr().err


@pytest.mark.parametrize("megapixels", ["nan", "inf", "-2", "0"])
def test_megapixels_that_are_none_are_refused(megapixels: str, capsys: pytest.CaptureFixture[str]) -> None:
    photo("a.png")
    assert infer("a.png", f"--in-flight={megapixels}") == 2
    assert f"--in-flight {megapixels}" in capsys.readouterr().err


def test_where_no_second_decoder_can_be_started_the_first_one_serves_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from cmudrn.deploy import decoding

    usual = decoding._Decoder
    started: list[int] = []

    def another() -> Any:
        if started:
            raise EnvironmentMissing("no process to decode in: Resource temporarily unavailable")
        started.append(1)
        return usual()

    monkeypatch.setattr(decoding, "_Decoder", another)
    for number in range(20):
        photo(f"in/{number}.png")
    assert infer("in", "-o", "out") == 0
    assert len(shown("out")) == 20


def test_without_any_decoder_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    start = time.monotonic()
    with pytest.raises(EnvironmentMissing, match="no process to decode in"):
        Decoders()
    assert time.monotonic() - start < 5
