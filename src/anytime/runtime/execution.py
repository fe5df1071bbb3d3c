"""One run of a model over one batch, step by step: answers combined, samples stopped and taken out one by one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from anytime.combine import Combiner
from anytime.model import AnytimeModel, select_samples
from anytime.stopping import Rule

PRIOR = -1


@dataclass(frozen=True)
class Answer:
    """What is known about a batch at some moment.

    Attributes:
        probabilities: `[B, K]`, combined over the steps so far; of several label levels those of the first.
        steps: Step of each sample's answer, int64 `[B]`: 1..T, or -1 for a prior that no step has improved on.
        elapsed: Seconds from the call to this answer.
        deadline: Seconds from the call that were given; None for none.
        macs: Multiply-adds spent on each sample, int64 `[B]`; 0 if the predictor has no profile, which knows them.
        reason: Why there is no later answer: `"complete"`, `"deadline"`, `"stopped"` (by the rule), `"interrupted"`;
            `""` while a later one may come.
    """

    probabilities: Tensor
    steps: Tensor
    elapsed: float
    deadline: float | None
    macs: Tensor
    reason: str = ""

    @property
    def step(self) -> int:
        """The furthest step of any sample; -1 for a prior."""
        return int(self.steps.max())

    @property
    def label(self) -> Tensor:
        """The most probable class of each sample, int64 `[B]`."""
        return self.probabilities.argmax(1)

    @property
    def confidence(self) -> Tensor:
        """The largest probability of each sample, `[B]`."""
        return self.probabilities.amax(1)

    @property
    def missed(self) -> bool:
        """Whether the answer came after the deadline."""
        return self.deadline is not None and self.elapsed > self.deadline


class Execution:
    """Runs the stream of one batch; after each `advance()` the answer so far is in `probabilities` and `steps`.

    `alive` is the number of samples in the batch. Samples that the rule stops leave it (`select_samples` on the state), so
    later steps run on fewer; their answers keep their places. Call it inside `torch.inference_mode()`, from one thread.
    """

    def __init__(self, model: AnytimeModel, x: Tensor, combiner: Combiner, rule: Rule | None, macs: Sequence[int]) -> None:
        self._model, self._combiner, self._rule, self._macs = model, combiner, rule, macs
        self._state = model.initial_state(x)
        self._combined: Any = combiner.start(model.num_steps)
        self._ruling: Any = rule.start(model.num_steps) if rule is not None else None
        self._fresh: Tensor  # probabilities of the samples still in the batch
        self._alive: Tensor | None = None  # positions of the samples still in the batch; None: all
        self.batch = self.alive = len(x)
        self.step = 0
        self.stopped = False

    @property
    def done(self) -> bool:
        """Whether no step is left to run."""
        return self.stopped or self.step == self._model.num_steps

    def advance(self, answer: Answer) -> Answer:
        """Runs one more step; the answer after it, made from the one before."""
        logits, self._state = self._model.step(self._state)
        self.step += 1
        level = logits[:, : self._model.levels[0]].float()
        fresh, self._combined = self._combiner.update(self._combined, level, self.step)
        self._fresh, cost = fresh, self._macs[self.step - 1]
        if self._alive is None:
            steps, macs = torch.full((self.batch,), self.step), torch.full((self.batch,), cost)
            return replace(answer, probabilities=fresh, steps=steps, macs=macs)
        probabilities, steps, macs = answer.probabilities.clone(), answer.steps.clone(), answer.macs.clone()
        alive = self._alive.cpu()
        probabilities[self._alive], steps[alive], macs[alive] = fresh, self.step, cost
        return replace(answer, probabilities=probabilities, steps=steps, macs=macs)

    def judge(self, next_seconds: float) -> None:
        """Lets the rule take samples out of the batch.

        Args:
            next_seconds: When the next step is expected to be done, for rules that look at time.
        """
        if self._rule is None or self.done:
            return
        stop, self._ruling = self._rule.update(self._ruling, self.step, self._fresh, self._macs[self.step], next_seconds)
        if not stop.any():
            return
        stay = (~stop).nonzero().flatten()
        self.alive = len(stay)
        self.stopped = not self.alive
        if not self.stopped:
            states = (self._state, self._combined, self._ruling)
            self._state, self._combined, self._ruling = select_samples(states, stay)
            self._alive = stay if self._alive is None else self._alive[stay]
