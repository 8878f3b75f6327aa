"""The network's convolutions in our own machine code, for training on a CPU in float32.

General libraries do worst what this network consists of: dozens of 3x3 convolutions of 16 to 16 channels,
each a pass through memory, with activation and sum as passes of their own. `winograd.c` does a convolution,
its bias, ReLU and residual sum in one pass, by Winograd's F(4x4, 3x3); docs/measurements.md has its gain.

It is compiled by the machine's own C compiler when a training first asks for it, for the processor it runs
on. Without a compiler PyTorch's convolutions do the work: the same results up to rounding, only later.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any

import torch
from platformdirs import user_cache_path
from torch import Tensor, nn
from torch.nn.functional import conv2d, pad

from cmudrn.errors import EnvironmentMissing, UsageError
from cmudrn.model import CHANNELS, ResidualBlock

__all__ = [
    "Kernels",
    "WinogradBlock",
    "WinogradConv",
    "accelerate",
    "check_library",
    "choose_kernels",
    "compile_library",
    "convolve16",
    "load_library",
    "residual16",
]

SOURCE = Path(__file__).with_name("winograd.c")
FLAGS = ("-O3", "-march=native", "-fPIC", "-shared", "-fopenmp", "-fno-math-errno", "-fno-trapping-math")
LINEAR, RELU = 0, 1  # as in winograd.c


class Kernels(str, Enum):
    """Whose convolutions train."""

    AUTO = "auto"  # ours in float32 on a CPU where they can be compiled, else PyTorch's
    WINOGRAD = "winograd"
    TORCH = "torch"


def torch_openmp() -> list[str]:
    """The OpenMP library that PyTorch brought: linked against it, both share one set of threads."""
    found = sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*"))
    return [str(path) for path in found[:1]]


def compile_library(folder: Path) -> Path:
    """Compiles winograd.c for this processor into a folder; what is there already is taken.

    Raises EnvironmentMissing without a C compiler, or with one that fails.
    """
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    fix = "install gcc, or train with --kernels torch"
    if compiler is None:
        raise EnvironmentMissing("no C compiler for the training's own kernels", fix=fix)
    key = hashlib.sha256(SOURCE.read_bytes())
    for part in (*FLAGS, *torch_openmp(), compiler, processor()):
        key.update(part.encode() + b"\0")
    library = folder / f"winograd-{key.hexdigest()[:16]}.so"
    if library.is_file():
        return library
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # A folder of its own, then a rename: two trainings may begin at once.
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            made = Path(scratch) / library.name
            command = [compiler, *FLAGS, str(SOURCE), "-o", str(made), *torch_openmp()]
            subprocess.run(command, check=True, capture_output=True, text=True)
            made.replace(library)
    except (OSError, subprocess.CalledProcessError) as exc:
        said = (getattr(exc, "stderr", None) or str(exc)).strip().splitlines()
        raise EnvironmentMissing(
            f"the training's own kernels did not compile: {said[0] if said else exc}", fix=fix
        ) from exc
    return library


def processor() -> str:
    """What -march=native looks at: a cache folder may be shared by different machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        told = [line for line in lines if line.startswith(("model name", "flags", "Features"))]
        return "\n".join(sorted(set(told)))
    except OSError:
        return platform.processor() or platform.machine()


@cache
def load_library() -> ctypes.CDLL:
    """The compiled kernels, from the user's cache folder. Raises EnvironmentMissing."""
    path = compile_library(user_cache_path("cmudrn") / "kernels")
    try:
        library = ctypes.CDLL(str(path))
    except OSError as exc:
        raise EnvironmentMissing(
            f"{path}: {exc}", fix="remove that file, or train with --kernels torch"
        ) from exc
    floats, number = ctypes.c_void_p, ctypes.c_int
    library.cmudrn_forward.argtypes = [floats] * 4 + [number] * 4
    library.cmudrn_backward.argtypes = [floats] * 8 + [number] * 4
    library.cmudrn_block_forward.argtypes = [floats] * 7 + [number] * 3
    library.cmudrn_block_backward.argtypes = [floats] * 9 + [number] * 3
    library.cmudrn_scratch.argtypes, library.cmudrn_scratch.restype = [number] * 3, ctypes.c_long
    keep_freed_memory()
    return library


