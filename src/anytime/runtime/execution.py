"""One run of a model over one batch, step by step: with an answer after each step, or with answers only on demand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from anytime.combine import Combiner
from anytime.model import State, select_samples
from anytime.runtime.steps import EagerSteps
from anytime.stopping.rules import Rule


class Execution:
    """Runs the steps of one batch from one thread; the caller enters the conditions of `run` (see `Conditions`).

    `step` is the number of steps run, `alive` the number of samples in the batch. If only some batch sizes are compiled,
    copies of the first sample pad the batch.
    """

    stopped = False

    def __init__(self, run: EagerSteps, x: Tensor) -> None:
        self._run, self.x = run, x
        self.alive, self._size = len(x), run.size(len(x))
        self._state: State = None
        self.step = 0

    @property
    def done(self) -> bool:
        """Whether no step is left to run."""
        return self.stopped or self.step == self._run.model.num_steps

    def judge(self, next_seconds: float) -> None:
        """Lets the stopping rule, if there is one, take samples out of the batch.

        Args:
            next_seconds: Seconds from the start until the expected end of the next step, for rules that look at time.
        """

    def _run_step(self) -> Any:
        if self.step == 0:
            self._state = self._run.start(self.x, self._size)
        logits, self._state = self._run(self.step + 1, self._state, self._size)
        self.step += 1
        return logits


class EagerExecution(Execution):
    """Answers after each step: `advance()` runs the next step and updates `steps` and `macs` (int64 `[B]`).

    Samples that the rule stops leave the batch (`select_samples` on the state), so later steps run on fewer samples; the
    answers keep their places.
    """

    def __init__(self, run: EagerSteps, x: Tensor, combiner: Combiner, rule: Rule | None, macs: Sequence[int]) -> None:
        super().__init__(run, x)
        self._combiner, self._rule, self._costs = combiner, rule, macs
        self._levels, num_steps = run.model.levels, run.model.num_steps
        self._combiner_states: list[State] = [combiner.start(num_steps) for _ in self._levels]
        self._rule_state: State = rule.start(num_steps) if rule is not None else None
        self._first_level: Tensor  # probabilities of the samples still in the batch
        self._answer: Tensor  # probabilities of all samples, all levels side by side
        self._places: Tensor | None = None  # of the samples still in the batch; None: all
        self.steps: Tensor
        self.macs: Tensor

    def advance(self) -> Tensor:
        """Runs the next step; returns the probabilities after it on the device, all levels side by side, `[B, sum_d K_d]`."""
        logits = self._run_step()
        logits = (logits if self.alive == self._size else logits[: self.alive]).float()
        parts = logits.split(self._levels, 1) if len(self._levels) > 1 else (logits,)
        updates = [self._combiner.update(*given, self.step) for given in zip(self._combiner_states, parts, strict=True)]
        self._combiner_states = [state for _, state in updates]
        self._first_level = updates[0][0]
        fresh = self._first_level if len(updates) == 1 else torch.cat([probabilities for probabilities, _ in updates], 1)
        cost = self._costs[self.step - 1]
        if self._places is None:
            self._answer = fresh
            self.steps, self.macs = torch.full((len(self.x),), self.step), torch.full((len(self.x),), cost)
        else:
            self._answer, self.steps, self.macs = self._answer.clone(), self.steps.clone(), self.macs.clone()
            self._answer[self._places] = fresh
            places = self._places.cpu()
            self.steps[places], self.macs[places] = self.step, cost
        return self._answer

    def judge(self, next_seconds: float) -> None:
        if self._rule is None or self.done:
            return
        given = self._rule_state, self.step, self._first_level, self._costs[self.step], next_seconds
        with self._run.conditions():
            stop, self._rule_state = self._rule.update(*given)
        if not stop.any():
            return
        stay = (~stop).nonzero().flatten()
        self.alive = len(stay)
        self.stopped = not self.alive
        if self.stopped:
            return
        self._combiner_states, self._rule_state = select_samples((self._combiner_states, self._rule_state), stay)
        self._places = stay if self._places is None else self._places[stay]
        self._size = self._run.size(self.alive)
        padded = torch.cat([stay, stay[:1].expand(self._size - self.alive)]) if self._size > self.alive else stay
        self._state = select_samples(self._state, padded)


class LazyExecution(Execution):
    """Runs the steps without their heads."""

    def advance(self) -> Callable[[], Tensor]:
        """Runs the next step without its head; returns a function that runs the head, giving the logits `[B, K]`."""
        self._run_step()
        step, state = self.step, self._state
        return lambda: self._run.read(step, state, self._size)[: self.alive]
