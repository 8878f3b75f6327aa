"""The exported program: what torch-tensorrt would be given. Converting it needs torch-tensorrt and a GPU."""

from __future__ import annotations

import dataclasses
import io
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from random_weights import random_checkpoint
from test_graph import random_image, run, unit

from cmudrn.engines.build import BuildOptions
from cmudrn.engines.flavors import Flavor, open_library
from cmudrn.engines.graph import typed_graph
from cmudrn.engines.layout import Layout
from cmudrn.engines.spec import EngineSpec, Output, Pixel, Precision
from cmudrn.engines.torch_frontend import exported_program, plan_by_torch_tensorrt
from cmudrn.errors import EnvironmentMissing

FP32 = EngineSpec(loops=2, height=12, width=15, batch=2, precision=Precision.FP32)


@pytest.mark.parametrize("pixel", Pixel)
@pytest.mark.parametrize("output", Output)
@pytest.mark.parametrize("precision", Precision)
def test_the_program_keeps_the_graphs_contract(pixel: Pixel, output: Output, precision: Precision) -> None:
    spec = dataclasses.replace(FP32, pixel=pixel, output=output, precision=precision)
    checkpoint, image = random_checkpoint({"stem": 0.9, "body": 0.8}), random_image(2, 12, 15)
    given = image if pixel is Pixel.UINT8 else unit(image)
    program = torch.export.load(io.BytesIO(exported_program(checkpoint, spec)))
    found = program.module()(torch.from_numpy(given)).numpy()
    expected = run(
        typed_graph(checkpoint, dataclasses.replace(spec, precision=Precision.FP32), Layout()), given
    )
    # Half precision of random weights: a grey level or two; bfloat16 has three bits less.
    allowed = {Precision.FP32: 2e-5, Precision.FP16: 0.01, Precision.BF16: 0.08}[precision]
    levels = allowed * 255 + 1 if pixel is Pixel.UINT8 else allowed
    assert (found.dtype, found.shape) == (given.dtype, given.shape)
    assert np.abs(found.astype(float) - expected["restored"].astype(float)).max() <= levels


def test_the_programs_convolutions_are_in_the_precision() -> None:
    spec = dataclasses.replace(FP32, precision=Precision.FP16)
    program = torch.export.load(io.BytesIO(exported_program(random_checkpoint(), spec)))
    convolved = [node.meta["val"].dtype for node in program.graph.nodes if "conv2d" in str(node.target)]
    assert len(convolved) == 2 * 2 * (2 + 4 * 2) + 3  # T = 2: stages, branches, convolutions; the fusion head
    assert set(convolved) == {torch.float16}


@pytest.mark.skipif(find_spec("torch_tensorrt") is not None, reason="torch-tensorrt is installed")
def test_without_torch_tensorrt_the_way_to_it_is_told() -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install 'cmudrn[rtx]'")
    program = exported_program(random_checkpoint(), FP32)
    with pytest.raises(EnvironmentMissing, match="torch_tensorrt") as error:
        plan_by_torch_tensorrt(open_library(Flavor.RTX), program, FP32, BuildOptions())
    assert "cmudrn[torch-tensorrt]" in error.value.fix
