"""What parity is checked of: engines of the store, or libraries that run the network at any size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import product

from cmudrn.checkpoint import Checkpoint
from cmudrn.deploy.any_size import PRECISIONS, graph_of, torch_device
from cmudrn.deploy.backend import Backend
from cmudrn.deploy.choice import is_target_of
from cmudrn.deploy.job import CPU, ON_CPU_ALONE, BackendName
from cmudrn.deploy.machine import library_version, processor
from cmudrn.deploy.native.library import kernels_version
from cmudrn.deploy.parity.measure import Candidate, ParityJob
from cmudrn.engines.certificate import CHECK_AGAIN, ParityCertificate, Subject
from cmudrn.engines.flavors import open_library
from cmudrn.engines.gpu import local_gpu
from cmudrn.engines.manifest import Manifest
from cmudrn.engines.plain_json import MOST_CHARS
from cmudrn.engines.spec import EngineSpec, Output, Pixel, Precision
from cmudrn.engines.store import EngineStore
from cmudrn.errors import EngineError, EnvironmentMissing, UsageError

__all__ = ["EngineCandidate", "LibraryCandidate", "Selection", "find_candidates", "library_subject"]

DEFAULT_LOOPS, DEFAULT_SIZE = 3, (256, 256)  # of libraries; height and width in pixels

# Whose version counts; our own kernels are told apart by their library's bytes.
PACKAGES: Mapping[BackendName, str] = {
    BackendName.ONNX: "onnxruntime",
    BackendName.OPENVINO: "openvino",
    BackendName.TORCH: "torch",
}


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which engines are meant; what is None, or empty, is no demand."""

    keys: tuple[str, ...] = ()  # names, or patterns such as t3-*
    loops: tuple[int, ...] | None = None
    sizes: tuple[tuple[int, int], ...] | None = None  # height, width
    precisions: tuple[Precision, ...] | None = None
    pixel: Pixel | None = None
    output: Output | None = None
    backends: tuple[BackendName, ...] = ()  # instead of engines: the above says what they compute

    def __post_init__(self) -> None:
        for backend in self.backends:
            if backend not in PRECISIONS:
                can = ", ".join(name.value for name in PRECISIONS)
                raise UsageError(
                    f"--backend {backend.value}", fix=f"choose from {can}; engines need no option"
                )
        if self.backends and self.sizes and len(self.sizes) > 1:
            raise UsageError("--backend with several sizes", fix="give one --size: they run at any")
        if self.keys and self.backends:
            raise UsageError(
                f"{self.keys[0]} and --backend {self.backends[0].value}",
                fix="check engines in one run, and backends that need none in another",
            )

    def names(self, name: str) -> bool:
        """Asked for as such, and not with others: by its key, or as a backend."""
        return bool(self.backends) or name in self.keys

    def takes(self, spec: EngineSpec) -> bool:
        """Whether an engine of this spec is meant, but for its name."""
        return (
            (self.loops is None or spec.loops in self.loops)
            and (self.sizes is None or (spec.height, spec.width) in self.sizes)
            and (self.precisions is None or spec.precision in self.precisions)
            and self.pixel in (None, spec.pixel)
            and self.output in (None, spec.output)
        )


def is_pattern(key: str) -> bool:
    return any(sign in key for sign in "*?[")


def find_candidates(
    store: EngineStore, wanted: Selection, job: ParityJob, *, device: str | None = None
) -> tuple[list[Candidate], list[EngineError]]:
    """What is meant, and what is wrong with manifests that may be meant, too.

    device: a GPU's number, for engines also its PCI bus id, for libraries also cpu; None: the first GPU.
    Raises EngineError for an engine that isn't there, and where none is meant; UsageError for what a library
    can't compute, or not there.
    """
    if wanted.backends:
        return list(library_candidates(store, wanted, job, device)), []
    if device == CPU:
        raise UsageError("--device cpu: engines run on a GPU", fix="give a GPU, or a --backend")
    found, errors = select_engines(store, wanted)
    return [EngineCandidate(manifest=one, store=store, device=device or "0") for one in found], errors


def library_candidates(
    store: EngineStore, wanted: Selection, job: ParityJob, device: str | None
) -> Iterator[LibraryCandidate]:
    """Each backend with each loop count, size and precision."""
    whole = product(
        wanted.backends,
        wanted.loops or (DEFAULT_LOOPS,),
        wanted.sizes or (DEFAULT_SIZE,),
        wanted.precisions or (Precision.FP32,),
    )
    for library, loops, (height, width), precision in whole:
        yield LibraryCandidate(
            library=library,
            spec=EngineSpec(
                loops=loops,
                height=height,
                width=width,
                precision=precision,
                pixel=wanted.pixel or Pixel.UINT8,
                output=wanted.output or Output.FUSED,
            ),
            weights=job.weights,
            checkpoint=job.checkpoint,
            store=store,
            device=device,
            threads=job.threads,
        )


def select_engines(store: EngineStore, wanted: Selection) -> tuple[list[Manifest], list[EngineError]]:
    """Those that are meant, by key, and what is wrong with manifests that may be meant, too.

    Raises EngineError for a name that isn't there, and where nothing is left.
    """
    whole, broken = store.manifests()
    errors = [error for name, error in broken if not wanted.keys or _matches(name, wanted.keys)]
    for key in wanted.keys:
        if not is_pattern(key):
            store.manifest(key)  # says why there is none
    found = [
        one for one in whole if wanted.takes(one.spec) and (not wanted.keys or _matches(one.key, wanted.keys))
    ]
    if not found and not errors:
        what = "no engine is meant by these options" if whole else "no engines"
        fix = "see `cmudrn engines list`" if whole else "`cmudrn build-engine` makes them"
        raise EngineError(f"{store.folder}: {what}", fix=f"{fix}; --backend checks what needs none")
    return found, errors


def _matches(key: str, patterns: Sequence[str]) -> bool:
    return any(key == pattern or fnmatchcase(key, pattern) for pattern in patterns)


@dataclass(frozen=True, kw_only=True)
class EngineCandidate:
    """An engine of the store; its certificate stands in its manifest."""

    manifest: Manifest
    store: EngineStore
    device: str = "0"

    @property
    def name(self) -> str:
        return self.manifest.key

    @property
    def spec(self) -> EngineSpec:
        return self.manifest.spec

    @property
    def weights_sha256(self) -> str:
        return self.manifest.weights_sha256

    def backend(self) -> Backend:
        """Raises EngineError for a plan that isn't to be trusted, or no longer the one that was listed;
        EnvironmentMissing where the library that built it or a GPU of its target isn't here.
        """
        from cmudrn.deploy.tensorrt import TensorRTBackend

        engine = self.store.load(self.name)
        if engine.manifest.plan_sha256 != self.manifest.plan_sha256:
            raise EngineError(f"{self.name}: built anew in the meantime", fix=CHECK_AGAIN)
        self._check_fit()
        return TensorRTBackend(engine, device=self.device)

    def _check_fit(self) -> None:
        """Raises EnvironmentMissing. What fits and doesn't load then is broken."""
        wanted, library = self.manifest, open_library(self.manifest.flavor)
        if library.version != wanted.version:
            raise EnvironmentMissing(
                f"{self.name}: built by version {wanted.version}, here is {library.version}",
                fix="build the engine again, or install that version",
            )
        gpu = local_gpu(self.device)
        if not is_target_of(wanted.target, gpu):
            raise EnvironmentMissing(
                f"{self.name}: for {wanted.target}, here is {gpu.name} ({gpu.target})",
                fix="check it on such a GPU, or build the engine again for this one",
            )

    def certify(self, certificate: ParityCertificate) -> None:
        self.store.certify(self.manifest, certificate)

    def withdraw(self, label: str) -> None:
        self.store.withdraw(self.manifest)


