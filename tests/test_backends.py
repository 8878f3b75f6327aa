"""One suite for the backends that take any size: the model's numbers, and what `Backend` promises."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from random_weights import random_checkpoint
from test_graph import by_pytorch, random_image, unit

from cmudrn.deploy.backend import Backend, PixelBatch
from cmudrn.deploy.native import NativeBackend
from cmudrn.deploy.native.library import is_built, usable_isas
from cmudrn.deploy.onnxruntime import OnnxBackend
from cmudrn.deploy.openvino import OpenVinoBackend
from cmudrn.deploy.torch import TorchBackend
from cmudrn.engines.graph import dynamic_graph
from cmudrn.engines.spec import EngineSpec, Output, Pixel, Precision
from cmudrn.errors import ImageError

CHECKPOINT = random_checkpoint({"stem": 0.9, "body": 0.8})
SPEC = EngineSpec(loops=1, height=32, width=32, precision=Precision.FP32)
NAMES = ("native", "onnx", "openvino", "torch")
OUTPUT_NAMES = {
    Output.FUSED: "restored",
    Output.RAIN: "rain",
    Output.SNOW: "snow",
}  # as `by_pytorch` has them
SHAPES = ((1, 8, 9), (3, 8, 9), (1, 30, 4), (2, 1, 1), (1, 8, 9))


def made(name: str, spec: EngineSpec = SPEC, *, threads: int | None = None) -> Backend:
    if name == "torch":
        return TorchBackend(CHECKPOINT, spec, threads=threads)
    if name == "native":
        if not is_built():
            pytest.skip("the package has no kernels of its own here: make native")
        return NativeBackend(CHECKPOINT, spec, threads=threads)
    graph = dynamic_graph(CHECKPOINT, loops=spec.loops, pixel=spec.pixel)
    if name == "onnx":
        return OnnxBackend(graph, spec, threads=threads, device="cpu")
    if find_spec("openvino") is None:  # not importorskip, which would import it, and be reported
        pytest.skip("OpenVINO is not installed: pip install 'cmudrn[openvino]'")
    return OpenVinoBackend(graph, spec, threads=threads)


@pytest.fixture(params=NAMES)
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    with made(request.param) as opened:
        yield opened


def exactly(values: PixelBatch) -> NDArray[np.float64]:
    return np.asarray(values, np.float64)


@pytest.mark.parametrize("pixel", Pixel)
@pytest.mark.parametrize("output", Output)
@pytest.mark.parametrize("name", NAMES)
def test_batches_of_changing_shapes_come_back_in_order_as_the_model_restores_them(
    name: str, output: Output, pixel: Pixel
) -> None:
    spec = replace(SPEC, loops=2, pixel=pixel, output=output)  # its size and batch are an engine's
    images = [random_image(*shape) for shape in SHAPES]
    given: list[PixelBatch] = [image if pixel is Pixel.UINT8 else unit(image) for image in images]
    with made(name, spec) as backend:
        assert backend.spec == spec
        restored = list(backend.stream(given))
    for batch, image, found in zip(given, images, restored, strict=True):
        exact = by_pytorch(CHECKPOINT, spec.loops, unit(image))[OUTPUT_NAMES[output]].clamp(0, 1).numpy()
        assert (found.dtype, found.shape) == (batch.dtype, batch.shape)
        if pixel is Pixel.UINT8:  # rounded half up, with what float32 may add where a value lies between two
            assert np.abs(exactly(found) - exact * 255).max() < 0.5 + 1e-2
        else:
            assert np.abs(exactly(found) - exact).max() < 1e-4


def test_memory_of_any_order_is_as_good_as_a_copy_and_stays_as_it_is(backend: Backend) -> None:
    image = random_image(2, 40, 40)
    untouchable = image[:1].copy()
    untouchable.flags.writeable = False
    before = image.copy()
    for view in (image[:, ::2, 5:20], image[:, ::-1, ::-1], image.transpose(0, 2, 1, 3), untouchable):
        of_view, of_copy = backend.stream([view, view.copy()])
        assert np.array_equal(of_view, of_copy)
    assert np.array_equal(image, before)


def test_a_restored_batch_keeps_its_pixels_while_others_are_restored(backend: Backend) -> None:
    images = [random_image(1, 12, 12), random_image(1, 12, 12) // 3, random_image(1, 6, 6)]
    first = next(backend.stream(images[:1]))
    kept = first.copy()
    list(backend.stream(images))
    assert np.array_equal(first, kept)


@pytest.mark.parametrize("name", NAMES)
def test_threads_change_no_grey_level_by_more_than_one(name: str) -> None:
    image = random_image(1, 61, 47)
    results = []
    for threads in (1, 2, 3):
        with made(name, threads=threads) as backend:
            results.append(exactly(next(backend.stream([image]))))
    assert np.abs(results[1] - results[0]).max() <= 1
    assert np.abs(results[2] - results[0]).max() <= 1


@pytest.mark.parametrize("name", NAMES)
def test_a_backend_can_be_opened_again_and_again(name: str) -> None:
    backend, image = made(name), random_image(1, 9, 9)
    restored = []
    for _ in range(2):
        with backend:
            restored.append(next(backend.stream([image])))
    assert np.array_equal(restored[0], restored[1])


@pytest.mark.parametrize("name", NAMES)
def test_a_backend_that_is_not_open_says_so(name: str) -> None:
    backend, image = made(name), random_image(1, 4, 4)
    with pytest.raises(RuntimeError, match="not open"):
        next(backend.stream([image]))
    with backend:
        stream = backend.stream([image, image])
        next(stream)
    with pytest.raises(RuntimeError, match="not open"):
        next(stream)


def test_a_stream_that_is_left_early_is_no_hindrance(backend: Backend) -> None:
    images = [random_image(1, 9, 9), random_image(1, 7, 5)]
    expected = next(backend.stream(images))
    stream = backend.stream(images)
    next(stream)
    stream.close()
    assert np.array_equal(next(backend.stream(images)), expected)


def test_streams_of_one_backend_do_not_disturb_each_other(backend: Backend) -> None:
    """TensorRT's slots are one stream's, and the older one says so: see test_tensorrt_backend.py."""
    images = [random_image(1, 9, 9), random_image(1, 7, 5), random_image(2, 9, 9)]
    right = [next(backend.stream([image])) for image in images]
    one, other = backend.stream(images), backend.stream(images[::-1])
    found = [next(one)]
    reverse = list(other)
    found += one
    assert all(map(np.array_equal, found, right))
    assert all(map(np.array_equal, reverse, right[::-1]))


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((1, 4, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.uint8),
        np.zeros((1, 4, 4, 3), np.float32),
        np.zeros((0, 4, 4, 3), np.uint8),
    ],
    ids=lambda array: f"{array.dtype}-{array.shape}",
)
def test_a_batch_of_another_kind_is_refused_in_a_line(backend: Backend, wrong: PixelBatch) -> None:
    with pytest.raises(ImageError, match=f"a batch of {wrong.dtype}") as caught:
        next(backend.stream([wrong]))
    assert caught.value.fix
    assert "\n" not in str(caught.value)
    assert next(backend.stream([random_image(1, 4, 4)])).shape == (1, 4, 4, 3)


def printed_by(code: str, *arguments: str, **environment: str) -> str:
    """In a fresh interpreter whose warnings are errors, and which knows of no home, and of no CI."""
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH", "TMPDIR") if name in os.environ}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *arguments],
        env={**kept, **environment},
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return done.stdout


OUT_OF_MEMORY = """
import resource, sys
import numpy as np
import cmudrn.deploy  # before onnxruntime
from cmudrn.errors import ImageError
from test_backends import made

