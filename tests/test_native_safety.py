"""What the native kernels leave alone: other images' bytes, the process, its memory, whoever else runs."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from native.library import ISAS, need_isa, need_library, opened
from native.networks import ALL_POINTS, Configuration, random_images

from cmudrn.deploy.native.library import has_isa, usable_isas
from cmudrn.engines.spec import Output
from cmudrn.errors import EnvironmentMissing, ImageError

TESTS = Path(__file__).parent
CONFIGURATION = Configuration(2, 2, ALL_POINTS)
PLAIN = Configuration(1, 1)
WORK = Configuration(3, 3)  # with a large image, tenths of a second
STACK_BYTES = 1 << 30  # of each thread, where none is to be started
WAIT_S = 30

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="it looks into /proc")


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> str:
    return need_isa(request.param)


@pytest.mark.parametrize("shape", [(1, 61, 131), (1, 7, 200), (3, 21, 70)], ids=str)
def test_the_bytes_are_the_same_on_any_number_of_threads(isa: str, shape: tuple[int, int, int]) -> None:
    images = random_images(*shape)
    results = []
    for threads in (1, 2, 3, 5, 8, 40):
        with opened(CONFIGURATION, isa, threads) as session:
            results += [session.restore(images) for _ in range(3)]
    assert all(np.array_equal(one, results[0]) for one in results)


def test_an_image_is_the_same_whatever_its_neighbours_in_a_batch(isa: str) -> None:
    images = random_images(5, 13, 75)
    with opened(CONFIGURATION, isa, 3) as session:
        alone = [session.restore(image[None])[0] for image in images]
        for order in ([0, 1, 2, 3, 4], [4, 2, 0], [3, 3], [1]):
            assert np.array_equal(session.restore(images[order]), np.stack(alone)[order])


def test_an_image_is_the_same_whatever_was_restored_before(isa: str) -> None:
    shapes = [(1, 90, 150), (1, 3, 2), (2, 40, 66), (1, 1, 150), (1, 90, 1), (1, 90, 150), (3, 5, 5)]
    with opened(CONFIGURATION, isa, 2) as one_for_all:
        for number, shape in enumerate(shapes):
            images, output = random_images(*shape), list(Output)[number % 3]
            with opened(CONFIGURATION, isa, 2) as fresh:
                wanted = fresh.restore(images, output)
            assert np.array_equal(one_for_all.restore(images, output), wanted)


def test_the_image_given_stays_as_it_is(isa: str) -> None:
    images = random_images(2, 33, 34)
    before = images.copy()
    with opened(CONFIGURATION, isa, 2) as session:
        session.restore(images)
    assert np.array_equal(images, before)


def tasks() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


def test_python_goes_on_during_a_call_and_no_thread_is_left_after_it() -> None:
    need_library()
    images, inside = random_images(1, 700, 700), threading.Event()
    before, most, seen_inside = tasks(), 0, 0
    interval = sys.getswitchinterval()

    def restore() -> None:
        with opened(WORK, usable_isas()[0], 4) as session:
            session.restore(images[:, :8, :8])
            inside.set()
            session.restore(images)
            inside.clear()

    worker = threading.Thread(target=restore)
    # Python's lock is taken from nobody: whoever else runs, runs because it was given up.
    sys.setswitchinterval(WAIT_S)
    try:
        worker.start()
        while worker.is_alive():
            time.sleep(0.001)
            if inside.is_set():
                seen_inside += 1
                most = max(most, tasks())
        worker.join()
    finally:
        sys.setswitchinterval(interval)
    assert seen_inside > 3
    assert before + 2 <= most <= before + 1 + 3  # the worker, and at most three beside it
    ends_s = time.monotonic() + WAIT_S  # a thread that was joined may be listed a moment longer
    while tasks() > before and time.monotonic() < ends_s:
        time.sleep(0.001)
    assert tasks() <= before


def in_a_process(body: Callable[[], None], *, stack_bytes: int | None = None) -> None:
    """Runs a function of this module in a process of its own, which may take its limits."""

    def limit_stack() -> None:
        if stack_bytes:  # glibc reads it when it starts: each thread's, too
            resource.setrlimit(
                resource.RLIMIT_STACK, (stack_bytes, resource.getrlimit(resource.RLIMIT_STACK)[1])
            )

    need_library()
    paths = os.pathsep.join([str(TESTS), str(TESTS.parent / "tools")])
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", f"import {__name__} as test; test.{body.__name__}()"],
        env={**os.environ, "PYTHONPATH": paths, "OPENBLAS_NUM_THREADS": "1"},
        preexec_fn=limit_stack,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def status_bytes(name: str) -> int:
    """A line of /proc/self/status, such as VmHWM, the most memory that was resident."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def limit_address_space(bytes_more: int) -> None:
    most = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (status_bytes("VmSize") + bytes_more, most))


