"""Which GPU is here, as an engine's manifest names it."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any, NamedTuple

from cmudrn.errors import EnvironmentMissing, UsageError

__all__ = ["Gpu", "count_gpus", "describe_gpu", "find_device", "load_driver", "local_gpu", "local_gpus"]


class Gpu(NamedTuple):
    """One device."""

    name: str
    target: str  # its compute capability: sm90


def count_gpus() -> int:
    """GPUs that CUDA shows; 0 without its driver. Asks the driver itself: pycuda need not be installed."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        count = ctypes.c_int(0)
        failed = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    except (OSError, AttributeError):  # none, or another library of that name
        return 0
    return 0 if failed else count.value


def load_driver() -> ModuleType:
    """pycuda.driver, initialised, with a GPU at least. Raises EnvironmentMissing, with CUDA's own reason."""
    try:
        import pycuda.driver as cuda
    except ImportError as exc:  # of the package or of libcuda.so.1, which its text names
        raise EnvironmentMissing(
            f"no CUDA here: {exc}",
            fix="install the NVIDIA driver, then pip install 'cmudrn[cuda]'; --flavor rtx builds without",
        ) from exc
    try:
        cuda.init()
    except cuda.Error as exc:
        raise EnvironmentMissing(
            f"the NVIDIA driver does not start: {exc}",
            fix="see nvidia-smi and CUDA_VISIBLE_DEVICES; a newer driver may be needed",
        ) from exc
    if not cuda.Device.count():
        raise EnvironmentMissing("CUDA shows no GPU", fix="see nvidia-smi and CUDA_VISIBLE_DEVICES")
    driver: ModuleType = cuda
    return driver


def describe_gpu(device: Any) -> Gpu:
    """device: a pycuda.driver.Device."""
    major, minor = device.compute_capability()
    return Gpu(device.name(), f"sm{major}{minor}")


def find_device(cuda: ModuleType, wanted: str) -> Any:
    """The device of that number among those that CUDA shows, or of that PCI bus id. Raises UsageError."""
    is_number = wanted.isascii() and wanted.isdecimal()  # there are other digits, which int() takes
    try:
        return cuda.Device(int(wanted) if is_number else wanted)
    except (cuda.Error, OverflowError) as exc:  # the latter pycuda's, of a number that is no C int
        shown = ", ".join(f"{i} ({cuda.Device(i).pci_bus_id()})" for i in range(cuda.Device.count()))
        raise UsageError(f"--device {wanted}: {exc}", fix=f"give one of {shown}") from exc


def local_gpu(wanted: str = "0") -> Gpu:
    """Of the GPUs that CUDA shows. Raises EnvironmentMissing where there is none, UsageError as above."""
    return local_gpus([wanted])[0]


def local_gpus(wanted: Sequence[str]) -> list[Gpu]:
    """Several. Raises UsageError also for one that is named twice, by number and by bus id for instance."""
    cuda = load_driver()
    names: dict[str, str] = {}
    gpus = []
    for name in wanted:
        device = find_device(cuda, name)
        bus_id = device.pci_bus_id()
        if bus_id in names:
            raise UsageError(
                f"--device {name}: the same GPU as --device {names[bus_id]}",
                fix="name each once; --streams puts more batches on a GPU",
            )
        names[bus_id] = name
        gpus.append(describe_gpu(device))
    return gpus
