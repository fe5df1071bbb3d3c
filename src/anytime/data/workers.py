"""Processes that read images survive the signals that stop their parent, which finishes its step first."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_EXACT = hasattr(signal, "sigwaitinfo")  # whether the sender of a signal is told; not on macOS and Windows


@contextmanager
def signals_held() -> Iterator[None]:
    """Processes that are started inside get no SIGINT or SIGTERM before `outlive_signals`; this one gets its own on exit."""
    if not _EXACT:
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def outlive_signals(_: int) -> None:
    """Makes a worker process ignore SIGINT, and SIGTERM unless its parent sends it; it ends with its parent anyway.

    A scheduler, `timeout` or a terminal signals the whole process group. A worker that died of it would take along the
    training step that its parent is about to save.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if _EXACT:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()


def _end_with_parent(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
