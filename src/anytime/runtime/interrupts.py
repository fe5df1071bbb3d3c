"""Hard deadlines: the step in progress is cancelled when the deadline comes, so a step may start whenever time is left."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

from anytime.runtime.answer import Answer
from anytime.runtime.engines.base import Cancelled
from anytime.runtime.lazy import LazyAnswer
from anytime.runtime.threads import Threads

OPERATOR, STEP = "operator", "step"
HANDING_OVER = 200e-6  # seconds: waking the thread that waits for the answer takes longer only rarely


def cancels_steps(interrupt: Any, can_cancel: bool, planned: bool) -> bool:
    """Whether a deadline cancels the step in progress: as `interrupt` says; by default (None) if the engine can, unless a
    profile says which steps fit (`planned`).

    Raises:
        ValueError: It is neither "operator" nor "step", or the engine cannot cancel a step.
    """
    if interrupt is not None and not (isinstance(interrupt, str) and interrupt in (OPERATOR, STEP)):
        raise ValueError(f"interrupt must be {OPERATOR!r} or {STEP!r}, got {interrupt!r}")
    if interrupt == OPERATOR and not can_cancel:
        raise ValueError(
            "interrupt='operator' needs an engine that can cancel a step, which torch cannot: use an export for ONNX Runtime "
            "or OpenVINO (anytime.export_model), or interrupt='step'"
        )
    return can_cancel and (interrupt == OPERATOR or (interrupt is None and not planned))


def cancelled_at(
    left: Callable[[], float],
    threads: Threads,
    cancel: Callable[[], None],
    answers: Iterator[LazyAnswer],
    nothing: Callable[[], Answer],
) -> Iterator[Answer]:
    """The answers one by one, until another thread calls `cancel()`.

    Args:
        left: The seconds until then, asked when the first answer is wanted.
        threads: Where to wait for it.
        cancel: Makes `answers` raise `Cancelled`.
        answers: Computed on demand, in this thread.
        nothing: The answer if none was there before.
    """
    over, last = threading.Event(), None
    threads.submit(_watch, over, max(left(), 0.0), cancel)
    try:
        for last in answers:
            yield last.answer
    except Cancelled:
        if last is None:
            yield nothing().because("deadline")
    finally:
        over.set()


def _watch(over: threading.Event, seconds: float, cancel: Callable[[], None]) -> None:
    if not over.wait(seconds):
        cancel()
