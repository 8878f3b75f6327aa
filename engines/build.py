"""A typed graph to a plan, by TensorRT or TensorRT-RTX: the same code for both, and for both majors.

The network is strongly typed: the graph's own types are the precision, and no builder flag changes them
(TensorRT 11 has none left). What came out is read back layer by layer, and must be what was asked for.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from cmudrn.engines.flavors import Flavor, Library
from cmudrn.engines.layers import Layer, LayerSummary, layers_from_inspector, layers_from_log, summarize
from cmudrn.engines.spec import Precision
from cmudrn.errors import BuildError, EnvironmentMissing, UsageError

if TYPE_CHECKING:  # either flavour, by the name of the one that has stubs
    import tensorrt as trt

__all__ = ["BuildOptions", "BuildStep", "Plan", "build_plan", "check_layers", "targets_of"]

LEAST_SHARE = 0.9  # of the computing layers, those in the engine's precision
SHOWN_REASONS = 5


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """What a compiler is told beside the graph. Checks itself."""

    target: str | None = None  # TensorRT-RTX: sm75 ... sm121; None: every GPU from compute capability 8.0 on
    optimization_level: int | None = None  # 0 quick, 5 thorough; None: the library's own
    workspace_mb: int | None = None  # of GPU memory, for a layer's intermediate results; None: no limit

    def __post_init__(self) -> None:
        if self.optimization_level is not None and not 0 <= self.optimization_level <= 5:
            raise UsageError(f"--optimization-level {self.optimization_level}", fix="give 0 to 5")
        if self.workspace_mb is not None and self.workspace_mb < 1:
            raise UsageError(f"--workspace {self.workspace_mb}", fix="give megabytes, 1 or more")


class BuildStep(NamedTuple):
    """How far a phase of a build is; phases may lie inside others."""

    phase: str
    done: int
    of: int  # steps in the phase; done = of ends it


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


def build_plan(
    library: Library,
    graph: bytes,
    options: BuildOptions,
    *,
    on_step: Callable[[BuildStep], None] = lambda step: None,
    timing_cache: bytes | None = None,
) -> Plan:
    """Compiles a serialized ONNX graph. Ctrl-C cancels within one of the builder's steps.

    on_step: called from another thread. timing_cache: of the same GPU and version; TensorRT only.
    Raises BuildError with the compiler's own reasons, UsageError for a target that it doesn't have.
    """
    check_target(library, options.target)
    cancelled = threading.Event()
    # In a thread of its own: the main one sees Ctrl-C only in Python's code, and a build is one long call.
    with ThreadPoolExecutor(1, "build") as executor:
        building = executor.submit(_build, library, graph, options, timing_cache, on_step, cancelled)
        try:
            return building.result()
        except KeyboardInterrupt:
            cancelled.set()
            raise


def check_target(library: Library, target: str | None) -> None:
    known = targets_of(library)
    if target is None or target in known:
        return
    if not known:
        raise UsageError(
            f"--target {target}: TensorRT builds for the GPU it runs on", fix="leave it out, or --flavor rtx"
        )
    raise UsageError(f"--target {target}", fix=f"give one of {', '.join(known)}; without: sm80 and later")


def check_layers(layers: Sequence[Layer], precision: Precision) -> LayerSummary:
    """Raises BuildError where what was compiled is not of the precision that was asked for."""
    summary = summarize(layers, precision)
    if not summary.computing:
        raise BuildError(
            "the compiler told nothing of its layers, so their precision cannot be checked",
            fix="report it with the library's version",
        )
    if summary.share < LEAST_SHARE:
        others = [layer.name for layer in layers if layer.computes and not layer.in_precision(precision)]
        raise BuildError(
            f"only {summary.share:.0%} of the layers compute in {precision.value}, not {LEAST_SHARE:.0%}: "
            f"{_listed(others)} do not",
            fix="report it with the library's version; --precision fp32 builds without half precision",
        )
    return summary


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
    log = make_log(library)
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
        raise BuildError(f"the graph was refused: {_parser_errors(parser)}", fix=_report(library))
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.progress_monitor = make_monitor(library, on_step, cancelled)
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
    if options.workspace_mb is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mb << 20)
    if library.flavor is Flavor.TENSORRT:
        config.set_timing_cache(config.create_timing_cache(timing_cache or b""), ignore_mismatch=False)
    elif options.target is not None:
        _set_target(library, config, options.target)
    data = builder.build_serialized_network(network, config)
    if data is None:
        if cancelled.is_set():
            raise BuildError("the build was cancelled")
        raise BuildError(f"{library.flavor.value} built nothing: {log.reasons()}", fix=_report(library))
    seconds = time.perf_counter() - began
    plan = bytes(data)
    if library.flavor is Flavor.RTX:
        return Plan(plan, seconds, layers_from_log(log.messages), None)
    measured = bytes(config.get_timing_cache().serialize())
    return Plan(plan, seconds, inspect_plan(library, plan), measured)


def inspect_plan(library: Library, plan: bytes) -> list[Layer]:
    """Loads a plan of this GPU and version for its layers. Raises BuildError where it doesn't load."""
    if not TYPE_CHECKING:
        trt = library.module
    log = make_log(library)
    engine = trt.Runtime(log).deserialize_cuda_engine(plan)
    if engine is None:
        raise BuildError(f"the plan does not load again: {log.reasons()}", fix=_report(library))
    inspector = engine.create_engine_inspector()
    try:
        return layers_from_inspector(inspector.get_engine_information(trt.LayerInformationFormat.JSON))
    except ValueError as exc:
        raise BuildError(f"the engine inspector: {exc}", fix=_report(library)) from exc


def make_log(library: Library) -> Any:
    """A logger that prints nothing and keeps all: `messages`, and `reasons()` for why something failed."""
    if not TYPE_CHECKING:
        trt = library.module

    class Log(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.messages: list[str] = []
            self.errors: list[str] = []

        def log(self, severity: trt.ILogger.Severity, message: str) -> None:
            self.messages.append(message)
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                self.errors.append(" ".join(message.split()))

        def reasons(self) -> str:
            return _listed(self.errors) or "it gave no reason"

    return Log()


def make_monitor(library: Library, on_step: Callable[[BuildStep], None], cancelled: threading.Event) -> Any:
    """Passes a build's progress on, and ends it where it is cancelled."""
    if not TYPE_CHECKING:
        trt = library.module

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.steps[phase_name] = num_steps
            on_step(BuildStep(phase_name, 0, num_steps))

        def step_complete(self, phase_name: str, step: int) -> bool:
            on_step(BuildStep(phase_name, step + 1, self.steps[phase_name]))
            return not cancelled.is_set()

        def phase_finish(self, phase_name: str) -> None:
            on_step(BuildStep(phase_name, self.steps[phase_name], self.steps[phase_name]))

    return Monitor()


def _set_target(library: Library, config: Any, target: str) -> None:
    config.num_compute_capabilities = 1
    config.set_compute_capability(library.module.ComputeCapability.__members__[target.upper()], 0)


def _parser_errors(parser: trt.OnnxParser) -> str:
    errors: Iterator[trt.ParserError] = (parser.get_error(i) for i in range(parser.num_errors))
    return _listed([f"{error.node_name()} ({error.node_operator()}): {error.desc()}" for error in errors])


def _listed(reasons: Sequence[str]) -> str:
    shown = "; ".join(reasons[:SHOWN_REASONS])
    return shown if len(reasons) <= SHOWN_REASONS else f"{shown}; and {len(reasons) - SHOWN_REASONS} more"


def _report(library: Library) -> str:
    return f"report it with the version of {library.flavor.value}: {library.version}"
