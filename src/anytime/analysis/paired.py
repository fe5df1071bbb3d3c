"""Two networks on the same samples at the same budget: their difference in accuracy, with an interval and a test."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from anytime.analysis.curves import Cost, correct, costs
from anytime.support.arrays import numbered
from anytime.trace import Trace, labelled

__all__ = ["Paired", "paired"]


@dataclass(frozen=True)
class Paired:
    """Two answers to each of N samples, each the last within a budget.

    Attributes:
        budget: The cost that both may spend on a sample.
        steps: The steps that answer, from 1.
        accuracies: Share of right answers of each.
        difference: First accuracy - second accuracy.
        low, high: Its 95 % interval.
        p_value: That of McNemar's test; None if the samples come in groups.
    """

    budget: float
    steps: tuple[int, int]
    accuracies: tuple[float, float]
    difference: float
    low: float
    high: float
    p_value: float | None


def paired(one: Trace, other: Trace, budget: float, cost: Cost = "macs", resamples: int = 10_000, seed: int = 0) -> Paired:
    """Compares the last answers of two traces that cost at most `budget`.

    d_i = right_1(i) - right_2(i) over the samples i. The difference is mean(d); its interval is the 95 % percentile interval
    of the mean over bootstrap samples, drawn with replacement. McNemar's exact test asks whether, of the samples on which only
    one network is right, both have equal shares: P(|X - n/2| >= |b - n/2|), X binomial(n, 1/2), b of these n for the first.
    If the samples come in groups such as frames of one track (`meta["groups"]`), whole groups are drawn, and there is no
    test, since it would count the frames as independent.

    Args:
        one, other: Traces of the same samples in the same order, with one label level each; those without label are left out.
        budget: In MACs, or in seconds with that cost.
        cost: "macs" (interruptible), "contract" or "seconds".
        resamples: Number of bootstrap samples.
        seed: Draws the bootstrap's samples.

    Raises:
        ValueError: The traces hold other samples, or a network has no answer within the budget.
    """
    import numpy as np
    from scipy.stats import binomtest

    if isinstance(budget, bool) or not isinstance(budget, (int, float)) or not budget > 0:
        raise ValueError(f"budget must be a number of {'seconds' if cost == 'seconds' else 'MACs'} above 0, got {budget!r}")
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples!r}")
    groups, there = _same_samples(one, other), one.labels >= 0
    one, other = labelled(one), labelled(other)
    steps = (_last_within(one, budget, cost), _last_within(other, budget, cost))
    right = [correct(trace)[step - 1].long() for trace, step in zip((one, other), steps, strict=True)]
    difference = right[0] - right[1]
    random = np.random.default_rng(seed)
    if groups is None:
        values, counts = np.array([-1.0, 0.0, 1.0]), torch.bincount(difference + 1, minlength=3).numpy()
        means = random.multinomial(len(difference), counts / counts.sum(), size=resamples) @ values / len(difference)
        better, worse = int(counts[2]), int(counts[0])
        p_value = float(binomtest(better, better + worse).pvalue) if better + worse else 1.0
    else:
        numbers = numbered([group for group, here in zip(groups, there.tolist(), strict=True) if here])
        if numbers.max() < 1:
            raise ValueError("a bootstrap over groups needs at least 2 groups, got 1")
        sums, sizes = (torch.bincount(numbers, weights=w).numpy() for w in (difference.double(), torch.ones(len(numbers))))
        drawn = random.multinomial(len(sizes), np.full(len(sizes), 1 / len(sizes)), size=resamples)
        means, p_value = drawn @ sums / (drawn @ sizes), None
    low, high = np.quantile(means, (0.025, 0.975)).tolist()
    accuracies = (float(right[0].double().mean()), float(right[1].double().mean()))
    return Paired(budget, steps, accuracies, float(difference.double().mean()), low, high, p_value)


def _same_samples(one: Trace, other: Trace) -> list[Any] | None:
    """The group of each sample, None if they are independent; raises ValueError if the traces are not of the same samples."""
    if one.labels.shape != other.labels.shape:
        raise ValueError(f"a paired test needs the same samples, got {len(one.labels)} and {len(other.labels)}")
    for fact in ("dataset", "part", "level"):
        values = [trace.meta.get(fact) for trace in (one, other)]
        if None not in values and values[0] != values[1]:
            raise ValueError(f"a paired test needs the same samples, but the {fact} is {values[0]!r} and {values[1]!r}")
    if one.class_names != other.class_names:
        pairs = zip(one.class_names, other.class_names, strict=False)
        differ = next((pair for pair in pairs if pair[0] != pair[1]), (len(one.class_names), len(other.class_names)))
        raise ValueError(f"a paired test needs the same classes, but they differ: {differ[0]!r} and {differ[1]!r}")
    if not torch.equal(one.labels, other.labels):
        raise ValueError("a paired test needs the same samples in the same order, but the labels of the two traces differ")
    known = [trace.meta["groups"] for trace in (one, other) if trace.meta.get("groups") is not None]
    if len(known) == 2 and list(known[0]) != list(known[1]):
        raise ValueError("a paired test needs the same samples, but the groups of the two traces differ")
    return list(known[0]) if known else None


def _last_within(trace: Trace, budget: float, cost: Cost) -> int:
    spent = costs(trace, cost).tolist()
    within = [step for step, c in enumerate(spent, 1) if c <= budget * (1 + 1e-12)]
    if not within:
        raise ValueError(
            f"{trace.meta.get('model', 'a network')} has no answer within {budget:g}: the first costs {spent[0]:g}"
        )
    return within[-1]
