"""Statistics over runs: measures by seed, standard errors over seeds, paired differences, and the sign test over runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from anytime.analysis.curves import Cost, costs
from anytime.analysis.slicing import macs_saved, relative_error_saved
from anytime.trace import Trace

__all__ = [
    "Comparison",
    "all_positive",
    "compare",
    "costs_of",
    "difference",
    "first_trace",
    "gain",
    "gain_at_least",
    "holm",
    "interval",
    "mean",
    "means",
    "per_seed",
    "reductions",
    "saved",
    "sign_test",
    "standard_error",
]

BySeed = Mapping[int, Trace]
"""The traces of one network, by seed."""


def first_trace(by_seed: BySeed) -> Trace:
    """The trace of the first seed."""
    return next(iter(by_seed.values()))


def per_seed(measure: Callable[[Trace], Tensor], by_seed: BySeed) -> list[list[float]]:
    """A measure of each step, e.g. `analysis.curves.error`, for each seed: `[S][T]`."""
    return [measure(trace).tolist() for trace in by_seed.values()]


def standard_error(values: Sequence[Sequence[float]]) -> list[float]:
    """SEM_c = sqrt(C / (C - 1)) sd_s(x_sc - mean_c'(x_sc') + mean(x)) / sqrt(S): each seed's own level is removed.

    A seed that is good under all conditions alike says nothing about their differences (Cousineau 2005). Removing its level
    shrinks the variance by (C - 1) / C, which the first factor undoes (Morey 2008): with two conditions the standard error of
    their difference is sqrt(2) SEM. sd divides by S - 1. The published code of Iuzzolino et al. 2021 divides by S and lacks
    the factor.

    Args:
        values: x `[S, C]`: S seeds under the same C conditions. With one condition, its plain sd_s / sqrt(S).

    Returns:
        `[C]`; nan for a single seed.
    """
    x = torch.tensor(values, dtype=torch.float64)
    if x.ndim != 2 or not x.numel():
        raise ValueError(f"values must be [seeds, conditions], got {list(x.shape)}")
    if len(x) < 2:
        return [math.nan] * x.shape[1]
    conditions = x.shape[1]
    if conditions == 1:
        return (x.std(0) / math.sqrt(len(x))).tolist()
    x = x - x.mean(1, keepdim=True) + x.mean()
    return (x.std(0) * math.sqrt(conditions / (conditions - 1) / len(x))).tolist()


def difference(left: Sequence[float], right: Sequence[float]) -> tuple[float, float]:
    """Mean over seeds of left - right, and its standard error (nan for a single seed)."""
    if len(left) != len(right) or not left:
        raise ValueError(f"a difference needs the same seeds on both sides, got {len(left)} and {len(right)} values")
    d = torch.tensor(left, dtype=torch.float64) - torch.tensor(right, dtype=torch.float64)
    return float(d.mean()), float(d.std() / math.sqrt(len(d))) if len(d) > 1 else math.nan


def interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """mean(x) and t sd(x) / sqrt(S), the half width of its confidence interval over S seeds; nan for a single seed.

    t is the two-sided quantile of Student's distribution with S - 1 degrees of freedom: 12.7, 4.3, 2.8 for 2, 3, 5 seeds.
    """
    from scipy.stats import t

    x = torch.tensor(values, dtype=torch.float64)
    if len(x) < 2:
        return float(x.mean()), math.nan
    if bool((x == x[0]).all()):
        return float(x[0]), 0.0
    return float(x.mean()), float(t.ppf((1 + level) / 2, len(x) - 1) * x.std() / math.sqrt(len(x)))


def mean(values: Sequence[float]) -> float:
    """The mean; nan if any value is nan."""
    return sum(values) / len(values)


def means(rows: Sequence[Sequence[float]]) -> list[float]:
    """Mean over seeds: `[S][T]` to `[T]`."""
    return [mean(column) for column in zip(*rows, strict=True)]


def gain(values: Sequence[float], others: Sequence[float]) -> dict[str, Any]:
    """Mean over seeds of value - other, with its standard error, which is nan for a single seed."""
    mean_gain, standard_error = difference(values, others)
    return {"gain": mean_gain, "standard_error": standard_error, "seeds": len(values)}


def reductions(errors: Sequence[float], references: Sequence[float]) -> list[float]:
    """1 - error / reference, element by element; nan if neither makes errors, -inf if only the reference makes none."""
    return (1 - torch.tensor(errors, dtype=torch.float64) / torch.tensor(references, dtype=torch.float64)).tolist()


def costs_of(by_seed: BySeed, cost: Cost) -> list[int]:
    """The cost of each step, which is the same for all seeds."""
    return costs(first_trace(by_seed), cost).tolist()


def saved(one: BySeed, other: BySeed, cost: Cost) -> tuple[list[float], list[float]]:
    """Relative error that one network saves over another at equal cost, and cost at equal error (`analysis.slicing`).

    Both by step, as means over seeds; nan where no seed has a value.
    """
    pairs = list(zip(one.values(), other.values(), strict=True))
    errors, spent = ([measure(a, b, cost) for a, b in pairs] for measure in (relative_error_saved, macs_saved))
    return torch.stack(errors).nanmean(0).tolist(), torch.stack(spent).nanmean(0).tolist()


def all_positive(values: Sequence[float]) -> bool | None:
    """Whether all values that are not nan are above 0; None if all are nan."""
    known = [value for value in values if not math.isnan(value)]
    return min(known) > 0 if known else None


def gain_at_least(left: Sequence[float], right: Sequence[float]) -> float:
    """mean(d) - t se(d), d = left - right over S seeds: a lower bound of the gain with 95 % confidence; nan for one seed.

    t is the one-sided quantile of Student's distribution with S - 1 degrees of freedom: 6.3, 2.9 and 2.4 for 2, 3 and 4 seeds.
    """
    from scipy.stats import t

    gain, error = difference(left, right)
    return gain - float(t.ppf(0.95, len(left) - 1)) * error if len(left) > 1 else math.nan


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values of a family of m tests, corrected by Holm (1979): the smallest is multiplied by m, the next by m - 1, ...

    If every test with a corrected p-value of at most alpha counts as significant, the probability of any false positive is
    at most alpha.

    Example:
        >>> from anytime.analysis.statistics import holm
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected


def sign_test(wins: int, runs: int) -> float:
    """P(X >= wins), X binomial(runs, 1/2): the exact p-value of at least this many wins under the null hypothesis.

    That hypothesis is that neither method is better; the test is one-sided.

    (The test of Hu et al. 2017 puts a relative deviation into Hoeffding's additive bound and so overstates significance.)

    Args:
        wins: Runs in which the method had the smaller error.
        runs: All runs.

    Example:
        >>> from anytime.analysis.statistics import sign_test
        >>> round(sign_test(26, 39), 3)
        0.027
    """
    if not 0 <= wins <= runs or runs < 1:
        raise ValueError(f"wins must lie in 0..runs and runs must be at least 1, got {wins!r} of {runs!r}")
    return sum(math.comb(runs, k) for k in range(wins, runs + 1)) / 2**runs


@dataclass(frozen=True)
class Comparison:
    """Numbers of n paired runs in which a method has a smaller error (`better`) or the same error (`tied`)."""

    better: int
    tied: int
    runs: int

    @property
    def share(self) -> float:
        """(better + tied / 2) / n, as in Tables 2 and 5 of Hu et al. 2017."""
        return (self.better + self.tied / 2) / self.runs

    @property
    def p_value(self) -> float:
        """`sign_test(better, n)`; a tie does not count as a win."""
        return sign_test(self.better, self.runs)


def compare(errors: Sequence[float], others: Sequence[float]) -> Comparison:
    """Counts the runs in which a method beats another.

    Args:
        errors: Errors of the method, one per run.
        others: Errors of the other method in the same runs (model, data set, seed).

    Raises:
        ValueError: Lengths differ, there are no runs, or an error is NaN.
    """
    pairs = list(zip(errors, others, strict=False))
    if not pairs or len(errors) != len(others) or any(math.isnan(value) for pair in pairs for value in pair):
        raise ValueError(f"each run needs two errors, none NaN; got {list(errors)} and {list(others)}")
    better, tied = sum(mine < other for mine, other in pairs), sum(mine == other for mine, other in pairs)
    return Comparison(better, tied, len(pairs))
