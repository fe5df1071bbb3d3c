"""Answers on several label levels: errors per level, the level to answer after each step, and how wrong the errors are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from anytime.analysis.curves import answers
from anytime.trace import Trace


def level_errors(trace: Trace) -> Tensor:
    """Share of samples whose answer is wrong, at each step and label level, float64 `[T, D]`.

    Source: Lee, Shin 2018, Fig. 5.
    """
    return 1 - level_accuracies(trace)


def level_accuracies(trace: Trace) -> Tensor:
    """Share of samples whose answer is right, at each step and label level, float64 `[T, D]`."""
    parts = zip(trace.logits.split(_sizes(trace), 2), trace.labels.reshape(trace.num_samples, -1).T, strict=True)
    return torch.stack([(logits.argmax(2) == labels).sum(1) for logits, labels in parts], 1).double() / trace.num_samples


@dataclass(frozen=True, eq=False)
class Compliance:
    """How many wrong answers lie in the right superclass.

    Attributes:
        value: P(super(answer) = super(label) | answer != label) at each step, float64 `[T]`; nan where nothing is wrong.
        chance: The same if wrong answers were drawn at random from all wrong classes, float64 `[T]`.
        errors: Number of wrong answers at each step, int64 `[T]`.
    """

    value: Tensor
    chance: Tensor
    errors: Tensor


def compliance(trace: Trace, superclass: Sequence[int]) -> Compliance:
    """Taxonomic compliance: of the errors of each step, the share in the right superclass, against chance.

    Chance is mean (n_s - 1) / (K - 1) over the wrong samples, n_s being the size of the label's superclass: 4/99 = 0.040 for
    CIFAR-100, where the paper gives 0.05, one of 20 superclasses.

    Args:
        trace: The answers; of several label levels the first counts.
        superclass: Of each class, such as `anytime.data.sets.cifar.CIFAR100_SUPERCLASS` or a row of `LabelLevels.table`.

    Raises:
        ValueError: Not one superclass for each class.

    Source: Iuzzolino, Mozer, Bengio 2021, Fig. 5.
    """
    fine = trace.level(0) if trace.levels else trace
    if len(superclass) != fine.num_classes:
        raise ValueError(f"superclass must hold one for each of {fine.num_classes} classes, got {len(superclass)}")
    table = torch.tensor(superclass)
    said = answers(fine)
    wrong = said != fine.labels
    errors = wrong.sum(1)
    same = (table[said] == table[fine.labels]) & wrong
    mates = (table[:, None] == table).sum(1) - 1
    expected = (mates[fine.labels] * wrong).sum(1).double() / (fine.num_classes - 1)
    return Compliance(same.sum(1).double() / errors, expected / errors, errors)


def _sizes(trace: Trace) -> tuple[int, ...]:
    return trace.levels or (trace.num_classes,)
