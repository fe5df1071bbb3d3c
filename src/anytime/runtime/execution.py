"""One run of a model over one batch, step by step: with an answer after each step, or with answers only on demand."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from anytime.combine import Combiner
from anytime.model import State, select_samples
from anytime.runtime.engines.pytorch import EagerSteps
from anytime.runtime.gathered import Gathered, Packed, pack
from anytime.runtime.judge import Judge
from anytime.stopping.rules import Rule


class Reader(NamedTuple):
    """A step 1..T, and a function that computes its logits `[B, K]`."""

    step: int
    logits: Callable[[], Tensor]


class Execution:
    """Runs the steps of one batch from one thread; the caller enters the conditions of `run` (see `Conditions`).

    `step` is the number of steps run, `alive` the number of samples in the batch. If only some batch sizes are compiled,
    copies of the first sample pad the batch. `call` is what cancels its steps (see `Engine`).
    """

    stopped = False

    def __init__(self, run: EagerSteps, x: Tensor, call: Any = None) -> None:
        self._run, self.x, self._call = run, x, call
        self.alive, self._size = len(x), run.size(len(x))
        self._state: State = None
        self.step = 0

    @property
    def done(self) -> bool:
        """Whether no step is left to run."""
        return self.stopped or self.step == self._run.model.num_steps

    def judge(self, next_macs: float, next_seconds: float) -> None:
        """Lets the stopping rule, if there is one, take samples out of the batch.

        Args:
            next_macs: Cumulative MACs up to and including the next step, for rules that look at them.
            next_seconds: Seconds from the start until the expected end of the next step, for rules that look at time.
        """

    def _run_step(self) -> Any:
        if self.step == 0:
            self._state = self._run.start(self.x, self._size)
        if self._run.model.training:  # a step may have called self.train()
            self._run.model.eval()
        logits, self._state = self._run.step(self.step + 1, self._state, self._size, self._call)
        self.step += 1
        return logits


class EagerExecution(Execution):
    """Answers after each step: `advance()` runs the next step, and `gathered` takes its answers when they are on the host.

    Samples that the rule stops leave the batch (`select_samples` on the state), so later steps run on fewer samples; the
    answers keep their places in `gathered`.
    """

    def __init__(
        self,
        run: EagerSteps,
        x: Tensor,
        combiner: Combiner,
        rule: Rule | None,
        gathered: Gathered,
        conditions: Callable[[], AbstractContextManager[None]],
        call: Any = None,
    ) -> None:
        super().__init__(run, x, call)
        self._combiner, self.gathered, self._conditions = combiner, gathered, conditions
        self._levels, num_steps = gathered.sizes, run.model.num_steps
        self._combiner_states: list[State] = [combiner.start(num_steps) for _ in self._levels]
        self._judge = Judge(rule, num_steps) if rule is not None else None
        self._judged: Tensor  # probabilities of the samples still in the batch, or what they have instead
        self._places: Tensor | None = None  # of the samples still in the batch, on the host; None: all

    def advance(self) -> Packed:
        """Runs the next step; returns the packed answers after it, on the device, of the samples still in the batch."""
        answered = self._run_step()
        outputs: Tensor = (answered if self.alive == self._size else answered[: self.alive]).float()
        if not self._levels:
            self._judged = outputs
            return pack((), outputs)
        parts = outputs.split(self._levels, 1) if len(self._levels) > 1 else (outputs,)
        levels = []
        for level, part in enumerate(parts):
            probabilities, self._combiner_states[level] = self._combiner.update(self._combiner_states[level], part, self.step)
            levels.append(probabilities)
        self._judged = levels[0]
        return pack(tuple(levels), outputs)

    def collect(self, step: int, packed: Packed) -> None:
        """Takes the packed answers after step 1..T, on the host."""
        self.gathered.add(step, packed, self._places)

    def judge(self, next_macs: float, next_seconds: float) -> None:
        if self._judge is None or self.done:
            return
        finite = self.gathered.finite
        if finite is not None:
            finite = finite.to(self.x.device)
        with self._conditions():
            stop = self._judge.stops(self.step, self._judged, finite, next_macs, next_seconds)
            if not stop.any():
                return
            self._keep((~stop).nonzero().flatten())

    def _keep(self, stay: Tensor) -> None:
        """The samples at these positions of the batch stay, the others leave it."""
        batch, self.alive = self.alive, len(stay)
        self.stopped = not self.alive
        if self.stopped or self._judge is None:
            return
        self._judge.keep(stay, batch)
        self._combiner_states = select_samples(self._combiner_states, stay)
        places = stay.cpu()
        self._places = places if self._places is None else self._places[places]
        self._size = self._run.size(self.alive)
        padded = torch.cat([stay, stay[:1].expand(self._size - self.alive)]) if self._size > self.alive else stay
        self._state = select_samples(self._state, padded)


class LazyExecution(Execution):
    """Runs the steps without their heads."""

    def __init__(self, run: EagerSteps, x: Tensor) -> None:
        super().__init__(run, x)
        self._readers: tuple[Reader, ...] = ()

    def advance(self) -> tuple[Reader, ...]:
        """Runs the next step without its head; returns what runs the head of each step so far, the newest first."""
        self._run_step()
        step, state = self.step, self._state
        self._readers = (Reader(step, lambda: self._run.read(step, state, self._size)[: self.alive]), *self._readers)
        return self._readers
