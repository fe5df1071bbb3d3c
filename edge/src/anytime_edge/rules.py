"""Stopping rules of one image; the formulas and names are those of `anytime.stopping`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np


class Seen(NamedTuple):
    """What a rule sees after step 1..T-1: probabilities `[K]`, and MACs and seconds until the end of the next step."""

    step: int
    p: np.ndarray | None  # None if they are not finite: then only budgets stop
    macs: float
    seconds: float


Update = Callable[[Any, Seen], tuple[bool, Any]]
"""Takes the state, None at first; returns whether to stop, and the state."""
_NUMBER = {  # what `NAME=VALUE` sets
    **dict.fromkeys(("confidence", "margin", "entropy", "selection_latency"), "threshold"),
    **{"patience": "times", "mac_budget": "macs", "deadline": "seconds"},
}


def from_text(text: str) -> dict[str, Any]:
    """A rule as in a manifest, from text such as "confidence=0.9"; ValueError if it is no such rule, or no number."""
    name, _, value = (part.strip() for part in text.partition("="))
    if name not in _NUMBER:
        raise ValueError(f"unknown rule {name!r}; those with a number are {', '.join(_NUMBER)}")
    try:
        return {"kind": name, _NUMBER[name]: float(value)}
    except ValueError:
        raise ValueError(f"{name}=VALUE needs a number, got {value!r}") from None


def needs_seconds(values: Mapping[str, Any]) -> bool:
    """Whether a rule looks at the time that the next step takes."""
    return values.get("kind") == "deadline" or any(map(needs_seconds, values.get("rules", ())))


def rule(values: Mapping[str, Any], steps: int, classes: int) -> Update:
    """A rule from its values in a manifest, such as `{"kind": "confidence", "threshold": 0.9}`.

    Raises:
        ValueError: The kind is unknown, or the values are damaged or of another number of steps.
    """
    kind = values.get("kind")
    if kind not in _KINDS:
        raise ValueError(f"unknown rule {kind!r}; this version knows {', '.join(_KINDS)}")
    try:
        made = _KINDS[kind](values, steps, classes)
        state = None
        for step in range(1, steps):  # damage shows in a trial
            _, state = made(state, Seen(step, np.full(classes, 1 / classes, np.float32), 0, 0))
        return made
    except (TypeError, ValueError, LookupError, AttributeError, RecursionError) as error:
        raise ValueError(f"the rule {kind!r} is damaged, or not of {steps} steps: {error}") from error


def _never(values: Mapping, steps: int, classes: int) -> Update:
    return lambda state, seen: (False, None)


def _threshold(stops: Callable[[np.ndarray, float], Any]) -> Callable[[Mapping, int, int], Update]:
    def make(values: Mapping, steps: int, classes: int) -> Update:
        given = values["threshold"]
        numbers = [*map(float, given)] if isinstance(given, list) else [float(given)] * steps
        if len(numbers) != steps or not min(numbers) >= 0:
            raise ValueError(f"thresholds are {given!r}")
        return lambda state, seen: (seen.p is not None and bool(stops(seen.p, numbers[seen.step - 1])), None)

    return make


def _two_largest(p: np.ndarray) -> np.ndarray:
    return np.sort(np.append(p, p.dtype.type(0)))[::-1][:2]


def _entropy(p: np.ndarray) -> Any:
    positive = p[p > 0]
    return -(positive * np.log(positive)).sum()


def _in_a_row(values: Mapping, steps: int, classes: int) -> Update:
    """The same label for some steps in a row; of "selection_latency" with a probability above the threshold."""
    patience = values["kind"] == "patience"
    times, least = int(values["times"] if patience else values.get("hold", 1)), float(values.get("threshold", 0.83))

    def update(state: Any, seen: Seen) -> tuple[bool, Any]:
        if seen.p is None:
            return False, state
        before, count = state or (-1, 0)
        label = int(seen.p.argmax())
        count = (count * (label == before) + 1) * bool(patience or seen.p.max() > least)
        return count >= times, (label, count)

    return update


def _budget(values: Mapping, steps: int, classes: int) -> Update:
    of_macs = values["kind"] == "mac_budget"
    most = float(values["macs" if of_macs else "seconds"])
    return lambda state, seen: ((seen.macs if of_macs else seen.seconds) > most, None)


def _bands(values: Mapping, steps: int, classes: int) -> Update:
    bands = [[(float(low), float(high)) for low, high in step] for step in values["bands"]]

    def update(state: Any, seen: Seen) -> tuple[bool, Any]:
        sure = math.nan if seen.p is None else seen.p.max()
        return any(bool(low <= sure and (sure < high or high == math.inf)) for low, high in bands[seen.step - 1]), None

    return update


def _several(values: Mapping, steps: int, classes: int) -> Update:
    parts, judge = [rule(part, steps, classes) for part in values["rules"]], any if values["kind"] == "any" else all

    def update(state: Any, seen: Seen) -> tuple[bool, Any]:
        pairs = [part(own, seen) for part, own in zip(parts, state or [None] * len(parts), strict=True)]
        return judge(stop for stop, _ in pairs), [own for _, own in pairs]

    return update


def _recurrent(values: Mapping, steps: int, classes: int) -> Update:
    """h_t = GRU(f_t, h_{t-1}), and a limit on w h_t + b: what "recurrent" and "final_answer" share."""
    w_in, w_hidden, b_in, b_hidden, head, bias = (np.asarray(weight, np.float32) for weight in values["weights"])
    units, learned, least = len(head[0]), values["kind"] == "final_answer", float(values.get("threshold", 0.5))
    if values["steps"] != steps:
        raise ValueError(f"it is of {values['steps']} steps")

    def update(state: Any, seen: Seen) -> tuple[bool, Any]:
        if seen.p is None:
            return False, state
        hidden, before = state or (np.zeros(units, np.float32), -1)
        label = int(seen.p.argmax())
        if learned:
            features = np.log(np.maximum(seen.p, np.float32(1e-9))) / 4
        else:
            entropy = _entropy(seen.p) / math.log(max(classes, 2))
            features = np.array([*_two_largest(seen.p), entropy, label == before, seen.step / steps], np.float32)
        given, own = w_in @ features + b_in, w_hidden @ hidden + b_hidden
        reset, keep = 1 / (1 + np.exp(-(given + own)[: 2 * units].reshape(2, units)))
        hidden = (1 - keep) * np.tanh(given[2 * units :] + reset * own[2 * units :]) + keep * hidden
        output = float(head[0] @ hidden + bias[0])
        return (1 / (1 + math.exp(-output)) if learned else output) > (least if learned else 0), (hidden, label)

    return update


_KINDS: dict[Any, Callable[[Mapping, int, int], Update]] = {
    "never": _never,
    "confidence": _threshold(lambda p, least: p.max() >= least),
    "margin": _threshold(lambda p, least: np.subtract(*_two_largest(p)) >= least),
    "entropy": _threshold(lambda p, most: _entropy(p) < most),
    **{"patience": _in_a_row, "selection_latency": _in_a_row, "mac_budget": _budget, "deadline": _budget},
    **{"confidence_bands": _bands, "any": _several, "all": _several},
    **{"recurrent": _recurrent, "final_answer": _recurrent},
}
