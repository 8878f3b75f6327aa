"""A job's backends: chosen once, opened when an image needs them, freed together."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import NamedTuple

import numpy as np
from numpy.typing import DTypeLike

from cmudrn.deploy.any_size import open_backend, precision_of
from cmudrn.deploy.backend import Backend
from cmudrn.deploy.choice import Choice, best_engine, build_command, choose, choose_any_size
from cmudrn.deploy.job import CPU, BackendName, InferJob, usual_tile_px
from cmudrn.deploy.tiling import Restorer, TilePlan, plan_engine_tiles, plan_tiles
from cmudrn.engines.manifest import Manifest
from cmudrn.engines.spec import EngineSpec, Pixel
from cmudrn.engines.store import EngineStore
from cmudrn.errors import DeviceError, EngineError, EnvironmentMissing, ImageError
from cmudrn.wording import listed

__all__ = ["Backends", "Pick"]


class Pick(NamedTuple):
    """What restores an image: images of equal picks can share batches."""

    pixel: Pixel
    engine: str | None  # its key; None: a backend for any size


class Backends(AbstractContextManager["Backends"]):
    """Opens what a job's images need, each backend once.

    images: how many there are, to choose a batch size by. on_note: gets a line for people where something
    else is used than was chosen.
    Entering raises what `choose` raises, and what a backend for any size raises that cannot be opened.
    """

    def __init__(
        self, job: InferJob, *, images: int = 1, on_note: Callable[[str], None] = lambda line: None
    ) -> None:
        self._job, self._images, self._on_note = job, max(1, images), on_note
        self._choice: Choice | None = None
        self._label = ""  # of what takes any size, where that takes all
        self._engines: dict[str, Manifest] = {}
        self._open: dict[Pick, tuple[Restorer, ExitStack]] = {}
        self._noted: set[Pixel] = set()  # said once that no engine fits these

    def __enter__(self) -> Backends:
        self._choice = choose(self._job)
        if self._choice.note:
            self._on_note(f"{self._choice.note}: choosing as without it")
        self._engines = {engine.key: engine for engine in self._choice.engines}
        try:
            if not self._engines:
                self._label = self.restorer_for(np.uint8, 1, 1).backend.label
        except BaseException:
            self._close_all()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close_all()

    @property
    def choice(self) -> Choice:
        """Once entered."""
        if self._choice is None:
            raise RuntimeError("the backends are not open: use them in a `with` block")
        return self._choice

    def __str__(self) -> str:
        """What restores, and why, in a line for people."""
        choice = self.choice
        if not choice.engines:
            return f"restoring with {self.label} ({choice.why})"
        keys = [engine.key for engine in choice.engines]
        rest = f"; what fits none: {choice.otherwise.label}" if choice.otherwise else ""
        return f"restoring with {self.label} ({choice.why}): {listed(keys)}{rest}"

    @property
    def label(self) -> str:
        """What restores, in a word or two."""
        engines = self.choice.engines
        return listed(sorted({f"{one.flavor.label} {one.version}" for one in engines})) or self._label

    @property
    def most_at_once(self) -> int:
        """Images that backends have on their way, where each is one tile."""
        told, batches = self._job.backend, [engine.spec.batch for engine in self._engines.values()]
        if not batches:
            return self._job.batch or 1
        return max(batches) * told.streams * max(1, len(told.devices))

    def pick(self, dtype: DTypeLike, height: int, width: int) -> Pick:
        """What is best for an image of uint8 or uint16 pixels; the latter go through float32.

        Raises ImageError where no engine fits it, and nothing else is to take it.
        """
        pixel = Pixel.UINT8 if np.dtype(dtype) == np.uint8 else Pixel.FLOAT32
        if not self._engines and self.choice.backend is not BackendName.TENSORRT:
            return self._for_any_size(pixel)
        engine = best_engine(
            tuple(self._engines.values()),
            pixel,
            (height, width),
            overlap_px=self._job.overlap,
            images=self._images,
        )
        if engine:
            return Pick(pixel, engine.key)
        why = f"no engine of {pixel.value} pixels fits {height}x{width}"
        if self.choice.otherwise is None:
            raise ImageError(why, fix=f"{build_command(self._job)} --pixel {pixel.value}, or --backend onnx")
        if self._engines and pixel not in self._noted:
            self._noted.add(pixel)
            self._on_note(f"{why}: left to {self.choice.otherwise.label}")
        return self._for_any_size(pixel)

    def _for_any_size(self, pixel: Pixel) -> Pick:
        """Raises ImageError where it may not compute such pixels in the precision told."""
        pick = Pick(pixel, None)
        try:
            if self._job.precision is not None and pick not in self._open:
                precision_of(self.choice.otherwise or self.choice.backend, self._job, pixel)
        except EngineError as exc:
            raise ImageError(exc.what, fix=exc.fix) from exc
        return pick

    def restorer(self, pick: Pick) -> Restorer | None:
        """Opened; None for an engine that can't be opened where others may take its images: pick again.

        Call it while no stream of another one is going on: that one may be closed for this.
        Raises what the backend raises when it is entered.
        """
        if pick in self._open:
            return self._open[pick][0]
        if pick.engine is not None and pick.engine not in self._engines:
            return None
        try:
            try:
                self._open[pick] = self._opened(pick)
            except DeviceError:
                if not any(other.engine for other in self._open):
                    raise
                self._close_all()  # an engine's buffers may be all that is missing
                self._open[pick] = self._opened(pick)
        except (EngineError, EnvironmentMissing) as exc:
            if pick.engine is None or self.choice.otherwise is None:
                raise
            # Chosen, and not asked for.
            self._on_note(f"{exc.what}: going on without this engine")
            del self._engines[pick.engine]
            return None
        return self._open[pick][0]

    def restorer_for(self, dtype: DTypeLike, height: int, width: int) -> Restorer:
        """Opened, for one image; raises what `pick` and `restorer` raise."""
        while (restorer := self.restorer(self.pick(dtype, height, width))) is None:
            continue  # one engine fewer
        return restorer

    def _opened(self, pick: Pick) -> tuple[Restorer, ExitStack]:
        with ExitStack() as taken:
            restorer = (
                self._of_any_size(pick.pixel, taken)
                if pick.engine is None
                else self._of_an_engine(self._engines[pick.engine], taken)
            )
            return restorer, taken.pop_all()

    def _close_all(self) -> None:
        with ExitStack() as closing:
            for _, taken in self._open.values():
                closing.push(taken)
            self._open.clear()

    def _of_an_engine(self, manifest: Manifest, taken: ExitStack) -> Restorer:
        from cmudrn.deploy.devices import SpreadBackend
        from cmudrn.deploy.tensorrt import TensorRTBackend

        told, spec = self._job.backend, manifest.spec
        engine = EngineStore.default(told.store).load(manifest.key)
        workers: list[Backend] = [
            TensorRTBackend(engine, device=device, slots=told.streams, graphs=told.cuda_graphs)
            for device in told.devices or ("0",)
        ]
        backend = taken.enter_context(workers[0] if len(workers) == 1 else SpreadBackend(workers))
        overlap_px = self._job.overlap

        def plan(height: int, width: int) -> TilePlan:
            tiles = plan_engine_tiles(height, width, tile=(spec.height, spec.width), overlap_px=overlap_px)
            if tiles is None:
                raise ImageError(f"{height}x{width} does not fit {spec}", fix="choose another engine")
            return tiles

        return Restorer(backend, plan, spec.batch)

    def _of_any_size(self, pixel: Pixel, taken: ExitStack) -> Restorer:

        def opened(name: BackendName, job: InferJob) -> Restorer:
            tile_px, batch = job.tile_px or usual_tile_px(name), job.batch or 1
            spec = EngineSpec(
                loops=job.loops,
                height=tile_px,
                width=tile_px,
                batch=batch,
                precision=precision_of(name, job, pixel),
                pixel=pixel,
                output=job.output,
            )
            backend = taken.enter_context(open_backend(name, job, spec))
            return Restorer(backend, partial(plan_tiles, tile_px=tile_px, overlap_px=job.overlap), batch)

        job = self._job
        try:
            return opened(self.choice.otherwise or self.choice.backend, job)
        except EnvironmentMissing as exc:
            told_a_gpu = job.backend.devices and not job.backend.on_cpu
            if job.backend.name is not BackendName.AUTO or not told_a_gpu:
                raise
            self._on_note(f"{exc.what}: on the CPU instead")
            on_cpu = replace(job, backend=replace(job.backend, devices=(CPU,)))
            return opened(choose_any_size(on_cpu), on_cpu)
