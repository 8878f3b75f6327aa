"""Through the C interface itself: a wrong argument is a status or null, never a crash; nothing is written."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from ctypes import c_float, c_int32
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from native.library import ISAS, need_isa
from native.networks import Configuration, random_images

from cmudrn.deploy.native.library import NativeNetwork, load_library

OK, NO_MEMORY, BAD_ARGUMENT = range(3)
UINT8, FLOAT32 = range(2)
FUSED = 0
WEIGHTS = 24825
HEIGHT, WIDTH = 5, 7
MOST = 2**31 - 1
FILL = 0xA5


class Config(ctypes.Structure):
    """cmudrn_config, with the alphas that it holds one by one in an array."""

    _fields_ = (("inter_loops", c_int32), ("intra_loops", c_int32), ("alphas", c_float * 4))


@dataclass
class Call:
    """The arguments of cmudrn_restore; as they stand, they are right."""

    session: int | None
    given: int | None
    out: int | None
    batch: int = 1
    height: int = HEIGHT
    width: int = WIDTH
    pixel: int = UINT8
    output: int = FUSED

    def status(self, **other: int | None) -> int:
        """With some of them replaced."""
        return int(load_library().cmudrn_restore(*{**vars(self), **other}.values()))


@dataclass
class Subject:
    """A session and images to give it; `images` is large enough for float32."""

    session: int
    images: np.ndarray[Any, np.dtype[np.uint8]]
    restored: np.ndarray[Any, np.dtype[np.uint8]]

    @property
    def call(self) -> Call:
        """A right one."""
        return Call(self.session, self.images.ctypes.data, self.restored.ctypes.data)


@pytest.fixture(params=ISAS)
def subject(request: pytest.FixtureRequest) -> Iterator[Subject]:
    checkpoint = Configuration().checkpoint
    with NativeNetwork(checkpoint.tensors, checkpoint, need_isa(request.param)) as network:
        library, handle = network.handle
        session = library.cmudrn_session_new(handle, 2)
        images = random_images(4, HEIGHT, WIDTH).ravel()
        yield Subject(session, images, np.full_like(images, FILL))
        library.cmudrn_session_free(session)


@pytest.mark.parametrize(
    "wrong",
    [
        {"session": None},
        {"given": None},
        {"out": None},
        {"given": None, "out": None},
        *({name: value} for name in ("batch", "height", "width") for value in (0, -1, -MOST - 1)),
        {"batch": MOST, "height": MOST, "width": MOST},
        {"height": MOST, "width": MOST},
        {"width": MOST},
        {"height": 1 << 24, "width": (1 << 24) + 1},
        *({name: value} for name in ("pixel", "output") for value in (-1, 3, MOST)),
        {"pixel": 2},
    ],
    ids=str,
)
def test_a_wrong_argument_is_refused_and_nothing_is_written(
    subject: Subject, wrong: dict[str, int | None]
) -> None:
    before = subject.images.copy()
    assert subject.call.status(**wrong) == BAD_ARGUMENT
    assert (subject.restored == FILL).all()
    assert np.array_equal(subject.images, before)
    assert subject.call.status() == OK  # and the session is as good as before


def test_images_that_overlap_are_refused(subject: Subject) -> None:
    start, size = subject.images.ctypes.data, HEIGHT * WIDTH * 3
    for apart in (0, 1, size - 1):
        assert subject.call.status(given=start, out=start + apart) == BAD_ARGUMENT
        assert subject.call.status(given=start + apart, out=start) == BAD_ARGUMENT
    assert subject.call.status(given=start, out=start + size) == OK


def test_float32_that_is_not_aligned_is_refused(subject: Subject) -> None:
    given, out = subject.images.ctypes.data, subject.restored.ctypes.data
    assert subject.call.status(given=given + 1, pixel=FLOAT32) == BAD_ARGUMENT
    assert subject.call.status(out=out + 2, pixel=FLOAT32) == BAD_ARGUMENT


def test_an_image_of_terabytes_wants_memory_and_nothing_is_written(subject: Subject) -> None:
    assert subject.call.status(height=1 << 23, width=1 << 17) in (NO_MEMORY, BAD_ARGUMENT)
    assert (subject.restored == FILL).all()
    assert subject.call.status() == OK


def test_bytes_of_what_cannot_be_are_none(subject: Subject) -> None:
    library = load_library()
    sizes = ((0, 5, 5), (1, -1, 5), (1, 5, 0), (MOST, MOST, MOST))
    assert [library.cmudrn_session_bytes(subject.session, *size) for size in sizes] == [0] * len(sizes)
    assert library.cmudrn_session_bytes(None, 1, 5, 5) == 0


def network(
    isa: str | None, config: Config | None, count: int = WEIGHTS, *, weights: bool = True
) -> int | None:
    """cmudrn_network_new; freed at once where there is one."""
    memory = np.zeros(WEIGHTS, np.float32)
    # ctypes checks the type of the structure, of which Python's binding has one of its own.
    make = ctypes.cast(load_library().cmudrn_network_new, ctypes.CFUNCTYPE(*[ctypes.c_void_p] * 5))
    made: int | None = make(
        memory.ctypes.data if weights else None,
        count,
        None if config is None else ctypes.addressof(config),
        None
        if isa is None
        else ctypes.cast(ctypes.create_string_buffer(isa.encode()), ctypes.c_void_p).value,
    )
    load_library().cmudrn_network_free(made)
    return made


ALPHAS = (c_float * 4)(1, 0, 0.5, 1)


@pytest.mark.parametrize("isa", ISAS)
def test_a_network_is_made_of_what_is_right_alone(isa: str) -> None:
    need_isa(isa)
    assert network(isa, Config(1, 32, ALPHAS))
    assert not network(isa, None)
    assert not network(isa, Config(1, 1, ALPHAS), weights=False)
    for count in (0, WEIGHTS - 1, WEIGHTS + 1):
        assert not network(isa, Config(1, 1, ALPHAS), count)
    for loops in (0, -1, 33, MOST):
        assert not network(isa, Config(loops, 1, ALPHAS))
        assert not network(isa, Config(1, loops, ALPHAS))
    for alpha in (-0.1, 1.1, np.nan, np.inf, -np.inf):
        for point in range(4):
            alphas = (c_float * 4)(1, 1, 1, 1)
            alphas[point] = alpha
            assert not network(isa, Config(1, 1, alphas))


@pytest.mark.parametrize("isa", [None, "", "sse9", "AVX2", "avx2,", "avx", "avx512bf16,avx512"])
def test_an_instruction_set_that_is_none_is_refused(isa: str | None) -> None:
    need_isa("direct")
    assert not network(isa, Config(1, 1, ALPHAS))
    assert not load_library().cmudrn_has_isa(None if isa is None else isa.encode())


@pytest.mark.parametrize("isa", ISAS)
def test_sessions_are_of_1_to_256_threads(isa: str) -> None:
    checkpoint = Configuration().checkpoint
    with NativeNetwork(checkpoint.tensors, checkpoint, need_isa(isa)) as opened:
        library, handle = opened.handle
        for threads in (0, -1, 257, MOST):
            assert not library.cmudrn_session_new(handle, threads)
        assert not library.cmudrn_session_new(None, 1)
        for threads in (1, 256):
            session = library.cmudrn_session_new(handle, threads)
            assert session
            library.cmudrn_session_free(session)
        library.cmudrn_session_free(None)
        library.cmudrn_network_free(None)
