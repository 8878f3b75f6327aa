"""Backends that take images of any size, beside the engines: our kernels, ONNX Runtime, OpenVINO, PyTorch."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from cmudrn.checkpoint import read_checkpoint
from cmudrn.deploy.backend import Backend
from cmudrn.deploy.job import CPU, BackendName, InferJob
from cmudrn.deploy.native.library import chosen_isa
from cmudrn.engines.certificate import ParityCertificate
from cmudrn.engines.layout import FOR_ONNX_RUNTIME, Layout
from cmudrn.engines.spec import EngineSpec, Output, Pixel, Precision
from cmudrn.engines.store import EngineStore
from cmudrn.errors import EngineError, EnvironmentMissing, UsageError

__all__ = ["PRECISIONS", "bf16_is_certified", "graph_of", "open_backend", "precision_of", "torch_device"]

# What each can compute in.
PRECISIONS: Mapping[BackendName, tuple[Precision, ...]] = {
    BackendName.NATIVE: (Precision.FP32, Precision.BF16),
    BackendName.ONNX: (Precision.FP32,),
    BackendName.OPENVINO: (Precision.FP32, Precision.BF16),
    BackendName.TORCH: (Precision.FP32,),
}


def open_backend(name: BackendName, job: InferJob, spec: EngineSpec) -> Backend:
    """One that takes any size, to be entered. Raises CheckpointError or EnvironmentMissing."""
    told = job.backend
    if name is BackendName.TORCH:
        from cmudrn.deploy.torch import TorchBackend

        return TorchBackend(
            read_checkpoint(job.weights), spec, device=torch_device(told.devices), threads=told.threads
        )
    if name is BackendName.NATIVE:
        from cmudrn.deploy.native import NativeBackend

        return NativeBackend(read_checkpoint(job.weights), spec, threads=told.threads)
    graph = graph_of(job.weights, job.loops, spec.pixel, job.layout)
    if name is BackendName.OPENVINO:
        from cmudrn.deploy.openvino import OpenVinoBackend

        return OpenVinoBackend(graph, spec, threads=told.threads)
    from cmudrn.deploy.onnxruntime import OnnxBackend

    return OnnxBackend(graph, spec, threads=told.threads, device=one_by_number(told.devices, "ONNX Runtime"))


def precision_of(name: BackendName, job: InferJob, pixel: Pixel) -> Precision:
    """What one of PRECISIONS computes a job in: what is told, else float32; OpenVINO bfloat16 if certified.

    Raises UsageError where it can't compute in what is told, EngineError for bfloat16 without a certificate,
    EnvironmentMissing where our kernels are asked for bfloat16 and can't.
    """
    told = job.precision
    if told is None:
        certified = name is BackendName.OPENVINO and bf16_is_certified(name, job, pixel)
        return Precision.BF16 if certified else Precision.FP32
    if told not in PRECISIONS[name]:
        told_a_gpu = job.backend.devices and not job.backend.on_cpu  # which no --backend native takes
        fix = "give --precision fp32" if told_a_gpu else "--backend native"
        raise UsageError(f"--precision {told.value}: {name.label} computes in fp32", fix=fix)
    if told is not Precision.BF16:
        return told
    if name is BackendName.NATIVE:
        chosen_isa(told)  # says what is missing, where it is
    if not job.backend.allow_unverified and not bf16_is_certified(name, job, pixel):
        raise EngineError(
            f"{name.label} in bf16: no parity certificate, passed, for T = {job.loops} and "
            f"{pixel.value} pixels{shortcoming(name, job, pixel)}",
            fix=f"{check_command(name, job, pixel)}, or --allow-unverified",
        )
    return told


def shortcoming(name: BackendName, job: InferJob, pixel: Pixel) -> str:
    """What the certificate of its bfloat16 says, in brackets, where it failed; else empty."""
    try:
        certificate = certificate_of(name, job, pixel)
    except (EngineError, EnvironmentMissing):  # one that cannot be read says nothing
        return ""
    if certificate is None or certificate.passed:
        return ""
    return f" ({', '.join(certificate.failures)})"


def check_command(name: BackendName, job: InferJob, pixel: Pixel) -> str:
    """What certifies its bfloat16 for the job."""
    parts = [f"cmudrn parity-check --backend {name.value} --precision bf16 --loops {job.loops}"]
    parts += [] if pixel is Pixel.UINT8 else [f"--pixel {pixel.value}"]
    parts += [] if job.output is Output.FUSED else [f"--output {job.output.value}"]
    parts += [] if job.weights == "default" else [f"--weights {shlex.quote(job.weights)}"]
    parts += [] if job.backend.store is None else [f"--store {shlex.quote(str(job.backend.store))}"]
    return " ".join(parts)


def bf16_is_certified(name: BackendName, job: InferJob, pixel: Pixel) -> bool:
    """Whether `cmudrn parity-check` has passed a library's bfloat16 for this job on this processor.

    name: OPENVINO or NATIVE.
    """
    try:
        certificate = certificate_of(name, job, pixel)
        if certificate is None or not certificate.passed:
            return False
        if name is BackendName.NATIVE:
            return True  # the subject's version is that of kernels that run here
        # Imported last: most stores hold no such certificate, and each start would wait for OpenVINO.
        from cmudrn.deploy.openvino import cpu_has_bf16

        return cpu_has_bf16()
    except (EngineError, EnvironmentMissing):  # one that doesn't start: opening it will say so
        return False


def certificate_of(name: BackendName, job: InferJob, pixel: Pixel) -> ParityCertificate | None:
    """Of a library's bfloat16 for this job on this processor, passed or not; None without.

    Of graphs the usual layout is checked: another one rounds otherwise. Raises EngineError for a certificate
    that cannot be read, EnvironmentMissing for a library that isn't there.
    """
    store, of_openvino = EngineStore.default(job.backend.store), name is BackendName.OPENVINO
    if not store.folder.is_dir():
        return None
    if of_openvino and (job.layout not in (None, FOR_ONNX_RUNTIME) or not find_spec("openvino")):
        return None
    from cmudrn.deploy.parity.candidates import library_subject

    spec = EngineSpec(
        loops=job.loops, height=1, width=1, precision=Precision.BF16, pixel=pixel, output=job.output
    )
    return store.certificate(library_subject(name, spec, read_checkpoint(job.weights).sha256))


def torch_device(devices: Sequence[str]) -> str:
    """PyTorch's name for the first device told; a GPU where none is told and there is one."""
    if not devices:
        try:
            import torch
        except ImportError as exc:
            raise EnvironmentMissing(
                "--backend torch needs PyTorch", fix="pip install 'cmudrn[train]'"
            ) from exc
        return "cuda:0" if torch.cuda.is_available() else CPU
    device = one_by_number(devices, "PyTorch")
    return CPU if device in (None, CPU) else f"cuda:{device}"