@dataclass(frozen=True, kw_only=True)
class LibraryCandidate:
    """A library and what it is to compute; its certificate is a file of its own in the store."""

    library: BackendName  # one of PRECISIONS
    spec: EngineSpec
    weights: str  # as --weights takes them
    checkpoint: Checkpoint
    store: EngineStore
    device: str | None = None  # a GPU's number, or cpu; None: a GPU where the library has one
    threads: int | None = None

    def __post_init__(self) -> None:
        precisions = PRECISIONS[self.library]
        if self.spec.precision not in precisions:
            can = " or ".join(precision.value for precision in precisions)
            raise UsageError(
                f"--precision {self.spec.precision.value} with --backend {self.library.value}",
                fix=f"give {can}",
            )
        if self.device in (None, CPU):
            return
        if self.library in ON_CPU_ALONE:
            raise UsageError(
                f"--device {self.device} with --backend {self.library.value}: it computes on the CPU",
                fix="give --device cpu, or none",
            )
        if not self.device.isdecimal():
            raise UsageError(
                f"--device {self.device} with --backend {self.library.value}: it takes a GPU's number",
                fix="give --device 0, or cpu",
            )

    @property
    def name(self) -> str:
        """Such as openvino-bf16-t3-uint8."""
        spec = self.spec
        parts = [self.library.value, spec.precision.value, f"t{spec.loops}", spec.pixel.value]
        return "-".join(parts if spec.output is Output.FUSED else [*parts, spec.output.value])

    @property
    def weights_sha256(self) -> str:
        return self.checkpoint.sha256

    def backend(self) -> Backend:
        """Raises EnvironmentMissing where the library isn't installed, or has no GPU and is told to take one;
        UsageError for a device that isn't there.
        """
        installed_version(self.library, self.spec.precision)
        if self.library is BackendName.NATIVE:
            from cmudrn.deploy.native import NativeBackend

            return NativeBackend(self.checkpoint, self.spec, threads=self.threads)
        if self.library is BackendName.TORCH:
            from cmudrn.deploy.torch import TorchBackend

            return TorchBackend(self.checkpoint, self.spec, device=self._torch_device(), threads=self.threads)
        graph = graph_of(self.weights, self.spec.loops, self.spec.pixel)
        if self.library is BackendName.OPENVINO:
            from cmudrn.deploy.openvino import OpenVinoBackend

            return OpenVinoBackend(graph, self.spec, threads=self.threads)
        from cmudrn.deploy.onnxruntime import OnnxBackend

        backend = OnnxBackend(graph, self.spec, threads=self.threads, device=self.device)
        if self.device not in (None, CPU):
            with backend as opened:  # which then only tells what it has taken
                label = opened.label
            if label.endswith(" on CPU"):
                raise EnvironmentMissing(
                    f"--device {self.device}: {label}, for it has no GPU",
                    fix="install onnxruntime-gpu, or give --device cpu",
                )
        return backend

    def certify(self, certificate: ParityCertificate) -> None:
        self.store.keep_certificate(self._subject(certificate.measured_on), certificate)

    def withdraw(self, label: str) -> None:
        self.store.withdraw_certificate(self._subject(label))

    def _subject(self, label: str) -> Subject:
        device = self._ran_on(label)
        return library_subject(self.library, self.spec, self.weights_sha256, device=device)

    def _ran_on(self, label: str) -> str:
        """As `library_subject` takes it. label: its backend's, which tells what ONNX Runtime has taken."""
        if self.library is BackendName.TORCH:
            return self._torch_device()
        where = label.rpartition(" on ")[2]
        if self.library in ON_CPU_ALONE or where == "CPU":
            return CPU
        return f"{where} {self.device or 0}"

    def _torch_device(self) -> str:
        return torch_device(() if self.device is None else (self.device,))


def library_subject(
    library: BackendName, spec: EngineSpec, weights_sha256: str, *, device: str = CPU
) -> Subject:
    """What a certificate is about: this library, as it is installed, on this processor or GPU.

    device: cpu, or a GPU as PyTorch names it, or in other words.
    Raises EnvironmentMissing where the library isn't installed.
    """
    return Subject(
        backend=library.value,
        version=installed_version(library, spec.precision),
        precision=spec.precision,
        loops=spec.loops,
        pixel=spec.pixel,
        output=spec.output,
        weights_sha256=weights_sha256,
        device=device_name(device),
    )


def installed_version(library: BackendName, precision: Precision) -> str:
    """Of what would compute in that precision here. Raises EnvironmentMissing."""
    if library is BackendName.NATIVE:
        return kernels_version(precision)
    package = PACKAGES[library]
    version = library_version(package)
    if version is None:
        raise EnvironmentMissing(
            f"--backend {library.value}: {package} is not installed", fix=f"pip install {package}"
        )
    return version


def device_name(device: str) -> str:
    """The processor's model with what it has for half precision, or the GPU's."""
    if device.startswith("cuda:"):
        import torch

        return torch.cuda.get_device_name(device)
    if device != CPU:
        return device
    cpu, flags = processor()
    return " ".join([cpu, *flags])[:MOST_CHARS]
