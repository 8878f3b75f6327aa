"""Backends that take images of any size, beside the engines: ONNX Runtime, OpenVINO, PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from cmudrn.checkpoint import read_checkpoint
from cmudrn.deploy.backend import Backend
from cmudrn.deploy.job import CPU, BackendName, InferJob
from cmudrn.engines.layout import FOR_ONNX_RUNTIME, Layout
from cmudrn.engines.spec import EngineSpec, Pixel, Precision
from cmudrn.engines.store import EngineStore
from cmudrn.errors import EngineError, EnvironmentMissing, UsageError

__all__ = ["bf16_is_certified", "graph_of", "open_backend", "torch_device"]


def open_backend(name: BackendName, job: InferJob, spec: EngineSpec) -> Backend:
    """One that takes any size, to be entered. Raises CheckpointError or EnvironmentMissing."""
    told = job.backend
    if name is BackendName.TORCH:
        from cmudrn.deploy.torch import TorchBackend

        return TorchBackend(
            read_checkpoint(job.weights), spec, device=torch_device(told.devices), threads=told.threads
        )
    graph = graph_of(job.weights, job.loops, spec.pixel, job.layout)
    if name is BackendName.OPENVINO:
        from cmudrn.deploy.openvino import OpenVinoBackend

        return OpenVinoBackend(graph, spec, threads=told.threads)
    from cmudrn.deploy.onnxruntime import OnnxBackend

    return OnnxBackend(graph, spec, threads=told.threads, device=one_by_number(told.devices, "ONNX Runtime"))


def bf16_is_certified(job: InferJob, pixel: Pixel) -> bool:
    """Whether `cmudrn parity-check` has passed OpenVINO's bfloat16 for this job on this processor.

    It checks the usual layout: another one rounds otherwise.
    """
    store = EngineStore.default(job.backend.store)
    if job.layout not in (None, FOR_ONNX_RUNTIME) or not find_spec("openvino") or not store.folder.is_dir():
        return False
    from cmudrn.deploy.parity.candidates import library_subject

    spec = EngineSpec(
        loops=job.loops, height=1, width=1, precision=Precision.BF16, pixel=pixel, output=job.output
    )
    try:
        subject = library_subject(BackendName.OPENVINO, spec, read_checkpoint(job.weights).sha256)
        certificate = store.certificate(subject)
        if certificate is None or not certificate.passed:
            return False
        # Imported last: most stores hold no such certificate, and each start would wait for OpenVINO.
        from cmudrn.deploy.openvino import cpu_has_bf16

        return cpu_has_bf16()
    except (EngineError, EnvironmentMissing):  # an OpenVINO that doesn't start: opening it will say so
        return False


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
