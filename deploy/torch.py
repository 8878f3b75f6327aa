"""The reference: the PyTorch model in float32, on the CPU or on a GPU."""

from __future__ import annotations

import re
from collections.abc import Generator, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from cmudrn.checkpoint import Checkpoint, check_tensors
from cmudrn.deploy.backend import PixelBatch
from cmudrn.deploy.batches import check_batch
from cmudrn.deploy.machine import available_cores
from cmudrn.engines.spec import EngineSpec, Precision
from cmudrn.errors import EnvironmentMissing, ImageError, UsageError
from cmudrn.wording import counted, one_line

if TYPE_CHECKING:
    from cmudrn.engines.torch_frontend import TypedModel

__all__ = ["TorchBackend"]


class TorchBackend(AbstractContextManager["TorchBackend"]):
    """The model with a checkpoint's weights; batches of any size and shape.

    spec.precision is float32: the engines and graphs of other precisions are measured by this one.
    device: cpu, or such as cuda:0, which was never tried. threads: on the CPU; None for one on each core.
    PyTorch's own number of threads and its use of TF32, which are the process's, are other ones only while a
    batch is restored.
    Raises UsageError for another precision or device. Entering raises EnvironmentMissing where PyTorch or the
    device isn't there, CheckpointError for weights of another network.
    """

    def __init__(
        self, checkpoint: Checkpoint, spec: EngineSpec, *, device: str = "cpu", threads: int | None = None
    ) -> None:
        if spec.precision is not Precision.FP32:
            raise UsageError(f"PyTorch in {spec.precision.value}", fix="it is the reference, in fp32")
        if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
            raise UsageError(f"PyTorch on {device}", fix="give cpu, or a GPU such as cuda:0")
        self.spec = spec
        self._checkpoint, self._device = checkpoint, device
        self._threads = threads or available_cores()
        self._model: TypedModel | None = None

    @property
    def label(self) -> str:
        """The library, its version, the device."""
        import torch

        where = "CPU" if self._device == "cpu" else torch.cuda.get_device_name(self._device)
        return f"PyTorch {torch.__version__} on {where}"

    def __enter__(self) -> TorchBackend:
        check_tensors(self._checkpoint, "weights")
        need_device(self._device)
        from cmudrn.engines.torch_frontend import TypedModel

        try:
            self._model = TypedModel(self._checkpoint, self.spec).eval().to(self._device)
        except RuntimeError as exc:  # a GPU that has no room, or that this build has no kernels for
            raise EnvironmentMissing(f"{self.label}: {one_line(exc)}", fix="--device cpu") from exc
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._model = None
        if self._device != "cpu":
            import torch

            torch.cuda.empty_cache()

    def stream(self, batches: Iterable[PixelBatch]) -> Generator[PixelBatch, None, None]:
        """Each batch restored, in order, same shape and dtype. Raises ImageError where that fails."""
        self._opened()
        for batch in batches:
            yield self._restored(self._opened(), batch)

    def _opened(self) -> TypedModel:
        if self._model is None:
            raise RuntimeError("the backend is not open: use it in a `with` block")
        return self._model

    def _restored(self, model: TypedModel, batch: PixelBatch) -> PixelBatch:
        import torch

        check_batch(batch, self.spec)
        # PyTorch warns of memory that isn't to be written, which it could do.
        given = np.require(batch, requirements=["C", "W"])
        try:
            with torch.inference_mode(), _full_float32(), _threads(self._threads):
                image = torch.from_numpy(given).to(self._device)
                restored: PixelBatch = model(image).contiguous().cpu().numpy()
        except RuntimeError as exc:  # out of memory, too
            raise ImageError(f"PyTorch: {one_line(exc)}", fix="try a smaller --tile") from exc
        return restored


def need_device(name: str) -> None:
    """Raises EnvironmentMissing where PyTorch isn't installed, or doesn't have that device."""
    try:
        import torch
    except ImportError as exc:
        raise EnvironmentMissing(f"PyTorch: {one_line(exc)}", fix="pip install 'cmudrn[train]'") from exc
    if name == "cpu":
        return
    number, gpus = int(name.partition(":")[2] or 0), torch.cuda.device_count()
    if number >= gpus:
        raise EnvironmentMissing(
            f"{name}: PyTorch {torch.__version__} sees {counted(gpus, 'GPU')}",
            fix="see nvidia-smi, and install a build of PyTorch for CUDA; or --device cpu",
        )


@contextmanager
def _threads(count: int) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _full_float32() -> Iterator[None]:
    """cuDNN's convolutions without TF32, whose ten bits of mantissa are those of half precision."""
    import torch

    cudnn: Any = torch.backends.cudnn
    # From 2.9 on by operation; mixed with the older flag, that one raises.
    where, name, full = (
        (cudnn.conv, "fp32_precision", "ieee") if hasattr(cudnn, "conv") else (cudnn, "allow_tf32", False)
    )
    before = getattr(where, name)
    setattr(where, name, full)
    try:
        yield
    finally:
        setattr(where, name, before)
