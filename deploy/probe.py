"""What a part of the installation says of itself, asked in a process of its own: what breaks ends there.

`ask` starts the process, `answer` is what runs in it. Nothing heavy is imported outside the questions.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.machinery import PathFinder
from importlib.util import find_spec
from typing import Any

from cmudrn.errors import CmudrnError, DeviceError
from cmudrn.wording import one_line

__all__ = ["MODULES", "Answer", "answer", "ask"]

LONGEST_S = 30.0  # a first import of PyTorch from a cold disk takes most of it
# Without the working folder, which `-c` searches first: its files may be named after libraries.
CODE = "import sys; sys.path = [p for p in sys.path if p]; from cmudrn.deploy.probe import answer; answer()"
NATIVE_LIMIT = 1e-5  # of images in [0, 1]: what float32 may round otherwise
COMPUTE_CAPABILITY = (75, 76)  # CUdevice_attribute: major and minor
Facts = dict[str, Any]  # plain values: they travel as JSON


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What came back."""

    installed: bool = True
    facts: Mapping[str, Any] = field(default_factory=dict)
    failure: str = ""  # in a line, why there are no facts of what is installed


def ask(part: str, *, timeout_s: float = LONGEST_S) -> Answer:
    """A part of PROBES. Never raises for what a broken installation does."""
    if part in MODULES and not _is_installed(MODULES[part]):
        return Answer(installed=False)
    process = subprocess.Popen(
        [sys.executable, "-c", CODE, part],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,  # with all that it starts: a child that lives on would hold the pipes
    )
    try:
        said, complained = process.communicate(timeout=timeout_s)
    except BaseException as exc:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        if isinstance(exc, subprocess.TimeoutExpired):
            return Answer(failure=f"no answer within {timeout_s:g} s")
        raise
    try:
        return Answer(**json.loads(said))
    except ValueError:
        return Answer(failure=_how_it_ended(process.returncode, complained))


def _is_installed(module: str) -> bool:
    """Without importing any of it. A folder that only has the name, as some packages leave, is none."""
    package, _, rest = module.partition(".")
    spec = find_spec(package)
    if spec and rest:
        spec = PathFinder.find_spec(module, spec.submodule_search_locations)
    return bool(spec and spec.origin)


def _how_it_ended(code: int, complained: bytes) -> str:
    if code < 0:
        return f"importing it ended the process: {signal.Signals(-code).name}"
    lines = complained.decode(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), f"exit code {code}")


def answer() -> None:
    """In the process: answers on what was its standard output, and leaves without its libraries' ends."""
    channel = os.dup(1)
    os.dup2(2, 1)  # whatever libraries print
    said: Facts
    try:
        said = {"facts": PROBES[sys.argv[1]]()}
    except BaseException as exc:  # noqa: BLE001 (SystemExit too: a package may do anything at its import)
        said = {"failure": _in_a_line(exc)}
    with os.fdopen(channel, "w", encoding="utf-8") as out:
        json.dump(said, out)
    sys.stderr.flush()
    os._exit(0)


