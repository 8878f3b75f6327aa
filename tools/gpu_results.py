"""What the steps of `make gpu-check` leave behind, and what its bars make of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from gpu_report import Bar
from gpu_steps import Facts, Outcome, State

__all__ = [
    "EAGER",
    "FLAVORS",
    "KERNELS",
    "STREAM",
    "judge_engines_timed",
    "judge_installation",
    "judge_parity",
    "judge_tests",
    "memory_bars",
    "parity_bar",
    "read_engines",
    "read_json",
    "read_tests",
    "speed_bars",
]

FLAVORS = {"TensorRT": "tensorrt", "TensorRT-RTX": "rtx"}  # as doctor has them: as options have them
LEAST_SPEEDUP = 3.0  # of an engine over PyTorch in FP16
LEAST_OF_KERNELS = 0.9  # of the kernels' throughput, with the copies
EAGER = ("torch-fp16", "torch-fp16-nhwc")  # the faster one is what an engine is compared with
KERNELS, STREAM = "tensorrt", "tensorrt-stream"
MEMORY_TEST = "test_nothing_is_allocated_after_the_first_batch"


def read_json(path: Path) -> Facts:
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return document


def read_engines(store: Path) -> Facts:
    """From the manifests, which are there for programs to read."""
    engines = []
    for path in sorted(store.glob("t*.json")):
        manifest = read_json(path)
        layers = manifest["layers"]
        share = layers["in_precision"] / layers["computing"] if layers["computing"] else 0.0
        engine = {"key": path.stem, "half_share": share}
        engines.append({**engine, "seconds": manifest["seconds"], "plan_bytes": manifest["plan_bytes"]})
    return {"engines": engines}


def read_tests(xml: Path) -> Facts:
    """From JUnit's XML: how many passed, which failed, why others were skipped, and the memory test's end."""
    passed, failed, reasons = 0, [], []
    memory: dict[str, Facts] = {}
    for case in ElementTree.parse(xml).getroot().iter("testcase"):
        name = str(case.get("name"))
        broken, skip = [*case.iter("failure"), *case.iter("error")], case.find("skipped")
        why = "" if skip is None else str(skip.get("message"))
        if broken:
            failed.append(f"{name}: {' '.join(str(broken[0].get('message')).split())[:200]}")
        elif why:
            reasons.append(why)
        else:
            passed += 1
        if name.startswith(MEMORY_TEST):
            taken = next((found.get("value") for found in case.iter("property")), None)
            flavor = name.partition("[")[2].rstrip("]")
            memory[flavor] = {"taken": taken, "ok": not broken, "why": why}
    return {"passed": passed, "failed": failed, "skipped": list(dict.fromkeys(reasons)), "memory": memory}


def judge_tests(facts: Facts) -> str:
    """Of what `read_tests` gives."""
    failed = facts["failed"]
    return f"{len(failed)} failed, {facts['passed']} passed: {failed[0]}" if failed else ""


def judge_parity(facts: Facts) -> str:
    """Of what `cmudrn parity-check` wrote."""
    others = [one for one in facts["parity"] if one["verdict"] != "passed"]
    return f"{len(others)} of {len(facts['parity'])} not passed: {others[0]['reason']}" if others else ""


def parity_bar(label: str, outcome: Outcome, engines: int) -> Bar:
    """engines: that there must be."""
    passed = sum(one["verdict"] == "passed" for one in outcome.facts.get("parity", ()))
    bar = Bar(name=f"{label}: parity with PyTorch in FP32", wanted=f"{engines} engines", state=State.SKIPPED)
    if outcome.state is State.SKIPPED:
        return replace(bar, reason=outcome.reason)
    state = State.PASSED if passed >= engines else State.FAILED
    return replace(bar, state=state, measured=f"{passed} engines")


def memory_bars(labels: Sequence[str], outcome: Outcome) -> list[Bar]:
    """From the step that ran the memory test. labels: of FLAVORS."""
    bars = []
    for label in labels:
        unknown = {"taken": None, "why": outcome.reason or "the test was not run"}
        found = outcome.facts.get("memory", {}).get(FLAVORS[label], unknown)
        name = f"{label}: memory taken after the first batch"
        bar = Bar(name=name, wanted="0 bytes", state=State.SKIPPED, reason=found["why"])
        if not found["why"]:
            state = State.PASSED if found["ok"] else State.FAILED
            taken = "it failed" if found["taken"] is None else f"{found['taken']} bytes"
            bar = replace(bar, state=state, measured=taken)
        bars.append(bar)
    return bars


def speed_bars(label: str, facts: Facts, reason: str) -> list[Bar]:
    """Of the cells of one call of `cmudrn benchmark` at one case.

    label: of the flavour. reason: why there may be none.
    """
    seconds = {one["backend"]: one["seconds"] for one in facts.get("cells", ())}
    gaps = {one["backend"]: one["reason"] for one in facts.get("missing", ())}
    eager = min((seconds[name] for name in EAGER if name in seconds), default=None)
    kernels, stream = seconds.get(KERNELS), seconds.get(STREAM)

    def missing(*names: str) -> str:
        return next((gaps[name] for name in names if name in gaps), reason or "not in the benchmark's table")

    def bar(name: str, ratio: float | None, least: float, unit: str, why: str) -> Bar:
        wanted = f">= {least:g}{unit}"
        if ratio is None:
            return Bar(name=f"{label}: {name}", wanted=wanted, state=State.SKIPPED, reason=why)
        state = State.PASSED if ratio >= least else State.FAILED
        return Bar(name=f"{label}: {name}", wanted=wanted, measured=f"{ratio:.2f}{unit}", state=state)

    return [
        bar(
            "speed against PyTorch eager FP16",
            eager / kernels if eager and kernels else None,
            LEAST_SPEEDUP,
            "x",
            missing(KERNELS) if not kernels else missing(*EAGER),
        ),
        bar(
            "throughput with copies, of the kernels' alone",
            kernels / stream if kernels and stream else None,
            LEAST_OF_KERNELS,
            "",
            missing(KERNELS, STREAM),
        ),
    ]


def judge_installation(facts: Facts) -> str:
    """Of doctor's findings."""
    broken = [one for one in facts["findings"] if one["state"] == "mismatched"]
    return "; ".join(f"{one['part']}: {one['found']}" for one in broken)


def judge_engines_timed(facts: Facts) -> str:
    """Of a benchmark's table: engines were built, so they must have figures."""
    missing = [one for one in facts["missing"] if one["backend"] in (KERNELS, STREAM)]
    return f"{missing[0]['backend']}: {missing[0]['reason']}" if missing else ""
