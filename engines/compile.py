"""Weights and a spec to an engine in the store: what `cmudrn build-engine` does."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from cmudrn.checkpoint import Checkpoint, check_tensors
from cmudrn.engines.build import BuildOptions, Plan, build_plan, check_target
from cmudrn.engines.callbacks import BuildStep
from cmudrn.engines.context import current_gpu
from cmudrn.engines.flavors import PORTABLE, Flavor, Library
from cmudrn.engines.gpu import Gpu, local_gpu
from cmudrn.engines.graph import typed_graph
from cmudrn.engines.layers import check_layers
from cmudrn.engines.layout import Layout
from cmudrn.engines.manifest import Frontend, Manifest, engine_key
from cmudrn.engines.spec import EngineSpec
from cmudrn.engines.store import EngineStore
from cmudrn.errors import BuildError, CheckpointError, CmudrnError, EngineError, UsageError

__all__ = ["Built", "CompileJob", "compile_engines"]


@dataclass(frozen=True, kw_only=True)
class CompileJob:
    """A matrix of engines: every spec for every target. Checks itself."""

    specs: tuple[EngineSpec, ...]
    targets: tuple[str | None, ...] = (None,)  # as BuildOptions.target
    layout: Layout = field(default_factory=Layout)
    frontend: Frontend = Frontend.ONNX
    device: str | None = None  # as BuildOptions.device
    optimization_level: int | None = None
    workspace_mb: int | None = None
    rebuild: bool = False  # also what is there already

    def __post_init__(self) -> None:
        if not self.specs or not self.targets:
            raise UsageError("nothing to build", fix="give a loop count and a size")
        self.options(None)  # checks the numbers in it
        if self.frontend is Frontend.TORCH_TENSORRT and self.layout != Layout():
            raise UsageError(
                f"--layout {self.layout} with --frontend torch-tensorrt",
                fix="layouts are those of ONNX graphs",
            )

    def options(self, target: str | None) -> BuildOptions:
        return BuildOptions(
            device=self.device,
            target=target,
            optimization_level=self.optimization_level,
            workspace_mb=self.workspace_mb,
        )

    def __len__(self) -> int:
        return len(self.specs) * len(self.targets)


class Built(NamedTuple):
    """What became of one engine of the matrix."""

    key: str
    manifest: Manifest | None  # None where it failed
    fresh: bool  # False: it was in the store already
    error: CmudrnError | None


OnStep = Callable[[str, BuildStep], None]  # gets an engine's key and how far its build is


def compile_engines(
    job: CompileJob,
    checkpoint: Checkpoint,
    library: Library,
    store: EngineStore,
    *,
    on_step: OnStep = lambda key, step: None,
) -> Iterator[Built]:
    """Builds what the store doesn't hold yet, one after the other; one that fails doesn't stop the others.

    on_step: called from another thread.
    Raises before the first build what would fail them all: UsageError, EnvironmentMissing, CheckpointError
    for weights that aren't this network's, EngineError for a store that cannot be written.
    """
    check_tensors(checkpoint, "weights")
    for target in job.targets:
        check_target(library, target)
    if job.frontend is Frontend.TORCH_TENSORRT and library.flavor is not Flavor.TENSORRT:
        raise UsageError("--frontend torch-tensorrt builds TensorRT engines", fix="--flavor tensorrt")
    if job.device is not None and library.flavor is not Flavor.TENSORRT:
        raise UsageError(
            f"--device {job.device}: {library.flavor.label} builds on no GPU",
            fix="leave it out, and say what for: --target; or --flavor tensorrt",
        )
    gpu = local_gpu(job.device or "0") if library.flavor is Flavor.TENSORRT else None
    store.prepare()
    compiler = Compiler(job, checkpoint, library, gpu, store, on_step)
    return (compiler.engine(spec, target) for spec in job.specs for target in job.targets)


@dataclass(frozen=True)
class Compiler:
    """What all engines of a matrix share."""

    job: CompileJob
    checkpoint: Checkpoint
    library: Library
    gpu: Gpu | None
    store: EngineStore
    on_step: OnStep

    def engine(self, spec: EngineSpec, target: str | None) -> Built:
        """From the store where it is there, else built and put there."""
        key = engine_key(spec, self.library.flavor, self.library.version, self.built_for(target))
        self.on_step(key, BuildStep("graph", 0, 1))
        try:
            return self.kept_or_built(key, spec, target)
        except (BuildError, EngineError, CheckpointError) as exc:
            # Anew: the caught one holds the compiler by its frames, and TensorRT knows one log at a time.
            return Built(key, None, fresh=True, error=type(exc)(exc.what, fix=exc.fix))

    def built_for(self, target: str | None) -> str:
        return self.gpu.target if self.gpu else target or PORTABLE

    def kept_or_built(self, key: str, spec: EngineSpec, target: str | None) -> Built:
        network = network_bytes(self.job.frontend, self.checkpoint, spec, self.job.layout)
        graph_sha256 = hashlib.sha256(network).hexdigest()
        options = self.job.options(target)
        kept = None if self.job.rebuild else self.kept(key, graph_sha256, options)
        if kept:
            return Built(key, kept, fresh=False, error=None)
        built_at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        plan = self.plan(key, spec, network, options)
        layers = check_layers(plan.layers, spec.precision)
        manifest = Manifest(
            spec=spec,
            layout=self.job.layout,
            frontend=self.job.frontend,
            flavor=self.library.flavor,
            version=self.library.version,
            target=self.built_for(target),
            gpu=self.gpu.name if self.gpu else None,
            plan_sha256=hashlib.sha256(plan.data).hexdigest(),
            plan_bytes=len(plan.data),
            graph_sha256=graph_sha256,
            weights_sha256=self.checkpoint.sha256,
            optimization_level=options.optimization_level,
            workspace_mb=options.workspace_mb,
            built_at=built_at,
            seconds=round(plan.seconds, 3),
            layers=layers,
        )
        self.store.put(plan.data, manifest)
        return Built(key, manifest, fresh=True, error=None)

    def kept(self, key: str, graph_sha256: str, options: BuildOptions) -> Manifest | None:
        """The store's engine, where a build would make the same again."""
        try:
            manifest = self.store.verify(key)
        except EngineError:  # none, or one that `put` replaces
            return None
        told = manifest.optimization_level, manifest.workspace_mb
        same = told == (options.optimization_level, options.workspace_mb)
        if same and (manifest.graph_sha256, manifest.version) == (graph_sha256, self.library.version):
            return manifest
        return None

    def plan(self, key: str, spec: EngineSpec, network: bytes, options: BuildOptions) -> Plan:
        if self.job.frontend is Frontend.TORCH_TENSORRT:
            from cmudrn.engines.torch_frontend import plan_by_torch_tensorrt

            with current_gpu(options.device or "0"):
                return plan_by_torch_tensorrt(self.library, network, spec, options)
        version, gpu = self.library.version, self.gpu
        plan = build_plan(
            self.library,
            network,
            options,
            on_step=lambda step: self.on_step(key, step),
            timing_cache=self.store.timing_cache(gpu.name, version) if gpu else None,
        )
        if gpu and plan.timing_cache:
            self.store.keep_timing_cache(gpu.name, version, plan.timing_cache)
        return plan


def network_bytes(frontend: Frontend, checkpoint: Checkpoint, spec: EngineSpec, layout: Layout) -> bytes:
    """What the compiler reads: a serialized ONNX graph, or a saved torch.export program."""
    if frontend is Frontend.ONNX:
        return typed_graph(checkpoint, spec, layout)
    from cmudrn.engines.torch_frontend import exported_program

    return exported_program(checkpoint, spec)
