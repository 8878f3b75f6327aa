"""What the runtime needs of CUDA, by pycuda: a device, its primary context, and a slot's streams and buffers.

pycuda is imported when a device is opened, never before: it loads the NVIDIA driver.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from cmudrn.engines.context import primary_context
from cmudrn.engines.gpu import describe_gpu, find_device, load_driver
from cmudrn.errors import DeviceError, EnvironmentMissing

__all__ = ["NON_BLOCKING", "Device", "PinnedBuffer", "open_device"]

NON_BLOCKING = 1  # CUDA's, of a stream that doesn't wait for the default one; pycuda has no name for it


@dataclass(frozen=True)
class Device:
    """A GPU whose primary context is retained: the one that PyTorch uses, too."""

    cuda: ModuleType
    context: Any  # pycuda.driver.Context
    name: str
    target: str  # compute capability: sm89

    @contextmanager
    def current(self) -> Iterator[None]:
        """The context is this thread's current one inside, and what was current before is again after."""
        self.context.push()
        try:
            yield
        finally:
            self.cuda.Context.pop()

    @contextmanager
    def errors(self, doing: str, asked_bytes: int = 0) -> Iterator[None]:
        """CUDA's errors as DeviceError, with its own words. asked_bytes: as of `out_of_memory`."""
        try:
            yield
        except self.cuda.MemoryError as exc:
            raise self.out_of_memory(doing, asked_bytes, str(exc)) from exc
        except self.cuda.Error as exc:
            raise DeviceError(
                f"{self.name}: {doing}: {exc}", fix="see nvidia-smi and the kernel's log; run it again"
            ) from exc

    def out_of_memory(self, doing: str, asked_bytes: int, why: str) -> DeviceError:
        """asked_bytes: on the device, of all that was to be taken; 0 where that isn't known."""
        free, total = (count >> 20 for count in self.cuda.mem_get_info())
        asked = f", {-(-asked_bytes >> 20)} MB were asked for" if asked_bytes else ""
        return DeviceError(
            f"{self.name}: {doing}: out of memory, {free} of {total} MB are free{asked}: {why}",
            fix="use an engine of a smaller batch or size, fewer --streams, or another --device",
        )


@contextmanager
def open_device(wanted: str = "0") -> Iterator[Device]:
    """The device of that number among those that CUDA shows, or of that PCI bus id; released at the end.

    Raises EnvironmentMissing where there is no GPU at all or the driver is too old, UsageError where there is
    no such one.
    """
    cuda = load_driver()
    _check_driver(cuda)
    device = find_device(cuda, wanted)
    with primary_context(device) as context:
        yield Device(cuda, context, *describe_gpu(device))


def _check_driver(cuda: ModuleType) -> None:
    """Between minor versions of CUDA, newer programs run on older drivers; between major ones they don't."""
    built, served = cuda.get_version()[0], cuda.get_driver_version()
    if served // 1000 < built:
        raise EnvironmentMissing(
            f"the NVIDIA driver is for CUDA {served // 1000}.{served % 1000 // 10}, pycuda for CUDA {built}",
            fix=f"install a newer driver, or install pycuda again with the toolkit of CUDA {served // 1000}",
        )


class PinnedBuffer:
    """The same bytes on both sides of the bus: page-locked on the host, allocated on the device.

    Made and freed while the device's context is current.
    """

    def __init__(self, device: Device, shape: tuple[int, ...], dtype: DTypeLike) -> None:
        self.cuda = cuda = device.cuda
        self.host: NDArray[Any] = cuda.pagelocked_empty(shape, np.dtype(dtype))
        self._pinned: Any = self.host.base  # the allocation; the array is a view of it
        try:
            self.device = cuda.mem_alloc(self.host.nbytes)
        except BaseException:
            self._pinned.free()
            raise

    @property
    def address(self) -> int:
        """On the device."""
        return int(self.device)

    def free(self) -> None:
        """Nothing may be using it any more."""
        # A context that an error has broken refuses this, too; what it held goes with the process.
        for allocation in (self.device, self._pinned):
            with suppress(self.cuda.Error):
                allocation.free()
