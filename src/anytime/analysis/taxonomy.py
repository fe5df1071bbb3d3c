"""Label levels and superclasses: accuracy per level, and how many errors stay in the right superclass."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import index
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from anytime.analysis.curves import accuracy, answers
from anytime.analysis.statistics import BySeed, means, standard_error
from anytime.support.units import is_list
from anytime.trace import Trace, labelled

if TYPE_CHECKING:
    from anytime.data.taxonomy import LabelLevels

__all__ = ["Compliance", "Course", "compliance", "compliance_courses", "level_accuracies", "level_errors"]


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


def compliance(trace: Trace, superclass: Sequence[int] | LabelLevels, level: int = 1) -> Compliance:
    """Taxonomic compliance: the share of errors at each step in the right superclass, against chance.

    Chance is mean (n_s - 1) / (K - 1) over the wrong samples, n_s being the size of the label's superclass: 4/99 = 0.040 for
    CIFAR-100, where the paper gives 0.05, one of 20 superclasses. Source: Iuzzolino, Mozer, Bengio 2021, Fig. 5.

    Args:
        trace: The answers; only the first of several label levels counts.
        superclass: Superclass of each class, such as `anytime.data.sets.cifar.CIFAR100_SUPERCLASS`; or label levels of any
            taxonomy, such as `anytime.data.taxonomy.read_taxonomy(path, names).levels(names)`.
        level: Which of these label levels are the superclasses, from 1.

    Raises:
        ValueError: There is not one whole number for each class, the classes are others, or there is no such level.
    """
    fine = labelled(trace.level(0) if trace.levels else trace)
    table = _table(superclass, level, fine.class_names)
    answered = answers(fine)
    wrong = answered != fine.labels
    errors = wrong.sum(1)
    compliant = (table[answered] == table[fine.labels]) & wrong
    siblings = (table[:, None] == table).sum(1) - 1
    expected = (siblings[fine.labels] * wrong).sum(1).double() / (fine.num_classes - 1)
    return Compliance(compliant.sum(1).double() / errors, expected / errors, errors)


def _table(superclass: Sequence[int] | LabelLevels, level: int, class_names: Sequence[str]) -> Tensor:
    """The superclass of each class, int64 `[K]`."""
    from anytime.data.taxonomy import LabelLevels  # late: the data sets import Lightning

    classes = len(class_names)
    if not isinstance(superclass, LabelLevels):
        if not is_list(superclass):
            raise ValueError(f"superclass needs a list in the order of the classes, got {superclass!r}")
        superclass = list(superclass)
        if len(superclass) != classes:
            raise ValueError(f"superclass needs one entry for each of {classes} classes, got {len(superclass)}")
        return torch.tensor([_whole(number) for number in superclass])
    names = superclass.names[0]
    if len(names) != classes:
        raise ValueError(f"the label levels are of {len(names)} classes, but the trace has {classes}")
    if other := next((pair for pair in zip(names, class_names, strict=True) if pair[0] != pair[1]), None):
        raise ValueError(f"the label levels are of other classes than the trace: {other[0]!r} where it has {other[1]!r}")
    if not 1 <= level < len(superclass.table):
        raise ValueError(f"level must lie in 1..{len(superclass.table) - 1}, above that of the classes, got {level!r}")
    return torch.tensor(superclass.table[level])


def _whole(superclass: Any) -> int:
    try:
        return index(superclass)
    except TypeError:
        raise ValueError(f"superclasses must be whole numbers, got {superclass!r}") from None


@dataclass(frozen=True)
class Course:
    """Taxonomic compliance of one network over its steps, with S seeds.

    Attributes:
        mean: Over seeds, `[T]`; nan where a seed makes no error.
        error: Standard error without the variance between seeds (`statistics.standard_error`), `[T]`; nan for one seed.
        chance: Mean chance level, `[T]`.
        by_seed: `[S][T]`.
    """

    mean: list[float]
    error: list[float]
    chance: list[float]
    by_seed: list[list[float]]


def compliance_courses(
    networks: Mapping[str, BySeed], superclass: Sequence[int] | LabelLevels, level: int = 1
) -> dict[str, Course]:
    """Taxonomic compliance of several networks over their steps (Fig. 5), each trained with the same seeds.

    The standard errors are Cousineau's and Morey's over the steps of all networks: a seed's own level is removed from all of
    them. Steps at which a seed makes no error do not count.

    Args:
        networks: The traces of each network by seed; those of a network have the same steps.
        superclass, level: As for `compliance`.

    Returns:
        The course of each network; its seeds in the order of the first network.

    Raises:
        ValueError: As `compliance`; there is no network or no seed, two networks have other seeds, or two seeds other steps.
    """
    if not networks:
        raise ValueError("there is no network whose compliance could be measured")
    (first, seeds), *others = [(name, list(by_seed)) for name, by_seed in networks.items()]
    if not seeds:
        raise ValueError(f"there is no trace of {first!r} whose compliance could be measured")
    for name, given in others:
        if set(given) != set(seeds):
            raise ValueError(f"networks need the same seeds, got {seeds} of {first!r} and {given} of {name!r}")
    for name, by_seed in networks.items():
        steps = {seed: trace.num_steps for seed, trace in by_seed.items()}
        if len(set(steps.values())) > 1:
            raise ValueError(f"the traces of a network need the same steps, got by seed {steps} of {name!r}")
    found = {name: [compliance(by_seed[s], superclass, level) for s in seeds] for name, by_seed in networks.items()}
    values = {name: [one.value.tolist() for one in by_seed] for name, by_seed in found.items()}
    conditions = [(name, step) for name, rows in values.items() for step in range(len(rows[0]))]
    known = [c for c in conditions if not any(math.isnan(row[c[1]]) for row in values[c[0]])]
    rows = [[values[name][s][step] for name, step in known] for s in range(len(seeds))]
    errors = dict(zip(known, standard_error(rows), strict=True)) if known else {}
    return {
        name: Course(
            means(values[name]),
            [errors.get((name, step), math.nan) for step in range(len(values[name][0]))],
            means([one.chance.tolist() for one in by_seed]),
            values[name],
        )
        for name, by_seed in found.items()
    }
