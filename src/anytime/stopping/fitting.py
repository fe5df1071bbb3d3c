"""Fits a stopping rule to a goal on validation answers, and measures it on test answers."""

from __future__ import annotations

from typing import NamedTuple

import torch

from anytime.analysis.curves import costs
from anytime.combine import FITS, Combiner, combiner
from anytime.stopping.choose import Outcome, Spent, best_thresholds, budgeted, measure, ratio_for
from anytime.stopping.guarantee import certified, conformal, group_numbers, mean_loss
from anytime.stopping.learned import learned_stop
from anytime.stopping.rules import Never
from anytime.stopping.saved import Fitted
from anytime.stopping.value import value_of_computation
from anytime.support.units import parse_budget
from anytime.trace import Trace, labelled

__all__ = ["Goal", "fit_rule"]

METHODS = ("confidence", "budgeted", "value", "learned")


class Goal(NamedTuple):
    """What to fit (one of `METHODS`, or None for only the combiner) and the goal: a budget, a loss or a price.

    The budget is a mean `cost` per sample, "macs" or "seconds"; `max_loss` is the loss of accuracy against all steps, kept on
    average or with the probability `sure`; the price is in accuracy per MAC.
    """

    method: str | None
    budget: float | None = None
    cost: Spent = "macs"
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
        """The goal as typed on the command line: a budget such as "50%", and the price of all MACs of the trace.

        Raises ValueError if the budget is not a cost, less than the first step's, or in seconds where the method counts MACs.
        """
        whole = float(trace.macs[-1])
        goal = cls(method, None, "macs", max_loss, sure, None if price is None else price / whole)
        if budget is None:
            return goal
        amount, cost = parse_budget(budget, whole)
        if cost == "seconds" and method == "budgeted":
            raise ValueError(f"budgeted batch classification counts MACs: give --budget 50% or 40M, got {budget!r}")
        first = float(costs(trace, cost)[0])
        if amount < first:
            least = f"{first / whole:.1%} of all MACs" if cost == "macs" else f"{first * 1e3:.3g}ms"
            raise ValueError(f"--budget must be at least the cost of the first step, {least}, got {budget!r}")
        return goal._replace(budget=amount, cost=cost)


def fit_rule(validation: Trace, test: Trace, combine: str, goal: Goal) -> Fitted:
    """Fits the combiner and then the rule, to its answers, on `validation`; the facts state the outcome on `test`.

    A guarantee must not be calibrated on the samples that the combiner was fitted to, so each of them then gets half of the
    samples, or of their groups.
    """
    validation, test = labelled(validation), labelled(test)
    calibration = validation
    if combine in FITS:
        first = validation
        if goal.max_loss is not None:
            first, calibration = (_every_other(validation, start) for start in (0, 1))
        combined: Combiner = FITS[combine](first)
    else:
        combined = combiner(combine, validation.macs.tolist())
    groups = None if goal.max_loss is None else group_numbers(calibration)
    rule = Never() if goal.method is None else _chosen(calibration, goal, combined).rule
    outcome = measure(rule, test, combined)
    facts = {
        **{key: value for key, value in goal._asdict().items() if value is not None},
        "dataset": validation.meta.get("dataset"),
        "fitted_on": calibration.num_samples,
        **({} if groups is None else {"groups": int(groups.max()) + 1}),
        "measured_on": test.num_samples,
        "test_accuracy": outcome.accuracy,
        "test_macs": outcome.macs,
        "test_loss": mean_loss(test, rule, combined),
    }
    return Fitted(rule, combined, facts)


def unspent(goal: Goal, outcome: Outcome, trace: Trace) -> str | None:
    """Why a rule spends less than 98 % of its budget on the trace that it was fitted to; None if it does not."""
    spent = outcome.macs if goal.cost == "macs" else outcome.seconds
    if goal.budget is None or spent is None or spent >= 0.98 * goal.budget:
        return None
    whole = float(costs(trace, goal.cost)[-1])
    if whole < goal.budget:
        reason = f"all steps cost only {whole / goal.budget:.1%} of it"
        reason += "" if spent >= 0.98 * whole else ", and no thresholds were found that spend more and are more accurate there"
    elif goal.method == "budgeted":
        reason = "its exit shares are rounded to whole images, and images of equal confidence leave together"
    else:
        reason = "no thresholds were found that spend more and are more accurate there"
    return f"the rule spends {spent / goal.budget:.1%} of the budget on the validation images: {reason}"


def _chosen(trace: Trace, goal: Goal, combined: Combiner) -> Outcome:
    if goal.max_loss is not None and goal.sure is not None:
        return certified(trace, goal.max_loss, 1 - goal.sure, combiner=combined)
    if goal.max_loss is not None:
        return conformal(trace, goal.max_loss, combiner=combined)
    if goal.price is not None:
        choose = learned_stop if goal.method == "learned" else value_of_computation
        return choose(trace, goal.price, combiner=combined)
    assert goal.budget is not None
    if goal.method == "budgeted":
        return budgeted(trace, ratio_for(trace.macs, goal.budget), combined)
    return best_thresholds(trace, goal.budget, goal.cost, combined)


def _every_other(trace: Trace, start: int) -> Trace:
    """Every second sample, or the samples of every second group."""
    groups = group_numbers(trace)
    numbers = torch.arange(trace.num_samples) if groups is None else groups
    return trace.select(numbers % 2 == start)
