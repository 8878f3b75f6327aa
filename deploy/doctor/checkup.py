"""What is installed here, whether it fits together, and the command that mends what doesn't.

Parts are asked in processes of their own (`probe`), and their answers judged (`library_checks`,
`file_checks`), each by itself: nothing that is broken hides the rest, and nothing heavy is imported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import distributions

from cmudrn.deploy.doctor import file_checks, library_checks
from cmudrn.deploy.doctor.findings import Diagnosis, Finding, Scene, mismatched
from cmudrn.deploy.machine import describe_machine
from cmudrn.deploy.probe import PROBES, ask
from cmudrn.engines.store import EngineStore

__all__ = ["CHECKS", "examine", "judge"]

AT_ONCE = 4  # processes that ask: while PyTorch's is imported the others come and go
CHECKS: Sequence[Callable[[Scene], Iterator[Finding]]] = (
    file_checks.check_here,
    library_checks.check_images,
    file_checks.check_weights,
    file_checks.check_graphs,
    library_checks.check_native,
    library_checks.check_onnxruntime,
    library_checks.check_openvino,
    library_checks.check_gpus,
    library_checks.check_pycuda,
    library_checks.check_cuda_bindings,
    library_checks.check_tensorrt,
    file_checks.check_store,
    library_checks.check_torch,
    library_checks.check_onnx,
    file_checks.check_compiler,
    file_checks.check_cache,
)


def examine(store: EngineStore) -> Diagnosis:
    """Asks every part, several at once, and judges. Writes nothing, and raises nothing for what is broken."""
    with ThreadPoolExecutor(AT_ONCE) as executor:
        machine = executor.submit(describe_machine)
        answers = dict(zip(PROBES, executor.map(ask, PROBES), strict=True))
    packages = {one.name.lower().replace("_", "-"): one.version for one in distributions()}
    return judge(Scene(answers, machine.result(), packages, store))


def judge(scene: Scene) -> Diagnosis:
    """From the answers, and from the files that a check looks at. A check that fails is a finding, too."""
    findings: list[Finding] = []
    for check in CHECKS:
        try:
            findings += check(scene)
        except Exception as exc:  # noqa: BLE001 (whatever a broken installation makes of it)
            what = " ".join(f"{type(exc).__name__}: {exc}".split())
            part = check.__name__.removeprefix("check_")
            findings.append(mismatched(part, f"cannot be checked: {what}", "see the other parts first"))
    return Diagnosis(findings)
