"""One number for a whole curve: the area under accuracy over the logarithm of the cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

__all__ = ["log_area"]


def log_area(costs: Sequence[float], accuracies: Sequence[float], low: float, high: float, guess: float) -> float:
    """A = 1 / ln(H / L) * integral from L to H of a(m) dm / m: mean accuracy for a budget m with log m uniform in [L, H].

    a(m) is the accuracy of the last answer that costs at most m, and that of guessing before the first answer. So a first
    answer at half the cost counts as much as one more doubling of the budget at the end, and answers beyond H do not count.

    Args:
        costs: Cumulative cost of each answer, `[T]`, rising; any unit.
        accuracies: Its accuracy, `[T]`.
        low: L, the smallest budget, above 0.
        high: H, the largest budget, above L.
        guess: Accuracy without an answer, 1 / K for K equally frequent classes.

    Raises:
        ValueError: The lengths differ, there is no answer, costs do not rise from above 0, or the budgets do not.

    Example:
        >>> from anytime.analysis.area import log_area
        >>> round(log_area([10, 100], [0.5, 0.9], low=1, high=1000, guess=0.1), 6)
        0.5
    """
    if not costs or len(costs) != len(accuracies):
        raise ValueError(f"each answer needs a cost and an accuracy, got {len(costs)} costs and {len(accuracies)} accuracies")
    if costs[0] <= 0 or any(b <= a for a, b in pairwise(costs)):
        raise ValueError(f"costs must be above 0 and rise from answer to answer, got {list(costs)}")
    if not 0 < low < high < math.inf:
        raise ValueError(f"budgets must have 0 < low < high, got low={low!r}, high={high!r}")
    edges = [math.log(min(max(edge, low), high)) for edge in (low, *costs, high)]
    held = (guess, *accuracies)
    return sum(a * (edges[i + 1] - edges[i]) for i, a in enumerate(held)) / math.log(high / low)
