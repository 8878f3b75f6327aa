"""The model in PyTorch, eager or compiled, timed as a researcher would: images that lie on the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from cmudrn.checkpoint import load_model
from cmudrn.deploy.any_size import torch_device
from cmudrn.deploy.benchmark.contestants import Case, Conditions, Contestant, Kind, Opened, random_pixels
from cmudrn.deploy.benchmark.timing import Run, timed
from cmudrn.deploy.machine import available_cores
from cmudrn.engines.torch_frontend import DTYPES
from cmudrn.errors import DeviceError, EnvironmentMissing

__all__ = ["device_of", "device_timed", "in_words", "open_torch"]


def device_of(conditions: Conditions) -> torch.device:
    """The one told, else the first GPU, else the CPU. Raises EnvironmentMissing for one that isn't there."""
    told = conditions.device
    device = torch.device(torch_device(() if told is None else (told,)))
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise EnvironmentMissing(
            f"--device {told}: PyTorch {torch.__version__} sees {torch.cuda.device_count()} GPUs",
            fix="see nvidia-smi, and install a build of PyTorch for CUDA; or --device cpu",
        )
    return device


@contextmanager
def open_torch(contestant: Contestant, case: Case, conditions: Conditions) -> Iterator[Opened]:
    """The model on `conditions.device`, in the contestant's precision and memory format, with its images."""
    device = device_of(conditions)
    with process_settings(conditions.threads or available_cores()):
        try:
            forward, images = prepared(contestant, case, conditions.weights, device)

            def restore() -> None:
                with torch.inference_mode(), in_words(contestant):
                    forward(images)

            yield Opened(device_timed(restore, device), "device events" if device.type == "cuda" else "wall")
        finally:
            forward = images = None  # type: ignore[assignment]
            if device.type == "cuda":
                torch.cuda.empty_cache()  # for the others


def prepared(
    contestant: Contestant, case: Case, weights: str, device: torch.device
) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """The model, and its images [B, 3, H, W] in [0, 1]."""
    layout = torch.channels_last if contestant.channels_last else torch.contiguous_format
    dtype = DTYPES[contestant.precision]
    with in_words(contestant):
        model = load_model(weights, loops=case.loops).to(device, dtype)
        model = model.to(memory_format=layout)  # type: ignore[call-overload]
        images = torch.from_numpy(random_pixels(case)).permute(0, 3, 1, 2).to(device, dtype)
        images = (images / 255).contiguous(memory_format=layout)
    if contestant.kind is not Kind.COMPILE:
        return model, images
    torch.compiler.reset()  # else it falls back to eager, unsaid, after eight shapes
    return torch.compile(model, dynamic=False), images


@contextmanager
def process_settings(threads: int) -> Iterator[None]:
    """Those of the whole process, which are as before afterwards."""
    before = torch.get_num_threads(), torch.backends.cudnn.benchmark
    torch.set_num_threads(threads)
    # PyTorch may try its convolutions and keep the fastest, as anybody lets it who has one size.
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.backends.cudnn.benchmark = before[1]


def device_timed(work: Callable[[], object], device: torch.device) -> Run:
    """The work as a run: by events before and after it on a GPU, by the wall's clock on the CPU."""
    if device.type != "cuda":
        return timed(work)

    def run() -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        with torch.cuda.device(device), in_words("PyTorch"):
            begin.record()
            work()
            end.record()
            end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3

    return run


@contextmanager
def in_words(what: object) -> Iterator[None]:
    """PyTorch's errors, of its compiler too, as DeviceError in one line."""
    try:
        yield
    except (RuntimeError, NotImplementedError) as exc:
        reason = next((line for line in str(exc).splitlines() if line.strip()), repr(exc))
        raise DeviceError(f"{what}: {reason.strip()}", fix="leave it out, or give it less to do") from exc
