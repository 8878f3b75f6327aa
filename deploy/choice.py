"""Which backend a job gets, and why: engines that fit and are certified, else what there is for any size."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from cmudrn.checkpoint import read_checkpoint
from cmudrn.deploy.any_size import bf16_is_certified, precision_of
from cmudrn.deploy.job import BackendName, InferJob
from cmudrn.deploy.machine import library_version
from cmudrn.deploy.native.library import chosen_isa, is_built, what_is_broken
from cmudrn.deploy.tiling import plan_engine_tiles
from cmudrn.engines.flavors import PORTABLE, Flavor, installed_flavors, open_library
from cmudrn.engines.gpu import Gpu, count_gpus, local_gpus
from cmudrn.engines.layout import FOR_ONNX_RUNTIME
from cmudrn.engines.manifest import Manifest, certified_on
from cmudrn.engines.spec import Pixel, Precision
from cmudrn.engines.store import EngineStore
from cmudrn.errors import CmudrnError, EngineError, EnvironmentMissing, UsageError
from cmudrn.wording import counted, listed

__all__ = ["Choice", "best_engine", "choose", "choose_any_size", "is_target_of", "runs_on"]

SHOWN = 3  # engines of a list in one line
PRECISIONS = (Precision.FP16, Precision.BF16, Precision.FP32)  # of engines that fit alike, the fastest first
# Where TensorRT-RTX's plans without a target load: compute capability 8.0, 8.6, 8.9, and 12.0 and later.
PORTABLE_TARGETS = ("sm80", "sm86", "sm89")
PORTABLE_FROM = 120


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What restores a job's images."""

    backend: BackendName  # never AUTO
    why: str  # in words, after the name
    engines: tuple[Manifest, ...] = ()  # for backend = TENSORRT, at least one
    otherwise: BackendName | None = None  # for images that no engine fits; None: these fail
    note: str = ""  # why the engine that was named, or our kernels, aren't taken, in a line


def choose(job: InferJob) -> Choice:
    """The backend that the job asks for, or with AUTO the best one here.

    Raises EngineError and EnvironmentMissing where engines are asked for and none can be used, with the
    nearest reason; with AUTO that reason stands in the choice of another. Raises what `precision_of` raises
    where nothing computes in the precision told. An engine that AUTO is to take by
    name is refused without a certificate, and noted where it doesn't fit.
    """
    wanted = job.backend.name
    if wanted is BackendName.AUTO and (why_not := refusal_of_the_named(job)):
        others = replace(job, backend=replace(job.backend, engine=None))
        choice = choose(others)
        return replace(choice, note="; ".join(filter(None, (why_not, choice.note))))
    if wanted is BackendName.TENSORRT:
        return Choice(backend=wanted, why="as told", engines=usable_engines(job))
    if wanted is not BackendName.AUTO:
        precision_of(wanted, job, Pixel.UINT8)  # refuses what it can't, before an image is read
        return Choice(backend=wanted, why="as told")
    if job.backend.on_cpu:
        return without_engines(job, "told to stay on the CPU")
    try:
        engines = usable_engines(job)
    except UsageError:
        raise
    except CmudrnError as exc:
        if job.backend.engine is not None:
            raise
        return without_engines(job, exc.what)
    why = "certified" if not job.backend.allow_unverified else "certified or not, as told"
    otherwise = beside_engines(job)
    note = broken_kernels(job) if otherwise else ""
    return Choice(backend=BackendName.TENSORRT, why=why, engines=engines, otherwise=otherwise, note=note)


def without_engines(job: InferJob, why: str) -> Choice:
    """Raises what `choose_any_size` raises."""
    return Choice(backend=choose_any_size(job), why=why, note=broken_kernels(job))


def beside_engines(job: InferJob) -> BackendName | None:
    """For images that none fits; None where nothing else computes in what is told.

    Raises UsageError for a CMUDRN_ISA that can't be taken.
    """
    if job.precision is Precision.BF16 and job.backend.devices:
        return None  # a GPU is left to ONNX Runtime, which has no bfloat16
    try:
        return choose_any_size(job)
    except (EngineError, EnvironmentMissing):
        return None


