"""What is known of an engine: the JSON beside its plan, read as if an enemy had written it."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from enum import Enum

from cmudrn.engines.build import MOST_WORKSPACE_MB
from cmudrn.engines.certificate import ParityCertificate
from cmudrn.engines.flavors import PORTABLE, Flavor
from cmudrn.engines.gpu import Gpu
from cmudrn.engines.layers import LayerSummary
from cmudrn.engines.layout import Layout
from cmudrn.engines.plain_json import SHA256, UTC_TIME, VERSION, Document
from cmudrn.engines.spec import MOST, EngineSpec, Output, Pixel, Precision
from cmudrn.engines.trusted_files import BUILD_AGAIN
from cmudrn.errors import CmudrnError, EngineError

__all__ = ["SCHEMA", "Frontend", "Manifest", "certified_on", "engine_key"]

SCHEMA = 1  # one more whenever a reader of the one before would misread it
SHORT_LABELS = {Flavor.TENSORRT: "trt", Flavor.RTX: "rtx"}
TARGET = re.compile(r"sm[0-9]{2,3}\+?")


class Frontend(str, Enum):
    """What handed the network to TensorRT."""

    ONNX = "onnx"  # our typed graph
    TORCH_TENSORRT = "torch-tensorrt"  # an exported PyTorch program


def engine_key(spec: EngineSpec, flavor: Flavor, version: str, target: str) -> str:
    """An engine's name, such as t3-500x500-b8-fp16-uint8-trt11.4-sm90."""
    return f"{spec}-{SHORT_LABELS[flavor]}{'.'.join(version.split('.')[:2])}-{target}"


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Everything about an engine that is not its plan."""

    spec: EngineSpec
    layout: Layout
    frontend: Frontend
    flavor: Flavor
    version: str  # of TensorRT or TensorRT-RTX
    target: str  # compute capability that it is for: sm89; sm80+: from 8.0 on
    gpu: str | None  # that it was built on; None: on none
    plan_sha256: str
    plan_bytes: int
    graph_sha256: str  # of the ONNX file or the exported program
    weights_sha256: str
    optimization_level: int | None  # None: the library's own
    workspace_mb: int | None  # None: the library's own
    built_at: str  # UTC, such as 2026-11-26T07:30:00Z
    seconds: float  # that the build took
    layers: LayerSummary
    parity: ParityCertificate | None = None  # what `cmudrn parity-check` certified

    @property
    def key(self) -> str:
        return engine_key(self.spec, self.flavor, self.version, self.target)

    def to_json(self) -> bytes:
        """Sorted, for people to read and to compare."""
        plain = {"schema": SCHEMA, **asdict(self), "layout": str(self.layout)}
        return json.dumps(plain, indent=1, sort_keys=True).encode() + b"\n"

    @classmethod
    def from_json(cls, data: bytes, name: str) -> Manifest:
        """Raises EngineError, with `name`, where a value is missing, or is none that `to_json` would write.

        What it doesn't know is left aside: a later version may say more within one schema.
        """
        fields = Document(name, "manifest", BUILD_AGAIN).fields(data)
        if fields.integer("schema", 0, 1 << 31) != SCHEMA:
            raise fields.wrong("schema", fix=f"update cmudrn, or {BUILD_AGAIN}")
        spec, layers = fields.inner("spec"), fields.inner("layers")
        try:
            return cls(
                spec=EngineSpec(
                    **{name: spec.integer(name, 1, most) for name, most in MOST.items()},
                    precision=spec.choice("precision", Precision),
                    pixel=spec.choice("pixel", Pixel),
                    output=spec.choice("output", Output),
                ),
                layout=Layout.parse(fields.text("layout")),
                frontend=fields.choice("frontend", Frontend),
                flavor=fields.choice("flavor", Flavor),
                version=fields.text("version", VERSION),
                target=fields.text("target", TARGET),
                gpu=fields.maybe("gpu", fields.text),
                plan_sha256=fields.text("plan_sha256", SHA256),
                plan_bytes=fields.integer("plan_bytes", 1, 1 << 34),
                graph_sha256=fields.text("graph_sha256", SHA256),
                weights_sha256=fields.text("weights_sha256", SHA256),
                optimization_level=fields.maybe("optimization_level", lambda key: fields.integer(key, 0, 5)),
                workspace_mb=fields.maybe(
                    "workspace_mb", lambda key: fields.integer(key, 1, MOST_WORKSPACE_MB)
                ),
                built_at=fields.text("built_at", UTC_TIME),
                seconds=fields.number("seconds", 0, 1e9),
                layers=LayerSummary(
                    kinds=layers.counts("kinds"),
                    computing=(computing := layers.integer("computing", 0, 1 << 31)),
                    in_precision=layers.integer("in_precision", 0, computing),
                    convolving=layers.integer("convolving", 0, computing),
                ),
                parity=fields.maybe("parity", lambda key: ParityCertificate.from_fields(fields.inner(key))),
            )
        except EngineError:
            raise
        except CmudrnError as exc:  # a layout or a spec that refuses itself
            raise fields.document.damaged(exc.what) from exc


def certified_on(manifest: Manifest, gpu: Gpu) -> bool:
    """Whether `cmudrn parity-check` has passed the engine, and what it saw is what this GPU would compute.

    TensorRT chose a plan's kernels when it was built, for one target: GPUs of that target run the same ones.
    TensorRT-RTX finishes a portable plan on the GPU that loads it: the certificate is of that model alone.
    """
    parity = manifest.parity
    if parity is None or not parity.passed:
        return False
    return parity.device == gpu.name if manifest.target == PORTABLE else manifest.target == gpu.target
