"""The default backend: the shipped graphs on ONNX Runtime, on the CPU. Needs no torch."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType

import numpy as np
import onnxruntime as ort

from cmudrn.checkpoint import SHIPPED
from cmudrn.deploy.backend import PixelBatch
from cmudrn.engines.spec import EngineSpec, Output, Pixel
from cmudrn.errors import EnvironmentMissing, ImageError

__all__ = ["OnnxBackend", "available_cores", "shipped_graph", "shipped_graph_path"]

GRAPH_OUTPUTS = {Output.FUSED: "restored", Output.RAIN: "rain", Output.SNOW: "snow"}
ERRORS_ONLY = 3  # ONNX Runtime's severity: its warnings about the machine tell a user nothing


def shipped_graph_path(loops: int, pixel: Pixel) -> Path:
    """Where the package keeps the default weights as a graph."""
    return SHIPPED / f"default-t{loops}-{pixel.value}.onnx"


def shipped_graph(loops: int, pixel: Pixel) -> Path:
    """The graph file that came with the package. Raises EnvironmentMissing where it didn't."""
    path = shipped_graph_path(loops, pixel)
    if not path.is_file():
        raise EnvironmentMissing(
            f"{path}: no such graph", fix="install cmudrn again, or `make graphs` in a checkout"
        )
    return path


def available_cores() -> int:
    """Those that this process may use: fewer than the machine's in a container."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class OnnxBackend(AbstractContextManager["OnnxBackend"]):
    """A dynamic graph of `engines.graph` on ONNX Runtime's CPU provider; batches of any size and shape.

    graph: its file, or its bytes. spec.output says which of the graph's images comes back; only what leads
    to it is computed. threads: of one batch; None for one on each core.
    """

    def __init__(self, graph: Path | bytes, spec: EngineSpec, *, threads: int | None = None) -> None:
        self.spec = spec
        self._graph = graph
        self._threads = threads or available_cores()
        self._session: ort.InferenceSession | None = None

    def __enter__(self) -> OnnxBackend:
        options = ort.SessionOptions()
        # Threads across one convolution: as fast as a batch on each core, with half the memory, and one
        # small image gains too. Spinning stays on: without it everything takes 8% longer.
        options.intra_op_num_threads = self._threads
        # It would keep a plan of buffers for every shape seen: 10 MB after 50 sizes, and growing.
        options.enable_mem_pattern = False
        options.log_severity_level = ERRORS_ONLY
        graph = self._graph if isinstance(self._graph, bytes) else str(self._graph)
        try:
            self._session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        except Exception as exc:  # ONNX Runtime's own errors have no common base
            raise EnvironmentMissing(
                f"ONNX Runtime {ort.__version__} cannot open the graph: {_one_line(exc)}",
                fix="install cmudrn again, with onnxruntime 1.18 or later",
            ) from exc
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._session = None

    def stream(self, batches: Iterable[PixelBatch]) -> Iterator[PixelBatch]:
        """Each batch restored, in order, same shape and dtype. Raises ImageError where that fails."""
        if self._session is None:
            raise RuntimeError("the backend is not open: use it in a `with` block")
        run = ort.RunOptions()
        run.only_execute_path_to_fetches = True
        fetched = [GRAPH_OUTPUTS[self.spec.output]]
        for batch in batches:
            contiguous = np.ascontiguousarray(batch)
            try:
                (restored,) = self._session.run(fetched, {"image": contiguous}, run)
            except Exception as exc:
                raise ImageError(f"ONNX Runtime: {_one_line(exc)}", fix="try a smaller --tile") from exc
            yield restored


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
