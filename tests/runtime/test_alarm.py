"""Functions that are called at given times, on the true clock."""

from __future__ import annotations

import os
import sys
import threading
import time
from typing import Any

import pytest

from anytime.runtime.alarm import AlarmClock

SOON, NEVER = 0.02, 600.0


@pytest.fixture
def clock() -> AlarmClock:
    return AlarmClock()


def test_functions_are_called_in_their_order_and_not_before(clock: AlarmClock) -> None:
    called, done, start = list[tuple[str, float]](), threading.Event(), time.monotonic()

    def at(number: int) -> float:
        return start + number * SOON - time.monotonic()

    for name, number in (("third", 3), ("first", 1), ("second", 2)):
        clock.set(name, at(number), lambda name=name: called.append((name, time.monotonic() - start)))
    clock.set("last", at(4), done.set)
    assert done.wait(60)
    assert [name for name, _ in called] == ["first", "second", "third"]
    assert all(seconds >= number * SOON for number, (_, seconds) in enumerate(called, 1))


def test_what_was_taken_back_or_moved_away_is_not_called(clock: AlarmClock) -> None:
    called, done = list[str](), threading.Event()
    clock.set("taken", SOON, lambda: called.append("taken"))
    clock.set("moved", SOON, lambda: called.append("moved"))
    clock.set("moved", NEVER, lambda: called.append("moved"))
    clock.take_back("taken")
    clock.take_back("unknown")
    clock.set("end", 3 * SOON, done.set)
    assert done.wait(60)
    assert called == []


def test_one_can_be_moved_to_an_earlier_time(clock: AlarmClock) -> None:
    done = threading.Event()
    clock.set("mine", NEVER, lambda: None)
    clock.set("mine", SOON, done.set)
    assert done.wait(60)
    clock.set("mine", -1.0, (again := threading.Event()).set)  # a time that has passed
    assert again.wait(60)


def test_a_later_time_wakes_nobody(clock: AlarmClock) -> None:
    clock._first = iter(())  # starts no thread, which would take the lock again
    clock.set("first", NEVER / 2, lambda: None)
    assert clock._sleep.acquire(blocking=False)
    for _ in range(10):
        clock.set("mine", NEVER, lambda: None)
        clock.take_back("mine")
    assert clock._sleep.locked()
    clock.set("mine", NEVER / 4, lambda: None)
    assert not clock._sleep.locked()


def test_it_may_be_called_where_it_was_interrupted(clock: AlarmClock) -> None:
    """By the garbage collector, or a signal handler, in the middle of each of its methods."""
    done, depth = threading.Event(), [0]

    def again(frame: Any, event: str, argument: Any) -> Any:
        if frame.f_code.co_filename.endswith("alarm.py") and not depth[0]:
            depth[0] = 1
            clock.set("inner", SOON, lambda: None)
            clock.take_back("inner")
            depth[0] = 0
        return again

    before = sys.gettrace()
    sys.settrace(again)
    try:
        clock.set("mine", NEVER, lambda: None)
        clock.take_back("mine")
        clock.set("mine", 2 * SOON, done.set)
    finally:
        sys.settrace(before)
    assert done.wait(60)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_has_a_thread_of_its_own(clock: AlarmClock) -> None:
    clock.set("mine", NEVER, lambda: None)
    child = os.fork()
    if child == 0:
        done = threading.Event()
        clock.set("mine", SOON, done.set)
        os._exit(0 if done.wait(60) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
