"""The network's convolutions in our own machine code, for training on a CPU in float32.

General libraries do worst what this network consists of: dozens of 3x3 convolutions of 16 to 16 channels,
each a pass through memory, with activation and sum as passes of their own. `winograd.c` does a convolution,
its bias, ReLU and residual sum in one pass, by Winograd's F(4x4, 3x3), and a stage's whole recursion image by
image, while the image lies in the cache; docs/measurements.md has its gain.

It is compiled by the machine's own C compiler when a training first asks for it, for the processor it runs
on. Without a compiler PyTorch's convolutions do the work: the same results up to rounding, only later.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

from cmudrn.errors import EnvironmentMissing, UsageError
from cmudrn.files import cache_folder
from cmudrn.model import CHANNELS, CMUDRN, DRN, ResidualBlock

__all__ = [
    "Kernels",
    "accelerate",
    "blocks16",
    "check_library",
    "choose_kernels",
    "compile_library",
    "convolve16",
    "load_library",
]

SOURCES = [Path(__file__).with_name(name) for name in ("winograd.c", "tiles.h")]
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
    told = shlex.split(os.environ.get("CC", ""))  # `ccache gcc` is two words
    found = [path for name in ("cc", "gcc", "clang") if (path := shutil.which(name))]
    compiler = told or found[:1]
    fix = "install gcc, or train with --kernels torch"
    if not compiler:
        raise EnvironmentMissing("no C compiler for the training's own kernels", fix=fix)
    key = hashlib.sha256(b"".join(source.read_bytes() for source in SOURCES))
    for part in (*FLAGS, *torch_openmp(), *compiler, processor()):
        key.update(part.encode() + b"\0")
    library = folder / f"winograd-{key.hexdigest()[:16]}.so"
    if library.is_file():
        return library
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # A folder of its own, then a rename: two trainings may begin at once.
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            made = Path(scratch) / library.name
            command = [*compiler, *FLAGS, str(SOURCES[0]), "-o", str(made), *torch_openmp()]
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
    path = compile_library(cache_folder() / "kernels")
    try:
        library = ctypes.CDLL(str(path))
    except OSError as exc:
        raise EnvironmentMissing(
            f"{path}: {exc}", fix="remove that file, or train with --kernels torch"
        ) from exc
    floats, number = ctypes.c_void_p, ctypes.c_int
    library.cmudrn_forward.argtypes = [floats] * 4 + [number] * 4
    library.cmudrn_backward.argtypes = [floats] * 8 + [number] * 4
    library.cmudrn_blocks_forward.argtypes = [floats] * 3 + [number] * 5
    library.cmudrn_blocks_backward.argtypes = [floats] * 7 + [number] * 5
    library.cmudrn_scratch.argtypes, library.cmudrn_scratch.restype = [number] * 4, ctypes.c_long
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
    @once_differentiable
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


class _Blocks16(torch.autograd.Function):
    """See blocks16."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, parameters: Tensor, kinds: int, count: int, keep: bool) -> Tensor:
        x = last(x)
        n, channels, height, width = x.shape
        # A tensor for each block, not one for all: that would be fresh from the kernel every time.
        room = [x.new_empty(2, n, height, width, channels) for _ in range(count if keep else min(count, 2))]
        kept = [room[block % len(room)] for block in range(count)]
        load_library().cmudrn_blocks_forward(*addresses(x, parameters), listed(kept), kinds, count, *sides(x))
        ctx.save_for_backward(x, parameters, *kept)
        ctx.kinds = kinds
        return kept[-1][1].permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *to_outputs: Tensor) -> tuple[Tensor | None, ...]:
        x, parameters, *kept = ctx.saved_tensors
        to_y, to_x = last(to_outputs[0]), torch.empty_like(x)
        to_parameters, room = torch.empty_like(parameters), scratch(x, ctx.kinds)
        load_library().cmudrn_blocks_backward(
            *addresses(x, parameters),
            listed(kept),
            *addresses(to_y, to_x, to_parameters, room),
            ctx.kinds,
            len(kept),
            *sides(x),
        )
        return to_x, to_parameters, None, None, None


