"""CUDA graphs: what a stream was given once is launched again with one call. Needs cuda-bindings.

pycuda has none. Both call the same driver, so pycuda's current context is cuda-bindings' as well.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

__all__ = ["Graph", "GraphDriver", "find_graph_driver"]


def find_graph_driver(cuda: ModuleType) -> GraphDriver | None:
    """None where cuda-bindings is not installed. cuda: pycuda.driver."""
    try:
        from cuda.bindings import driver as bindings
    except ImportError:
        return None
    return GraphDriver(cuda, bindings)


@dataclass(frozen=True)
class GraphDriver:
    """Records graphs. The device's context is current in every call."""

    cuda: ModuleType  # pycuda.driver
    bindings: ModuleType  # cuda.bindings.driver

    def record(self, stream: Any, enqueue: Callable[[], None]) -> Graph:
        """What `enqueue` gives the stream, a pycuda.driver.Stream; none of it runs yet.

        Raises what `enqueue` raises, or pycuda's Error where CUDA refuses; the stream then works as before.
        A stream that isn't non-blocking would, meanwhile, forbid the default one to the whole process.
        """
        # Of this thread alone: others, PyTorch's for one, may allocate meanwhile.
        mode = self.bindings.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        self.call("cuStreamBeginCapture", stream.handle, mode)
        try:
            enqueue()
        except BaseException:
            self._end_and_forget(stream)
            raise
        graph = self.call("cuStreamEndCapture", stream.handle)
        try:
            return Graph(self, self.call("cuGraphInstantiate", graph, 0), stream.handle)
        finally:
            self.call("cuGraphDestroy", graph)

    def call(self, name: str, *arguments: Any) -> Any:
        """What that function of CUDA's gives. Raises pycuda's Error, with CUDA's words."""
        try:
            code, *values = getattr(self.bindings, name)(*arguments)
        except RuntimeError as exc:  # the driver is too old to have it
            raise self.cuda.Error(f"{name}: {exc}") from exc
        if code != self.bindings.CUresult.CUDA_SUCCESS:
            _, words = self.bindings.cuGetErrorString(code)
            raise self.cuda.Error(f"{name} failed: {words.decode() if words else code}")
        return values[0] if values else None

    def _end_and_forget(self, stream: Any) -> None:
        """Of a capture that failed; CUDA gives a graph where that was not its own doing."""
        code, graph = self.bindings.cuStreamEndCapture(stream.handle)
        if code == self.bindings.CUresult.CUDA_SUCCESS:
            self.bindings.cuGraphDestroy(graph)


class Graph:
    """Recorded work on memory that stays where it is; each launch reads what is there by then."""

    def __init__(self, driver: GraphDriver, executable: Any, stream: int) -> None:
        self._driver, self._executable, self._stream = driver, executable, stream

    def launch(self) -> None:
        """After all that the stream holds; returns at once. Raises pycuda's Error."""
        self._driver.call("cuGraphLaunch", self._executable, self._stream)

    def free(self) -> None:
        """It may not run any more. A context that an error has broken says so again: that was told before."""
        self._driver.bindings.cuGraphExecDestroy(self._executable)
