"""Stopping rules on what a flight has recorded of each step, instead of its probabilities."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable

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
)

Seen = tuple[float, float, float, int]
"""The two largest probabilities, the entropy in nats, the label."""
Judge = Callable[[int, "Seen | None", float, float], bool]
"""Takes a step, what was seen after it, and MACs and seconds until the end of the next one; says whether to stop."""
_PLAIN = (Never, Confidence, Margin, Entropy, Patience, SelectionLatency, MacBudget, Deadline, ConfidenceBands)


def single(number: float) -> float:
    """A number as a rule sees it: in single precision, like the probabilities."""
    return ctypes.c_float(number).value


def parts_of(rule: Rule | None) -> list[Rule]:
    """The rules that a rule consists of."""
    if isinstance(rule, AnyOf | AllOf):
        return [part for each in rule.rules for part in parts_of(each)]
    return [] if rule is None else [rule]


def check(rule: Rule) -> None:
    """Raises ValueError if a flight does not hold what a rule looks at."""
    for part in parts_of(rule):
        if not isinstance(part, _PLAIN):
            raise ValueError(f"a flight does not hold what the rule {part.kind!r} looks at; replay another, or none")


def judge_of(rule: Rule | None) -> Judge:
    """A rule for one run, which looks at what was recorded instead of probabilities."""
    if rule is None:
        return lambda step, seen, macs, seconds: False
    if isinstance(rule, AnyOf | AllOf):
        parts, join = [judge_of(part) for part in rule.rules], any if isinstance(rule, AnyOf) else all
        return lambda *given: join([part(*given) for part in parts])
    if isinstance(rule, Patience):
        return _in_a_row(rule.times, -1.0)
    if isinstance(rule, SelectionLatency):
        return _in_a_row(rule.hold, rule.threshold)

    def stops(step: int, seen: Seen | None, macs: float, seconds: float) -> bool:
        if isinstance(rule, MacBudget | Deadline):
            return rule.exhausted(macs, seconds)
        if seen is None or isinstance(rule, Never):
            return False
        first, second, entropy, _ = seen
        if isinstance(rule, ConfidenceBands):
            bands = [(single(low), single(high)) for low, high in rule.bands[step - 1]]
            return any(low <= first and (first < high or high == math.inf) for low, high in bands)
        threshold = single(rule._at(step))  # type: ignore[attr-defined]
        if isinstance(rule, Entropy):
            return entropy < threshold
        return (single(first - second) if isinstance(rule, Margin) else first) >= threshold

    return stops


def _in_a_row(times: int, least: float) -> Judge:
    label, count, least = -1, 0, single(least)

    def stops(step: int, seen: Seen | None, macs: float, seconds: float) -> bool:
        nonlocal label, count
        if seen is None:
            return False
        count = (count * (seen[3] == label) + 1) * (seen[0] > least)
        label = seen[3]
        return count >= times

    return stops
