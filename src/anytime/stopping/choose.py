"""Thresholds chosen on a validation trace: for given shares per exit, or for the best accuracy under a mean cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from anytime.analysis.curves import costs
from anytime.combine import Combiner, Last
from anytime.stopping.rules import Confidence, Rule
from anytime.trace import Trace, require_one_level

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
    """The combined answers of a trace: `confidence` `[T, N]` and whether they are `right`, bool `[T, N]`."""

    trace: Trace
    probabilities: Tensor
    confidence: Tensor
    right: Tensor

    @classmethod
    def of(cls, trace: Trace, combiner: Combiner | None) -> Answers:
        """The answers made by `combiner`, default `Last()`."""
        require_one_level(trace)
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
    powers = [ratio ** (step - shift) for step in range(num_steps)]
    return tuple(power / sum(powers) for power in powers)


def ratio_for(step_costs: Sequence[float] | Tensor, budget: float) -> float:
    """The largest ratio r in 1e-18..1e18 with sum_t π_t(r) cost_t <= budget, the mean cost per sample (Huang et al. 2018).

    `step_costs` are cumulative and increasing. Raises ValueError if the budget is less than the first of them.
    """
    prices = [float(cost) for cost in step_costs]
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


def share_thresholds(confidence: Tensor, shares: Sequence[float]) -> tuple[float, ...]:
    """Thresholds θ_t such that floor(N π_t) of the N validation samples leave at exit t (Huang et al. 2018, their code).

    `confidence` is `[T, N]`, `shares` are π_1 .. π_T. In order t = 1..T-1: θ_t is the floor(N π_t)-th largest confidence at
    exit t among the samples that have not left yet; all samples at or above θ_t leave. θ_t is infinite if that number is 0 or
    exceeds the samples left, and 0 at the last exit. Samples of equal confidence leave together, so more may leave than
    intended.
    """
    samples = confidence.shape[1]
    staying = torch.ones(samples, dtype=torch.bool)
    thresholds = []
    for values, share in zip(confidence[:-1], shares, strict=False):
        wanted, left = math.floor(samples * share + 1e-9), values[staying]  # 1e-9: 0.3 * 10 is 3
        threshold = float(left.topk(wanted).values[-1]) if 0 < wanted <= len(left) else math.inf
        thresholds.append(threshold)
        staying &= values < threshold
    return (*thresholds, 0.0)


def budgeted(trace: Trace, ratio: float, combiner: Combiner | None = None) -> Outcome:
    """MSDNet's budgeted batch classification: the thresholds that give geometric exit shares π_t ∝ r^t on a validation trace.

    For a given mean cost per sample, r = `ratio_for(trace.macs, budget)`; `combiner` defaults to `Last()`.
    """
    return budgeted_curve(trace, (ratio,), combiner)[0]


def budgeted_curve(
    trace: Trace, ratios: Sequence[float] = RATIOS, combiner: Combiner | None = None, test: Trace | None = None
) -> list[Outcome]:
    """`budgeted` for every ratio: accuracy against mean cost, the budgeted batch curves of Huang et al. 2018.

    Args:
        trace: The answers on a validation split, for choosing the thresholds.
        ratios: r of each point.
        combiner: How answers are made from several steps; default `Last()`.
        test: The trace for measuring the outcomes; default `trace`.
    """
    answers = Answers.of(trace, combiner)
    measured = answers if test is None else Answers.of(test, combiner)
    shares = (exit_shares(ratio, trace.num_steps) for ratio in ratios)
    return [measured.outcome(Confidence(share_thresholds(answers.confidence, wanted))) for wanted in shares]


def best_threshold(trace: Trace, budget: float, cost: Spent = "macs", combiner: Combiner | None = None) -> Outcome:
    """argmax_θ accuracy subject to mean cost <= budget, with one confidence threshold θ for all steps.

    θ runs over infinity, 512 quantiles of the confidences of the trace, and their maximum. Raises ValueError if the budget is
    less than the cost of the first step, or the trace does not hold that cost.

    Args:
        trace: The answers on a validation split.
        budget: Mean cost per sample, in MACs or seconds.
        cost: "macs" (interruptible) or "seconds".
        combiner: How answers are made from several steps; default `Last()`.
    """
    answers = Answers.of(trace, combiner)
    return answers.outcome(Confidence(_Search(answers, budget, cost).single()))


def best_thresholds(trace: Trace, budget: float, cost: Spent = "macs", combiner: Combiner | None = None) -> Outcome:
    """argmax_θ accuracy subject to mean cost <= budget, with one confidence threshold θ_t per step.

    Coordinate ascent, exact in each θ_t: first on accuracy - λ * cost for a bisection over λ, then on accuracy under the
    budget from the best affordable thresholds found, including those of `best_threshold` and `budgeted`: on `trace` it is
    never worse than they are. With few samples it fits their noise: `measure` it on others. Arguments and errors are those of
    `best_threshold`.
    """
    answers = Answers.of(trace, combiner)
    return answers.outcome(Confidence(_Search(answers, budget, cost).per_step()))


def require_price(price: float) -> None:
    """Raises ValueError if a price per unit of cost is negative or not finite."""
    if not 0 <= price < math.inf:
        raise ValueError(f"price must be finite and at least zero (accuracy per unit of cost), got {price!r}")


def _require_affordable(budget: float, first: float) -> None:
    if not budget >= first:
        raise ValueError(f"budget must be at least the cost of the first step, {first:g}, got {budget!r}")


Score = Callable[[Tensor, Tensor], Tensor]


class _Search:
    """Searches thresholds `[T]` for the best accuracy under a mean cost, as a share of the last step's cost."""

    def __init__(self, answers: Answers, budget: float, cost: Spent) -> None:
        cumulative = costs(answers.trace, cost).double()
        _require_affordable(budget, float(cumulative[0]))
        self.budget = budget / float(cumulative[-1]) * (1 + 1e-12)
        self.cost = cumulative / cumulative[-1]
        self.answers = answers
        self.right = answers.right.double()
        self.order = answers.confidence[:-1].argsort(dim=1, descending=True)

    def single(self) -> float:
        values = self.answers.confidence[:-1].flatten().sort().values
        if not len(values):
            return 0.0
        places = torch.linspace(0, len(values) - 1, 513).round().long()
        grid = [math.inf, *values[places].unique().tolist()]
        scores = torch.stack([self.allowed(*self.value([threshold] * len(self.cost))) for threshold in grid])
        return grid[int(scores.argmax())]

    def per_step(self) -> list[float]:
        steps = len(self.cost)
        shares = exit_shares(ratio_for(self.cost, self.budget), steps)
        found = [[self.single()] * steps, list(share_thresholds(self.answers.confidence, shares))]
        low, high = -5.0, 3.0  # powers of ten of λ
        for _ in range(14):
            weight = 10 ** ((low + high) / 2)
            found.append(self.ascend(found[-1], lambda right, cost, weight=weight: right - weight * cost))  # type: ignore[misc]
            too_costly = self.value(found[-1])[1] > self.budget
            low, high = ((low + high) / 2, high) if too_costly else (low, (low + high) / 2)
        best = max(found, key=lambda thresholds: float(self.allowed(*self.value(thresholds))))
        return self.ascend(best, self.allowed)

    def allowed(self, right: Tensor, cost: Tensor) -> Tensor:
        """Score of thresholds within the budget: accuracy, and the lower cost among equal accuracies."""
        return torch.where(cost <= self.budget, right - 1e-9 * cost, -math.inf)

    def exits(self, thresholds: list[float]) -> Tensor:
        """Whether each sample would stop at each step if it got there, bool `[T, N]`."""
        stops = self.answers.confidence >= torch.tensor(thresholds, dtype=self.answers.confidence.dtype)[:, None]
        stops[-1] = True
        return stops

    def value(self, thresholds: list[float]) -> tuple[Tensor, Tensor]:
        """Accuracy and mean cost."""
        steps = self.exits(thresholds).int().argmax(0)
        return self.right.gather(0, steps[None]).mean(), self.cost[steps].mean()

    def ascend(self, thresholds: list[float], score: Score) -> list[float]:
        """Moves one threshold at a time to its best value until none moves."""
        thresholds = list(thresholds)
        best = score(*self.value(thresholds))
        for _ in range(50):
            before = best
            for step in range(len(thresholds) - 1):
                reached, value = self.move(thresholds, step, score)
                if reached > best:
                    best, thresholds[step] = reached, value
            if not best > before:
                break
        return thresholds

    def move(self, thresholds: list[float], step: int, score: Score) -> tuple[Tensor, float]:
        """The best score over all thresholds of one step, and the threshold that reaches it."""
        stops = self.exits(thresholds)
        later = stops[step + 1 :].int().argmax(0) + step + 1
        here = ~stops[:step].any(0)
        steps = torch.where(here, later, stops.int().argmax(0))
        right, cost = self.right.gather(0, steps[None])[0], self.cost[steps]
        order = self.order[step][here[self.order[step]]]  # samples that get here, the most confident first
        values = self.answers.confidence[step][order]
        zero = right.new_zeros(1)
        rights = right.sum() + torch.cat([zero, (self.right[step] - right)[order].cumsum(0)])
        spent = cost.sum() + torch.cat([zero, (self.cost[step] - cost)[order].cumsum(0)])
        scores = score(rights / len(right), spent / len(right))
        scores[1:-1][values[1:] == values[:-1]] = -math.inf  # samples of equal confidence leave together
        best = int(scores.argmax())
        return scores[best], float(values[best - 1]) if best else math.inf
