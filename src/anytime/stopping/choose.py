"""Thresholds chosen on a validation trace: for given shares per exit, or for the best accuracy under a mean cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from anytime.analysis.curves import costs
from anytime.combine import Combiner, Last
from anytime.stopping.rules import Confidence, Rule
from anytime.stopping.search import ThresholdSearch
from anytime.trace import Trace, labelled

Spent = Literal["macs", "seconds"]
RATIOS = tuple(p / 20 for p in range(1, 40))
"""The ratios of successive exit shares that MSDNet's published code sweeps: 0.05 to 1.95."""


@dataclass(frozen=True)
class Outcome:
    """Accuracy and cost of a stopping rule on a trace.

    Attributes:
        rule: The rule.
        accuracy: Share of right answers at the step where each sample stops.
        macs: Mean interruptible MACs per sample.
        seconds: Mean seconds per stream; None if the trace holds none.
        shares: Share of samples that stop at each step, length T.
    """

    rule: Rule
    accuracy: float
    macs: float
    seconds: float | None
    shares: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class Answers:
    """The combined answers to the labelled samples: `confidence` `[T, N]`, and whether they are `right`, bool `[T, N]`."""

    trace: Trace
    probabilities: Tensor
    confidence: Tensor
    right: Tensor

    @classmethod
    def of(cls, trace: Trace, combiner: Combiner | None) -> Answers:
        """The answers made by `combiner`, default `Last()`."""
        trace = labelled(trace)
        probabilities = (combiner or Last())(trace.logits)
        confidence, labels = probabilities.max(2)
        return cls(trace, probabilities, confidence, labels == trace.labels)

    def outcome(self, rule: Rule) -> Outcome:
        """Accuracy and cost of a rule."""
        trace, steps = self.trace, rule.stops(self.trace, self.probabilities)
        shares = torch.bincount(steps, minlength=trace.num_steps).double() / trace.num_samples
        return Outcome(
            rule=rule,
            accuracy=float(self.right.gather(0, steps[None]).double().mean()),
            macs=float(shares @ trace.macs.double()),
            seconds=None if trace.seconds is None else float(shares @ trace.seconds),
            shares=tuple(shares.tolist()),
        )


def measure(rule: Rule, trace: Trace, combiner: Combiner | None = None) -> Outcome:
    """Accuracy and cost of a rule on a trace, such as one that it was not chosen on; `combiner` defaults to `Last()`."""
    return Answers.of(trace, combiner).outcome(rule)


def exit_shares(ratio: float, num_steps: int) -> tuple[float, ...]:
    """π_t = r^t / sum_i r^i, t = 1..T, r > 0: the share of samples that should leave at each exit (MSDNet, Huang et al. 2018).

    The paper's q_t = z q (1 - q)^(t - 1) is r = 1 - q; its code also covers r > 1, where most samples leave late.
    """
    if not 0 < ratio < math.inf:
        raise ValueError(f"ratio must be finite and above zero (the paper's 1 - q), got {ratio!r}")
    shift = 0 if ratio <= 1 else num_steps - 1  # so that no power overflows
    powers = [float(ratio) ** (step - shift) for step in range(num_steps)]
    return tuple(power / sum(powers) for power in powers)


def ratio_for(step_costs: Sequence[float] | Tensor, budget: float) -> float:
    """The largest ratio r in 1e-18..1e18 with sum_t π_t(r) cost_t <= budget, the mean cost per sample (Huang et al. 2018).

    `step_costs` are cumulative and increasing. Raises ValueError if the budget is less than the first of them.
    """
    prices = [float(cost) for cost in step_costs]
    budget = float(budget)
    _require_affordable(budget, prices[0])

    def affordable(power: float) -> bool:
        shares = exit_shares(10**power, len(prices))
        return sum(share * cost for share, cost in zip(shares, prices, strict=True)) <= budget

    low, high = -18.0, 18.0
    if affordable(high):
        return 10**high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if affordable(middle) else (low, middle)
    return 10**low


