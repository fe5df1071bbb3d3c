"""A stopping rule over one batch, which learns nothing from answers that are not finite."""

from __future__ import annotations

import torch
from torch import Tensor

from anytime.model import State, select_samples
from anytime.stopping.rules import Rule


class Judge:
    """Asks a rule after each step which samples stop.

    A rule never sees an answer that is NaN. What it remembers of that sample stays, and the sample stops only where a budget
    is exhausted (`Rule.exhausted`): no part of a combined rule counts an earlier answer or a prior again. Samples that were
    finite at the same steps share one state of the rule.

    Args:
        rule: The rule.
        num_steps: T.
    """

    def __init__(self, rule: Rule, num_steps: int) -> None:
        self._rule = rule
        self._groups: list[tuple[Tensor | None, State]] = [(None, rule.start(num_steps))]  # samples (None: all), state

    def stops(self, step: int, probabilities: Tensor, finite: Tensor | None, macs: float, seconds: float) -> Tensor:
        """Which of the samples in the batch stop after this step, bool `[B]`.

        Args:
            step: 1..T-1.
            probabilities: Combined answers `[B, K]`; NaN in rows that are not finite.
            finite: The samples whose answers are finite, bool `[B]`; None if all are.
            macs: Cumulative MACs up to and including the next step.
            seconds: Seconds until the expected end of the next step.
        """
        costs = macs, seconds
        if finite is None and self._groups[0][0] is None:
            stop, state = self._rule.update(self._groups[0][1], step, probabilities, *costs)
            self._groups = [(None, state)]
            return stop
        everyone = torch.arange(len(probabilities), device=probabilities.device)
        finite = torch.ones_like(everyone, dtype=torch.bool) if finite is None else finite
        stop, groups = ~finite & self._rule.exhausted(*costs), self._groups
        self._groups = []
        for members, state in groups:
            members = everyone if members is None else members
            for mask in (finite[members], ~finite[members]):
                part, own = members[mask], select_samples(state, mask)
                if not len(part):
                    continue
                if finite[part[0]]:
                    stop[part], own = self._rule.update(own, step, probabilities[part], *costs)
                self._groups.append((part, own))
        return stop

    def keep(self, stay: Tensor, batch: int) -> None:
        """Only the samples `stay` (int64 positions) of the batch are left."""
        moved = torch.full((batch,), -1, device=stay.device)
        moved[stay] = torch.arange(len(stay), device=stay.device)
        groups, self._groups = self._groups, []
        for members, state in groups:
            if members is None:
                self._groups.append((None, select_samples(state, stay)))
            elif len(left := (moved[members] >= 0).nonzero().flatten()):
                self._groups.append((moved[members[left]], select_samples(state, left)))
