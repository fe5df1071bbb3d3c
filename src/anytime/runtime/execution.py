"""One run of a model over one batch, step by step: answers combined, samples stopped and taken out one by one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from anytime.combine import Combiner
from anytime.model import select_samples
from anytime.runtime.steps import Steps
from anytime.stopping import Rule


class Execution:
    """Runs the stream of one batch; `advance()` runs a step, after which `steps` and `macs` (int64 `[B]`) are up to date.

    `alive` is the number of samples in the batch. Samples that the rule stops leave it (`select_samples` on the state), so
    later steps run on fewer; their answers keep their places. Where only some batch sizes are compiled, copies of the first
    sample fill up behind those alive. Call it inside `torch.inference_mode()`, from one thread.
    """

    def __init__(self, run: Steps, x: Tensor, combiner: Combiner, rule: Rule | None, macs: Sequence[int]) -> None:
        self._run, self._combiner, self._rule, self._costs = run, combiner, rule, macs
        self._sizes, self._last = run.model.levels, run.model.num_steps
        self.batch = self.alive = len(x)
        self._size = run.size(len(x))
        self._x = x
        self._state: Any = None
        self._combined: list[Any] = [combiner.start(self._last) for _ in self._sizes]
        self._ruling: Any = rule.start(self._last) if rule is not None else None
        self._fresh: Tensor  # first level of the samples still in the batch
        self._whole: Tensor  # all levels of all samples
        self._places: Tensor | None = None  # of the samples still in the batch; None: all
        self.steps: Tensor
        self.macs: Tensor
        self.step = 0
        self.stopped = False

    @property
    def done(self) -> bool:
        """Whether no step is left to run."""
        return self.stopped or self.step == self._last

    def advance(self) -> Tensor:
        """Runs one more step; the probabilities after it on the device, all levels side by side, `[B, sum_d K_d]`."""
        if self.step == 0:
            self._state = self._run.start(self._x, self._size)
        logits, self._state = self._run(self.step + 1, self._state, self._size)
        self.step += 1
        logits = (logits if self.alive == self._size else logits[: self.alive]).float()
        parts = logits.split(self._sizes, 1) if len(self._sizes) > 1 else (logits,)
        said = [self._combiner.update(*given, self.step) for given in zip(self._combined, parts, strict=True)]
        self._combined = [state for _, state in said]
        self._fresh = said[0][0]
        fresh = self._fresh if len(said) == 1 else torch.cat([probabilities for probabilities, _ in said], 1)
        cost = self._costs[self.step - 1]
        if self._places is None:
            self._whole = fresh
            self.steps, self.macs = torch.full((self.batch,), self.step), torch.full((self.batch,), cost)
        else:
            self._whole, self.steps, self.macs = self._whole.clone(), self.steps.clone(), self.macs.clone()
            self._whole[self._places] = fresh
            places = self._places.cpu()
            self.steps[places], self.macs[places] = self.step, cost
        return self._whole

    def judge(self, next_seconds: float) -> None:
        """Lets the rule take samples out of the batch.

        Args:
            next_seconds: When the next step is expected to be done, for rules that look at time.
        """
        if self._rule is None or self.done:
            return
        stop, self._ruling = self._rule.update(self._ruling, self.step, self._fresh, self._costs[self.step], next_seconds)
        if not stop.any():
            return
        stay = (~stop).nonzero().flatten()
        self.alive = len(stay)
        self.stopped = not self.alive
        if self.stopped:
            return
        self._combined, self._ruling = select_samples((self._combined, self._ruling), stay)
        self._places = stay if self._places is None else self._places[stay]
        self._size = self._run.size(self.alive)
        filled = torch.cat([stay, stay[:1].expand(self._size - self.alive)]) if self._size > self.alive else stay
        self._state = select_samples(self._state, filled)
