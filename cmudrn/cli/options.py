"""Options of the command line that several commands share: which backend, on what, with whose engines."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "AllowUnverified",
    "BackendChoice",
    "CudaGraphs",
    "Devices",
    "StoreFolder",
    "Streams",
    "Threads",
    "Weights",
]

BackendChoice = Annotated[
    str,
    typer.Option(
        "--backend",
        metavar="auto|tensorrt|native|onnx|openvino|torch",
        help="What restores: TensorRT engines, the package's own kernels, ONNX Runtime, OpenVINO or PyTorch. "
        "auto: the first that can of certified engines, native on the CPU, openvino if its bfloat16 is "
        "certified, onnx.",
    ),
]
Devices = Annotated[
    list[str],
    typer.Option(
        "--device",
        metavar="N|PCI|cpu",
        help="A GPU's number or PCI bus id; repeatable for engines: all share the batches. cpu: no GPU.",
        show_default=False,
    ),
]
Streams = Annotated[int, typer.Option(metavar="N", help="Batches on their way at once on a GPU.")]
CudaGraphs = Annotated[
    bool,
    typer.Option(
        "--cuda-graphs/--no-cuda-graphs", help="Replay a batch's steps, where cuda-bindings is installed."
    ),
]
AllowUnverified = Annotated[
    bool,
    typer.Option(
        "--allow-unverified", help="Use engines and bf16 that `cmudrn parity-check` has not passed, too."
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(metavar="N", help="On the CPU. Default: one for each core.", show_default=False),
]
StoreFolder = Annotated[
    Path | None,
    typer.Option(
        "--store",
        metavar="DIR",
        help="The folder of engines [default: CMUDRN_STORE, or in the user's cache].",
        show_default=False,
    ),
]
Weights = Annotated[str, typer.Option(metavar="NAME|FILE", help="Shipped weights, or a .safetensors file.")]
