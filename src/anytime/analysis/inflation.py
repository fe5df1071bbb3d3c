"""Cost inflation of a sequence of networks of growing depth: Proposition 3.1 of Hu et al. 2017 for any base and any sequence.

Networks of depth d_1 < d_2 < ... run one after the other. After x units of depth in all, the answer is as good as that of a
network trained only for depth x', so it has cost C = x / x' times too much: the cost inflation. With z units in network j,

* anytime members: x' = max(z, d_{j-1}), as the last answer of the previous network stands until its depth is passed;
* plain members, which answer only at their end: x' = d_{j-1}.

In the proposition d_j = b^(j-1), every anytime member is as good as the best network of depth i for each i above 1/b of its
depth, and the stop is uniform over the cost. `sup_inflation` and `expected_inflation` are its limits for ever longer
sequences, which no finite one exceeds; `sequence_inflation` is exact for given depths, `simulate` draws stops.

In all functions `base` is b > 1, the ratio of a network's depth to that of the previous one, and `anytime=True` stands
for anytime members, `anytime=False` for plain ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Literal, NamedTuple

import torch

__all__ = ["Inflation", "best_base", "expected_inflation", "sequence_inflation", "simulate", "sup_inflation"]


class Inflation(NamedTuple):
    """C, the cost spent over that of a single network with an equal answer: its supremum, its mean over uniform stops."""

    sup: float
    mean: float


def _check_base(base: float) -> None:
    if not 1 < base < math.inf:
        raise ValueError(f"base must be above 1 and finite, got {base!r}")


def sup_inflation(base: float, anytime: bool = True) -> float:
    """sup C = 2 + 1/(b - 1) for anytime members; b^2/(b - 1) = 2 + (b - 1) + 1/(b - 1) >= 4 for plain ones.

    Source: Hu et al. 2017, Proposition 3.1 and appendix A (where "(b - 1) + 1/(b - 1) >= 4" must be >= 2).

    Example:
        >>> from anytime.analysis.inflation import sup_inflation
        >>> sup_inflation(2), sup_inflation(2, anytime=False)
        (3.0, 4.0)
    """
    _check_base(base)
    return 2 + 1 / (base - 1) + (0 if anytime else base - 1)


def expected_inflation(base: float, anytime: bool = True) -> float:
    """E[C] <= 1 - 1/(2b) + (1 + ln b)/(b - 1) for anytime members; 3/2 + (b - 1)/2 + 1/(b - 1) >= 3/2 + sqrt 2 for plain ones.

    The stop is uniform over the cost of the last network of an ever longer sequence, and so over the whole cost. The mean of a
    finite sequence is smaller (for plain members: after the first network, before which there is no answer). Source: ibid.

    Example:
        >>> from anytime.analysis.inflation import expected_inflation
        >>> round(expected_inflation(2), 3), expected_inflation(2, anytime=False)
        (2.443, 3.0)
    """
    _check_base(base)
    if anytime:
        return 1 - 1 / (2 * base) + (1 + math.log(base)) / (base - 1)
    return 1.5 + (base - 1) / 2 + 1 / (base - 1)


def best_base(of: Literal["sup", "mean"], anytime: bool = True) -> float:
    """The base that minimises sup C or E[C]: for plain members 2 and 1 + sqrt(2), for anytime members none (infinity).

    With anytime members both fall with b, to 2 and to 1: take the largest b whose members are good from 1/b of their depth.
    """
    if of not in ("sup", "mean"):
        raise ValueError(f"of must be 'sup' or 'mean', got {of!r}")
    if anytime:
        return math.inf
    return 2.0 if of == "sup" else 1 + math.sqrt(2)


def _check_depths(depths: Sequence[float], anytime: bool) -> list[float]:
    depths = [float(depth) for depth in depths]
    least = 1 if anytime else 2
    growing = all(before < after for before, after in zip([0.0, *depths], depths, strict=False))
    if len(depths) < least or not growing or depths[-1] == math.inf:
        raise ValueError(f"depths must be at least {least} growing numbers above 0, got {depths}")
    return depths


def sequence_inflation(depths: Sequence[float], anytime: bool = True) -> Inflation:
    """Exact sup C and E[C] of one sequence, the stop uniform over its cost.

    With S = d_1 + ... + d_{j-1} and p = d_{j-1}, network j of depth d has sup C = S/p + 1, and C integrates over its cost to
    S + p/2 + (d - p) + S ln(d/p); for plain members (S + d)/p and (S d + d^2/2)/p. In the first network C = 1; plain members
    have no answer in it, and the stop is uniform over the rest.

    Args:
        depths: d_1 < d_2 < ..., in units or MACs.

    Example:
        >>> from anytime.analysis.inflation import sequence_inflation
        >>> sup, mean = sequence_inflation([3, 9, 21, 39, 75])  # units of the paper's networks: n = 1, 3, 7, 13, 25
        >>> round(sup, 3), round(mean, 3)
        (2.846, 2.122)
    """
    depths = _check_depths(depths, anytime)
    sups, integral = [1.0] if anytime else [], depths[0] if anytime else 0.0
    spent = depths[0]
    for before, depth in pairwise(depths):
        if anytime:
            sups.append(spent / before + 1)
            integral += spent + before / 2 + (depth - before) + spent * math.log(depth / before)
        else:
            sups.append((spent + depth) / before)
            integral += (spent * depth + depth * depth / 2) / before
        spent += depth
    return Inflation(max(sups), integral / (spent if anytime else spent - depths[0]))


def simulate(depths: Sequence[float], anytime: bool = True, stops: int = 10_000, seed: int = 0) -> Inflation:
    """Estimates `sequence_inflation` by stopping the sequence: at random for the mean, by an adversary for the sup.

    Each stop walks through the sequence: which network runs, how far it has come, whose answer is the latest. The adversary
    stops just before each new answer, and at the end of each network.

    Args:
        depths: d_1 < d_2 < ..., e.g. `[b**k for k in range(20)]`.
        stops: Number of random stops, uniform over the cost.
        seed: Seed of the stops.
    """
    depths = _check_depths(depths, anytime)
    if stops < 1:
        raise ValueError(f"stops must be at least 1, got {stops!r}")
    ends = list(accumulate(depths))
    first = 0.0 if anytime else ends[0]
    drawn = torch.rand(stops, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    uniform = (first + (ends[-1] - first) * (1 - drawn)).tolist()  # 1 - drawn: never 0
    passed = [start + before for start, before in zip(ends[:-1], depths, strict=False)] if anytime else []
    nearly = [end * (1 - 1e-12) for end in ends]
    adverse = [stop for stop in (*passed, *nearly) if stop > first]
    return Inflation(
        sup=max(_inflation(stop, depths, anytime) for stop in adverse),
        mean=sum(_inflation(stop, depths, anytime) for stop in uniform) / stops,
    )


def _inflation(spent: float, depths: Sequence[float], anytime: bool) -> float:
    """C of one stop."""
    left, before = spent, 0.0
    for depth in depths:
        if left <= depth:
            break
        left, before = left - depth, depth
    return spent / (max(left, before) if anytime else before)
