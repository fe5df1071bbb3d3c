"""The value of computation: is the next step worth its time? (Hansen and Zilberstein 2001)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from anytime.analysis.curves import costs
from anytime.combine import Combiner
from anytime.stopping.choose import Answers, Outcome, Spent, require_price
from anytime.stopping.rules import ConfidenceBands
from anytime.trace import Trace


def value_of_computation(
    trace: Trace, price: float, cost: Spent = "macs", bins: int = 10, myopic: bool = False, combiner: Combiner | None = None
) -> Outcome:
    """The rule that maximises E[correct - price * cost], by monitoring the confidence at every step.

    V_t(b) = max(a_t(b), sum_b' P_t(b' | b) V_{t+1}(b') - price * (cost_{t+1} - cost_t)), where b is the quantised confidence,
    a_t(b) the share of right answers in it and P_t the frequency of moving to b' at the next step, all counted on the trace;
    the rule stops where a_t(b) is the larger (Hansen and Zilberstein 2001). The myopic rule looks one step ahead, with a_{t+1}
    instead of V_{t+1}, so it stops too early where a single step does not pay but several do.

    Args:
        trace: The answers on a validation split; at least about ten samples per bin and step.
        price: Accuracy that a unit of cost is worth: 1e-9 per MAC, 20 per second, ...
        cost: "macs" (interruptible) or "seconds".
        bins: Number of quantile bins of the confidence per step; equal confidences share a bin.
        myopic: Looks only one step ahead.
        combiner: How answers are made from several steps; default `Last()`.

    Raises:
        ValueError: If the price is negative, there is less than one bin, or the trace does not hold that cost.
    """
    require_price(price)
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins!r}")
    answers = Answers.of(trace, combiner)
    edges = [_edges(values, bins) for values in answers.confidence]
    index = [torch.searchsorted(edge, values, right=True) for edge, values in zip(edges, answers.confidence, strict=True)]
    right = answers.right.double()
    accuracy = [torch.bincount(b, r) / torch.bincount(b) for b, r in zip(index, right, strict=True)]
    transitions = []
    for (b, after), (edge, edge_after) in zip(itertools.pairwise(index), itertools.pairwise(edges), strict=True):
        shape = len(edge) + 1, len(edge_after) + 1
        counts = torch.bincount(b * shape[1] + after, minlength=shape[0] * shape[1]).double().reshape(shape)
        transitions.append(counts / counts.sum(1, keepdim=True))
    prices = (price * costs(trace, cost).double().diff()).tolist()
    stops, _ = solve(accuracy, transitions, prices, myopic)
    return answers.outcome(ConfidenceBands([_bands(edge, stop) for edge, stop in zip(edges, stops, strict=True)]))


def solve(
    accuracy: Sequence[Tensor], transitions: Sequence[Tensor], prices: Sequence[float], myopic: bool = False
) -> tuple[list[Tensor], list[Tensor]]:
    """Dynamic programming backwards over the steps, see `value_of_computation`.

    Args:
        accuracy: a_t(b), T tensors `[B_t]`.
        transitions: P_t(b' | b), T - 1 tensors `[B_t, B_{t+1}]` whose rows sum to 1.
        prices: Price of moving from step t to t + 1, length T - 1.
        myopic: Decides by the accuracy of only the next step.

    Returns:
        For each step, whether to stop, bool `[B_t]`, and the expected accuracy minus the remaining price, `[B_t]`.
    """
    stops, values = [torch.ones_like(accuracy[-1], dtype=torch.bool)], [accuracy[-1]]
    for step in reversed(range(len(transitions))):
        go = transitions[step] @ values[0] - prices[step]
        hope = transitions[step] @ accuracy[step + 1] - prices[step] if myopic else go
        stop = accuracy[step] >= hope - 1e-12
        stops.insert(0, stop)
        values.insert(0, torch.where(stop, accuracy[step], go))
    return stops, values


def _edges(confidence: Tensor, bins: int) -> Tensor:
    """Lower edges of all bins but the first, taken from the values themselves, so that no bin is empty."""
    ordered = confidence.sort().values
    edges = ordered[[len(ordered) * i // bins for i in range(1, bins)]].unique()
    return edges[edges > ordered[0]]


def _bands(edges: Tensor, stop: Tensor) -> list[tuple[float, float]]:
    """The bins in which to stop, as bands of confidence; adjacent bins are joined."""
    limits = [0.0, *edges.tolist(), math.inf]
    bands: list[tuple[float, float]] = []
    for low, high, stopping in zip(limits[:-1], limits[1:], stop.tolist(), strict=True):
        if stopping and bands and bands[-1][1] == low:
            bands[-1] = (bands[-1][0], high)
        elif stopping:
            bands.append((low, high))
    return bands
