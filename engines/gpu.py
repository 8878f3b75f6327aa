"""Which GPU is here, as an engine's manifest names it."""

from __future__ import annotations

from typing import NamedTuple

from cmudrn.errors import EnvironmentMissing

__all__ = ["Gpu", "local_gpu"]


class Gpu(NamedTuple):
    """One device."""

    name: str
    target: str  # its compute capability: sm90


def local_gpu() -> Gpu:
    """The first GPU that CUDA shows. Raises EnvironmentMissing where there is none, with CUDA's reason."""
    try:
        import pycuda.driver as cuda
    except ImportError as exc:  # the package, or the driver's library, which its text names
        raise EnvironmentMissing(
            f"no GPU can be asked for: {exc}",
            fix="pip install 'cmudrn[cuda]' where an NVIDIA driver is, or build with --flavor rtx",
        ) from exc
    try:
        cuda.init()
        device = cuda.Device(0)
    except cuda.Error as exc:
        raise EnvironmentMissing(
            f"CUDA shows no GPU: {exc}", fix="see nvidia-smi and CUDA_VISIBLE_DEVICES, or --flavor rtx"
        ) from exc
    major, minor = device.compute_capability()
    return Gpu(device.name(), f"sm{major}{minor}")