def one_by_number(devices: Sequence[str], library: str) -> str | None:
    """The device told: cpu, or a GPU's number; None without. Raises UsageError for bus ids and several."""
    if len(devices) > 1 or not all(name == CPU or (name.isascii() and name.isdecimal()) for name in devices):
        told = " --device ".join(devices)
        raise UsageError(
            f"--device {told}: {library} takes one, by number", fix="--device 0, or --device cpu"
        )
    return devices[0] if devices else None


def graph_of(weights: str, loops: int, pixel: Pixel, layout: Layout | None = None) -> Path | bytes:
    """The shipped graph of the default weights, which needs nothing more, or one made of a checkpoint.

    layout: None is that of the shipped ones.
    """
    layout = layout or FOR_ONNX_RUNTIME
    if weights == "default" and layout == FOR_ONNX_RUNTIME:
        from cmudrn.deploy.graphs import shipped_graph

        return shipped_graph(loops, pixel)
    checkpoint = read_checkpoint(weights)
    try:
        from cmudrn.engines.graph import dynamic_graph
    except ImportError as exc:
        raise EnvironmentMissing(
            f"--weights {weights}: making a graph of them needs onnx", fix="pip install onnx"
        ) from exc
    return dynamic_graph(checkpoint, loops=loops, pixel=pixel, layout=layout)
