"""The other way to a plan, for those who have torch-tensorrt: an exported PyTorch program instead of ONNX.

Its plans have torch-tensorrt's own names for input and output; there is one of each.
"""

from __future__ import annotations

import io
import time
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from cmudrn.checkpoint import Checkpoint
from cmudrn.engines.build import BuildOptions, Plan, inspect_plan
from cmudrn.engines.flavors import Library
from cmudrn.engines.spec import EngineSpec, Output, Pixel, Precision
from cmudrn.errors import BuildError, EnvironmentMissing
from cmudrn.model import CMUDRN, ModelConfig

__all__ = ["TypedModel", "exported_program", "plan_by_torch_tensorrt"]

DTYPES = {Precision.FP32: torch.float32, Precision.FP16: torch.float16, Precision.BF16: torch.bfloat16}


class TypedModel(nn.Module):
    """The contract of a typed graph as a module: the same edges, the same types inside.

    Convolutions are in the spec's precision, the images y and x in float32, as in `graph.Types.of`.
    """

    def __init__(self, checkpoint: Checkpoint, spec: EngineSpec) -> None:
        super().__init__()
        self.spec, self.dtype = spec, DTYPES[spec.precision]
        config = ModelConfig(inter_loops=spec.loops, intra_loops=spec.loops, stitches=checkpoint.stitches)
        self.model = CMUDRN(config)
        self.model.load_state_dict(
            {name: torch.from_numpy(array) for name, array in checkpoint.tensors.items()}
        )
        self.model.to(self.dtype).requires_grad_(False)

    def forward(self, image: Tensor) -> Tensor:
        """image: [B, H, W, 3] of the spec's pixel type. Returns the same."""
        uint8 = self.spec.pixel is Pixel.UINT8
        y = image.float().permute(0, 3, 1, 2)
        restored = self.restore(y / 255 if uint8 else y).float().clamp(0, 1)
        values = restored * 255 + 0.5 if uint8 else restored
        values = values.permute(0, 2, 3, 1)
        return values.to(torch.uint8) if uint8 else values

    def restore(self, y: Tensor) -> Tensor:
        """CMUDRN.forward_all, with the images in float32. y: [B, 3, H, W] float32."""
        model, rain, snow = self.model, self.model.rain, self.model.snow
        typed = y.to(self.dtype)
        x_rain = x_snow = y
        for _ in range(self.spec.loops):
            stems = rain.stem(typed, x_rain.to(self.dtype)), snow.stem(typed, x_snow.to(self.dtype))
            f_rain, f_snow = model.stitch("stem", *stems)
            f_rain, f_snow = model.stitch("body", *model.recur(f_rain, f_snow))
            x_rain, x_snow = y + rain.conv_out(f_rain).float(), y + snow.conv_out(f_snow).float()
        if self.spec.output is Output.FUSED:
            fused: Tensor = model.fusion(x_rain.to(self.dtype), x_snow.to(self.dtype))
            return fused
        return x_rain if self.spec.output is Output.RAIN else x_snow


def exported_program(checkpoint: Checkpoint, spec: EngineSpec) -> bytes:
    """`TypedModel` for one engine, as torch.export.save writes it."""
    with torch.no_grad():
        program = torch.export.export(TypedModel(checkpoint, spec).eval(), (example(spec),))
    file = io.BytesIO()
    torch.export.save(program, file)
    return file.getvalue()


def example(spec: EngineSpec) -> Tensor:
    dtype = torch.uint8 if spec.pixel is Pixel.UINT8 else torch.float32
    return torch.zeros(spec.batch, spec.height, spec.width, 3, dtype=dtype)


def plan_by_torch_tensorrt(library: Library, program: bytes, spec: EngineSpec, options: BuildOptions) -> Plan:
    """Raises EnvironmentMissing without torch-tensorrt, BuildError where it fails."""
    try:
        import torch_tensorrt
    except ImportError as exc:
        raise EnvironmentMissing(
            f"--frontend torch-tensorrt: {exc}", fix="pip install 'cmudrn[torch-tensorrt]'"
        ) from exc
    told = {
        "optimization_level": options.optimization_level,
        "workspace_size": None if options.workspace_mb is None else options.workspace_mb << 20,
    }
    began = time.perf_counter()
    # Within its debugger the inspector tells types, not only names, of layers.
    debugger = torch_tensorrt.dynamo.Debugger
    try:
        with (
            TemporaryDirectory() as folder,
            debugger(log_level="error", logging_dir=folder, engine_builder_monitor=False),
        ):
            data = torch_tensorrt.dynamo.convert_exported_program_to_serialized_trt_engine(
                torch.export.load(io.BytesIO(program)),
                arg_inputs=(example(spec).cuda(),),
                use_explicit_typing=True,
                **{name: value for name, value in told.items() if value is not None},
            )
    except Exception as exc:  # those of torch, torch-tensorrt and TensorRT have no common base
        reason = (str(exc).splitlines() or [repr(exc)])[0]
        raise BuildError(f"torch-tensorrt: {reason}", fix="build it with --frontend onnx") from exc
    seconds = time.perf_counter() - began
    return Plan(bytes(data), seconds, inspect_plan(library, bytes(data)), None)
