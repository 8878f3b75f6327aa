"""OpenVINO on the CPU: ONNX Runtime's graphs, also in bfloat16 where the processor has it. Needs no torch."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Iterable
from contextlib import AbstractContextManager
from functools import cache, partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from cmudrn.deploy.backend import PixelBatch
from cmudrn.deploy.batches import check_batch
from cmudrn.deploy.graphs import GRAPH_OUTPUTS
from cmudrn.deploy.machine import available_cores
from cmudrn.engines.spec import EngineSpec, Precision
from cmudrn.errors import EnvironmentMissing, ImageError, UsageError
from cmudrn.wording import one_line

if TYPE_CHECKING:
    import openvino

__all__ = ["OpenVinoBackend", "cpu_has_bf16", "import_openvino"]

HINTS = {Precision.FP32: "f32", Precision.BF16: "bf16"}
CONVERTER = "openvino.tools.ovc"


def import_openvino() -> Any:
    """The library, without its converter of models. Raises EnvironmentMissing where it isn't installed.

    Importing the converter tells Google Analytics about it, from a process of its own, and keeps an
    identifier in the home folder. OpenVINO goes on without one; who wants it can still import it.
    """
    hidden = CONVERTER not in sys.modules
    if hidden:
        sys.modules[CONVERTER] = None  # type: ignore[assignment]  # the import system's word for "not there"
    try:
        import openvino
    except ImportError as exc:
        raise EnvironmentMissing(f"OpenVINO: {one_line(exc)}", fix="pip install 'cmudrn[openvino]'") from exc
    finally:
        if hidden:
            del sys.modules[CONVERTER]
    return openvino


@cache
def one_core() -> Any:
    """The process's only Core. Raises EnvironmentMissing where OpenVINO isn't installed.

    Each one's CPU plugin puts a stack for signal handlers in the place of the one that is there, and puts
    that back when it ends. Where two end in another order than they began, one that is freed is left
    (2026.4), and the next signal that Python handles, Ctrl-C or the end of a child, ends the process.
    """
    return import_openvino().Core()


def cpu_has_bf16() -> bool:
    """Whether OpenVINO computes in bfloat16 here. Raises EnvironmentMissing where it isn't installed."""
    import_openvino()
    return "BF16" in one_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


class OpenVinoBackend(AbstractContextManager["OpenVinoBackend"]):
    """A dynamic graph of `engines.graph` on OpenVINO's CPU plugin; batches of any size and shape.

    graph: its file, or its bytes. spec.precision: FP32, or BF16 for features in bfloat16; the graph stays the
    same. spec.output says which of the graph's images comes back; only what leads to it is computed.
    threads: of one batch; None for one on each core.
    Raises UsageError for another precision; entering raises EnvironmentMissing where OpenVINO isn't there,
    the processor has no bfloat16, or the graph cannot be opened.
    """

    def __init__(self, graph: Path | bytes, spec: EngineSpec, *, threads: int | None = None) -> None:
        if spec.precision not in HINTS:
            raise UsageError(f"OpenVINO in {spec.precision.value}", fix="give fp32 or bf16")
        self.spec = spec
        self._graph = graph
        self._threads = threads or available_cores()
        self._compile: Callable[[], openvino.CompiledModel] | None = None  # None: not open
        self._request: openvino.InferRequest | None = None

    @property
    def label(self) -> str:
        """The library, its version, the device, and the precision where it isn't float32."""
        version = import_openvino().__version__.partition("-")[0]
        return f"OpenVINO {version} on CPU" + (" in bf16" if self.spec.precision is Precision.BF16 else "")

    def __enter__(self) -> OpenVinoBackend:
        library = import_openvino()
        core = one_core()
        if self.spec.precision is Precision.BF16 and not cpu_has_bf16():
            raise EnvironmentMissing(
                "--precision bf16: this processor has no bfloat16", fix="give --precision fp32"
            )
        try:
            model = core.read_model(self._graph)
            wanted = model.output(GRAPH_OUTPUTS[self.spec.output])
            model = library.Model([wanted], model.get_parameters())
            compiling = partial(core.compile_model, model, "CPU", self._settings())
            self._request = compiling().create_infer_request()
        except RuntimeError as exc:
            name = self._graph if isinstance(self._graph, Path) else "its bytes"
            raise EnvironmentMissing(
                f"{self.label} cannot open the graph, {name}: {one_line(exc)}", fix="install cmudrn again"
            ) from exc
        self._compile = compiling
        return self

    def _settings(self) -> dict[str, Any]:
        return {
            # Always told: left alone, it takes bfloat16 or half precision wherever the processor has it.
            "INFERENCE_PRECISION_HINT": HINTS[self.spec.precision],
            "INFERENCE_NUM_THREADS": self._threads,
            # Threads across one batch, as ONNX Runtime's.
            "NUM_STREAMS": 1,
            # Two processes would be pinned to the same cores.
            "ENABLE_CPU_PINNING": False,
            # It would keep what it compiled for every size seen: 240 MB after 300 sizes, and growing. So it
            # is 50 MB, and a batch of another size than the one before takes about 15 ms longer.
            "CPU_RUNTIME_CACHE_CAPACITY": 0,
        }

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._compile = self._request = None

    def stream(self, batches: Iterable[PixelBatch]) -> Generator[PixelBatch, None, None]:
        """Each batch restored, in order, same shape and dtype. Raises ImageError where that fails."""
        self._opened()
        for batch in batches:
            yield self._restored(self._opened(), batch)

    def _opened(self) -> Callable[[], openvino.CompiledModel]:
        if self._compile is None:
            raise RuntimeError("the backend is not open: use it in a `with` block")
        return self._compile

    def _restored(self, compiling: Callable[[], openvino.CompiledModel], batch: PixelBatch) -> PixelBatch:
        check_batch(batch, self.spec)  # it converts another type, and doesn't say so
        try:
            self._request = self._request or compiling().create_infer_request()
            # The output is a copy: the request's own memory takes the next one.
            restored: PixelBatch = self._request.infer([np.ascontiguousarray(batch)], share_inputs=True)[0]
        except RuntimeError as exc:
            # Once out of memory, it asks for as much with every later batch, however small: compile anew.
            self._request = None
            raise ImageError(f"OpenVINO: {one_line(exc)}", fix="try a smaller --tile") from exc
        return restored