small, large = np.zeros((1, 20, 20, 3), np.uint8), np.zeros((1, 3000, 3000, 3), np.uint8)
with made(sys.argv[1]) as backend:
    expected = next(backend.stream([small]))
    with open("/proc/self/statm") as file:
        taken = int(file.read().split()[0]) * resource.getpagesize()
    most = taken + (256 << 20)  # less than one layer of the large image
    resource.setrlimit(resource.RLIMIT_AS, (most, resource.getrlimit(resource.RLIMIT_AS)[1]))
    try:
        next(backend.stream([large]))
    except ImageError as exc:
        print(exc)
    print(np.array_equal(next(backend.stream([small])), expected))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a process's memory is limited as on Linux")
@pytest.mark.parametrize("name", NAMES)
def test_out_of_memory_is_an_image_error_and_the_next_image_is_restored(name: str) -> None:
    made(name)  # skips
    error, as_before = printed_by(OUT_OF_MEMORY, name).splitlines()
    assert "alloc" in error
    assert "try a smaller --tile" in error
    assert as_before == "True"


RESTORE = """
import sys
import numpy as np
from cmudrn.checkpoint import read_checkpoint
from cmudrn.deploy.graphs import shipped_graph
from cmudrn.engines.spec import EngineSpec, Pixel, Precision

spec = EngineSpec(loops=1, height=8, width=8, precision=Precision.FP32)
given = shipped_graph(1, Pixel.UINT8)
if sys.argv[1] == "onnx":
    from cmudrn.deploy.onnxruntime import OnnxBackend as Chosen
elif sys.argv[1] == "openvino":
    from cmudrn.deploy.openvino import OpenVinoBackend as Chosen
else:
    from cmudrn.deploy.native import NativeBackend as Chosen
    given = read_checkpoint("default")
with Chosen(given, spec) as backend:
    [restored] = backend.stream([np.zeros((1, 8, 8, 3), np.uint8)])
print(*sys.modules)
"""


@pytest.mark.parametrize(
    ("name", "library"), [("native", None), ("onnx", "onnxruntime"), ("openvino", "openvino")]
)
def test_restoring_loads_no_other_library_and_leaves_nothing_in_the_home_folder(
    name: str, library: str | None, tmp_path: Path
) -> None:
    """Both libraries would keep an identifier there, and report to Microsoft and to Google Analytics."""
    made(name)  # skips
    loaded = set(printed_by(RESTORE, name, HOME=str(tmp_path)).split())
    libraries = {"torch", "onnx", "onnxruntime", "openvino", "openvino_telemetry", "openvino.tools.ovc"}
    assert loaded & libraries == ({library} if library else set())
    assert not list(tmp_path.iterdir())


def test_the_label_names_the_library_its_version_and_the_device(backend: Backend) -> None:
    library, version, on, where = backend.label.rsplit(maxsplit=3)
    assert (on, where) == ("on", "CPU")
    if isinstance(backend, NativeBackend):  # of this very package: what differs is the instruction set
        assert (library, version) == ("own kernels", f"({usable_isas()[0]})")
        return
    assert library in ("ONNX Runtime", "OpenVINO", "PyTorch")
    assert version[0].isdecimal()