def last(images: Tensor) -> Tensor:
    """Channels last, copied where it is not yet."""
    return images.contiguous(memory_format=torch.channels_last)


def sides(images: Tensor) -> tuple[int, int, int]:
    n, _, height, width = images.shape
    return n, height, width


def addresses(*tensors: Tensor | None) -> list[int | None]:
    return [None if tensor is None else tensor.data_ptr() for tensor in tensors]


def check_arguments(x: Tensor, parameters: Sequence[Tensor]) -> None:
    """Behind this tensors are bare addresses: another type or size would be read and written past its end."""
    shapes = [(CHANNELS, CHANNELS, 3, 3), (CHANNELS,)] * (len(parameters) // 2)
    if x.ndim != 4 or x.shape[1] != CHANNELS or [tuple(part.shape) for part in parameters] != shapes:
        told = ", ".join(str(tuple(tensor.shape)) for tensor in (x, *parameters))
        raise TypeError(f"the kernels take [N, 16, H, W] and pairs of [16, 16, 3, 3] and [16], not {told}")
    for tensor in (x, *parameters):
        if tensor.dtype != torch.float32 or tensor.device.type != "cpu":
            raise TypeError(f"the kernels take float32 on a CPU, not {tensor.dtype} on {tensor.device}")


def listed(tensors: Sequence[Tensor]) -> Any:
    """Their addresses, as an array of C."""
    return (ctypes.c_void_p * len(tensors))(*addresses(*tensors))


def scratch(images: Tensor, kinds: int = 1) -> Tensor:
    return images.new_empty(load_library().cmudrn_scratch(kinds, *sides(images)))


def convolve16(x: Tensor, weight: Tensor, bias: Tensor, *, activated: bool = False) -> Tensor:
    """A 3x3 convolution of 16 channels to 16, stride 1, zero padding 1, with a gradient.

    x: [N, 16, H, W] float32 on the CPU, channels last or copied to it. weight: [16, 16, 3, 3]. bias: [16].
    Returns conv(x) + bias, or relu of it; shaped as x, channels last. It cannot be differentiated twice.
    Raises TypeError for what is not this.
    """
    check_arguments(x, [weight, bias])
    y: Tensor = _Convolve16.apply(x, weight, bias, RELU if activated else LINEAR)  # type: ignore[no-untyped-call]
    return y


def blocks16(x: Tensor, parameters: Sequence[Tensor], loops: int = 1) -> Tensor:
    """One or two residual blocks, `loops` times: f = relu(relu(conv2(relu(conv1(f)))) + f), each in its turn.

    x: [N, 16, H, W] float32 on the CPU, channels last or copied to it. Returns the same shape, channels last.
    parameters: of each block the weight [16, 16, 3, 3] and bias [16] of conv1, then those of conv2.
    It cannot be differentiated twice. Raises TypeError for what is not this.
    """
    if len(parameters) not in (4, 8) or loops < 1:
        raise TypeError(
            f"the kernels take one or two blocks of 4 parameters, once or more often, not {loops}"
            f" times {len(parameters)} parameters"
        )
    check_arguments(x, parameters)
    flat, kinds = torch.cat([part.flatten() for part in parameters]), len(parameters) // 4
    keep = torch.is_grad_enabled() and (x.requires_grad or flat.requires_grad)
    y: Tensor = _Blocks16.apply(x, flat, kinds, loops * kinds, keep)  # type: ignore[no-untyped-call]
    return y


def bias_of(conv: nn.Conv2d) -> Tensor:
    assert conv.bias is not None
    return conv.bias


class WinogradConv(nn.Conv2d):
    """A 3x3 convolution of up to 16 channels to up to 16: filled up with zeros, run as 16 to 16."""

    def forward(self, x: Tensor) -> Tensor:
        """x: [N, in, H, W] float32. Returns [N, out, H, W]."""
        return self.convolve([x], activated=False)

    def convolve(self, parts: Sequence[Tensor], *, activated: bool) -> Tensor:
        """Of parts that make up the input's channels, in order."""
        rest_in, rest_out = CHANNELS - self.in_channels, CHANNELS - self.out_channels
        n, _, height, width = parts[0].shape
        empty = [parts[0].new_zeros(()).expand(n, rest_in, height, width)] if rest_in else []
        full = torch.cat([*parts, *empty], dim=1) if len(parts) > 1 or empty else parts[0]
        weight = pad(self.weight, (0, 0, 0, 0, 0, rest_in, 0, rest_out))
        y = convolve16(full, weight, pad(bias_of(self), (0, rest_out)), activated=activated)
        return y[:, : self.out_channels]


class WinogradBlock(ResidualBlock):
    """A residual block in one call, activations and sum included."""

    def forward(self, f: Tensor) -> Tensor:
        """f: [N, 16, H, W] float32. Returns the same shape."""
        return blocks16(f, list(self.parameters()))


class WinogradDRN(DRN):
    """A stage's activation in the convolution's call, its recursion in another."""

    def stem(self, y: Tensor, x: Tensor) -> Tensor:
        """y, x: [B, 3, H, W] float32. Returns [B, 16, H, W]."""
        assert isinstance(self.conv_in, WinogradConv)
        return self.conv_in.convolve([y, x], activated=True)

    def recur(self, f: Tensor, loops: int) -> Tensor:
        """f: [B, 16, H, W] float32. Returns the same shape."""
        return blocks16(f, [*self.block1.parameters(), *self.block2.parameters()], loops)


class WinogradCMUDRN(CMUDRN):
    """The branches' recursions in one call each, where no stitch stands inside them."""

    def recur(self, f_rain: Tensor, f_snow: Tensor) -> tuple[Tensor, Tensor]:
        """f_rain, f_snow: [B, 16, H, W] float32. Returns the same shapes."""
        if self.stitches.keys() & {"block1", "block2"}:
            return super().recur(f_rain, f_snow)
        return self.rain.recur(f_rain, self.intra_loops), self.snow.recur(f_snow, self.intra_loops)


OURS: dict[type[nn.Module], type[nn.Module]] = {
    ResidualBlock: WinogradBlock,
    DRN: WinogradDRN,
    CMUDRN: WinogradCMUDRN,
}


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
    except EnvironmentMissing as exc:
        if asked is Kernels.WINOGRAD:
            raise
        logging.getLogger(__name__).warning(
            "%s: PyTorch's convolutions take over, at half the speed", exc.what
        )
        return Kernels.TORCH
    return Kernels.WINOGRAD


@cache
def check_library() -> None:
    """Compares a block's values and gradients with PyTorch's: what a compiler made is tried before it trains.

    Raises EnvironmentMissing where they differ, or where the library cannot be had.
    """
    load_library()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        blocks, conv = [ResidualBlock(), ResidualBlock()], nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
        # More tiles than are taken together, and more images than threads as well as fewer.
        images = [torch.randn(n, CHANNELS, 26, 21) for n in (torch.get_num_threads() + 1, 1)]
    parameters = [parameter for block in blocks for parameter in block.parameters()]
    for x in images:
        x.requires_grad_()
        pairs = [
            (blocks16(x, parameters), blocks[1](blocks[0](x)), [x, *parameters]),
            (convolve16(x, *conv.parameters()), conv(x), [x, *conv.parameters()]),
        ]
        for made, wanted, inputs in pairs:
            ours, theirs = (torch.autograd.grad(y.square().sum(), inputs) for y in (made, wanted))
            for got, right in zip((made, *ours), (wanted, *theirs), strict=True):
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
        if type(module) is nn.Conv2d and max(module.in_channels, module.out_channels) <= CHANNELS:
            module.__class__ = WinogradConv
        else:
            module.__class__ = OURS.get(type(module), type(module))