def keep_freed_memory() -> None:
    """Has glibc keep freed buffers: a training step asks for the same megabytes again and again.

    By default each comes fresh from the kernel, zeroed page by page.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return  # another libc: only slower
    m_trim_threshold, m_mmap_threshold = -1, -3  # malloc.h
    mallopt(m_mmap_threshold, 32 << 20)  # the most it takes
    mallopt(m_trim_threshold, 2**31 - 1)


class _Convolve16(torch.autograd.Function):
    """See convolve16."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, mode: int) -> Tensor:
        x, weight, bias = last(x), weight.contiguous(), bias.contiguous()
        y = torch.empty_like(x)
        load_library().cmudrn_forward(*addresses(x, weight, bias, y), *sides(x), mode)
        ctx.save_for_backward(x, weight, y)
        ctx.mode = mode
        return y

    @staticmethod
    def backward(ctx: Any, *to_outputs: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None]:
        x, weight, y = ctx.saved_tensors
        to_y = last(to_outputs[0])
        to_x = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        to_weight, to_bias = torch.empty_like(weight), weight.new_empty(CHANNELS)
        # Held in a name, as all that is passed by address: freed, it would be written to all the same.
        room = scratch(x)
        load_library().cmudrn_backward(
            *addresses(x, weight, y, to_y, to_x, to_weight, to_bias, room), *sides(x), ctx.mode
        )
        return to_x, to_weight, to_bias, None


