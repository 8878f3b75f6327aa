"""The native kernels under sanitizers, between guard pages, on poisoned scratch, on other processors.

A small part of `make sanitize`. What a machine lacks is skipped, and said.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from build_native import LIBRARY, build
from native.library import ISAS, built, need_isa
from sanitize import EMULATED, SANITIZERS, Missing, Variant, emulator, run

from cmudrn.deploy.native.library import has_isa

PLAIN = Variant("plain")
HUNG_S = 300
# What object files may not hold, by their names; those not named are for every x86-64.
AVX = re.compile(r"\tv[a-z]|%ymm|%zmm")
AVX512 = re.compile(r"%zmm|%k[0-7]|%[xy]mm(1[6-9]|2\d|3[01])\b")
FORBIDDEN = {"kernels_avx2": AVX512}
MAY_HOLD_ALL = ("kernels_avx512", "kernels_avx512bf16")


def numbers(output: str) -> dict[str, int]:
    """Of each instruction set that the driver told of: how many calls were wrong."""
    return {isa: int(wrong) for isa, wrong in re.findall(r"^(\w+): \d+ calls, (\d+) wrong", output, re.M)}


@pytest.mark.parametrize("variant", SANITIZERS, ids=lambda variant: variant.name)
def test_a_sanitizer_finds_nothing(variant: Variant, tmp_path_factory: pytest.TempPathFactory) -> None:
    done = run(built("driver.cpp", variant, tmp_path_factory), "fewest", timeout_s=HUNG_S)
    assert done.returncode == 0, done.stdout
    assert set(numbers(done.stdout)) == {isa for isa in ISAS if has_isa(isa)}


def test_no_page_beside_an_image_is_touched(tmp_path_factory: pytest.TempPathFactory) -> None:
    done = run(built("driver.cpp", PLAIN, tmp_path_factory), "few", timeout_s=HUNG_S)
    assert done.returncode == 0, done.stdout
    assert set(numbers(done.stdout)) == {isa for isa in ISAS if has_isa(isa)}


def test_the_driver_says_which_instruction_set_is_wrong(tmp_path_factory: pytest.TempPathFactory) -> None:
    planted = Variant("planted", ("-DCMUDRN_PLANT_HALO_BUG",))
    done = run(built("driver.cpp", planted, tmp_path_factory), "few", timeout_s=HUNG_S)
    assert done.returncode == 1
    wrong = numbers(done.stdout)
    assert wrong.pop("direct") == 0  # it has no strips
    assert wrong
    assert all(wrong.values())


@pytest.mark.parametrize("processor", EMULATED)
def test_on_an_older_processor_its_own_instructions_are_chosen_and_right(
    processor: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    try:
        under = emulator(processor)
    except Missing as exc:
        pytest.skip(f"{processor}: {exc}")
    program = built("driver.cpp", PLAIN, tmp_path_factory)
    done = run(program, "fewest", under=under, timeout_s=HUNG_S)
    assert done.returncode == 0, done.stdout
    there = [isa for isa in EMULATED[processor] if isa in program.isas or isa == "direct"]
    assert f"this processor: {','.join(there)}\n" in done.stdout
    assert list(numbers(done.stdout)) == there


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="instructions of x86-64")
def test_instructions_of_newer_processors_stay_in_their_own_files(tmp_path: Path) -> None:
    need_isa("direct")
    if shutil.which("objdump") is None:
        pytest.skip("no objdump")
    build(tmp_path / LIBRARY, objects=tmp_path / "objects")
    seen = set()
    for compiled in sorted((tmp_path / "objects").glob("*.o")):
        name = compiled.name.rpartition("-")[0]
        code = subprocess.run(
            ["objdump", "-d", "--no-show-raw-insn", compiled], capture_output=True, text=True, check=True
        ).stdout
        if name in MAY_HOLD_ALL:
            assert AVX512.search(code)
            continue
        found = FORBIDDEN.get(name, AVX).search(code)
        assert found is None, f"{name}: {code[max(0, found.start() - 80) : found.end() + 40]}"
        seen.add(name)
    assert {"api", "kernels_base", "strips"} <= seen


@pytest.mark.skipif(sys.platform != "linux", reason="it counts what glibc allocates")
@pytest.mark.parametrize("isa", ISAS)
def test_a_size_that_was_had_before_allocates_nothing(
    isa: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """On several threads: nothing but what starting them takes, see tests/native/allocations.cpp."""
    need_isa(isa)
    done = run(built("allocations.cpp", PLAIN, tmp_path_factory), isa, timeout_s=HUNG_S)
    assert done.returncode == 0, done.stdout
