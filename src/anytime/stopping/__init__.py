"""When to stop: stopping rules, and how to choose them on a validation trace."""

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
from anytime.stopping.guarantee import CANDIDATES, certified, conformal, mean_loss
from anytime.stopping.learned import Recurrent, learned_stop
from anytime.stopping.levels import LevelChoice
from anytime.stopping.metacognition import FinalAnswer, metacognition, metacognition_curve
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
from anytime.stopping.saved import Fitted, resolve, save_rule, saved_rules
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
    "FinalAnswer",
    "Fitted",
    "LevelChoice",
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
    "mean_loss",
    "measure",
    "metacognition",
    "metacognition_curve",
    "ratio_for",
    "resolve",
    "rule",
    "save_rule",
    "saved_rules",
    "share_thresholds",
    "value_of_computation",
]
