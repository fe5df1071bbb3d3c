"""Calls functions at given times, in one thread for the whole process."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from operator import itemgetter

from anytime.runtime.forks import renew_after_fork


class AlarmClock:
    """Calls functions at given times.

    One thread waits for the earliest time. To set a later one costs no switch to that thread, and neither does to take one
    back: the thread finds out when it wakes. A function must not raise. It may be called once more while it is taken back.
    """

    def __init__(self) -> None:
        self.renew()
        renew_after_fork(self)

    def renew(self) -> None:
        """Gives up the thread, which a forked process does not have."""
        self._lock, self._sleep = threading.Lock(), threading.Lock()  # `_sleep` is held, and released to wake the thread
        self._sleep.acquire()
        self._set: dict[object, tuple[float, Callable[[], None]]] = {}
        self._wakes: float | None = None  # no thread yet

    def set(self, owner: object, seconds: float, function: Callable[[], None]) -> None:
        """Calls a function in so many seconds, instead of what the same owner had set before."""
        at = time.monotonic() + seconds
        with self._lock:
            self._set[owner] = at, function
            if self._wakes is None:
                threading.Thread(target=self._watch, daemon=True, name="anytime-alarm").start()
            if self._wakes is None or at < self._wakes:
                self._wakes = at
                if self._sleep.locked():
                    self._sleep.release()

    def take_back(self, owner: object) -> None:
        """Calls nothing for this owner."""
        with self._lock:
            self._set.pop(owner, None)

    def _watch(self) -> None:
        while True:
            with self._lock:
                now = time.monotonic()
                due = [(at, owner) for owner, (at, _) in self._set.items() if at <= now]
                functions = [self._set.pop(owner)[1] for _, owner in sorted(due, key=itemgetter(0))]
                self._wakes = min((at for at, _ in self._set.values()), default=math.inf)
                wait = min(self._wakes - now, threading.TIMEOUT_MAX)
            for function in functions:
                function()
            if not functions:
                self._sleep.acquire(timeout=wait)


ALARMS = AlarmClock()
