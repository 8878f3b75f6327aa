"""Machines are described by what makes figures differ, and by no name."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest
from hostcuda.build import Driver

from cmudrn.deploy.machine import Graphics, available_cores, describe_machine

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


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 8),  # no control groups at all
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, 8),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "200000 100000\n"}, 2),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "350000 100000\n"}, 3),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "50000 100000\n"}, 1),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "9900000 100000\n"}, 8),
        (  # the least of the own group and those above it
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/cpu.max": "300000 100000\n",
                "sys/fs/cgroup/a/b/cpu.max": "max 100000\n",
            },
            3,
        ),
        (  # a container that is told its path on the host
            {"proc/self/cgroup": "0::/docker/123\n", "sys/fs/cgroup/cpu.max": "400000 100000\n"},
            4,
        ),
        (
            {
                "proc/self/cgroup": "5:memory:/a\n4:cpu,cpuacct:/a\n0::/\n",
                "sys/fs/cgroup/cpu/a/cpu.cfs_quota_us": "250000\n",
                "sys/fs/cgroup/cpu/a/cpu.cfs_period_us": "100000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            2,
        ),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "nonsense\n"}, 8),
    ],
)
def test_cores_are_those_that_the_control_groups_leave(
    files: dict[str, str], cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert available_cores(tmp_path) == cores


def test_a_machine_is_described_without_its_name_and_without_heavy_imports() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    told, loaded = json.loads(done.stdout), set(done.stderr.split())
    assert not loaded & {"torch", "onnxruntime", "openvino", "tensorrt", "tensorrt_rtx", "pycuda"}
    assert told["versions"]["torch"] == version("torch")
    assert told["cores"] >= 1
    assert platform.node() not in json.dumps(told).split('"')
