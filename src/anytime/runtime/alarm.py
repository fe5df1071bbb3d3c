"""Calls functions at given times, in one thread for the whole process."""

from __future__ import annotations

import math
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from anytime.runtime.forks import renew_after_fork


class AlarmClock:
    """Calls functions at given times.

    One thread waits for the earliest time. To set a later one costs no switch to that thread, and neither does to take one
    back: the thread finds out when it wakes. What a function raises is reported as an error of a thread. A function may be
    called once more while it is replaced or taken back.

    No method waits for a lock, so each may be called at any place: by the garbage collector, or in a signal handler; only the
    first `set` waits until its thread has started. Reading and writing an entry of a dictionary is atomic, and so is copying
    it. An exception such as KeyboardInterrupt may also leave a method at any place: later alarms ring all the same.
    """

    def __init__(self) -> None:
        self.renew()
        renew_after_fork(self)

    def renew(self) -> None:
        """Forgets all alarms and gives up the thread, which a forked process does not have."""
        self._entries: dict[object, list[Any]] = {}  # the time, and what to call
        self._watcher: dict[str, object] = {}  # what the first thread has put there, which is the only one to stay
        self._wakes = math.inf  # until when the thread sleeps: only the thread writes it
        self._sleep = threading.Lock()  # held, and released to wake the thread
        self._sleep.acquire()

    def set(self, owner: object, seconds: float, function: Callable[[], None]) -> None:
        """Calls a function in so many seconds, instead of what the same owner had set before."""
        at = time.monotonic() + seconds
        self._entries[owner] = [at, function]
        if at < self._wakes:
            with suppress(RuntimeError):  # it is released already
                self._sleep.release()
        if not self._watcher:
            threading.Thread(target=self._watch, args=(object(),), daemon=True, name="anytime-alarm").start()

    def take_back(self, owner: object) -> None:
        """Calls nothing for this owner."""
        self._entries.pop(owner, None)

    def holds(self, owner: object) -> bool:
        """Whether an owner has set an alarm since it took back the last one."""
        return owner in self._entries

    def _watch(self, me: object) -> None:
        if self._watcher.setdefault("", me) is not me:
            return
        while True:
            self._wakes = math.inf  # whoever sets an alarm from here on wakes this thread
            now, entries = time.monotonic(), self._entries.copy()
            due = sorted((pair for pair in entries.items() if pair[1][0] <= now), key=lambda pair: pair[1][0])
            for owner, entry in due:
                if self._entries.get(owner) is not entry:  # it was replaced or taken back meanwhile
                    continue
                entry[0] = math.inf
                try:
                    entry[1]()
                except BaseException:  # nothing, not even SystemExit or an error of the hook, silences the other alarms
                    with suppress(BaseException):
                        threading.excepthook(threading.ExceptHookArgs((*sys.exc_info(), threading.current_thread())))
            if not due:
                self._wakes = min((at for at, _ in entries.values()), default=math.inf)
                self._sleep.acquire(timeout=max(0.0, min(self._wakes - time.monotonic(), threading.TIMEOUT_MAX)))


ALARMS = AlarmClock()
