"""A GPU's primary context, which TensorRT, PyTorch and CUDA share: taken, made current, given back."""

from __future__ import annotations

import ctypes
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from cmudrn.engines.gpu import find_device, load_driver
from cmudrn.errors import DeviceError

__all__ = ["current_gpu", "frames_cleared", "primary_context"]


@contextmanager
def primary_context(device: Any) -> Iterator[Any]:
    """Retained, not current; released at the end.

    device: a pycuda.driver.Device. Yields a pycuda.driver.Context. Raises DeviceError where CUDA refuses it.
    """
    cuda = load_driver()
    try:
        context = device.retain_primary_context()
    except cuda.Error as exc:
        raise DeviceError(f"{device.name()}: {exc}", fix="see nvidia-smi: is it used up or shut?") from exc
    try:
        yield context
    finally:
        _release(context)


@contextmanager
def current_gpu(wanted: str) -> Iterator[None]:
    """This thread's work goes to that GPU inside: its number among those that CUDA shows, or its PCI bus id.

    Raises what `load_driver` and `find_device` raise, and DeviceError.
    """
    cuda = load_driver()
    with primary_context(find_device(cuda, wanted)) as context, _pushed(cuda, context), frames_cleared():
        yield


@contextmanager
def frames_cleared() -> Iterator[None]:
    """An error's frames, and its causes', hold TensorRT's objects, which must end in the device's context."""
    try:
        yield
    except BaseException as exc:
        cause: BaseException | None = exc
        while cause:
            traceback.clear_frames(cause.__traceback__)
            cause = cause.__cause__ or cause.__context__
        raise


@contextmanager
def _pushed(cuda: ModuleType, context: Any) -> Iterator[None]:
    context.push()
    try:
        yield
    finally:
        cuda.Context.pop()


def _release(context: Any) -> None:
    """Gives a primary context back, and leaves this thread's stack of contexts as it was.

    To release one, pycuda 2026.1 makes it current, and leaves it so, unknown to itself.
    """
    driver = ctypes.CDLL("libcuda.so.1")  # the one that pycuda has loaded
    handle = ctypes.c_void_p(int(context.handle))

    def current() -> int | None:
        found = ctypes.c_void_p()
        driver.cuCtxGetCurrent(ctypes.byref(found))
        return found.value

    def pop() -> None:
        driver.cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p()))

    others = (
        0  # users of the same context, PyTorch for one: out of the way, to see whether pycuda adds another
    )
    while current() == handle.value:
        pop()
        others += 1
    context.detach()
    if current() == handle.value:
        pop()
    for _ in range(others):
        driver.cuCtxPushCurrent_v2(handle)
