"""How far half precision is from the model: PSNR of typed graphs against PyTorch in float64, before rounding.

    python benchmarks/half_precision.py [IMAGE...] [--side 256] [--loops 1,3,7]

Without images: those of examples/weather. Crops from each image's middle. FP16 graphs run on ONNX Runtime,
whose CPU provider convolves in float32 between tensors that are rounded to half: what is measured is the
rounding of every intermediate result, not that of a GPU's sums. ONNX Runtime has no bfloat16 convolutions
for CPUs: two columns are the same network in PyTorch's half and bfloat16. The last two tell why: the network
in float32 with its weights alone rounded to half, and with an input that has noise of 72 dB.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from machine import heading
from numpy.typing import NDArray

from cmudrn.checkpoint import Checkpoint, load_model, read_checkpoint
from cmudrn.engines.graph import Types, typed_graph
from cmudrn.engines.spec import EngineSpec, Pixel, Precision
from cmudrn.engines.torch_frontend import TypedModel
from cmudrn.images import read_picture

Images = NDArray[np.float32]  # [N, side, side, 3] in [0, 1]
Restorer = Callable[[Images], Images]
EXAMPLES = Path(__file__).parents[1] / "examples" / "weather"

HALF, FULL = Precision.FP16, Precision.FP32
GRAPHS = {
    "all FP16": Types(features=HALF, images=HALF, fusion=HALF),
    "images FP32 (ours)": Types(features=HALF, images=FULL, fusion=HALF),
    "images, fusion FP32": Types(features=HALF, images=FULL, fusion=FULL),
    "all FP32": Types(features=FULL, images=FULL, fusion=FULL),
}
NOISE = 2.0**-12  # sigma of a sixteenth of a grey level: 72 dB


def on_onnx_runtime(graph: bytes) -> Restorer:
    session = ort.InferenceSession(graph, providers=["CPUExecutionProvider"])
    return lambda images: np.concatenate([session.run(None, {"image": image[None]})[0] for image in images])


def in_pytorch(checkpoint: Checkpoint, spec: EngineSpec) -> Restorer:
    model = TypedModel(checkpoint, spec).eval()

    def restore(images: Images) -> Images:
        with torch.inference_mode():
            return np.asarray(model(torch.from_numpy(images)).numpy())

    return restore


def rounded_to_half(checkpoint: Checkpoint) -> Checkpoint:
    rounded = {
        name: value.astype(np.float16).astype(np.float32) for name, value in checkpoint.tensors.items()
    }
    return dataclasses.replace(checkpoint, tensors=rounded)


def exact(loops: int, images: Images) -> NDArray[np.float64]:
    model = load_model(loops=loops).double()
    with torch.inference_mode():
        restored = model(torch.from_numpy(images).double().permute(0, 3, 1, 2))
    return np.asarray(restored.clamp(0, 1).permute(0, 2, 3, 1).numpy())


def worst_psnr_db(restored: Images, reference: NDArray[np.float64]) -> float:
    squares = ((restored - reference) ** 2).mean(axis=(1, 2, 3))
    return -10 * math.log10(float(squares.max()))


def middle(path: Path, side: int) -> Images:
    pixels = read_picture(path).pixels
    top, left = (pixels.shape[0] - side) // 2, (pixels.shape[1] - side) // 2
    return np.divide(pixels[top : top + side, left : left + side, :3], 255, dtype=np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("images", nargs="*", type=Path)
    parser.add_argument("--side", type=int, default=256, metavar="PIXELS")
    parser.add_argument("--loops", default="1,2,3,4,5,6,7", metavar="A,B,...")
    arguments = parser.parse_args()
    paths = arguments.images or sorted(EXAMPLES.glob("*.jpg"))
    images = np.stack([middle(path, arguments.side) for path in paths])
    checkpoint = read_checkpoint("default")
    print(f"{heading()}\nWorst of {len(paths)} crops of {arguments.side}x{arguments.side}, dB.\n")
    columns = [*GRAPHS, "PyTorch FP16", "PyTorch BF16", "weights FP16", "noisy input"]
    print(f"| T | {' | '.join(columns)} |\n|{'---|' * (len(columns) + 1)}")
    for loops in map(int, arguments.loops.split(",")):
        spec = EngineSpec(
            loops=loops, height=arguments.side, width=arguments.side, pixel=Pixel.FLOAT32, precision=HALF
        )
        bf16 = dataclasses.replace(spec, precision=Precision.BF16)
        restorers = [on_onnx_runtime(typed_graph(checkpoint, spec, types=types)) for types in GRAPHS.values()]
        restorers += [in_pytorch(checkpoint, spec), in_pytorch(checkpoint, bf16)]
        single = on_onnx_runtime(typed_graph(rounded_to_half(checkpoint), spec, types=GRAPHS["all FP32"]))
        noisy = images + np.random.default_rng(0).normal(0, NOISE, images.shape).astype(np.float32)
        reference = exact(loops, images)
        given = [(restore, images) for restore in (*restorers, single)]
        given.append((on_onnx_runtime(typed_graph(checkpoint, spec, types=GRAPHS["all FP32"])), noisy))
        cells = (f"{worst_psnr_db(restore(seen), reference):.1f}" for restore, seen in given)
        print(f"| {loops} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
