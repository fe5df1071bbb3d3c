"""Fits a stopping rule to a goal on validation answers, and checks it on test answers."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from anytime.support.units import parse_budget

if TYPE_CHECKING:
    from anytime.combine import Combiner
    from anytime.stopping import Fitted, Outcome
    from anytime.trace import Trace

METHODS = ("confidence", "budgeted", "value", "learned")


class Goal(NamedTuple):
    """What is fitted and to what: `cost` is "macs" or "seconds", `price` is accuracy per MAC."""

    method: str | None
    budget: float | None = None
    cost: Any = "macs"
    max_loss: float | None = None
    sure: float | None = None
    price: float | None = None

    @classmethod
    def of(
        cls,
        method: str | None,
        budget: str | None,
        max_loss: float | None,
        sure: float | None,
        price: float | None,
        trace: Trace,
    ) -> Goal:
        """From what was typed.

        Raises:
            ValueError: A budget that is no cost, or less than the first step's; seconds for what counts MACs.
        """
        whole = float(trace.macs[-1])
        amount, cost = (None, "macs") if budget is None else parse_budget(budget, whole)
        if cost == "seconds" and method == "budgeted":
            raise ValueError(f"budgeted batch classification counts MACs: give --budget 50% or 40M, got {budget!r}")
        if amount is not None:
            from anytime.analysis.curves import costs

            first = float(costs(trace, cost)[0])  # type: ignore[arg-type]
            if amount < first:
                least = f"{first / whole:.1%} of all MACs" if cost == "macs" else f"{first * 1e3:.3g}ms"
                raise ValueError(f"--budget must be at least what the first step costs, {least}, got {budget!r}")
        return cls(method, amount, cost, max_loss, sure, None if price is None else price / whole)


def fit_rule(validation: Trace, test: Trace, combine: str, goal: Goal) -> Fitted:
    """Fits the combiner, and the rule to its answers, on `validation`; the facts say what they give on `test`.

    A guarantee must not be calibrated on what the combiner was fitted to: then each gets half of the images.
    """
    from anytime.combine import combiner, fit_temperatures
    from anytime.stopping import Fitted, Never, mean_loss, measure

    calibration = validation
    if combine == "temperature":
        first = validation
        if goal.max_loss is not None:
            first, calibration = (_every_other(validation, start) for start in (0, 1))
        combined: Combiner = fit_temperatures(first)
    else:
        combined = combiner(combine, validation.macs.tolist())
    rule = Never() if goal.method is None else _chosen(calibration, goal, combined).rule
    found = measure(rule, test, combined)
    facts = {
        **{key: value for key, value in goal._asdict().items() if value is not None},
        "dataset": validation.meta.get("dataset"),
        "fitted_on": calibration.num_samples,
        "measured_on": test.num_samples,
        "test_accuracy": found.accuracy,
        "test_macs": found.macs,
        "test_loss": mean_loss(test, rule, combined),
    }
    return Fitted(rule, combined, facts)


def _chosen(trace: Trace, goal: Goal, combined: Combiner) -> Outcome:
    from anytime import stopping

    if goal.max_loss is not None and goal.sure is not None:
        return stopping.certified(trace, goal.max_loss, 1 - goal.sure, combiner=combined)
    if goal.max_loss is not None:
        return stopping.conformal(trace, goal.max_loss, combiner=combined)
    if goal.price is not None:
        choose = stopping.learned_stop if goal.method == "learned" else stopping.value_of_computation
        return choose(trace, goal.price, combiner=combined)
    assert goal.budget is not None
    if goal.method == "budgeted":
        return stopping.budgeted(trace, stopping.ratio_for(trace.macs, goal.budget), combined)
    return stopping.best_thresholds(trace, goal.budget, goal.cost, combined)


def _every_other(trace: Trace, start: int) -> Trace:
    part = slice(start, None, 2)
    features = None if trace.features is None else trace.features[:, part]
    return replace(trace, logits=trace.logits[:, part], labels=trace.labels[part], features=features)