def share_thresholds(confidence: Tensor, shares: Sequence[float], published_floor: bool = False) -> tuple[float, ...]:
    """Thresholds θ_t such that N (π_1 + .. + π_t), rounded up, of the N validation samples have left after exit t.

    θ_t is the smallest confidence, at exit t, of the samples that leave there: the most confident of those that are left. θ_t
    is infinite if none leaves, and 0 at the last exit. So the mean cost on these samples is at most sum_t π_t cost_t, the
    constraint of Huang et al. 2018. Samples of equal confidence leave together, so more may leave than intended.

    Args:
        confidence: `[T, N]`.
        shares: π_1 .. π_T.
        published_floor: Whether floor(N π_t) samples leave at each exit, as in the authors' code. The samples that rounding
            leaves over run all steps, so the mean cost can exceed the above. θ_t is infinite if fewer samples are left.
    """
    samples = confidence.shape[1]
    staying = torch.ones(samples, dtype=torch.bool)
    thresholds, intended = [], 0.0
    for values, share in zip(confidence[:-1], shares, strict=False):
        intended += samples * share
        left = values[staying]
        wanted = math.floor(samples * share + 1e-9) if published_floor else math.ceil(intended - 1e-9) - (samples - len(left))
        threshold = float(left.topk(wanted).values[-1]) if 0 < wanted <= len(left) else math.inf
        thresholds.append(threshold)
        staying &= values < threshold
    return (*thresholds, 0.0)


def budgeted(trace: Trace, ratio: float, combiner: Combiner | None = None, published_floor: bool = False) -> Outcome:
    """MSDNet's budgeted batch classification: the thresholds that give geometric exit shares π_t ∝ r^t on a validation trace.

    Its mean cost on `trace` is at most sum_t π_t cost_t: with r = `ratio_for(trace.macs, budget)` it keeps the budget.

    Args:
        trace: The answers on a validation split.
        ratio: r.
        combiner: How answers are made from several steps; default `Last()`.
        published_floor: As in `share_thresholds`.
    """
    return budgeted_curve(trace, (ratio,), combiner, published_floor=published_floor)[0]


def budgeted_curve(
    trace: Trace,
    ratios: Sequence[float] = RATIOS,
    combiner: Combiner | None = None,
    test: Trace | None = None,
    published_floor: bool = False,
) -> list[Outcome]:
    """`budgeted` for every ratio: accuracy against mean cost, the budgeted batch curves of Huang et al. 2018.

    Args:
        trace: The answers on a validation split, for choosing the thresholds.
        ratios: r of each point.
        combiner: How answers are made from several steps; default `Last()`.
        test: The trace for measuring the outcomes; default `trace`.
        published_floor: As in `share_thresholds`.
    """
    answers = Answers.of(trace, combiner)
    measured = answers if test is None else Answers.of(test, combiner)
    shares = (exit_shares(ratio, trace.num_steps) for ratio in ratios)
    thresholds = (share_thresholds(answers.confidence, wanted, published_floor) for wanted in shares)
    return [measured.outcome(Confidence(values)) for values in thresholds]


def best_threshold(trace: Trace, budget: float, cost: Spent = "macs", combiner: Combiner | None = None) -> Outcome:
    """argmax_θ accuracy subject to mean cost <= budget, with one confidence threshold θ for all steps; exact.

    Ties in accuracy go to the cheapest.

    Args:
        trace: The answers on a validation split.
        budget: Mean cost per sample, in MACs or seconds.
        cost: "macs" (interruptible) or "seconds".
        combiner: How answers are made from several steps; default `Last()`.

    Raises:
        ValueError: The budget is less than the cost of the first step, or the trace does not hold that cost.
    """
    answers = Answers.of(trace, combiner)
    return answers.outcome(Confidence(_search(answers, budget, cost).single()))


def best_thresholds(trace: Trace, budget: float, cost: Spent = "macs", combiner: Combiner | None = None) -> Outcome:
    """argmax_θ accuracy subject to mean cost <= budget, with one confidence threshold θ_t per step.

    Exact for up to 3 steps. For more, it is the best of many starts, each improved by moving two thresholds at a time to their
    best values; the starts include those of `best_threshold` and `budgeted`, so it is never worse on `trace`. Ties in
    accuracy go to the cheapest. With few samples it fits their noise, so `measure` it on others. Arguments and errors are
    those of `best_threshold`.
    """
    answers = Answers.of(trace, combiner)
    search, spent = _search(answers, budget, cost), costs(trace, cost)
    shares = exit_shares(ratio_for(spent, budget), trace.num_steps)
    starts = [[search.single()] * trace.num_steps, share_thresholds(answers.confidence, shares)]
    return answers.outcome(Confidence(search.per_step(starts)))


def _search(answers: Answers, budget: float, cost: Spent) -> ThresholdSearch:
    spent = costs(answers.trace, cost)
    _require_affordable(budget, float(spent[0]))
    return ThresholdSearch(answers.confidence, answers.right, spent, float(budget))


def require_price(price: float) -> None:
    """Raises ValueError if a price per unit of cost is negative or not finite."""
    if not 0 <= price < math.inf:
        raise ValueError(f"price must be finite and at least zero (accuracy per unit of cost), got {price!r}")


def _require_affordable(budget: float, first: float) -> None:
    if not budget >= first:
        raise ValueError(f"budget must be at least the cost of the first step, {first:g}, got {budget!r}")
