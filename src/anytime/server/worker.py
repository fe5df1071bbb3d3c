"""The thread that computes: it asks the scheduler, runs batches on one model, and hands out answers."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anytime.combine import Last
from anytime.model import AnytimeModel
from anytime.runtime.drift import Drift
from anytime.runtime.engines.exported import engine_of
from anytime.server.scheduler import DEADLINE, POLICIES, Batch, Costs, Limits, Request, decide
from anytime.server.states import Seat, gather
from anytime.server.traffic import Traffic
from anytime.stopping import Rule

RESERVE = 1.1  # what plans add to the median seconds of a batch
_KEPT = 100_000  # batches and waits between two readings of the metrics
FAILED = "failed"  # the reason of an answer after which the model raised an error


@dataclass(frozen=True)
class Served:
    """An answer about one image.

    Attributes:
        probabilities: Float32 `[K]`, all label levels side by side.
        step: 1..T.
        confidence: The largest probability of the first label level.
        macs: Multiply-adds spent on the image.
        reason: Why there is no later answer; "" while one may come.
    """

    probabilities: np.ndarray
    step: int
    confidence: float
    macs: int
    reason: str = ""


@dataclass
class Task:
    """An image on its way, with what has become of it so far.

    Attributes:
        image: `[C, H, W]`.
        notify: Called with each better answer, and at last with the best one or None, and the reason why there is no later
            one; from any thread, and without delay.
        answer: The best finished answer.
        place: Where its state lies.
        macs: Multiply-adds spent.
        judged: State of the stopping rule.
    """

    image: Tensor
    notify: Callable[[Served | None, str], None]
    answer: Served | None = None
    place: Seat | None = None
    macs: int = 0
    judged: Any = None


class Worker:
    """Runs one model for many requests, from one thread.

    A batch that raises an error ends its requests with the reason "failed"; if the thread itself dies, it is started anew, and
    `ready` is false meanwhile. The answer that a request has when its deadline comes is handed out by whoever calls `release`.

    Args:
        model: A classifier in eval mode.
        costs: The median seconds of batches.
        macs: Cumulative MACs of the steps, and those of only answer t.
        limits: Those of the scheduler.
        policy: That of the scheduler.
        rule: Ends an image when its answer is good enough.
        clock: Returns seconds; that of arrivals and deadlines.

    Attributes:
        reference: A parameter of the model; images are on its device and in its precision.
    """

    def __init__(
        self,
        model: AnytimeModel,
        costs: Costs,
        macs: tuple[Sequence[int], Sequence[int]],
        limits: Limits | None = None,
        policy: str = "greedy",
        rule: Rule | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.model, self.costs, self.limits, self.policy, self.clock = model, costs, limits or Limits(), policy, clock
        if policy not in POLICIES:
            raise ValueError(f"policy must be one of {', '.join(POLICIES)}, got {policy!r}")
        self._run, self._rule = engine_of(model), rule
        self._macs, self._contract_macs = macs
        self.reference = next(model.parameters())
        self._traffic, self._tasks = Traffic(model.num_steps), dict[int, Task]()
        self._changed, self._closing = threading.Condition(), False
        self._keys, self.drift, self.restarts = itertools.count(), Drift(), 0
        self._batches: deque[tuple[Batch, float]] = deque(maxlen=_KEPT)
        self._waits: deque[float] = deque(maxlen=_KEPT)
        self._thread: threading.Thread | None = None
        self._running: tuple[int, ...] = ()  # requests of the batch that runs

    @property
    def live(self) -> int:
        """The number of live requests."""
        return len(self._traffic.live)

    @property
    def ready(self) -> bool:
        """Whether the thread runs and takes requests."""
        return self._thread is not None and self._thread.is_alive() and not self._closing

    def start(self) -> None:
        """Starts the thread; again, if it has died."""
        if self._thread is not None:
            self.restarts += 1
        self._thread = threading.Thread(target=self._work, name="anytime-worker", daemon=True)
        self._thread.start()

    def close(self, seconds: float | None = None) -> None:
        """Ends the thread when the live requests are answered, or after so many seconds; the others get their best answer."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(seconds)
        for key in [*self._tasks]:
            self.release(key)

    def submit(self, images: Tensor, arrival: float, deadline: float, notify: Sequence[Callable[..., None]]) -> list[int]:
        """Takes images `[B, C, H, W]` that arrived together; returns their keys."""
        keys = [next(self._keys) for _ in notify]
        with self._changed:
            for key, image, each in zip(keys, images, notify, strict=True):
                self._tasks[key] = Task(image, each)
                self._traffic.arrive(Request(key, arrival, deadline))
            self._changed.notify_all()
        return keys

    def release(self, key: int, reason: str = DEADLINE) -> None:
        """Hands out the best finished answer now, if the request is still live."""
        with self._changed:
            if (task := self._tasks.get(key)) is None:
                return
            self._traffic.live.pop(key, None)
        task.notify(task.answer and replace(task.answer, reason=reason), reason)
        self._tasks.pop(key, None)  # last: if this thread dies before, the request can still be released

    def drop(self, keys: Sequence[int]) -> None:
        """Forgets requests whose client has gone."""
        with self._changed:
            for key in keys:
                self._traffic.live.pop(key, None)
                self._tasks.pop(key, None)

    def take_batches(self) -> list[tuple[Batch, float]]:
        """The batches since the last call, with their seconds."""
        with self._changed:
            taken, self._batches = [*self._batches], deque(maxlen=_KEPT)
        return taken

    def take_waits(self) -> list[float]:
        """Seconds from arrival to the first batch, of those that began since the last call."""
        with self._changed:
            taken, self._waits = [*self._waits], deque(maxlen=_KEPT)
        return taken

    def _work(self) -> None:
        try:
            self._serve()
        finally:  # if it dies, the requests of its batch are in no known state, and it may hold the lock
            with contextlib.suppress(RuntimeError):  # it holds it no more
                while True:
                    self._changed.release()
            for key in self._running:
                self.release(key, f"{FAILED}: the thread that computes has died")

    def _serve(self) -> None:
        self._running = ()
        with self._run.conditions():
            while True:
                with self._changed:
                    while not self._traffic.live and not self._closing:
                        self._changed.wait()
                    if not self._traffic.live:
                        return
                    now, live = self.clock(), [*self._traffic.live.values()]
                    costs = Costs(self.costs.jumps, self.costs.steps, RESERVE * self.drift.ratio)
                    decision = decide(live, costs, self._traffic.load(), self.limits, now, self.policy)
                    tasks = [self._tasks[key] for key in decision.batch.keys] if decision.batch else []
                    if decision.batch is not None and decision.batch.first == 0:
                        self._waits += [now - self._traffic.live[key].arrival for key in decision.batch.keys]
                    if decision.batch is None and any(self._ruled_out(r, now) for r in live if r.key in decision.answered):
                        self.drift.forget()
                for key, reason in decision.answered.items():
                    self.release(key, reason)
                if decision.batch is not None:
                    self._running = decision.batch.keys
                    self._compute(decision.batch, tasks)
                    self._running = ()

    def _ruled_out(self, request: Request, now: float) -> bool:
        """Whether a request has no answer although it would have one on a machine as fast as at the start."""
        left = request.deadline - self.limits.margin - now
        return not request.step and self.costs.run(0, 1, 1) <= left

    def _compute(self, batch: Batch, tasks: list[Task]) -> None:
        """Runs a batch and tells its requests; they may have left meanwhile."""
        start = self.clock()
        try:
            logits, state = self._answers(batch, tasks)
            levels = logits.float().split(list(self.model.levels), 1)
            parts = [level.softmax(1) for level in levels]
            confidence, finite = parts[0].amax(1).tolist(), logits.isfinite().all(1).tolist()
            probabilities = torch.cat(parts, 1).cpu().numpy()
        except Exception as error:  # of a user's network, or of memory: the server continues
            for key in batch.keys:
                self.release(key, f"{FAILED}: {type(error).__name__}: {error}")
            return
        seconds = self.clock() - start
        self.drift.notice(self.costs.run(batch.first, batch.last, len(tasks)), seconds)
        better: list[Task] = []
        with self._changed:
            self._batches.append((batch, seconds))
            sure = [value if fine else 0.0 for value, fine in zip(confidence, finite, strict=True)]
            self._traffic.finish(batch, sure)
            for index, (key, task) in enumerate(zip(batch.keys, tasks, strict=True)):
                before = self._macs[batch.first - 1] if batch.first else 0
                task.macs += self._macs[batch.last - 1] - before if batch.first else self._contract_macs[batch.last - 1]
                task.place = Seat(state, index)
                if finite[index]:  # otherwise the answer before it stays
                    task.answer = Served(probabilities[index], batch.last, confidence[index], task.macs)
                    better += [task] if key in self._tasks else []
            self._judge(batch, tasks, parts[0])
        for task in better:
            task.notify(task.answer, "")

    def _answers(self, batch: Batch, tasks: list[Task]) -> tuple[Tensor, Any]:
        if batch.first == 0:
            return self._run.model.jump(torch.stack([task.image for task in tasks]), batch.last)
        state = gather([task.place for task in tasks if task.place is not None])
        for step in range(batch.first + 1, batch.last + 1):
            logits, state = self._run.step(step, state, len(tasks))
        return logits, state

    def _judge(self, batch: Batch, tasks: list[Task], probabilities: Tensor) -> None:
        """Lets the rule see the answers; it sees those that were computed, not those that a jump left out."""
        if self._rule is None or batch.last == self.model.num_steps:
            return
        now = self.clock()
        for key, task, row in zip(batch.keys, tasks, probabilities, strict=True):
            if (request := self._traffic.live.get(key)) is None:
                continue
            state = self._rule.start(self.model.num_steps) if task.judged is None else task.judged
            later = now + self.costs.run(batch.last, batch.last + 1, 1) - request.arrival
            stop, task.judged = self._rule.update(state, batch.last, row[None], self._macs[batch.last], later)
            request.stopped = bool(stop)


def check_combiner(combiner: Any) -> None:
    """Raises ValueError unless answers are the last ones: jumps leave out answers that another combiner would need."""
    if not isinstance(combiner, Last):
        raise ValueError(f"a server answers with the last step, and the rule was fitted to the combiner {combiner!r}")
