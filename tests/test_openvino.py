"""The OpenVINO backend: bfloat16, memory, and what it says when it cannot."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from random_weights import random_checkpoint
from test_backends import printed_by
from test_graph import random_image

from cmudrn.deploy.graphs import shipped_graph
from cmudrn.deploy.openvino import OpenVinoBackend, cpu_has_bf16, import_openvino
from cmudrn.engines.graph import dynamic_graph
from cmudrn.engines.spec import EngineSpec, Pixel, Precision
from cmudrn.errors import EnvironmentMissing, UsageError
from cmudrn.metrics import psnr_db

HERE = pytest.mark.skipif(
    find_spec("openvino") is None, reason="OpenVINO is not installed: pip install 'cmudrn[openvino]'"
)
FP32 = EngineSpec(loops=1, height=32, width=32, precision=Precision.FP32)
BF16 = replace(FP32, precision=Precision.BF16)


@pytest.fixture(scope="module")
def graph() -> bytes:
    return dynamic_graph(random_checkpoint(), loops=1)


@HERE
def test_bfloat16_is_near_float32_and_not_the_same() -> None:
    if not cpu_has_bf16():
        pytest.skip("this processor has no bfloat16")
    image = random_image(1, 64, 64) // 4 + np.uint8(90)
    restored = []
    for spec in (FP32, BF16):
        with OpenVinoBackend(shipped_graph(1, Pixel.UINT8), spec) as backend:
            assert backend.label.endswith("in bf16") is (spec is BF16)
            restored.append(next(backend.stream([image]))[0])
    assert 40 < psnr_db(restored[1], restored[0]) < 70


@HERE
def test_a_processor_without_bfloat16_is_told_apart(graph: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    core = import_openvino().Core
    told = core.get_property

    def without(self: Any, device: str, name: str) -> Any:
        found = told(self, device, name)
        return [one for one in found if one != "BF16"] if name == "OPTIMIZATION_CAPABILITIES" else found

    monkeypatch.setattr(core, "get_property", without)
    assert not cpu_has_bf16()
    with pytest.raises(EnvironmentMissing, match="no bfloat16") as caught:
        OpenVinoBackend(graph, BF16).__enter__()
    assert "--precision bf16" in caught.value.what
    assert "--precision fp32" in caught.value.fix


def test_half_precision_is_refused(graph: bytes) -> None:
    with pytest.raises(UsageError, match="OpenVINO in fp16"):
        OpenVinoBackend(graph, replace(FP32, precision=Precision.FP16))


@HERE
def test_a_damaged_graph_is_named_in_a_line(tmp_path: Path) -> None:
    damaged = tmp_path / "graph.onnx"
    damaged.write_bytes(b"")
    for given, name in ((damaged, r"graph\.onnx"), (b"no graph", "its bytes")):
        with pytest.raises(EnvironmentMissing, match=f"cannot open the graph, .*{name}") as caught:
            OpenVinoBackend(given, FP32).__enter__()
        assert "\n" not in str(caught.value)


def test_without_openvino_the_way_to_it_is_told(graph: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    for asking in (cpu_has_bf16, OpenVinoBackend(graph, FP32).__enter__):
        with pytest.raises(EnvironmentMissing) as caught:
            asking()
        assert caught.value.fix == "pip install 'cmudrn[openvino]'"


MANY_SIZES = """
import numpy as np
from cmudrn.deploy.graphs import shipped_graph
from cmudrn.deploy.openvino import OpenVinoBackend
from cmudrn.engines.spec import EngineSpec, Pixel, Precision

def resident_mb():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 1e6

spec = EngineSpec(loops=1, height=8, width=8, precision=Precision.FP32)
with OpenVinoBackend(shipped_graph(1, Pixel.UINT8), spec) as backend:
    for first in (8, 20):  # 12 times 12 sizes, and as many others
        sizes = [(height, width) for height in range(first, first + 12) for width in range(8, 20)]
        for batch in backend.stream(np.zeros((1, *size, 3), np.uint8) for size in sizes):
            pass
        print(resident_mb())
"""


@HERE
@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read as on Linux")
def test_ever_new_sizes_do_not_fill_the_memory() -> None:
    after_144, after_288 = map(float, printed_by(MANY_SIZES).split())
    # Left alone, OpenVINO would keep some 0.7 MB for each.
    assert after_288 - after_144 < 30


OPENED_AND_CLOSED = """
import faulthandler, gc, signal, subprocess
faulthandler.enable()
import numpy as np
from cmudrn.deploy.graphs import shipped_graph
from cmudrn.deploy.openvino import OpenVinoBackend, cpu_has_bf16
from cmudrn.engines.spec import EngineSpec, Pixel, Precision

spec = EngineSpec(loops=1, height=8, width=8, precision=Precision.FP32)
backends = [OpenVinoBackend(shipped_graph(1, Pixel.UINT8), spec) for _ in range(2)]
for backend in backends:
    backend.__enter__()
    list(backend.stream([np.zeros((1, 8, 8, 3), np.uint8)]))
for backend in backends:  # the first one first
    backend.__exit__(None, None, None)
cpu_has_bf16()
gc.collect()
taken = [bytearray(20_000) for _ in range(2_000)]  # what was freed is used for something else
signal.signal(signal.SIGCHLD, lambda *_: None)
subprocess.run(["true"], check=True)
print("alive")
"""


@HERE
@pytest.mark.skipif(sys.platform != "linux", reason="signals as on Linux")
def test_after_backends_that_were_closed_in_any_order_a_signal_is_handled() -> None:
    done = subprocess.run([sys.executable, "-c", OPENED_AND_CLOSED], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr
