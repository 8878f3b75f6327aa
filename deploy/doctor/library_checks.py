"""Libraries: whether they are there, work, and fit the GPU, its driver and each other."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from cmudrn.deploy.doctor.findings import Finding, Scene, State, mismatched, missing, ok
from cmudrn.deploy.native.library import GIVE_HALF, HALF, ISA_VARIABLE, LIBRARY_VARIABLE
from cmudrn.deploy.probe import Answer

__all__ = [
    "check_cuda_bindings",
    "check_gpus",
    "check_images",
    "check_native",
    "check_onnx",
    "check_onnxruntime",
    "check_openvino",
    "check_pycuda",
    "check_tensorrt",
    "check_torch",
]

NO_DRIVER = "install NVIDIA's driver; without a GPU none is needed"
OTHERS_RESTORE = "ONNX Runtime restores in their place, slower"
REBUILD = (
    "with g++ installed, in the source folder: pip install --force-reinstall --no-deps . (or `make native`)"
)
BASIC_FORMATS = {"jpeg", "png", "tiff"}
ONNX_RUNTIMES = ("onnxruntime", "onnxruntime-directml", "onnxruntime-openvino", "onnxruntime-gpu")
TENSORRTS = (
    "tensorrt",
    *(f"tensorrt-{cuda}{part}" for cuda in ("cu12", "cu13") for part in ("", "-bindings", "-libs")),
)


@dataclass(frozen=True)
class Library:
    """What is said of one that isn't there, or doesn't work."""

    part: str
    use: str  # what it is for
    install: str  # the command

    def judge(self, answer: Answer, told: Callable[[Mapping[str, Any]], str]) -> Finding:
        """told: its facts in a line."""
        if not answer.installed:
            return missing(self.part, f"not installed; {self.use}", self.install)
        if answer.failure:
            again = self.install.replace("install", "install --force-reinstall", 1)
            return mismatched(self.part, answer.failure, again)
        return ok(self.part, told(answer.facts), answer.facts)


IMAGES = Library("images", "reads and writes photographs", "pip install 'pyvips[binary]'")
ONNX_RUNTIME = Library("ONNX Runtime", "the backend that is always there", "pip install onnxruntime")
OPENVINO = Library("OpenVINO", "another backend for the CPU", "pip install 'cmudrn[openvino]'")
PYCUDA = Library("pycuda", "runs engines on a GPU", "pip install 'cmudrn[cuda]'")
CUDA_BINDINGS = Library("cuda-bindings", "CUDA graphs", "pip install 'cmudrn[graphs]'")
TENSORRT = Library("TensorRT", "engines, on a machine with a GPU", "pip install 'cmudrn[tensorrt]'")
RTX = Library("TensorRT-RTX", "engines, built anywhere", "pip install 'cmudrn[rtx]'")
TORCH = Library("PyTorch", "training, evaluation, parity checks", "pip install 'cmudrn[train]'")
ONNX = Library("onnx", "graphs of other weights, engines", "pip install onnx")


def version_of(facts: Mapping[str, Any]) -> str:
    return str(facts["version"])


def check_images(scene: Scene) -> Iterator[Finding]:
    """libvips, and which formats it has."""

    def told(facts: Mapping[str, Any]) -> str:
        reads_only = [form for form in facts["reads"] if form not in facts["writes"]]
        rest = f"; reads only: {', '.join(reads_only)}" if reads_only else ""
        return f"libvips {facts['version']}: {', '.join(facts['writes'])}{rest}"

    finding = IMAGES.judge(scene.answers["images"], told)
    lacking = BASIC_FORMATS - set(finding.facts.get("writes", BASIC_FORMATS))
    if lacking:
        found = f"{finding.found}; without {', '.join(sorted(lacking))}"
        finding = mismatched("images", found, "pip install --force-reinstall 'pyvips[binary]'")
    yield replace(finding, needed=True)


def check_native(scene: Scene) -> Iterator[Finding]:
    """Our own kernels: what they were built for, and which of that the processor has."""
    answer = scene.answers["native"]
    if answer.facts.get("told"):
        found = f"{LIBRARY_VARIABLE}={answer.facts['absent']}: no such file; {OTHERS_RESTORE}"
        yield missing("own kernels", found, f"unset {LIBRARY_VARIABLE}")
    elif "absent" in answer.facts:
        yield missing("own kernels", f"not built; {OTHERS_RESTORE}", REBUILD)
    elif answer.failure:
        fix = f"unset {ISA_VARIABLE}" if answer.failure.startswith(ISA_VARIABLE) else REBUILD
        if answer.failure.startswith(f"{ISA_VARIABLE}={HALF}:"):
            fix += f", and {GIVE_HALF}"
        yield mismatched("own kernels", answer.failure, fix)
    else:
        facts = answer.facts
        others = [name for name in facts["isas"] if name != facts["takes"]]
        halves = "; bfloat16 in hardware" if facts["bf16"] else ""
        yield ok("own kernels", f"{facts['takes']}, restores; also {', '.join(others)}{halves}", facts)


def check_onnxruntime(scene: Scene) -> Iterator[Finding]:
    """Its providers, and whether it restores."""

    def told(facts: Mapping[str, Any]) -> str:
        providers = [name.removesuffix("ExecutionProvider") for name in facts["providers"]]
        return f"{version_of(facts)}, restores; providers: {', '.join(providers)}"

    answer, packages = scene.answers["onnxruntime"], scene.installed(ONNX_RUNTIMES)
    finding = ONNX_RUNTIME.judge(answer, told)
    works = finding.state is State.OK
    if len(packages) > 1:  # they share one folder, and the last one installed has overwritten the others
        there = ", ".join(f"{name} {version}" for name, version in packages.items())
        fix = f"pip uninstall -y {' '.join(packages)} && pip install {[*packages][-1]}"
        finding = mismatched(
            finding.part, f"{finding.found}; several over each other: {there}", fix, answer.facts
        )
    elif works and scene.machine.gpus and answer.facts.get("cuda_starts") is False:
        fix = "pip install 'onnxruntime-gpu[cuda,cudnn]'"
        finding = mismatched(finding.part, f"{finding.found}, but CUDA does not start", fix, answer.facts)
    yield replace(finding, needed=not works)


def check_openvino(scene: Scene) -> Iterator[Finding]:
    """And whether the processor has bfloat16."""

    def told(facts: Mapping[str, Any]) -> str:
        halves = ", bfloat16 in hardware" if facts["bf16"] else ""
        return f"{version_of(facts).split('-')[0]} on {', '.join(facts['devices'])}{halves}"

    yield OPENVINO.judge(scene.answers["openvino"], told)


def check_gpus(scene: Scene) -> Iterator[Finding]:
    """The driver, and what it shows."""
    driver, machine = scene.answers["driver"], scene.machine
    release = machine.driver or "of unknown release"
    error = driver.failure or driver.facts.get("error", "")
    if "absent" in driver.facts:
        yield missing("driver", driver.facts["absent"], NO_DRIVER)
    elif error and error != "CUDA_ERROR_NO_DEVICE":
        fix = "nvidia-smi tells more; after an update of the driver: reboot"
        yield mismatched("driver", f"{release}: {error}", fix)
    else:
        yield ok("driver", f"{release}, CUDA {machine.cuda}", {"cuda": machine.cuda})
    for gpu in machine.gpus:
        yield ok("GPU", f"{gpu.name}, {gpu.target}, {gpu.memory_gb} GB", vars(gpu))
    if not machine.gpus:
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
        found = "none" if hidden is None else f"none, with CUDA_VISIBLE_DEVICES={hidden}"
        yield missing("GPU", found, "" if hidden is None else "unset CUDA_VISIBLE_DEVICES")


def check_pycuda(scene: Scene) -> Iterator[Finding]:
    """Compiled where it is installed, so for one version of CUDA and of numpy."""

    def told(facts: Mapping[str, Any]) -> str:
        return f"{version_of(facts)}, built with CUDA {'.'.join(map(str, facts['cuda']))}"

    answer = scene.answers["pycuda"]
    if answer.failure and "absent" in scene.answers["driver"].facts:
        version = scene.packages.get("pycuda", "installed")
        yield missing("pycuda", f"{version}, which cannot be imported without the driver", NO_DRIVER)
        return
    finding = PYCUDA.judge(answer, told)
    if finding.state is State.OK and scene.newer_than_the_driver(answer.facts["cuda"][0]):
        newer = f"{finding.found}, newer than the driver's {scene.machine.cuda}"
        finding = mismatched("pycuda", newer, "", answer.facts)
    if finding.state is State.MISMATCHED:
        rebuild = (
            "pip install --force-reinstall --no-cache-dir --no-deps pycuda, with the driver's CUDA toolkit"
        )
        finding = replace(finding, fix=rebuild)
    yield finding


def check_cuda_bindings(scene: Scene) -> Iterator[Finding]:
    """For CUDA graphs."""
    answer = scene.answers["cuda-bindings"]
    finding = CUDA_BINDINGS.judge(answer, version_of)
    if finding.state is State.OK and scene.newer_than_the_driver(int(version_of(answer.facts).split(".")[0])):
        cuda = str(scene.machine.cuda)
        fix = f"pip install 'cuda-bindings=={cuda.split('.')[0]}.*'"
        newer = f"{finding.found}, newer than the driver's CUDA {cuda}"
        finding = mismatched(finding.part, newer, fix, answer.facts)
    yield finding


def check_tensorrt(scene: Scene) -> Iterator[Finding]:
    """Both flavours."""
    finding = TENSORRT.judge(scene.answers["tensorrt"], version_of)
    packages = scene.installed(TENSORRTS)
    builds = {name.split("-")[1] for name in packages if "-" in name}  # for CUDA 12, for CUDA 13
    if len(set(packages.values())) > 1 or len(builds) > 1:
        there = ", ".join(f"{name} {version}" for name, version in packages.items())
        fix = f"pip uninstall -y {' '.join(packages)} && pip install 'cmudrn[tensorrt]'"
        finding = mismatched("TensorRT", f"several over each other: {there}", fix, finding.facts)
    yield finding

    def told(facts: Mapping[str, Any]) -> str:
        targets = facts["targets"]
        others = [gpu.target for gpu in scene.machine.gpus if gpu.target not in targets]
        rest = f", {', '.join(others)} not among them" if others else ""
        return f"{version_of(facts)}, builds for {', '.join(targets)}{rest}"

    yield RTX.judge(scene.answers["rtx"], told)


def check_torch(scene: Scene) -> Iterator[Finding]:
    """And whether it computes on the GPU, where it was built for one."""

    def told(facts: Mapping[str, Any]) -> str:
        builds = {"CUDA": facts["cuda"], "ROCm": facts.get("hip")}
        built = [f"{name} {version}" for name, version in builds.items() if version]
        return (
            ", ".join([version_of(facts), *built]) if built else f"{version_of(facts)}, a build for the CPU"
        )

    answer = scene.answers["torch"]
    finding = TORCH.judge(answer, told)
    if scene.machine.gpus and answer.facts.get("cuda") and not answer.facts.get("computes"):
        why = answer.facts.get("error", "its sum of ones is another")
        fix = "install a build for this GPU and driver, see https://pytorch.org/get-started/locally"
        finding = mismatched("PyTorch", f"{finding.found}, but not on this GPU: {why}", fix, answer.facts)
    yield finding


def check_onnx(scene: Scene) -> Iterator[Finding]:
    """For graphs of other weights than the shipped ones, and for building engines."""
    yield ONNX.judge(scene.answers["onnx"], version_of)
