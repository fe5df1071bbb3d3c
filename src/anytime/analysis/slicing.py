"""Measures of thin sub-networks against a reference: cost saved at equal error, error saved at equal cost."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy
import torch
from torch import Tensor

from anytime.analysis.curves import Cost, costs, error
from anytime.trace import Trace

__all__ = ["cost_at_error", "error_at_equal_cost", "macs_saved", "relative_error_saved"]


def cost_at_error(trace: Trace, wanted: Tensor, cost: Cost = "contract") -> Tensor:
    """The lowest cost at which the line through the points (cost_t, error_t) has each error of `wanted`, float64.

    Linear between neighbouring costs, like a line in a figure; nan for an error that the line never has.

    Args:
        wanted: Errors, as shares.
        cost: "contract" if the budget is known in advance, as in the paper, "macs" (interruptible) or "seconds".

    Raises:
        ValueError: The cost is unknown, or the trace does not hold it.
    """
    points, lowest = _points(trace, cost), []
    for value in wanted.double().tolist():
        hits = [c for c, e in points if e == value]
        for (c0, e0), (c1, e1) in pairwise(points):
            if min(e0, e1) < value < max(e0, e1):
                hits.append(c0 + (c1 - c0) * (e0 - value) / (e0 - e1))
        lowest.append(min(hits, default=math.nan))
    return torch.tensor(lowest, dtype=torch.float64)


def error_at_equal_cost(trace: Trace, wanted: Tensor, cost: Cost = "contract") -> Tensor:
    """The error of the same line at each cost of `wanted`, float64; nan outside its costs.

    (For the error that can be reached within a budget, see `curves.error_at_cost`.)

    Args:
        wanted: Costs, in the unit of `cost`.
        cost: As in `cost_at_error`.
    """
    spent, errors = zip(*_points(trace, cost), strict=True)
    return torch.from_numpy(numpy.interp(wanted.double().numpy(), spent, errors, left=math.nan, right=math.nan))


def macs_saved(trace: Trace, reference: Trace, cost: Cost = "contract") -> Tensor:
    """s_t = 1 - cost_t / C(error_t): the share of the cost that each answer saves at equal error, float64 `[T]`.

    C is `cost_at_error` of the reference. Negative if the answer costs more; nan if the reference never has an equal error.
    Source: Lee, Shin 2018, section 4.2 ("up to 56.0 % smaller FLOPs" is the largest s_t).
    """
    return 1 - costs(trace, cost).double() / cost_at_error(reference, error(trace), cost)


def relative_error_saved(trace: Trace, reference: Trace, cost: Cost = "contract") -> Tensor:
    """r_t = 1 - error_t / E(cost_t): how much smaller each error is than that of `reference` at equal cost, float64 `[T]`.

    E is `error_at_equal_cost` of the reference. Negative if the error is larger; nan outside the reference's costs, or if
    neither makes errors. Source: Lee, Shin 2018, section 4.2 ("10.7 % relatively smaller errors" is r_T).
    """
    return 1 - error(trace) / error_at_equal_cost(reference, costs(trace, cost), cost)


def _points(trace: Trace, cost: Cost) -> list[tuple[float, float]]:
    """(cost, error) by rising cost, the best of answers at equal cost; contract costs need not rise with the step."""
    best: dict[float, float] = {}
    for spent, wrong in zip(costs(trace, cost).tolist(), error(trace).tolist(), strict=True):
        best[float(spent)] = min(wrong, best.get(float(spent), math.inf))
    return sorted(best.items())