class _Block16(torch.autograd.Function):
    """See residual16."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor
    ) -> Tensor:
        x, weight1, weight2 = last(x), weight1.contiguous(), weight2.contiguous()
        bias1, bias2 = bias1.contiguous(), bias2.contiguous()
        inside, y = torch.empty_like(x), torch.empty_like(x)
        load_library().cmudrn_block_forward(
            *addresses(x, weight1, bias1, weight2, bias2, inside, y), *sides(x)
        )
        ctx.save_for_backward(x, weight1, weight2, inside, y)
        return y

    @staticmethod
    def backward(ctx: Any, *to_outputs: Tensor) -> tuple[Tensor, ...]:
        x, weight1, weight2, inside, y = ctx.saved_tensors
        to_y, to_x = last(to_outputs[0]), torch.empty_like(x)
        sizes = (weight1.numel(), CHANNELS, weight2.numel(), CHANNELS)
        to_parameters, room = weight1.new_empty(sum(sizes)), scratch(x)
        load_library().cmudrn_block_backward(
            *addresses(x, weight1, weight2, inside, y, to_y, to_x, to_parameters, room), *sides(x)
        )
        to_weight1, to_bias1, to_weight2, to_bias2 = to_parameters.split(sizes)
        return to_x, to_weight1.view_as(weight1), to_bias1, to_weight2.view_as(weight2), to_bias2


def last(images: Tensor) -> Tensor:
    """Channels last, copied where it is not yet."""
    return images.contiguous(memory_format=torch.channels_last)


def sides(images: Tensor) -> tuple[int, int, int]:
    n, _, height, width = images.shape
    return n, height, width


def addresses(*tensors: Tensor | None) -> list[int | None]:
    return [None if tensor is None else tensor.data_ptr() for tensor in tensors]


def scratch(images: Tensor) -> Tensor:
    return images.new_empty(load_library().cmudrn_scratch(*sides(images)))


def convolve16(x: Tensor, weight: Tensor, bias: Tensor, *, activated: bool = False) -> Tensor:
    """A 3x3 convolution of 16 channels to 16, stride 1, zero padding 1, with a gradient.

    x: [N, 16, H, W] float32 on the CPU, channels last or copied to it. weight: [16, 16, 3, 3]. bias: [16].
    Returns conv(x) + bias, or relu of it; shaped as x, channels last. It cannot be differentiated twice.
    """
    y: Tensor = _Convolve16.apply(x, weight, bias, RELU if activated else LINEAR)  # type: ignore[no-untyped-call]
    return y


def residual16(x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor) -> Tensor:
    """A residual block of two such convolutions: relu(relu(conv2(relu(conv1(x)))) + x)."""
    y: Tensor = _Block16.apply(x, weight1, bias1, weight2, bias2)  # type: ignore[no-untyped-call]
    return y


class WinogradConv(nn.Conv2d):
    """A 3x3 convolution of up to 16 channels to up to 16: filled up with zeros, run as 16 to 16."""

    def forward(self, x: Tensor) -> Tensor:
        """x: [N, in, H, W] float32. Returns [N, out, H, W]."""
        assert self.bias is not None
        rest_in, rest_out = CHANNELS - self.in_channels, CHANNELS - self.out_channels
        full = pad(x, (0, 0, 0, 0, 0, rest_in)) if rest_in else x
        weight = pad(self.weight, (0, 0, 0, 0, 0, rest_in, 0, rest_out))
        y = convolve16(full, weight, pad(self.bias, (0, rest_out)))
        return y[:, : self.out_channels]


class WinogradBlock(ResidualBlock):
    """A residual block in one call, activations and sum included."""

    def forward(self, f: Tensor) -> Tensor:
        """f: [N, 16, H, W] float32. Returns the same shape."""
        conv1, conv2 = self.conv1, self.conv2
        assert conv1.bias is not None
        assert conv2.bias is not None
        return residual16(f, conv1.weight, conv1.bias, conv2.weight, conv2.bias)


def choose_kernels(asked: Kernels, *, device: str, bfloat16: bool) -> Kernels:
    """WINOGRAD or TORCH. device: `cpu`, `cuda`, ...

    Raises UsageError where ours are asked for and cannot serve, EnvironmentMissing where they don't compile.
    """
    fits = device == "cpu" and not bfloat16
    if asked is Kernels.TORCH or (asked is Kernels.AUTO and not fits):
        return Kernels.TORCH
    if not fits:
        raise UsageError(
            "--kernels winograd: these are float32 on a CPU", fix="leave --kernels, or --bfloat16, away"
        )
    try:
        check_library()
    except EnvironmentMissing:
        if asked is Kernels.WINOGRAD:
            raise
        return Kernels.TORCH
    return Kernels.WINOGRAD


@cache
def check_library() -> None:
    """Compares a block's values and gradients with PyTorch's: what a compiler made is tried before it trains.

    Raises EnvironmentMissing where they differ, or where the library cannot be had.
    """
    load_library()
    chance = torch.Generator().manual_seed(0)
    shapes = ((4, CHANNELS, 9, 7), *2 * ((CHANNELS, CHANNELS, 3, 3), (CHANNELS,)))
    inputs = [(torch.randn(shape, generator=chance) / 4).requires_grad_() for shape in shapes]
    x, weight1, bias1, weight2, bias2 = inputs
    inside = conv2d(x, weight1, bias1, padding=1).relu()
    wanted = (conv2d(inside, weight2, bias2, padding=1).relu() + x).relu()
    made = residual16(*inputs)
    for got, right in zip(
        (made, *torch.autograd.grad(made.square().sum(), inputs)),
        (wanted, *torch.autograd.grad(wanted.square().sum(), inputs)),
        strict=True,
    ):
        if not (got - right).norm() < 1e-3 * right.norm():  # not `>`: NaN is wrong too
            raise EnvironmentMissing(
                "the training's own kernels, as compiled here, give wrong results",
                fix="train with --kernels torch, and report compiler and processor",
            )


def accelerate(model: nn.Module) -> None:
    """Has the model's convolutions run on our kernels; its weights and their names stay as they are.

    Raises EnvironmentMissing where the kernels cannot be had.
    """
    check_library()
    for module in model.modules():
        # The class alone changes: parameters, names, and whoever holds the module stay the same.
        if type(module) is ResidualBlock:
            module.__class__ = WinogradBlock
        elif type(module) is nn.Conv2d and max(module.in_channels, module.out_channels) <= CHANNELS:
            module.__class__ = WinogradConv
