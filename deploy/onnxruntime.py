"""ONNX Runtime, the default backend: the shipped graphs on a GPU where its build has one, else on the CPU.

Needs no torch. Only the CPU was ever tried: the other devices' settings are from their documentation.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import onnxruntime as ort

from cmudrn.deploy.backend import PixelBatch
from cmudrn.deploy.batches import check_batch
from cmudrn.deploy.graphs import GRAPH_OUTPUTS
from cmudrn.deploy.machine import available_cores
from cmudrn.engines.spec import EngineSpec
from cmudrn.errors import EnvironmentMissing, ImageError, UsageError
from cmudrn.wording import one_line

__all__ = ["OnnxBackend"]

CPU = "CPUExecutionProvider"
SUFFIX = "ExecutionProvider"
# What may go before the CPU, the first that starts, and how it is told to compute in float32 proper.
ACCELERATORS: Mapping[str, Mapping[str, str]] = {
    "CUDAExecutionProvider": {"use_tf32": "0"},
    # Behind CUDA: it makes an engine for every new size, and nothing but NVIDIA_TF32_OVERRIDE=0 in the
    # environment keeps it from TF32.
    "TensorrtExecutionProvider": {},
    # A model of another format, or on the neural engine, may compute in half precision.
    "CoreMLExecutionProvider": {"ModelFormat": "MLProgram", "MLComputeUnits": "CPUAndGPU"},
    "DmlExecutionProvider": {},
}
NUMBERED = ("CUDAExecutionProvider", "TensorrtExecutionProvider", "DmlExecutionProvider")  # take a device_id
# ONNX Runtime's severities. Its warnings about the machine tell a user nothing; its errors are raised, too.
WARNINGS, FATAL_ONLY = 2, 4  # the former is what it begins with


class OnnxBackend(AbstractContextManager["OnnxBackend"]):
    """A dynamic graph of `engines.graph` on ONNX Runtime; batches of any size and shape.

    graph: its file, or its bytes. spec.output says which of the graph's images comes back; only what leads
    to it is computed. threads: of one batch on the CPU; None for one on each core. device: "cpu"; or a GPU's
    number; None for the first. A GPU is taken where this build of ONNX Runtime has a provider that starts,
    else the CPU: `taken` says which.
    Raises UsageError for another device; entering raises EnvironmentMissing for a graph that doesn't open.
    """

    def __init__(
        self, graph: Path | bytes, spec: EngineSpec, *, threads: int | None = None, device: str | None = None
    ) -> None:
        if device not in (None, "cpu") and not device.isdecimal():
            raise UsageError(f"--device {device}: ONNX Runtime takes a number", fix="--device 0, or cpu")
        self.spec = spec
        self.taken: tuple[str, ...] = ()  # ONNX Runtime's names of what computes, the first by preference
        self._graph, self._device = graph, device
        self._threads = threads or available_cores()
        self._session: ort.InferenceSession | None = None

    @property
    def label(self) -> str:
        """The library, its version, the device."""
        return f"ONNX Runtime {ort.__version__} on {self.taken[0].removesuffix(SUFFIX)}"

    def __enter__(self) -> OnnxBackend:
        listed = ort.get_available_providers() if self._device != "cpu" else []
        for provider in (name for name in ACCELERATORS if name in listed):
            session = self._accelerated(provider)
            if session:
                break
        else:
            session = self._on_cpu()
        if self._device not in (None, "cpu") and session.get_providers()[0] == CPU:
            raise EnvironmentMissing(
                f"--device {self._device}: ONNX Runtime {ort.__version__} starts no provider for a GPU here",
                fix="--device cpu, or pip install onnxruntime-gpu in the place of onnxruntime",
            )
        self._session, self.taken = session, tuple(session.get_providers())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._session = None

    def stream(self, batches: Iterable[PixelBatch]) -> Generator[PixelBatch, None, None]:
        """Each batch restored, in order, same shape and dtype. Raises ImageError where that fails."""
        run = ort.RunOptions()
        run.only_execute_path_to_fetches = True
        self._opened()
        for batch in batches:
            yield self._restored(self._opened(), batch, run)

    def _accelerated(self, provider: str) -> ort.InferenceSession | None:
        """A session on a provider that is listed; None where it doesn't start, for want of a driver, say."""
        settings = dict(ACCELERATORS[provider])
        if self._device is not None and provider in NUMBERED:
            settings["device_id"] = self._device
        # The session's own severity comes too late for what loads a provider.
        ort.set_default_logger_severity(FATAL_ONLY)
        try:
            session = self._session_on([(provider, settings), (CPU, {})])
        except Exception:  # noqa: BLE001 (ONNX Runtime's own errors have no common base)
            return None
        finally:
            ort.set_default_logger_severity(WARNINGS)
        return session if session.get_providers()[0] == provider else None

    def _on_cpu(self) -> ort.InferenceSession:
        try:
            return self._session_on([(CPU, {})])
        except Exception as exc:
            raise EnvironmentMissing(
                f"ONNX Runtime {ort.__version__} cannot open the graph: {one_line(exc)}",
                fix="install cmudrn again, with onnxruntime 1.18 or later",
            ) from exc

    def _session_on(self, providers: list[tuple[str, dict[str, str]]]) -> ort.InferenceSession:
        options = ort.SessionOptions()
        # Threads across one convolution: as fast as a batch on each core, with half the memory, and one
        # small image gains too. Spinning stays on: without it everything takes 8% longer.
        options.intra_op_num_threads = self._threads
        # It would keep a plan of buffers for every shape seen: 10 MB after 50 sizes, and growing. DirectML
        # refuses both, these plans and parallel execution.
        options.enable_mem_pattern = False
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.log_severity_level = FATAL_ONLY
        graph = self._graph if isinstance(self._graph, bytes) else str(self._graph)
        # Its own way back to the CPU prints to the standard output, which is a report's.
        return ort.InferenceSession(graph, options, providers=providers, enable_fallback=0)

    def _opened(self) -> ort.InferenceSession:
        if self._session is None:
            raise RuntimeError("the backend is not open: use it in a `with` block")
        return self._session

    def _restored(self, session: ort.InferenceSession, batch: PixelBatch, run: Any) -> PixelBatch:
        check_batch(batch, self.spec)
        fetched = [GRAPH_OUTPUTS[self.spec.output]]
        try:
            restored: PixelBatch
            (restored,) = session.run(fetched, {"image": np.ascontiguousarray(batch)}, run)
        except Exception as exc:
            fix = "try a smaller --tile" + ("" if self.taken[0] == CPU else ", or --device cpu")
            raise ImageError(f"ONNX Runtime: {one_line(exc)}", fix=fix) from exc
        return restored
