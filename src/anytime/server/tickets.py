"""The images of one request on their way: what the event loop knows of them."""

from __future__ import annotations

import asyncio
import contextlib
from functools import partial

from torch import Tensor

from anytime.server.worker import Served, Worker


class Ticket:
    """Hands images to a worker and gathers what comes back; at the deadline the best answers so far are final.

    It belongs to the event loop that makes it.

    Args:
        worker: Computes.
        images: `[B, C, H, W]`.
        arrival: When they arrived, by the worker's clock, which is also the loop's.
        deadline: When their answers must have left.
        improves: Whether answers that are not the last ones matter; otherwise the event loop is not woken for them.

    Attributes:
        answers: The best answer of each image so far.
        reasons: Why there is no later one; "" while one may come.
        better: Each answer of the first image if it improves, and at last None.
        first: Set with the first answer, or when the ticket is done.
        done: Set when all answers are final.
        elapsed: Seconds from the arrival to the newest answer.
        missed: Whether an image has no answer, or it came after the deadline.
    """

    def __init__(self, worker: Worker, images: Tensor, arrival: float, deadline: float, improves: bool = False) -> None:
        self._worker, self._loop, self._arrival, self._deadline = worker, asyncio.get_running_loop(), arrival, deadline
        self._improves = improves
        self.answers: list[Served | None] = [None] * len(images)
        self.reasons = [""] * len(images)
        self.better: asyncio.Queue[Served | None] = asyncio.Queue()
        self.first, self.done = asyncio.Event(), asyncio.Event()
        self.elapsed, self.missed = 0.0, False
        self._keys = worker.submit(images, arrival, deadline, [partial(self._tell, place) for place in range(len(images))])
        self._timer = self._loop.call_at(deadline - worker.limits.margin / 2, self._expire)

    def drop(self) -> None:
        """Frees the places; nothing more comes."""
        self._timer.cancel()
        self._worker.drop(self._keys)

    def _expire(self) -> None:
        for key in self._keys:
            self._worker.release(key)

    def _tell(self, place: int, answer: Served | None, reason: str) -> None:
        """Called by the worker, from any thread."""
        if not (reason or self._improves):
            return
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._take, place, answer, reason)

    def _take(self, place: int, answer: Served | None, reason: str) -> None:
        if self.reasons[place]:
            return
        if answer is not None:
            self.answers[place] = answer
            self.first.set()
            if place == 0:
                self.better.put_nowait(answer)
        self.reasons[place], now = reason, self._worker.clock()
        self.elapsed = now - self._arrival
        if not all(self.reasons):
            return
        self.missed = now > self._deadline or None in self.answers
        self._timer.cancel()
        self.better.put_nowait(None)
        self.first.set()
        self.done.set()
