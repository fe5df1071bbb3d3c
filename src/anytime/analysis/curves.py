"""Metrics per step: accuracy, confidence, the error at a share of the cost, and stopping at a confidence threshold.

In this room N counts the samples that have a label wherever a metric needs labels (`anytime.trace.labelled`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from anytime.trace import Trace, labelled, require_one_level

__all__ = [
    "ThresholdCurve",
    "accuracy",
    "answers",
    "average_error",
    "confidence",
    "correct",
    "costs",
    "error",
    "error_at_cost",
    "errors_within",
    "max_probability",
    "measured_costs",
    "threshold_curve",
    "timeliness",
    "true_class_probability",
    "true_probability",
]

Cost = Literal["macs", "contract", "seconds"]
MILESTONES = (0.25, 0.5, 0.75, 1.0)


def answers(trace: Trace) -> Tensor:
    """argmax_k z_k: the answered class, int64 `[T, N]`.

    Raises:
        ValueError: The trace has several label levels; pick one with `trace.level(d)`.
    """
    require_one_level(trace)
    return trace.logits.argmax(2)


def correct(trace: Trace) -> Tensor:
    """Whether each answer is right, bool `[T, N]`, of the samples that have a label."""
    trace = labelled(trace)
    return answers(trace) == trace.labels


def max_probability(trace: Trace) -> Tensor:
    """max_k softmax(z)_k, the confidence of an answer, float64 `[T, N]`."""
    return _probability_of(trace, answers(trace))


def true_probability(trace: Trace) -> Tensor:
    """softmax(z)_label, the S(x) of Kim et al. 2020 (eq. 5), float64 `[T, N]`, of the samples that have a label."""
    trace = labelled(trace)
    return _probability_of(trace, trace.labels.expand_as(answers(trace)))


def accuracy(trace: Trace) -> Tensor:
    """Share of samples whose answer is right, float64 `[T]`."""
    return correct(trace).double().mean(1)


def error(trace: Trace) -> Tensor:
    """Share of samples whose answer is wrong, float64 `[T]`."""
    return (~correct(trace)).double().mean(1)


def confidence(trace: Trace) -> Tensor:
    """Mean over samples of max_k softmax(z)_k, float64 `[T]`; needs no labels."""
    return max_probability(trace).mean(1)


def true_class_probability(trace: Trace) -> Tensor:
    """Mean over samples of softmax(z)_label, float64 `[T]`: the confidence of Kim et al. 2020 (eq. 5); needs labels."""
    return true_probability(trace).mean(1)


def average_error(trace: Trace) -> float:
    """AE = 1/T * sum_t error_t, all exits weighted equally (Hu et al. 2017)."""
    return float(error(trace).mean())


def timeliness(trace: Trace) -> float:
    """1 - AE: the expected accuracy if the time to stop is uniform over the exits (Hu et al. 2017)."""
    return 1 - average_error(trace)


def measured_costs(trace: Trace) -> dict[Cost, Tensor]:
    """Every cost that the trace holds, `[T]`: interruptible MACs, contract MACs, seconds."""
    values: dict[Cost, Tensor | None] = {"macs": trace.macs, "contract": trace.contract_macs, "seconds": trace.seconds}
    return {cost: value for cost, value in values.items() if value is not None}


def costs(trace: Trace, cost: Cost = "macs") -> Tensor:
    """One cost of every step, `[T]`.

    Raises:
        ValueError: The cost is unknown, or the trace does not hold it.
    """
    if cost not in get_args(Cost):
        raise ValueError(f"unknown cost {cost!r}: use 'macs' (interruptible), 'contract' (MACs) or 'seconds'")
    if cost not in (measured := measured_costs(trace)):
        raise ValueError(f"this trace holds no {cost!r} cost; record it again with that cost measured")
    return measured[cost]


def error_at_cost(trace: Trace, fractions: Sequence[float] = MILESTONES, cost: Cost = "macs") -> list[float]:
    """Error of the last step with cost_t <= fraction * cost_T; nan if there is no such step (Hu et al. 2017).

    With cost "contract" the network is chosen for that budget and nothing is streamed.
    """
    spent = costs(trace, cost).tolist()
    return errors_within(error(trace).tolist(), spent, [fraction * spent[-1] for fraction in fractions])


def errors_within(errors: Sequence[float], costs: Sequence[float], budgets: Sequence[float]) -> list[float]:
    """Error of the last answer with cost <= each budget, up to rounding; nan if there is none."""
    reached = [[e for e, c in zip(errors, costs, strict=True) if c <= budget * (1 + 1e-12)] for budget in budgets]
    return [affordable[-1] if affordable else math.nan for affordable in reached]


@dataclass(frozen=True)
class ThresholdCurve:
    """Cost and accuracy of stopping at each of M confidence thresholds, float64.

    Attributes:
        thresholds: `[M]`, rising; infinity never stops before the last step.
        macs: `[M]`, mean interruptible MACs per sample.
        seconds: `[M]`, mean seconds per stream, if the trace holds seconds.
        accuracy: `[M]`.
        shares: `[M, T]`, share of samples that stop at each step.
    """

    thresholds: Tensor
    macs: Tensor
    seconds: Tensor | None
    accuracy: Tensor
    shares: Tensor

    def area(self) -> float:
        """Mean accuracy over mean MACs, from the cheapest to the most expensive threshold (trapezoids)."""
        width = self.macs[-1] - self.macs[0]
        return float(torch.trapezoid(self.accuracy, self.macs) / width if width > 0 else self.accuracy[-1])

    def cheapest(self, accuracy: float) -> int | None:
        """Index of the cheapest threshold with at least this accuracy; None if there is none."""
        reached = (self.accuracy >= accuracy).nonzero().flatten()
        return int(reached[0]) if len(reached) else None


def threshold_curve(trace: Trace, thresholds: Sequence[float] | None = None, num: int = 101) -> ThresholdCurve:
    """Stops each sample at its first step with max softmax >= threshold, at the last step otherwise.

    Both are compared in float32, as by the rule `anytime.stopping.Confidence`: one threshold has one outcome.

    Mean MACs = macs_1 + sum_t (macs_{t+1} - macs_t) P(c_t < threshold), c_t the largest confidence up to step t. So the
    default thresholds are the quantiles of c weighted by the MACs of the next step: the mean cost grows evenly, from that of
    the first answer to that of all answers.

    Args:
        trace: The answers; use a validation split to choose a threshold for deployment.
        thresholds: In any order. Default: `num` of them, as above.
        num: At least 2.
    """
    trace = labelled(trace)
    confident = torch.stack([logits.softmax(1).amax(1) for logits in trace.logits])[:-1].cummax(0).values
    if thresholds is None:
        grid = _even_cost_thresholds(confident, trace.macs.diff(), num)
    elif len(thresholds):
        grid = torch.tensor(sorted(map(float, thresholds)), dtype=torch.float64)
    else:
        raise ValueError("thresholds is empty: give at least one, or None for an even grid")
    steps = torch.stack([(confident < threshold).sum(0) for threshold in grid.float()])
    right = correct(trace).gather(0, steps)
    counts = torch.stack([(steps == step).sum(1) for step in range(trace.num_steps)], dim=1)
    shares = counts.double() / trace.num_samples
    return ThresholdCurve(
        thresholds=grid,
        macs=(counts * trace.macs).sum(1).double() / trace.num_samples,
        seconds=None if trace.seconds is None else shares @ trace.seconds,
        accuracy=right.double().mean(1),
        shares=shares,
    )


def _even_cost_thresholds(confident: Tensor, step_macs: Tensor, num: int) -> Tensor:
    if num < 2:
        raise ValueError(f"num must be at least 2, the ends of the curve; got {num}")
    values, order = confident.flatten().sort()
    spent = step_macs.double().repeat_interleave(confident.shape[1])[order].cumsum(0)
    if not len(spent):
        return torch.tensor([0.0, math.inf], dtype=torch.float64)
    wanted = torch.linspace(0, 1, num, dtype=torch.float64)[1:-1] * spent[-1]
    inner = values[torch.searchsorted(spent, wanted).clamp(max=len(values) - 1)].double()
    return torch.cat([inner.new_zeros(1), inner, inner.new_full((1,), math.inf)])


def _probability_of(trace: Trace, classes: Tensor) -> Tensor:
    """softmax(z)_k of class k = `classes[t, n]`, float64 `[T, N]`."""
    # One step at a time: the logits of a large trace may not fit into memory a second time, in double precision.
    steps = (logits.double() for logits in trace.logits)
    return torch.stack([(z.gather(1, k[:, None])[:, 0] - z.logsumexp(1)).exp() for z, k in zip(steps, classes, strict=True)])
