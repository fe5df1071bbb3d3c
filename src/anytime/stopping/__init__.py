"""When to stop: rules, and how to choose them on a validation trace."""

from anytime.stopping.choose import (
    RATIOS,
    Outcome,
    best_threshold,
    best_thresholds,
    budgeted,
    budgeted_curve,
    exit_shares,
    measure,
    ratio_for,
    share_thresholds,
)
from anytime.stopping.guarantee import CANDIDATES, certified, conformal
from anytime.stopping.learned import Recurrent, learned_stop
from anytime.stopping.rules import (
    AllOf,
    AnyOf,
    Confidence,
    ConfidenceBands,
    Deadline,
    Entropy,
    MacBudget,
    Margin,
    Never,
    Patience,
    Rule,
    SelectionLatency,
    rule,
)
from anytime.stopping.value import value_of_computation

__all__ = [
    "CANDIDATES",
    "RATIOS",
    "AllOf",
    "AnyOf",
    "Confidence",
    "ConfidenceBands",
    "Deadline",
    "Entropy",
    "MacBudget",
    "Margin",
    "Never",
    "Outcome",
    "Patience",
    "Recurrent",
    "Rule",
    "SelectionLatency",
    "best_threshold",
    "best_thresholds",
    "budgeted",
    "budgeted_curve",
    "certified",
    "conformal",
    "exit_shares",
    "learned_stop",
    "measure",
    "ratio_for",
    "rule",
    "share_thresholds",
    "value_of_computation",
]
