"""A typed graph to a plan, by TensorRT or TensorRT-RTX: the same code for both, and for both majors.

The network is strongly typed: the graph's own types are the precision, and no builder flag changes them
(TensorRT 11 has none left). What came out is read back layer by layer: see `layers.check_layers`.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from cmudrn.engines.callbacks import BuildStep, make_log, make_monitor
from cmudrn.engines.context import current_gpu
from cmudrn.engines.flavors import Flavor, Library
from cmudrn.engines.layers import Layer, layers_from_inspector, layers_from_log
from cmudrn.errors import BuildError, EnvironmentMissing, UsageError
from cmudrn.wording import listed

if TYPE_CHECKING:
    import tensorrt as trt

__all__ = ["MOST_WORKSPACE_MB", "BuildOptions", "Plan", "build_plan", "check_target", "inspect_plan"]

MOST_WORKSPACE_MB = 1 << 24


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """What a compiler is told beside the graph. Checks itself."""

    device: str | None = None  # TensorRT: a GPU's number or PCI bus id; None: the first
    target: str | None = None  # TensorRT-RTX: sm75 ... sm121; None: see flavors.PORTABLE
    optimization_level: int | None = None  # 0 quick, 5 thorough; None: the library's own
    workspace_mb: int | None = None  # of GPU memory, for a layer's intermediate results; None: no limit

    def __post_init__(self) -> None:
        if self.optimization_level is not None and not 0 <= self.optimization_level <= 5:
            raise UsageError(f"--optimization-level {self.optimization_level}", fix="give 0 to 5")
        if self.workspace_mb is not None and not 1 <= self.workspace_mb <= MOST_WORKSPACE_MB:
            raise UsageError(f"--workspace {self.workspace_mb}", fix=f"give 1 to {MOST_WORKSPACE_MB:,} MB")


class Plan(NamedTuple):
    """A compiled engine."""

    data: bytes  # as trtexec and Triton read it
    seconds: float
    layers: Sequence[Layer]
    timing_cache: bytes | None  # TensorRT's, with what this build has measured


def targets_of(library: Library) -> list[str]:
    """The GPUs that a flavour builds for without having one: sm75 and so on; none for TensorRT."""
    if library.flavor is not Flavor.RTX:
        return []
    names = library.module.ComputeCapability.__members__
    return sorted((name.lower() for name in names if name.startswith("SM")), key=lambda name: int(name[2:]))


def check_target(library: Library, target: str | None) -> None:
    """Raises UsageError for a target that the flavour doesn't build for."""
    known = targets_of(library)
    if target is None or target in known:
        return
    if not known:
        raise UsageError(
            f"--target {target}: TensorRT builds for the GPU it runs on", fix="leave it out, or --flavor rtx"
        )
    raise UsageError(f"--target {target}", fix=f"give one of {', '.join(known)}, or leave it out")


def build_plan(
    library: Library,
    graph: bytes,
    options: BuildOptions,
    *,
    on_step: Callable[[BuildStep], None] = lambda step: None,
    timing_cache: bytes | None = None,
) -> Plan:
    """Compiles a serialized ONNX graph. Ctrl-C cancels within one of the builder's steps.

    on_step: called from another thread; what it raises ends the build and is raised here.
    timing_cache: of the same GPU and version; TensorRT only.
    Raises BuildError with the compiler's own reasons, UsageError for a target that it doesn't have.
    """
    check_target(library, options.target)
    cancelled = threading.Event()
    # In a thread of its own: the main one sees Ctrl-C only in Python's code, and a build is one long call.
    with ThreadPoolExecutor(1, "build") as executor:
        try:
            building = executor.submit(
                _build_there, library, graph, options, timing_cache, on_step, cancelled
            )
            return building.result()
        except BaseException:
            cancelled.set()
            with _deaf_to_interrupts():  # a second Ctrl-C would end Python around a compiler that still runs
                executor.shutdown()
            raise


@contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


def _build_there(library: Library, graph: bytes, options: BuildOptions, *others: Any) -> Plan:
    """As `_build`, on the GPU of the options. TensorRT takes the one that is current in its thread."""
    if library.flavor is Flavor.RTX:
        return _build(library, graph, options, *others)
    with current_gpu(options.device or "0"):
        return _build(library, graph, options, *others)


