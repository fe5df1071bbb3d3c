"""Functions that are called at given times, on the true clock."""

from __future__ import annotations

import itertools
import os
import sys
import threading
import time
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest

from anytime.runtime.alarm import AlarmClock

SOON, LATER, NEVER = 0.02, 0.5, 600.0  # seconds; a busy machine may stop a thread for some SOON, hardly for LATER


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
    clock.set("taken", LATER, lambda: called.append("taken"))
    clock.set("moved", LATER, lambda: called.append("moved"))
    clock.set("moved", NEVER, lambda: called.append("moved"))
    clock.take_back("taken")
    clock.take_back("unknown")
    clock.set("end", LATER + SOON, done.set)
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
    clock._watcher[""] = None  # starts no thread, which would take the lock again
    clock._wakes = time.monotonic() + NEVER / 2  # as if it slept until then
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


def test_alarms_ring_after_an_interruption_at_any_place(clock: AlarmClock) -> None:
    """Ctrl-C in the middle of `set`, before each of its lines and of those that it calls."""
    lines = 0

    def interrupt(frame: Any, event: str, argument: Any) -> Any:
        nonlocal lines
        if event == "line" and frame.f_code.co_filename.endswith("alarm.py"):
            lines -= 1
            if lines == 0:
                raise KeyboardInterrupt
        return interrupt

    for place, first in itertools.product(range(1, 9), (True, False)):
        clock = AlarmClock() if first else clock  # with a thread that is not there yet, and with one that sleeps
        lines, before = place, sys.gettrace()
        sys.settrace(interrupt)
        try:
            with suppress(KeyboardInterrupt):
                clock.set("interrupted", SOON, lambda: None)
        finally:
            sys.settrace(before)
        done = threading.Event()
        clock.set("mine", 2 * SOON, done.set)
        assert done.wait(60), (place, first)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_error_of_a_function_ends_no_later_alarm(clock: AlarmClock) -> None:
    reported, before, done = list[Any](), threading.excepthook, threading.Event()
    threading.excepthook = reported.append
    try:
        clock.set("wrong", 0.0, lambda: 1 / 0)
        clock.set("mine", SOON, done.set)
        assert done.wait(60)
    finally:
        threading.excepthook = before
    assert [each.exc_type for each in reported] == [ZeroDivisionError]


def test_a_stall_of_its_thread_delays_no_alarm(clock: AlarmClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """0.3 s pass between a look at the clock and going to sleep: of an alarm in 0.5 s, only 0.2 are left to sleep."""
    slept, times, me = list[float](), iter([10.0, 10.0, 10.3]), object()

    class Sleep:
        def release(self) -> None:
            pass

        def acquire(self, timeout: float) -> None:
            slept.append(timeout)
            raise StopIteration

    clock._watcher, clock._sleep = {"": me}, Sleep()  # type: ignore[assignment]
    monkeypatch.setattr("anytime.runtime.alarm.time", SimpleNamespace(monotonic=lambda: next(times)))
    clock.set("mine", 0.5, lambda: None)
    with pytest.raises(StopIteration):
        clock._watch(me)
    assert slept == pytest.approx([0.2])


def test_an_alarm_that_is_moved_at_its_last_moment_does_not_ring(clock: AlarmClock) -> None:
    called, done = list[str](), threading.Event()

    class Entries(dict):
        def copy(self) -> dict:
            entries = dict(self)
            if "mine" in self and self["mine"][0] < time.monotonic():  # its thread has woken for it
                clock.set("mine", NEVER, lambda: called.append("late"))
                done.set()
            return entries

    clock._entries = Entries()
    clock.set("mine", SOON, lambda: called.append("early"))
    assert done.wait(60)
    clock.set("end", SOON, (end := threading.Event()).set)
    assert end.wait(60)
    assert called == []


def test_not_even_an_error_of_the_hook_for_errors_ends_later_alarms(
    clock: AlarmClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = threading.Event()

    def fails(*_: object) -> None:
        raise SystemExit

    monkeypatch.setattr(threading, "excepthook", fails)
    clock.set("wrong", SOON, fails)
    clock.set("right", 3 * SOON, done.set)
    assert done.wait(60)


def test_many_threads_start_one_that_stays(clock: AlarmClock) -> None:
    ready, rang = threading.Barrier(16), [threading.Event() for _ in range(16)]

    def begin(number: int) -> None:
        ready.wait()
        clock.set(number, SOON, rang[number].set)

    before = threading.active_count()
    threads = [threading.Thread(target=begin, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(event.wait(60) for event in rang)
    assert threading.active_count() == before + 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_has_a_thread_of_its_own(clock: AlarmClock) -> None:
    clock.set("mine", NEVER, lambda: None)
    child = os.fork()
    if child == 0:
        done = threading.Event()
        clock.set("mine", SOON, done.set)
        os._exit(0 if done.wait(60) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
