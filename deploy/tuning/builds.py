"""Engines that `cmudrn tune` builds to measure them, in a store of their own until one is recommended."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType

from cmudrn.checkpoint import read_checkpoint
from cmudrn.deploy.choice import is_target_of
from cmudrn.engines.compile import CompileJob, OnStep, compile_engines
from cmudrn.engines.flavors import PORTABLE, Flavor, Library, open_library
from cmudrn.engines.gpu import Gpu, local_gpu
from cmudrn.engines.layout import Layout
from cmudrn.engines.manifest import Manifest
from cmudrn.engines.spec import EngineSpec
from cmudrn.engines.store import EngineStore

__all__ = ["Build", "Compiler", "EngineBuilder"]

Build = Callable[[EngineSpec, Layout, EngineStore], Manifest]  # puts an engine into a store


class Compiler:
    """Builds by the library that `build-engine` would take. Raises EnvironmentMissing without it or a GPU.

    store: the usual one, whose timings of kernels are used and added to.
    """

    def __init__(
        self,
        weights: str,
        store: EngineStore,
        *,
        device: str = "0",
        on_step: OnStep = lambda key, step: None,
        library: Library | None = None,
        gpu: Gpu | None = None,
    ) -> None:
        self._library, self._gpu = library or open_library(), gpu or local_gpu(device)
        self._device = device if self._library.flavor is Flavor.TENSORRT else None
        self._checkpoint = read_checkpoint(weights)
        self._store, self._on_step = store, on_step

    def __call__(self, spec: EngineSpec, layout: Layout, store: EngineStore) -> Manifest:
        """Raises what a build raises, and UsageError for a GPU that the library doesn't build for."""
        job = CompileJob(specs=(spec,), targets=(self._target,), layout=layout, device=self._device)
        self._hand_on_timings(self._store, store)
        (built,) = compile_engines(job, self._checkpoint, self._library, store, on_step=self._on_step)
        self._hand_on_timings(store, self._store)
        if built.manifest is None:
            raise built.error or RuntimeError(f"{built.key}: neither an engine nor an error")
        return built.manifest

    @property
    def _target(self) -> str | None:
        """None: the library's usual one."""
        if self._library.flavor is Flavor.TENSORRT or is_target_of(PORTABLE, self._gpu):
            return None
        return self._gpu.target

    def _hand_on_timings(self, giver: EngineStore, taker: EngineStore) -> None:
        """What one build has measured of kernels, the next need not: that takes most of a build's time."""
        about = self._gpu.name, self._library.version
        if self._library.flavor is Flavor.TENSORRT and (known := giver.timing_cache(*about)):
            taker.keep_timing_cache(*about, known)


class EngineBuilder(AbstractContextManager["EngineBuilder"]):
    """A store for each layout, which engines' keys don't tell apart; all are gone at the end."""

    def __init__(self, build: Build) -> None:
        self._build = build
        self._folder: TemporaryDirectory[str] | None = None

    def __enter__(self) -> EngineBuilder:
        self._folder = TemporaryDirectory(prefix="cmudrn-tune-")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._folder:
            self._folder.cleanup()

    def engine(self, spec: EngineSpec, layout: Layout) -> tuple[Manifest, Path]:
        """Built, or built before; and the folder of its store."""
        if self._folder is None:
            raise RuntimeError("the builder is not open: use it in a `with` block")
        store = EngineStore(Path(self._folder.name) / str(layout).replace(",", "+"))
        for one in store.manifests()[0]:
            if one.spec == spec:
                return one, store.folder
        return self._build(spec, layout, store), store.folder
