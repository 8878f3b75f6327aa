"""Machines are described by what makes figures differ, and by no name."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import version

from hostcuda.build import Driver

from cmudrn.deploy.machine import Graphics, describe_machine

CODE = """
import sys, json
from cmudrn.deploy.machine import describe_machine
print(json.dumps(describe_machine().to_json()))
print(*sys.modules, file=sys.stderr)
"""


def test_the_machines_gpus_are_asked_of_the_driver(driver: Driver) -> None:
    told = json.loads(driver.run(["-c", CODE], {"HOSTCUDA_DEVICES": 2}).process.stdout)
    assert told["gpus"] == [
        {"name": f"Host memory {number}", "target": "sm89", "memory_gb": 1} for number in range(2)
    ]
    assert told["cuda"] == "13.0"


def test_a_machines_line_names_its_gpus() -> None:
    gpu = Graphics(name="NVIDIA L4", target="sm89", memory_gb=22)
    machine = replace(describe_machine(), cpu="Some CPU", cores=4, flags=("avx2",), gpus=(gpu,))
    assert str(machine).startswith("4 cores of Some CPU (avx2), NVIDIA L4 (sm89); Python ")


def test_a_machine_is_described_without_its_name_and_without_heavy_imports() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    told, loaded = json.loads(done.stdout), set(done.stderr.split())
    assert not loaded & {"torch", "onnxruntime", "openvino", "tensorrt", "tensorrt_rtx", "pycuda"}
    assert told["versions"]["torch"] == version("torch")
    assert told["cores"] >= 1
    assert platform.node() not in json.dumps(told).split('"')
