"""Graphs for engines: built node by node or exported, and their layouts on ONNX Runtime.

    python benchmarks/graphs.py [--loops 3] [--size 500] [--threads 1,2] [--rounds 9]

Layouts are run in turns, float32, so that all see the same machine. The exporter is PyTorch's
(torch.onnx.export with dynamo=True, which needs onnxscript); without it, its row is left out.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from itertools import product
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
from machine import heading
from torch import nn

from cmudrn.checkpoint import Checkpoint, read_checkpoint
from cmudrn.engines.graph import typed_graph
from cmudrn.engines.layout import Branches, Layout
from cmudrn.engines.spec import EngineSpec, Precision
from cmudrn.engines.torch_frontend import TypedModel

LAYOUTS = [
    Layout(branches=branches, y_once=y_once, first_from_y=first)
    for branches, y_once, first in product(Branches, (False, True), (False, True))
]


def by_exporter(checkpoint: Checkpoint, spec: EngineSpec) -> bytes:
    image = torch.zeros(spec.batch, spec.height, spec.width, 3, dtype=torch.uint8)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        path = Path(folder) / "model.onnx"
        model: nn.Module = TypedModel(checkpoint, spec).eval()
        torch.onnx.export(model, (image,), str(path), dynamo=True, external_data=False, verbose=False)
        return path.read_bytes()


def print_ways_to_build(checkpoint: Checkpoint, spec: EngineSpec) -> None:
    ways: dict[str, Callable[[], bytes]] = {"node by node": lambda: typed_graph(checkpoint, spec)}
    if find_spec("onnxscript"):
        ways["exporter (dynamo)"] = lambda: by_exporter(checkpoint, spec)
    print("| FP16 graph | seconds | bytes | nodes |\n|---|---|---|---|")
    for name, build in ways.items():
        build()  # imports
        began = time.perf_counter()
        graph = build()
        seconds = time.perf_counter() - began
        nodes = len(onnx.load_from_string(graph).graph.node)
        print(f"| {name} | {seconds:.3f} | {len(graph):,} | {nodes} |")


def print_layouts(checkpoint: Checkpoint, spec: EngineSpec, threads: int, rounds: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (1, spec.height, spec.width, 3), dtype=np.uint8)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    sessions = {
        layout: ort.InferenceSession(
            typed_graph(checkpoint, spec, layout), options, providers=["CPUExecutionProvider"]
        )
        for layout in LAYOUTS
    }
    seconds: dict[Layout, list[float]] = {layout: [] for layout in LAYOUTS}
    for _ in range(rounds + 1):
        for layout, session in sessions.items():
            began = time.perf_counter()
            session.run(None, {"image": image})
            seconds[layout].append(time.perf_counter() - began)
    medians = {layout: statistics.median(times[1:]) for layout, times in seconds.items()}  # one warms up
    plain = medians[Layout()]
    print(f"\n| layout, {threads} threads | ms | times the plain one's speed |\n|---|---|---|")
    for layout, median in medians.items():
        print(f"| {layout} | {median * 1e3:.0f} | {plain / median:.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--loops", type=int, default=3)
    parser.add_argument("--size", type=int, default=500, metavar="PIXELS")
    parser.add_argument("--threads", default="1,2", metavar="A,B,...")
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    checkpoint = read_checkpoint("default")
    spec = EngineSpec(loops=arguments.loops, height=arguments.size, width=arguments.size)
    print(f"{heading()}\n")
    print_ways_to_build(checkpoint, spec)
    fp32 = EngineSpec(loops=spec.loops, height=spec.height, width=spec.width, precision=Precision.FP32)
    for threads in map(int, arguments.threads.split(",")):
        print_layouts(checkpoint, fp32, threads, arguments.rounds)


if __name__ == "__main__":
    main()