def _in_a_line(error: BaseException) -> str:
    if isinstance(error, CmudrnError):
        return error.what
    text = one_line(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _driver() -> Facts:
    """CUDA's driver by its own library, for pycuda may be missing. Takes no memory on any GPU."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError as exc:
        return {"absent": str(exc)}
    version, count = ctypes.c_int(), ctypes.c_int()
    result = cuda.cuDriverGetVersion(ctypes.byref(version)) or cuda.cuInit(0)
    result = result or cuda.cuDeviceGetCount(ctypes.byref(count))
    facts = {"release": _driver_release(), "cuda": f"{version.value // 1000}.{version.value % 1000 // 10}"}
    if result:
        name = ctypes.c_char_p()
        cuda.cuGetErrorName(result, ctypes.byref(name))
        return {**facts, "error": name.value.decode() if name.value else f"CUDA error {result}"}
    return {**facts, "gpus": [_gpu(cuda, number) for number in range(count.value)]}


def _gpu(cuda: ctypes.CDLL, number: int) -> Facts:
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    name, memory = ctypes.create_string_buffer(256), ctypes.c_size_t()
    cuda.cuDeviceGet(ctypes.byref(device), number)
    cuda.cuDeviceGetName(name, len(name), device)
    cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    for value, attribute in zip((major, minor), COMPUTE_CAPABILITY, strict=True):
        cuda.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
    return {
        "name": name.value.decode(errors="replace"),
        "target": f"sm{major.value}{minor.value}",
        "memory_mb": memory.value >> 20,
    }


def _driver_release() -> str | None:
    """Such as 580.65.06, by NVML; None where that is missing."""
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None
    release = ctypes.create_string_buffer(80)  # NVML_SYSTEM_DRIVER_VERSION_BUFFER_SIZE
    failed = nvml.nvmlInit_v2() or nvml.nvmlSystemGetDriverVersion(release, len(release))
    return None if failed else release.value.decode()


def _pycuda() -> Facts:
    import pycuda
    import pycuda.driver

    return {"version": pycuda.VERSION_TEXT, "cuda": list(pycuda.driver.get_version()[:2])}


def _cuda_bindings() -> Facts:
    import cuda.bindings
    import cuda.bindings.driver

    return {"version": cuda.bindings.__version__}


def _tensorrt(flavor: str) -> Facts:
    from cmudrn.engines.build import targets_of
    from cmudrn.engines.flavors import Flavor, open_library

    library = open_library(Flavor(flavor))
    return {"flavor": flavor, "version": library.version, "targets": targets_of(library)}


def _onnxruntime() -> Facts:
    """Restores an image, too: the least that `cmudrn infer` does."""
    import numpy as np
    import onnxruntime as ort

    from cmudrn.deploy.graphs import shipped_graph
    from cmudrn.deploy.onnxruntime import OnnxBackend
    from cmudrn.engines.spec import EngineSpec, Pixel, Precision

    spec = EngineSpec(loops=1, height=24, width=24, precision=Precision.FP32)
    with OnnxBackend(shipped_graph(1, Pixel.UINT8), spec, threads=1) as backend:
        [restored] = backend.stream([np.zeros((1, 24, 24, 3), np.uint8)])
    if restored.shape != (1, 24, 24, 3):
        raise ValueError(f"a restored image is {restored.shape}")
    providers = ort.get_available_providers()
    facts = {"version": ort.__version__, "providers": providers}
    if "CUDAExecutionProvider" in providers:
        ort.set_default_logger_severity(4)  # it falls back to the CPU with an error on many lines
        session = ort.InferenceSession(
            str(shipped_graph(1, Pixel.UINT8)), providers=["CUDAExecutionProvider", "CPUExecutionProvider"]
        )
        facts["cuda_starts"] = "CUDAExecutionProvider" in session.get_providers()
    return facts


def _graphs() -> Facts:
    """Which weights each shipped graph was made of."""
    import onnxruntime as ort

    from cmudrn.deploy.graphs import shipped_graph_path
    from cmudrn.deploy.job import DEFAULT_OVERLAP_PX
    from cmudrn.deploy.onnxruntime import FATAL_ONLY
    from cmudrn.engines.spec import Pixel

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL  # to be read, not to be run
    options.log_severity_level = FATAL_ONLY
    paths = [shipped_graph_path(loops, pixel) for loops in DEFAULT_OVERLAP_PX for pixel in Pixel]
    weights: Facts = {}
    for path in paths:
        if path.is_file():
            session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            weights[path.name] = session.get_modelmeta().custom_metadata_map.get("weights_sha256", "")
    return {"weights": weights, "absent": [path.name for path in paths if not path.is_file()]}


def _weights() -> Facts:
    from cmudrn.checkpoint import check_tensors, read_checkpoint, resolve_weights

    checkpoint = read_checkpoint("default")
    check_tensors(checkpoint, "default")
    return {
        "path": str(resolve_weights("default")),
        "sha256": checkpoint.sha256,
        "depths": list(checkpoint.depths),
        "parameters": sum(tensor.size for tensor in checkpoint.tensors.values()),
    }


def _images() -> Facts:
    import pyvips

    from cmudrn.formats import CODECS, READABLE_SUFFIXES

    return {
        "version": ".".join(str(pyvips.version(part)) for part in range(3)),
        "reads": [form.value for form, codec in CODECS.items() if READABLE_SUFFIXES & set(codec.suffixes)],
        "writes": [form.value for form in CODECS if form.writable],
    }


def _openvino() -> Facts:
    from cmudrn.deploy.openvino import import_openvino

    openvino = import_openvino()
    core = openvino.Core()
    able = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return {"version": openvino.__version__, "devices": list(core.available_devices), "bf16": "BF16" in able}


def _native() -> Facts:
    """Whether our own kernels are there, and restore noise as the convolutions written down do."""
    import numpy as np

    from cmudrn.checkpoint import read_checkpoint
    from cmudrn.deploy.native import NativeBackend
    from cmudrn.deploy.native.library import HALF, LIBRARY_VARIABLE, has_isa, library_path, usable_isas
    from cmudrn.engines.spec import EngineSpec, Pixel, Precision

    if not library_path().is_file():
        return {"absent": str(library_path()), "told": bool(os.environ.get(LIBRARY_VARIABLE))}
    spec = EngineSpec(loops=1, height=24, width=24, precision=Precision.FP32, pixel=Pixel.FLOAT32)
    weights, noise = read_checkpoint("default"), np.random.default_rng(0).random((1, 24, 24, 3), np.float32)
    with (
        NativeBackend(weights, spec, threads=1) as ours,
        NativeBackend(weights, spec, threads=1, isa="direct") as direct,
    ):
        [restored], [expected] = ours.stream([noise]), direct.stream([noise])
        difference = float(np.abs(restored - expected).max())
        if not difference <= NATIVE_LIMIT:  # NaN isn't, either
            raise DeviceError(
                f"{ours.isa} restores wrongly: {difference:.1e} from `direct`, more than {NATIVE_LIMIT:.0e}",
                fix="build the kernels again",
            )
        return {"takes": ours.isa, "isas": list(usable_isas()), "bf16": has_isa(HALF)}


def _torch() -> Facts:
    """Whether it computes on the first GPU, too: a build without kernels for it starts all the same."""
    import torch

    facts: Facts = {"version": torch.__version__, "cuda": torch.version.cuda, "hip": torch.version.hip}
    if torch.version.cuda:
        try:
            facts["computes"] = float(torch.ones(2, device="cuda").sum()) == 2
        except (RuntimeError, AssertionError) as exc:
            facts["error"] = _in_a_line(exc)
    return facts


def _onnx() -> Facts:
    import onnx

    return {"version": onnx.__version__}


PROBES: Mapping[str, Callable[[], Facts]] = {
    "torch": _torch,  # takes longest, so it begins first
    "onnxruntime": _onnxruntime,
    "graphs": _graphs,
    "weights": _weights,
    "images": _images,
    "driver": _driver,
    "pycuda": _pycuda,
    "cuda-bindings": _cuda_bindings,
    "tensorrt": lambda: _tensorrt("tensorrt"),
    "rtx": lambda: _tensorrt("rtx"),
    "native": _native,
    "openvino": _openvino,
    "onnx": _onnx,
}
# What must be there for a question to be asked; the others are asked always.
MODULES: Mapping[str, str] = {
    "torch": "torch",
    "onnxruntime": "onnxruntime",
    "pycuda": "pycuda",
    "cuda-bindings": "cuda.bindings",
    "tensorrt": "tensorrt",
    "rtx": "tensorrt_rtx",
    "openvino": "openvino",
    "onnx": "onnx",
}
