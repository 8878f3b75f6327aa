"""Queues between threads: bounded, in order, with an end; and the one that drops."""

from __future__ import annotations

import threading
import time

import pytest

from cmudrn.deploy.video.handover import Closed, DroppingHandover, Handover


def filling(queue: Handover[int], count: int, size_bytes: int = 1) -> threading.Thread:
    def fill() -> None:
        for number in range(count):
            queue.put(number, size_bytes)
        queue.end()

    thread = threading.Thread(target=fill)
    thread.start()
    return thread


def test_all_things_come_in_order_and_then_the_end() -> None:
    queue: Handover[int] = Handover(3)
    thread = filling(queue, 1000)
    assert list(queue) == list(range(1000))
    thread.join()


def test_no_more_is_held_than_the_bound() -> None:
    queue: Handover[int] = Handover(10)
    put = []

    def fill() -> None:
        for number in range(100):
            queue.put(number, 3)
            put.append(number)
        queue.end()

    thread = threading.Thread(target=fill)
    thread.start()
    for taken, _ in enumerate(queue):
        time.sleep(0.0005)
        assert len(put) <= taken + 1 + 3 + 1  # three of three bytes in ten, and one that was just let in
    thread.join()


def test_what_is_larger_than_the_bound_goes_alone() -> None:
    queue: Handover[int] = Handover(1)
    thread = filling(queue, 5, size_bytes=100)
    assert list(queue) == [0, 1, 2, 3, 4]
    thread.join()


def test_an_error_is_met_after_all_that_came_before_it() -> None:
    queue: Handover[str] = Handover(10)
    queue.put("last", 1)
    queue.end(OSError("the camera fell down"))
    things = iter(queue)
    assert next(things) == "last"
    with pytest.raises(OSError, match="fell down"):
        next(things)


def test_closing_wakes_who_waits_to_put() -> None:
    queue: Handover[int] = Handover(1)
    queue.put(0, 1)
    raised = threading.Event()

    def put() -> None:
        with pytest.raises(Closed):
            queue.put(1, 1)
        raised.set()

    thread = threading.Thread(target=put)
    thread.start()
    queue.close()
    thread.join(5)
    assert raised.is_set()
    assert list(queue) == []


def test_a_camera_never_waits_and_what_waited_longest_goes() -> None:
    queue: DroppingHandover[int] = DroppingHandover(4)
    for number in range(10):
        queue.put(number, 1)
    queue.end()
    assert list(queue) == [6, 7, 8, 9]
    assert queue.dropped == 6


def test_only_what_may_be_dropped_is() -> None:
    """Sound is kept: a packet of it is small, and would be missed."""
    queue: DroppingHandover[str] = DroppingHandover(2, lambda thing: thing.startswith("frame"))
    for thing in ("frame 0", "sound 0", "frame 1", "sound 1", "frame 2", "frame 3"):
        queue.put(thing, 1)
    queue.end()
    assert list(queue) == ["sound 0", "sound 1", "frame 2", "frame 3"]
    assert queue.dropped == 2


def test_sound_leaves_frames_their_room_however_much_of_it_comes() -> None:
    queue: DroppingHandover[str] = DroppingHandover(2, lambda thing: thing.startswith("frame"))
    for thing in ("frame 0", *["sound"] * 100, "frame 1", *["sound"] * 100):
        queue.put(thing, 1)
    queue.end()
    assert [thing for thing in queue if thing != "sound"] == ["frame 0", "frame 1"]
    assert queue.dropped == 0


def test_a_fast_camera_and_a_slow_taker_lose_none_uncounted() -> None:
    queue: DroppingHandover[int] = DroppingHandover(3)
    thread = filling(queue, 2000)
    taken = []
    for number in queue:
        taken.append(number)
        time.sleep(0.0002)
    thread.join()
    assert taken == sorted(set(taken))
    assert taken[-1] == 1999
    assert len(taken) + queue.dropped == 2000


def test_the_time_spent_waiting_for_things_is_told() -> None:
    queue: Handover[int] = Handover(10)
    later = threading.Timer(0.1, queue.end)
    later.start()
    assert list(queue) == []
    assert queue.waited_s > 0.05
