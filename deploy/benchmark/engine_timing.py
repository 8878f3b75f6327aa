"""An engine of the store, timed: its kernels alone, by the GPU's clock, and its stream with all copies."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import repeat

from cmudrn.checkpoint import read_checkpoint
from cmudrn.deploy.backend import PixelBatch
from cmudrn.deploy.benchmark.contestants import (
    Case,
    Conditions,
    Contestant,
    Kind,
    Opened,
    random_pixels,
)
from cmudrn.deploy.tensorrt import TensorRTBackend
from cmudrn.engines.flavors import PORTABLE, Flavor, Library, installed_flavors, open_library
from cmudrn.engines.gpu import local_gpu
from cmudrn.engines.spec import EngineSpec
from cmudrn.engines.store import Engine, EngineStore
from cmudrn.engines.wanted import Wanted
from cmudrn.errors import CmudrnError, DeviceError, EngineError, EnvironmentMissing

__all__ = ["KernelTimer", "find_engine", "open_engine", "plan_of"]

PLAN_DIGITS = 12  # of a SHA-256
STREAMED = 16  # batches of one run: the first has nothing to overlap with, and doesn't count


@contextmanager
def open_engine(contestant: Contestant, case: Case, conditions: Conditions) -> Iterator[Opened]:
    """The store's engine for this case on the GPU.

    Raises EnvironmentMissing without GPU or library, EngineError without an engine, DeviceError without room.
    """
    device = conditions.device or "0"
    engine = find_engine(case.spec(contestant), conditions, device)
    pixels = random_pixels(case)
    if contestant.kind is Kind.STREAM:
        with TensorRTBackend(engine, device=device) as backend:
            replays = ", CUDA graphs" if backend.replays else ""
            about = engine.manifest.key + replays
            yield Opened(lambda: streamed_s(backend, pixels), "wall", about, digits(engine))
    else:
        timer = KernelTimer(engine, device=device, slots=1, graphs=False)
        with timer:
            list(timer.stream([pixels]))  # the images lie in the engine's input from here on
            yield Opened(timer.run, "device events", engine.manifest.key, digits(engine))


def find_engine(spec: EngineSpec, conditions: Conditions, device: str) -> Engine:
    """Of TensorRT where the store has one, else of TensorRT-RTX; certified or not: only its speed counts."""
    gpu, store = local_gpu(device), EngineStore.default(conditions.store)
    libraries, refusals = importable()
    for library in libraries:
        portable = [PORTABLE] if library.flavor is Flavor.RTX else []
        wanted = Wanted(
            spec=spec,
            flavor=library.flavor,
            version=library.version,
            targets=[gpu.target, *portable],
            weights_sha256=read_checkpoint(conditions.weights).sha256,
            weights=conditions.weights,
            device=device,
        )
        try:
            return store.find(wanted)
        except EngineError as exc:
            refusals.append(exc)
    raise next((one for one in refusals if isinstance(one, EngineError)), refusals[0])


def plan_of(contestant: Contestant, case: Case, conditions: Conditions) -> str:
    """As `Opened.plan`, of the engine that would be opened. Raises what `open_engine` raises without one."""
    return digits(find_engine(case.spec(contestant), conditions, conditions.device or "0"))


def digits(engine: Engine) -> str:
    return engine.manifest.plan_sha256[:PLAN_DIGITS]


def importable() -> tuple[list[Library], list[CmudrnError]]:
    """The flavours that are here, and why others can't be imported. Raises EnvironmentMissing for none."""
    libraries: list[Library] = []
    refusals: list[CmudrnError] = []
    flavors: list[Flavor | None] = [*installed_flavors()]
    for flavor in flavors or [None]:  # None says what to install
        try:
            libraries.append(open_library(flavor))
        except EnvironmentMissing as exc:
            refusals.append(exc)
    if not libraries:
        raise refusals[0]
    return libraries, refusals


def streamed_s(backend: TensorRTBackend, pixels: PixelBatch) -> float:
    """Seconds a batch of a stream in full flow: in, restored, out."""
    restored = backend.stream(repeat(pixels, STREAMED))
    next(restored)
    began = time.perf_counter()
    count = sum(1 for _ in restored)
    return (time.perf_counter() - began) / count


class KernelTimer(TensorRTBackend):
    """A backend whose first slot runs its kernels alone, over what its last batch left in the input."""

    def run(self) -> float:
        """Seconds between two events around the kernels, by the GPU's clock."""
        device, slot = self._device, next(iter(self._slots), None)
        if device is None or slot is None or slot.execution is None:
            raise RuntimeError("the backend is not open: use it in a `with` block")
        with device.current(), device.errors("timing"):
            begin, end = device.cuda.Event(), device.cuda.Event()
            begin.record(slot.stream)
            taken = slot.execution.execute_async_v3(slot.stream.handle)
            end.record(slot.stream)
            end.synchronize()
            if not taken:
                raise DeviceError(
                    "TensorRT did not take the batch", fix="run it again; report it if it stays"
                )
            return float(begin.time_till(end)) / 1e3
