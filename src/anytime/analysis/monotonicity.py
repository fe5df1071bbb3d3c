"""Whether more computing helps: drops of accuracy, overthinking (Kaya et al. 2019), and answers that change."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from anytime.analysis.curves import accuracy, answers, correct
from anytime.trace import Trace


def largest_drop(trace: Trace) -> float:
    """max over s <= t of accuracy_s - accuracy_t: 0 where the accuracy never falls."""
    values = accuracy(trace)
    return float((values.cummax(0).values - values).max())


def answer_changes(trace: Trace) -> Tensor:
    """Share of samples whose answer differs from that of the step before, float64 `[T - 1]`."""
    given = answers(trace)
    return (given[1:] != given[:-1]).double().mean(1)


@dataclass(frozen=True)
class Overthinking:
    """What the steps after the first right answer do (Shallow-Deep Networks, Kaya et al. 2019).

    Attributes:
        destructive: Share of samples right at an earlier step but wrong at the last.
        wasteful: Share of samples right at the last step and at an earlier one.
        oracle_accuracy: Share of samples right at some step.
        oracle_macs: Mean interruptible MACs up to the first right answer, over those; nan where there are none.
    """

    destructive: float
    wasteful: float
    oracle_accuracy: float
    oracle_macs: float


def overthinking(trace: Trace) -> Overthinking:
    """How often, and how dearly, the network computes on after it was right."""
    right = correct(trace)
    earlier, last, ever = right[:-1].any(0), right[-1], right.any(0)
    first = right.int().argmax(0)[ever]
    return Overthinking(
        destructive=float((earlier & ~last).double().mean()),
        wasteful=float((earlier & last).double().mean()),
        oracle_accuracy=float(ever.double().mean()),
        oracle_macs=float(trace.macs[first].double().mean()) if len(first) else torch.nan,
    )
