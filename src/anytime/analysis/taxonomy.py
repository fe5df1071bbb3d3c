"""Label levels and superclasses: accuracy per level, and how many errors stay in the right superclass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from anytime.analysis.curves import accuracy, answers
from anytime.trace import Trace, labelled


def level_accuracies(trace: Trace) -> Tensor:
    """Share of samples whose answer is right, of those with a label, at each step and label level, float64 `[T, D]`."""
    levels = [trace.level(d) for d in range(len(trace.levels))] or [trace]
    return torch.stack([accuracy(level) for level in levels], 1)


def level_errors(trace: Trace) -> Tensor:
    """Share of samples whose answer is wrong, at each step and label level, float64 `[T, D]` (Lee, Shin 2018, Fig. 5)."""
    return 1 - level_accuracies(trace)


@dataclass(frozen=True, eq=False)
class Compliance:
    """Share of wrong answers in the right superclass.

    Attributes:
        value: P(super(answer) = super(label) | answer != label) at each step, float64 `[T]`; nan if no answer is wrong.
        chance: The same if wrong answers were drawn at random from all wrong classes, float64 `[T]`.
        errors: Number of wrong answers at each step, int64 `[T]`.
    """

    value: Tensor
    chance: Tensor
    errors: Tensor


def compliance(trace: Trace, superclass: Sequence[int]) -> Compliance:
    """Taxonomic compliance: the share of errors at each step in the right superclass, against chance.

    Chance is mean (n_s - 1) / (K - 1) over the wrong samples, n_s being the size of the label's superclass: 4/99 = 0.040 for
    CIFAR-100, where the paper gives 0.05, one of 20 superclasses. Source: Iuzzolino, Mozer, Bengio 2021, Fig. 5.

    Args:
        trace: The answers; only the first of several label levels counts.
        superclass: Superclass of each class, such as `anytime.data.sets.cifar.CIFAR100_SUPERCLASS` or a row of
            `LabelLevels.table`.

    Raises:
        ValueError: There is not one superclass for each class.
    """
    fine = labelled(trace.level(0) if trace.levels else trace)
    if len(superclass) != fine.num_classes:
        raise ValueError(f"superclass needs one entry for each of {fine.num_classes} classes, got {len(superclass)}")
    table = torch.tensor(superclass)
    answered = answers(fine)
    wrong = answered != fine.labels
    errors = wrong.sum(1)
    compliant = (table[answered] == table[fine.labels]) & wrong
    siblings = (table[:, None] == table).sum(1) - 1
    expected = (siblings[fine.labels] * wrong).sum(1).double() / (fine.num_classes - 1)
    return Compliance(compliant.sum(1).double() / errors, expected / errors, errors)