def broken_kernels(job: InferJob) -> str:
    """Why our kernels are there and are passed over, in a line; empty where others go before them anyhow."""
    return what_is_broken() if is_for_native(job) else ""


def choose_any_size(job: InferJob) -> BackendName:
    """The fastest beside the engines (docs/measurements.md, "CPU backends").

    A GPU that is named is left to ONNX Runtime, whose providers may have it; so is one that isn't named,
    where a build of ONNX Runtime for GPUs is installed and there is one. Our own kernels are the CPU's first,
    where the package has them, then OpenVINO with certified bfloat16.
    Raises UsageError for a CMUDRN_ISA that can't be taken, and what `precision_of` raises.
    """
    on_cpu = job.backend.on_cpu or not job.backend.devices
    if job.precision is Precision.BF16:
        names = (BackendName.NATIVE, BackendName.OPENVINO) if on_cpu else (BackendName.ONNX,)
        return first_that_can(names, job)
    if is_for_native(job) and is_built() and chosen_isa(Precision.FP32):
        return BackendName.NATIVE
    if on_cpu and job.precision is None and bf16_is_certified(BackendName.OPENVINO, job, Pixel.UINT8):
        return BackendName.OPENVINO
    return BackendName.ONNX


def first_that_can(names: Sequence[BackendName], job: InferJob) -> BackendName:
    """Of these the first that computes in what is told; the first one's error where none does.

    Raises UsageError at once: what is told is to be mended then.
    """
    refusals = []
    for name in names:
        try:
            precision_of(name, job, Pixel.UINT8)
        except (EngineError, EnvironmentMissing) as exc:
            refusals.append(exc)
        else:
            return name
    raise refusals[0]


def is_for_native(job: InferJob) -> bool:
    """Whether our kernels go first, where they are; a layout asks for a graph."""
    if job.backend.on_cpu or not job.backend.devices:
        if job.precision is Precision.BF16:
            return True
        of_usual_layout = job.layout in (None, FOR_ONNX_RUNTIME)
        return of_usual_layout and (job.backend.on_cpu or not onnxruntime_has_a_gpu())
    return False


def onnxruntime_has_a_gpu() -> bool:
    """By the package's name: importing it to see its providers takes as long as a photograph."""
    if library_version("onnxruntime-directml"):
        return True  # of any maker: not looked for
    return bool(library_version("onnxruntime-gpu")) and count_gpus() > 0


def refusal_of_the_named(job: InferJob) -> str:
    """Why the engine that is named doesn't fit, in a line; empty where only a certificate may be missing."""
    if job.backend.engine is None:
        return ""
    if job.backend.on_cpu:
        return f"--device cpu: without the engine {job.backend.engine}"
    lenient = replace(job, backend=replace(job.backend, allow_unverified=True))
    try:
        usable_engines(lenient)
    except UsageError:
        raise
    except CmudrnError as exc:
        return exc.what
    return ""


