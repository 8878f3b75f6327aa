"""What every backend is to the rest, batches of pixels in and restored ones out, and which one a job gets."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from types import TracebackType
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import DTypeLike, NDArray

from cmudrn.checkpoint import read_checkpoint
from cmudrn.deploy.job import InferJob
from cmudrn.engines.spec import EngineSpec, Pixel, Precision
from cmudrn.errors import EnvironmentMissing

__all__ = ["Backend", "Backends", "PixelBatch", "open_backend"]

PixelBatch: TypeAlias = (
    "NDArray[np.uint8] | NDArray[np.float32]"  # [B, H, W, 3], C-contiguous, the spec's pixel
)


class Backend(AbstractContextManager["Backend"], Protocol):
    """Restores batches. Entering takes the device, leaving frees it."""

    @property
    def spec(self) -> EngineSpec: ...

    def stream(self, batches: Iterable[PixelBatch]) -> Iterator[PixelBatch]:
        """Each batch restored, in order, same shape and dtype; reads ahead as far as it has buffers."""
        ...


class Backends(AbstractContextManager["Backends"]):
    """A job's backend for 8-bit images, opened at once, and its one for 16-bit ones, when one turns up."""

    def __init__(self, job: InferJob) -> None:
        self._job = job
        self._open: dict[Pixel, Backend] = {}
        self._taken = ExitStack()

    def __enter__(self) -> Backends:
        self.restoring(np.uint8)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.clear()
        self._taken.close()

    def restoring(self, dtype: DTypeLike) -> Backend:
        """The opened backend for pixels of uint8 or uint16; the latter go through float32."""
        pixel = Pixel.UINT8 if np.dtype(dtype) == np.uint8 else Pixel.FLOAT32
        if pixel not in self._open:
            self._open[pixel] = self._taken.enter_context(open_backend(self._job, pixel))
        return self._open[pixel]


def open_backend(job: InferJob, pixel: Pixel) -> Backend:
    """The backend for a job, to be entered. Raises CheckpointError or EnvironmentMissing."""
    from cmudrn.deploy.onnxruntime import OnnxBackend

    spec = EngineSpec(
        loops=job.loops,
        height=job.tile_px,
        width=job.tile_px,
        batch=job.batch,
        precision=Precision.FP32,
        pixel=pixel,
        output=job.output,
    )
    return OnnxBackend(_graph(job.weights, job.loops, pixel), spec, threads=job.threads)


def _graph(weights: str, loops: int, pixel: Pixel) -> Path | bytes:
    """The shipped graph of the default weights, which needs nothing more, or one made of a checkpoint."""
    if weights == "default":
        from cmudrn.deploy.onnxruntime import shipped_graph

        return shipped_graph(loops, pixel)
    checkpoint = read_checkpoint(weights)
    try:
        from cmudrn.engines.graph import dynamic_graph
    except ImportError as exc:
        raise EnvironmentMissing(
            f"--weights {weights}: making a graph of them needs onnx", fix="pip install onnx"
        ) from exc
    return dynamic_graph(checkpoint, loops=loops, pixel=pixel)
