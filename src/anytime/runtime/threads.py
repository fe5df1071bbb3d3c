"""The threads of sessions."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from anytime.runtime.forks import renew_after_fork

_MOST = 64


class Threads:
    """At most 64 threads, the first of them started when it is needed; a copy, and a forked process, starts its own."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        renew_after_fork(self)

    def submit(self, function: Callable[..., None], *arguments: Any) -> None:
        """Runs a function in one of the threads."""
        with self._lock:
            self._pool = self._pool or ThreadPoolExecutor(_MOST, thread_name_prefix="anytime")
            self._pool.submit(function, *arguments)

    def renew(self) -> None:
        """Gives up the threads, which a forked process does not have."""
        self._lock, self._pool = threading.Lock(), None

    def __reduce__(self) -> tuple[type[Threads], tuple[()]]:
        return Threads, ()
