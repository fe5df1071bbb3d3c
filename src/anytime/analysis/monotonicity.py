"""Does more computation help? Drops of accuracy and of the true class, overthinking, and regret against the best exit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from anytime.analysis.curves import Cost, accuracy, answers, correct, costs, true_probability
from anytime.trace import Trace, labelled, require_one_level

__all__ = [
    "Overthinking",
    "Regret",
    "answer_changes",
    "largest_drop",
    "monotonicity_violations",
    "overthinking",
    "regret",
    "true_class_drops",
]


def largest_drop(trace: Trace) -> float:
    """max over s <= t of accuracy_s - accuracy_t: 0 if the accuracy never falls."""
    values = accuracy(trace)
    return float((values.cummax(0).values - values).max())


def answer_changes(trace: Trace) -> Tensor:
    """Share of samples whose answer differs from that of the previous step, float64 `[T - 1]`."""
    return answers(trace).diff(dim=0).ne(0).double().mean(1)


@dataclass(frozen=True)
class Overthinking:
    """Effect of the steps after the first right answer (Shallow-Deep Networks, Kaya et al. 2019).

    Attributes:
        destructive: Share of samples that are right at an earlier step but wrong at the last.
        wasteful: Share of samples that are right at the last step and at an earlier one.
        oracle_accuracy: Share of samples that are right at some step.
        oracle_macs: Mean interruptible MACs of those up to the first right answer; nan if there are none.
    """

    destructive: float
    wasteful: float
    oracle_accuracy: float
    oracle_macs: float


def overthinking(trace: Trace) -> Overthinking:
    """How often the network continues after a right answer, with which effect, and what an oracle would save."""
    right = correct(trace)
    earlier, last, ever = right[:-1].any(0), right[-1], right.any(0)
    first = right.int().argmax(0)[ever]
    return Overthinking(
        destructive=float((earlier & ~last).double().mean()),
        wasteful=float((earlier & last).double().mean()),
        oracle_accuracy=float(ever.double().mean()),
        oracle_macs=float(trace.macs[first].double().mean()) if len(first) else torch.nan,
    )


def true_class_drops(trace: Trace, probabilities: Tensor | None = None) -> Tensor:
    """max over s <= t of p_s(label) - p_t(label): the largest drop of the true class of each labelled sample, float64 `[N]`.

    Args:
        probabilities: Combined probabilities `[T, N, K]`; default softmax(z).
    """
    if probabilities is None:
        values = true_probability(trace)
    else:
        known = labelled(trace).labels
        index = known.expand(trace.num_steps, -1)[..., None]
        values = probabilities[:, trace.labels >= 0].gather(2, index)[..., 0].double()
    return (values.cummax(0).values - values).amax(0)


def monotonicity_violations(
    trace: Trace, taus: Sequence[float] = (0.01, 0.05, 0.1, 0.2, 0.5), probabilities: Tensor | None = None
) -> Tensor:
    """Share of samples whose true class drops by more than τ, float64 `[len(taus)]`.

    If all are 0, the network is conditionally monotone (Jazbec et al. 2023).

    Args:
        taus: Tolerated drops of a probability.
        probabilities: Combined probabilities `[T, N, K]`; default softmax(z).
    """
    drops = true_class_drops(trace, probabilities)
    return (drops > torch.tensor(taus, dtype=drops.dtype)[:, None]).double().mean(1)


@dataclass(frozen=True)
class Regret:
    """A stopping rule against the oracle, which stops at the first right answer, or at the first step if there is none.

    Attributes:
        accuracy: Accuracy of the oracle minus that of the rule, never below zero.
        cost: Mean cost of the rule minus that of the oracle; negative if the rule stops too early.
        early: Share of samples that stop before their first right answer.
        late: Share of samples that stop after the oracle.
    """

    accuracy: float
    cost: float
    early: float
    late: float


def regret(trace: Trace, steps: Tensor, cost: Cost = "macs", probabilities: Tensor | None = None) -> Regret:
    """The accuracy that a stopping rule loses, and the cost it adds, against the best exit of each sample.

    Args:
        steps: Index 0..T-1 of the step after which each sample stops, int64 `[N]`: `rule.stops(trace, probabilities)`.
        cost: The cost to use.
        probabilities: Combined probabilities `[T, N, K]`; default softmax(z).

    Raises:
        ValueError: Steps are not one per sample in 0..T-1.
    """
    require_one_level(trace)
    if steps.shape != trace.labels.shape or not bool(((steps >= 0) & (steps < trace.num_steps)).all()):
        wanted = f"[{trace.num_samples}] in 0..{trace.num_steps - 1}"
        raise ValueError(f"steps must be {wanted}, got {list(steps.shape)} in {int(steps.min())}..{int(steps.max())}")
    there = trace.labels >= 0
    trace, steps = labelled(trace), steps[there]
    right = correct(trace) if probabilities is None else probabilities[:, there].argmax(2) == trace.labels
    spent, oracle = costs(trace, cost).double(), right.int().argmax(0)
    ever, at_stop = right.any(0), right.gather(0, steps[None])[0]
    return Regret(
        accuracy=float((ever & ~at_stop).double().mean()),
        cost=float((spent[steps] - spent[oracle]).mean()),
        early=float((steps < oracle).double().mean()),
        late=float((steps > oracle).double().mean()),
    )