def _build(
    library: Library,
    graph: bytes,
    options: BuildOptions,
    timing_cache: bytes | None,
    on_step: Callable[[BuildStep], None],
    cancelled: threading.Event,
) -> Plan:
    if not TYPE_CHECKING:
        trt = library.module
    log, monitor = make_log(library), make_monitor(library, on_step, cancelled)
    began = time.perf_counter()
    try:
        builder = trt.Builder(log)
    except TypeError as exc:  # pybind11's word for a null pointer
        raise EnvironmentMissing(
            f"{library.flavor.value} {library.version} cannot start: {log.reasons()}",
            fix="run it where its GPU and driver are, or build with --flavor rtx, which needs none",
        ) from exc
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)  # holds the weights until the build is done
    if not parser.parse(graph):
        raise BuildError(f"the graph was refused: {_parser_errors(parser)}", fix=_ways_out(library))
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.progress_monitor = monitor
    config.clear_flag(trt.BuilderFlag.TF32)  # on by default: FP32 engines would compute with FP16's mantissa
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
    if options.workspace_mb is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mb << 20)
    timings = None
    if library.flavor is Flavor.TENSORRT:
        timings = _begin_timings(config, timing_cache)
    else:
        # Without it, what such an engine does can't be recorded as a CUDA graph (TensorRT-RTX 1.2's notes).
        config.set_flag(library.module.BuilderFlag.REQUIRE_USER_ALLOCATION)
        if options.target is not None:
            _set_target(library, config, options.target)
    data = builder.build_serialized_network(network, config)
    if monitor.failure:
        raise monitor.failure
    if data is None:
        if cancelled.is_set():
            raise BuildError("the build was cancelled", fix="run it again")
        raise BuildError(f"{library.flavor.value} built nothing: {log.reasons()}", fix=_ways_out(library))
    seconds, plan = time.perf_counter() - began, bytes(data)
    if library.flavor is Flavor.RTX:
        return Plan(plan, seconds, layers_from_log(log.messages), None)
    measured = bytes(timings.serialize()) if timings else None
    return Plan(plan, seconds, inspect_plan(library, plan, log), measured)


def inspect_plan(library: Library, plan: bytes, log: Any = None) -> list[Layer]:
    """Loads a plan of this GPU and version for its layers. Raises BuildError where it doesn't load.

    log: of `make_log`; that of a builder that is still there, for TensorRT knows one log at a time.
    """
    if not TYPE_CHECKING:
        trt = library.module
    log = log or make_log(library)
    engine = trt.Runtime(log).deserialize_cuda_engine(plan)
    if engine is None:
        raise BuildError(f"the plan does not load again: {log.reasons()}", fix=_ways_out(library))
    inspector = engine.create_engine_inspector()
    try:
        return layers_from_inspector(inspector.get_engine_information(trt.LayerInformationFormat.JSON))
    except ValueError as exc:
        raise BuildError(f"the engine inspector: {exc}", fix=_ways_out(library)) from exc


def _begin_timings(config: trt.IBuilderConfig, kept: bytes | None) -> trt.ITimingCache | None:
    """What was measured before, where TensorRT takes it; else a new cache, else none: it measures again."""
    for data in (kept, b"") if kept else (b"",):
        cache = config.create_timing_cache(data)
        if cache is not None and config.set_timing_cache(cache, ignore_mismatch=False):
            return cache
    return None


def _set_target(library: Library, config: Any, target: str) -> None:
    config.num_compute_capabilities = 1
    config.set_compute_capability(library.module.ComputeCapability.__members__[target.upper()], 0)


def _parser_errors(parser: trt.OnnxParser) -> str:
    errors = (parser.get_error(i) for i in range(parser.num_errors))
    reasons = [
        f"{error.node_name()} ({error.node_operator()}): {error.desc()}"
        if error.node_name()
        else error.desc()
        for error in errors
    ]
    return listed(reasons, most=5, between="; ")


def _ways_out(library: Library) -> str:
    return (
        "a smaller --size or --batch, or another --precision or --target may do; "
        f"else report it with the version of {library.flavor.value}: {library.version}"
    )
