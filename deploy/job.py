"""What `cmudrn infer` is told, as one value that has been checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from cmudrn.deploy.keep_options import KeepOptions
from cmudrn.engines.layout import Layout
from cmudrn.engines.spec import Output, Precision
from cmudrn.errors import UsageError
from cmudrn.formats import CODECS, Encoding, ImageFormat
from cmudrn.images import DEFAULT_MAX_PIXELS

__all__ = [
    "DEFAULT_IN_FLIGHT_PX",
    "DEFAULT_OVERLAP_PX",
    "DEFAULT_TILE_PX",
    "BackendName",
    "BackendOptions",
    "Existing",
    "InferJob",
]

# By loops: the smallest with PSNR >= 60 dB against the whole image, for the default weights
# (benchmarks/overlap.py), and never less than at fewer loops.
DEFAULT_OVERLAP_PX: Mapping[int, int] = {1: 6, 2: 13, 3: 17, 4: 26, 5: 30, 6: 34, 7: 39}
DEFAULT_TILE_PX = 768  # of backends that take any size, but for our own kernels
# These hold up to 72 bytes for each pixel of a tile, 300 MB here; ONNX Runtime takes more for 768 a side.
# What tiles share is computed twice: at T = 3 and 12 megapixels 9% of all in tiles of 768, here 2%.
NATIVE_TILE_PX = 2048
CPU = "cpu"
MOST_STREAMS = 16
DEFAULT_IN_FLIGHT_PX = 64_000_000  # 400 MB at 8 bits, decoded and restored
MOST_AT_ONCE = 1024  # tiles or threads: more are a slip of the hand, and end in the middle of a library


def need_between(least: int, most: int | None, **options: int | None) -> None:
    """Raises UsageError for the first option that is out of these bounds; None is not given."""
    for name, value in options.items():
        told = f"--{name.replace('_', '-')} {value}"
        if value is not None and value < least:
            raise UsageError(told, fix=f"give {least} or more")
        if value is not None and most is not None and value > most:
            raise UsageError(told, fix=f"give {most} or less")


class Existing(str, Enum):
    """What to do where a target is there already."""

    REFUSE = "refuse"  # before anything is restored
    OVERWRITE = "overwrite"
    SKIP = "skip"
    RESUME = "resume"  # leave what the run has done, do the rest, refuse what is another's


class BackendName(str, Enum):
    """Whose code restores."""

    AUTO = "auto"  # certified engines where they fit, else our kernels on a CPU, else what `choice` finds
    TENSORRT = "tensorrt"  # engines of the store, of TensorRT and TensorRT-RTX
    NATIVE = "native"  # our own kernels for CPUs, where the package was built with them
    ONNX = "onnx"
    OPENVINO = "openvino"
    TORCH = "torch"  # the reference

    @property
    def label(self) -> str:
        """For people."""
        labels = {
            BackendName.TENSORRT: "TensorRT",
            BackendName.NATIVE: "own kernels",
            BackendName.ONNX: "ONNX Runtime",
            BackendName.OPENVINO: "OpenVINO",
            BackendName.TORCH: "PyTorch",
        }
        return labels.get(self, self.value)


def usual_tile_px(backend: BackendName) -> int:
    """Side of the tiles, at most, of one that takes any size."""
    return NATIVE_TILE_PX if backend is BackendName.NATIVE else DEFAULT_TILE_PX


ON_CPU_ALONE = (BackendName.NATIVE, BackendName.OPENVINO)  # as they are run here


@dataclass(frozen=True, kw_only=True)
class BackendOptions:
    """Which backend, and how it is run."""

    name: BackendName = BackendName.AUTO
    devices: tuple[str, ...] = ()  # GPUs by number or PCI bus id, or cpu; (): the first GPU there is
    streams: int = 2  # batches on their way at once on each GPU
    cuda_graphs: bool = True  # replayed, where cuda-bindings is installed
    threads: int | None = None  # on the CPU; None: one for each core
    allow_unverified: bool = False  # engines and bfloat16 without a certificate, or with one that they failed
    store: Path | None = None  # of engines; None: the usual one
    engine: str | None = None  # the key of the only one to take; with AUTO, others where it doesn't fit

    def __post_init__(self) -> None:
        need_between(1, MOST_AT_ONCE, threads=self.threads)
        need_between(1, MOST_STREAMS, streams=self.streams)
        if self.on_cpu and self.name is BackendName.TENSORRT:
            raise UsageError("--device cpu: engines run on a GPU", fix="give a GPU, or another --backend")
        if self.on_cpu and len(self.devices) > 1:
            raise UsageError("--device cpu, and another besides", fix="give the one or the other")
        if self.devices and self.name in ON_CPU_ALONE and not self.on_cpu:
            what = f"--device {self.devices[0]} with --backend {self.name.value}: it runs on the CPU"
            raise UsageError(what, fix="--device cpu, or leave it away")
        if len(set(self.devices)) < len(self.devices):
            raise UsageError(f"--device {' --device '.join(self.devices)}", fix="give each device once")

    @property
    def on_cpu(self) -> bool:
        """Told to stay there."""
        return CPU in self.devices


@dataclass(frozen=True, kw_only=True)
class InferJob:
    """All that `cmudrn infer` is told."""

    sources: tuple[Path, ...]  # files and folders
    out: Path | None = None  # None: beside each source, with "-restored" in the name
    loops: int = 3  # T: inter = intra = T, 1 to 7
    output: Output = Output.FUSED
    precision: Precision | None = None  # FP32 or BF16, of whatever restores; None: what is usual for it
    tile_px: int | None = None  # side of a tile, overlap included, at most; None: an engine's, or the usual
    overlap_px: int | None = None  # None: the smallest with PSNR >= 60 dB against the whole image
    batch: int | None = None  # tiles at once, at most; None: an engine's, or one
    layout: Layout | None = None  # of graphs that need no engine; None: that of the shipped ones
    backend: BackendOptions = field(default_factory=BackendOptions)
    existing: Existing = Existing.REFUSE
    format: ImageFormat | None = None  # None: the source's own
    encoding: Encoding = field(default_factory=Encoding)
    max_pixels: int = DEFAULT_MAX_PIXELS  # of one image, all its pages together
    in_flight_px: int = DEFAULT_IN_FLIGHT_PX  # of all images held at once; a larger one goes alone
    keep: KeepOptions = field(default_factory=KeepOptions)
    weights: str = "default"  # or a path
    gate: bool = False  # leave what has no weather as it is
    gate_confidence: float | None = None  # from which it is left; None: what was fitted with the weights

    def __post_init__(self) -> None:
        if not self.sources:
            raise UsageError("no source", fix="name an image or a folder")
        if self.loops not in DEFAULT_OVERLAP_PX:
            raise UsageError(f"--loops {self.loops}", fix="give 1 to 7; 3 is the default")
        if self.precision is Precision.FP16:
            raise UsageError(
                f"--precision {self.precision.value}: engines alone have it, and are chosen by themselves",
                fix="leave it away, or give fp32 or bf16",
            )
        if self.format and not self.format.writable:
            raise UsageError(
                f"--format {self.format.value}: no encoder for it here", fix="give png, jpeg or tiff"
            )
        if self.format and self.keep.provenance and not CODECS[self.format].has_xmp:
            raise UsageError(
                f"--provenance with --format {self.format.value}, which holds no XMP",
                fix="give --format webp",
            )
        need_between(1, None, max_pixels=self.max_pixels, tile=self.tile_px, in_flight=self.in_flight_px)
        need_between(1, MOST_AT_ONCE, batch=self.batch)
        need_between(0, None, overlap=self.overlap_px)
        if self.gate_confidence is not None and not self.gate:
            raise UsageError("--gate-confidence without --gate", fix="add --gate")
        if self.gate_confidence is not None and not 0 < self.gate_confidence < 1:
            raise UsageError(
                f"--gate-confidence {self.gate_confidence:g}", fix="give a number between 0 and 1"
            )
        if self.tile_px is not None and 2 * self.overlap >= self.tile_px:
            raise UsageError(
                f"--tile {self.tile_px} leaves nothing between overlaps of {self.overlap} pixels",
                fix=f"give --tile {2 * self.overlap + 1} or more, or a smaller --overlap",
            )

    @property
    def overlap(self) -> int:
        """Pixels that a tile shares with its neighbour, on each side."""
        return DEFAULT_OVERLAP_PX[self.loops] if self.overlap_px is None else self.overlap_px