def fork_between_calls() -> None:
    images = random_images(1, 67, 140)
    for isa in usable_isas():
        with opened(CONFIGURATION, isa, 3) as session:
            before = session.restore(images)
            child = os.fork()
            same = np.array_equal(session.restore(images), before)
            if child == 0:
                os._exit(0 if same else 1)
            assert same
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_process_may_fork_between_calls_and_both_go_on() -> None:
    in_a_process(fork_between_calls)


def run_short_of_memory() -> None:
    small, large = random_images(1, 60, 60), random_images(1, 2000, 2000)
    for isa in usable_isas():
        with opened(PLAIN, isa, 2) as session:
            before = session.restore(small)
            assert session.bytes_for(1, 2000, 2000) > 200 << 20
            limits = resource.getrlimit(resource.RLIMIT_AS)
            limit_address_space(100 << 20)
            for _ in range(2):
                with pytest.raises(ImageError, match="MB cannot be allocated for 1x2000x2000") as caught:
                    session.restore(large)
                assert "--tile" in caught.value.fix
                assert np.array_equal(session.restore(small), before)
            resource.setrlimit(resource.RLIMIT_AS, limits)


def test_where_memory_is_short_the_error_is_clean_and_smaller_images_are_served() -> None:
    in_a_process(run_short_of_memory)


def run_without_threads() -> None:
    images = random_images(2, 67, 140)
    for isa in usable_isas():
        with opened(CONFIGURATION, isa) as session:
            wanted = session.restore(images)
        limits = resource.getrlimit(resource.RLIMIT_AS)
        limit_address_space(STACK_BYTES - (100 << 20))
        with pytest.raises(RuntimeError, match="start new thread"):
            threading.Thread(target=int).start()
        with opened(CONFIGURATION, isa, 4) as session:
            assert np.array_equal(session.restore(images), wanted)
        resource.setrlimit(resource.RLIMIT_AS, limits)


def test_where_no_thread_can_be_started_the_caller_does_the_work() -> None:
    in_a_process(run_without_threads, stack_bytes=STACK_BYTES)


def take_what_was_said() -> None:
    for isa in usable_isas():
        height, width = (300, 400) if isa == "direct" else (1200, 1500)
        images = random_images(1, height, width)
        with opened(PLAIN, isa, 2) as session:
            session.restore(images[:, :8, :8])
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the most is what is now
            before = status_bytes("VmHWM")
            session.restore(images)
            taken = status_bytes("VmHWM") - before - images.nbytes  # the image that comes back
            announced = session.bytes_for(1, height, width)
            assert 0.7 * announced < taken < announced + (2 << 20)  # and the threads' stacks


def test_a_call_takes_the_memory_that_was_announced() -> None:
    in_a_process(take_what_was_said)


@pytest.mark.parametrize("isa", ISAS[1:])  # the direct way keeps all maps of an image
def test_memory_is_one_feature_map_and_little_more_however_deep_or_many(isa: str) -> None:
    need_isa(isa)

    def announced(configuration: Configuration, batch: int, threads: int) -> int:
        with opened(configuration, isa, threads) as session:
            return session.bytes_for(batch, 10_000, 10_000)

    pixels = 100_000_000
    shallow = announced(PLAIN, 1, 1)
    assert 64 <= shallow / pixels < 65  # 16 float32
    assert announced(Configuration(7, 7), 1, 1) < 1.05 * shallow
    assert announced(PLAIN, 1, 16) < 1.05 * shallow
    assert announced(PLAIN, 64, 1) < 2.05 * shallow


def test_what_this_processor_has_is_named_best_first() -> None:
    need_library()
    names = usable_isas()
    assert list(names) == [isa for isa in reversed(ISAS[:-1]) if has_isa(isa)]
    assert names[-1] == "direct"
    assert not has_isa("")
    assert not has_isa("AVX2")


def test_an_unknown_instruction_set_is_refused() -> None:
    need_library()
    with pytest.raises(EnvironmentMissing, match="sse9"), opened(PLAIN, "sse9"):
        pass