def best_engine(
    engines: Sequence[Manifest], pixel: Pixel, size: tuple[int, int], *, overlap_px: int, images: int
) -> Manifest | None:
    """One of the image's own size, else the one with the least work for it, padding included.

    None where none fits. images: how many such ones there are: of engines that are otherwise equal, the one
    is taken whose batches they fill best. Then half precision goes first.
    """

    def tiles(engine: Manifest) -> int:
        spec = engine.spec
        plan = plan_engine_tiles(*size, tile=(spec.height, spec.width), overlap_px=overlap_px)
        return len(plan) if plan else 0

    def rank(engine: Manifest) -> tuple[bool, int, int, int, int, str]:
        spec, count = engine.spec, tiles(engine)
        filled = -(-count * images // spec.batch) * spec.batch  # tiles of all images, and of the last batch
        return (
            (spec.height, spec.width) != size,
            count * spec.height * spec.width,
            filled,
            PRECISIONS.index(spec.precision),
            -spec.batch,
            engine.key,
        )

    return min((one for one in engines if one.spec.pixel is pixel and tiles(one)), key=rank, default=None)


def usable_engines(job: InferJob) -> tuple[Manifest, ...]:
    """The store's engines for this job on these GPUs, at least one.

    Leaves those that fit, one demand after the other; the first that leaves none is the error's reason. What
    is slow to ask, the library and the driver, is asked after the store.
    """
    store, told = EngineStore.default(job.backend.store), job.backend
    left, broken = store.manifests()

    def demand(fits: Callable[[Manifest], bool], what: str, fix: str) -> None:
        nonlocal left
        before, left = left, [one for one in left if fits(one)]
        if not left:
            there = f"; there are {listed([one.key for one in before], most=SHOWN)}" if before else ""
            unread = f"; {counted(len(broken), 'manifest')} cannot be read" if broken else ""
            raise EngineError(f"{store.folder}: no engine {what}{there}{unread}", fix=fix)

    build = build_command(job)
    if told.engine is not None:
        demand(lambda one: one.key == told.engine, f"named {told.engine}", "see `cmudrn engines list`")
    demand(lambda one: one.spec.loops == job.loops, f"for T = {job.loops}", build)
    weights = read_checkpoint(job.weights).sha256
    demand(lambda one: one.weights_sha256 == weights, f"of weights {weights[:12]}", build)
    demand(lambda one: one.spec.output is job.output, f"for the {job.output.value} image", build)
    if job.tile_px is not None:
        side = job.tile_px
        demand(
            lambda one: max(one.spec.height, one.spec.width) <= side,
            f"of {side} pixels a side or less",
            "give a larger --tile, or none",
        )
    if job.batch is not None:
        most = job.batch
        demand(
            lambda one: one.spec.batch <= most, f"of batch {most} or less", "give a larger --batch, or none"
        )
    if job.precision is not None:
        precision = job.precision
        demand(lambda one: one.spec.precision is precision, f"of {precision.value}", build)
    versions = library_versions()
    demand(
        lambda one: versions.get(one.flavor) == one.version,
        "of " + " or ".join(f"{flavor.value} {version}" for flavor, version in versions.items()),
        build,
    )
    gpus = local_gpus(told.devices or ("0",))
    names = listed(sorted({f"{gpu.name} ({gpu.target})" for gpu in gpus}))
    demand(lambda one: all(runs_on(one, gpu) for gpu in gpus), f"for {names}", build)
    if not told.allow_unverified:
        demand(
            lambda one: all(certified_on(one, gpu) for gpu in gpus),
            f"with a parity certificate that it has passed{shortcoming(left)}",
            f"cmudrn parity-check {left[0].key}, or --allow-unverified",
        )
    return tuple(left)


def shortcoming(engines: Sequence[Manifest]) -> str:
    """What the first certificate that failed says, in brackets; empty where none did."""
    failed = (one for one in engines if one.parity is not None and not one.parity.passed)
    first = next(failed, None)
    if first is None or first.parity is None:
        return ""
    return f" ({first.key}: {', '.join(first.parity.failures)})"


def runs_on(engine: Manifest, gpu: Gpu) -> bool:
    """Whether the engine's target is this GPU, as far as that can be known before it is loaded."""
    return is_target_of(engine.target, gpu)


def is_target_of(target: str, gpu: Gpu) -> bool:
    """Whether what is built for that target runs on this GPU."""
    if target != PORTABLE:
        return target == gpu.target
    number = gpu.target.removeprefix("sm")
    return gpu.target in PORTABLE_TARGETS or (number.isdigit() and int(number) >= PORTABLE_FROM)


def library_versions() -> dict[Flavor, str]:
    """Of the flavours that can be imported. Raises EnvironmentMissing where there is none."""
    versions, refusals = {}, []
    for flavor in installed_flavors():
        try:
            versions[flavor] = open_library(flavor).version
        except EnvironmentMissing as exc:
            refusals.append(exc)
    if not versions:
        if refusals:
            raise refusals[0]
        open_library()  # says what to install
    return versions


def build_command(job: InferJob) -> str:
    """What builds an engine for the job; of which size, only the images can tell."""
    parts = [f"cmudrn build-engine --loops {job.loops} --size {job.tile_px or 500}"]
    if job.output.value != "fused":
        parts.append(f"--output {job.output.value}")
    if job.precision is not None:
        parts.append(f"--precision {job.precision.value}")
    if job.weights != "default":
        parts.append(f"--weights {shlex.quote(job.weights)}")
    if job.backend.store is not None:
        parts.append(f"--store {shlex.quote(str(job.backend.store))}")
    return " ".join(parts)
