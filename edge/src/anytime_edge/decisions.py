"""Combiners and stopping rules of one image; the formulas and names are those of `anytime.combine` and `anytime.stopping`.

A combiner makes probabilities after each step from the logits so far; a rule says after each step whether to stop.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np

Combine = Callable[[Any, np.ndarray, int], tuple[np.ndarray, Any]]
"""Takes the state (None at first), the logits `[1, K]` and the step 1..T; returns the probabilities `[1, K]` and the state."""


class Seen(NamedTuple):
    """What a rule sees after step 1..T-1: probabilities `[K]`, and MACs and seconds until the end of the next step."""

    step: int
    p: np.ndarray | None  # None if they are not finite: then only budgets stop
    macs: float
    seconds: float


Stop = Callable[[Any, Seen], tuple[bool, Any]]
"""Takes the state, None at first; returns whether to stop, and the state."""
# what `NAME=VALUE` sets
_NUMBER = dict.fromkeys(("confidence", "margin", "entropy", "selection_latency"), "threshold")
_NUMBER |= {"patience": "times", "mac_budget": "macs", "deadline": "seconds"}
BLIND = {"never", "mac_budget", "deadline", "any", "all"}  # rules that look at no probabilities themselves


def from_text(text: str, saved: list[str]) -> dict[str, Any]:
    """A rule as in a manifest, from text such as "confidence=0.9"; ValueError if it is no such rule, or no number."""
    name, _, value = (part.strip() for part in text.partition("="))
    if "=" not in text or name not in _NUMBER:
        raise ValueError(f"no rule {name!r} is saved with the model; there are {saved}, and NAME=NUMBER of {[*_NUMBER]}")
    try:
        return {"kind": name, _NUMBER[name]: float(value) if math.isfinite(float(value)) else value}  # JSON has no inf
    except ValueError:
        raise ValueError(f"{name}=VALUE needs a number, got {value!r}") from None


def kinds_of(values: Mapping[str, Any]) -> set[str]:
    """The kinds of a rule and of those that it consists of."""
    return {values["kind"]}.union(*map(kinds_of, values["rules"] if values["kind"] in ("any", "all") else ()))


def rule(values: Mapping[str, Any], steps: int, classes: int) -> Stop:
    """A rule from its values in a manifest, such as `{"kind": "confidence", "threshold": 0.9}`.

    Raises:
        ValueError: The kind is unknown, or the values are damaged or of another number of steps.
    """
    p = np.full(classes, 1 / classes, np.float32)
    return _made("rule", _RULES, values, steps, classes, ((Seen(step, p, 0, 0),) for step in range(1, steps)))


def combiner(values: Mapping[str, Any], steps: int, classes: int) -> Combine:
    """A combiner from its values in a manifest, such as `{"kind": "product", "weights": None}`, for one level of `classes`.

    Raises:
        ValueError: The kind is unknown, or the values are damaged or of another number of steps.
    """
    logits = np.ones((1, classes), np.float32)
    return _made("combiner", _COMBINERS, values, steps, classes, ((logits, step) for step in range(1, steps + 1)))


def _made(what: str, kinds: Mapping, values: Mapping, steps: int, classes: int, trial: Iterable[tuple]) -> Callable:
    """A combiner or a rule, from its values; damage shows in a trial."""
    kind = values.get("kind") if isinstance(values, Mapping) else values
    if not isinstance(kind, str) or kind not in kinds or kind is values:
        raise ValueError(f"unknown {what} {kind!r}; this version knows {', '.join(kinds)}")
    try:
        made, state = kinds[kind](values, steps, classes), None
        for given in trial:
            result, state = made(state, *given)
            if not np.isfinite(result).all():
                raise ValueError("it makes no probabilities")
        return made
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
        raise ValueError(f"the {what} {kind!r} is damaged, or not of {steps} steps: {error}") from error


def _numbers(given: Any, steps: int) -> list[float]:
    """One number for each step."""
    numbers = [*map(float, given)] if isinstance(given, list) else [float(given)] * steps
    if len(numbers) != steps or not all(number >= 0 for number in numbers):
        raise ValueError(f"its numbers are {given!r}")
    return numbers


def softmax(logits: np.ndarray) -> np.ndarray:
    """exp(z_k) / sum_j exp(z_j); NaN if all logits are -inf, or one is NaN or inf."""
    with np.errstate(invalid="ignore"):
        powers = np.exp(logits - logits.max(1, keepdims=True))
        return powers / powers.sum(1, keepdims=True)


def _caching(state: Any, logits: np.ndarray, step: int) -> tuple[np.ndarray, Any]:
    new = softmax(logits)
    kept = state is not None and (new.max() <= state.max() or np.isnan(new).any())
    return (state, state) if kept else (new, new)


def _product(weights: Any, state: Any, logits: np.ndarray, step: int) -> tuple[np.ndarray, Any]:
    with np.errstate(divide="ignore", invalid="ignore"):
        expert = np.log(np.maximum(logits, 0)) if math.isfinite(logits.max()) else np.zeros_like(logits)
        total = np.float32(weights[step - 1]) * expert + (0 if state is None else state)
    product = softmax(total)
    return softmax(logits) if np.isnan(product).any() else product, total


def _mixture(weights: list[float], state: Any, logits: np.ndarray, step: int) -> tuple[np.ndarray, Any]:
    weight, new = weights[step - 1], softmax(logits)
    before, mean = state or (0, new)
    unknown, wrong = state is None or np.isnan(mean).any(), np.isnan(new).any()
    mean = new if unknown else mean if wrong else mean + np.float32(weight / (before + weight)) * (new - mean)
    return mean, (before + weight, mean)


def _temperature(values: Mapping, steps: int, classes: int) -> Combine:
    numbers = [np.float32(number) for number in _numbers(values["temperatures"], steps)]
    inner = combiner(values.get("combiner") or {"kind": "last"}, steps, classes)
    return lambda state, logits, step: inner(state, logits / numbers[step - 1], step)


def _geometric(values: Mapping, steps: int, classes: int) -> Combine:
    weights, biases = ([np.asarray(row, np.float32) for row in values[name]] for name in ("weights", "biases"))
    if len(weights) != steps or [len(row) for row in biases] != [classes] * steps:
        raise ValueError(f"it has {len(weights)} weights, and biases of {[len(row) for row in biases]} classes")

    def update(state: Any, logits: np.ndarray, step: int) -> tuple[np.ndarray, Any]:
        finite = math.isfinite(logits.max())
        with np.errstate(divide="ignore", invalid="ignore"):
            z = logits - logits.max(1, keepdims=True)  # no probability is computed: in the pool's threads tiny ones are zero
            expert = np.maximum(z - np.log(np.exp(z).sum(1, keepdims=True)), np.float32(-100)) if finite else np.zeros_like(z)
        experts, total = (*(state or ()), expert), np.log(biases[step - 1])[None]
        for weight, each in zip(weights[step - 1], experts, strict=True):
            total = total + weight * each
        return softmax(total) if finite else np.full_like(logits, np.nan), experts

    return update


def _threshold(stops: Callable, most: float, values: Mapping, steps: int, classes: int) -> Stop:
    numbers = _numbers(values["threshold"], steps)
    if any(most < number < math.inf for number in numbers):
        raise ValueError(f"thresholds are shares of 1, got {numbers}")
    return lambda state, seen: (seen.p is not None and bool(stops(seen.p, numbers[seen.step - 1])), None)


def _two_largest(p: np.ndarray) -> np.ndarray:
    return np.sort(np.append(p, p.dtype.type(0)))[::-1][:2]


def _entropy(p: np.ndarray) -> Any:
    return -((positive := p[p > 0]) * np.log(positive)).sum()


def _in_a_row(values: Mapping, steps: int, classes: int) -> Stop:
    """The same label for some steps in a row; of "selection_latency" with a probability above the threshold."""
    patience = values["kind"] == "patience"
    times, least = float(values["times"] if patience else values.get("hold", 1)), float(values.get("threshold", 0.83))
    if not (times >= 1 and times.is_integer() and 0 <= least < 1):
        raise ValueError(f"it asks for {times:g} steps in a row of more than {least:g}")

    def update(state: Any, seen: Seen) -> tuple[bool, Any]:
        if seen.p is None:
            return False, state
        before, count = state or (-1, 0)
        label = int(seen.p.argmax())
        count = (count * (label == before) + 1) * bool(patience or seen.p.max() > least)
        return count >= times, (label, count)

    return update


def _budget(values: Mapping, steps: int, classes: int) -> Stop:
    name = "macs" if values["kind"] == "mac_budget" else "seconds"
    if not 0 < (most := float(values[name])) < math.inf:
        raise ValueError(f"{name} must be finite and above zero, got {values[name]!r}")
    return lambda state, seen: (getattr(seen, name) > most, None)


def _bands(values: Mapping, steps: int, classes: int) -> Stop:
    bands = [[(float(low), float(high)) for low, high in step] for step in values["bands"]]

    def update(state: Any, seen: Seen) -> tuple[bool, Any]:
        sure = math.nan if seen.p is None else seen.p.max()
        return any(bool(low <= sure and (sure < high or high == math.inf)) for low, high in bands[seen.step - 1]), None

    return update


def _several(values: Mapping, steps: int, classes: int) -> Stop:
    parts, judge = [rule(part, steps, classes) for part in values["rules"]], any if values["kind"] == "any" else all
    if not parts:
        raise ValueError("it consists of no rules")

    def update(state: Any, seen: Seen) -> tuple[bool, Any]:
        pairs = [part(own, seen) for part, own in zip(parts, state or [None] * len(parts), strict=True)]
        return judge(stop for stop, _ in pairs), [own for _, own in pairs]

    return update


def _recurrent(values: Mapping, steps: int, classes: int) -> Stop:
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


_COMBINERS: dict[Any, Callable[[Mapping, int, int], Combine]] = {
    "last": lambda *_: lambda state, logits, step: (softmax(logits), None),
    **{"caching": lambda *_: _caching, "temperature": _temperature, "geometric": _geometric},
    "product": lambda v, steps, _: partial(_product, _numbers(v.get("weights") or [*np.arange(1, steps + 1) / steps], steps)),
    "mixture": lambda values, steps, _: partial(_mixture, _numbers(values["weights"], steps)),
}
_RULES: dict[Any, Callable[[Mapping, int, int], Stop]] = {
    "never": lambda *_: lambda state, seen: (False, None),
    "confidence": partial(_threshold, lambda p, least: p.max() >= least, 1.0001),
    "margin": partial(_threshold, lambda p, least: np.subtract(*_two_largest(p)) >= least, 1.0001),
    "entropy": partial(_threshold, lambda p, most: _entropy(p) < most, math.inf),
    **{"patience": _in_a_row, "selection_latency": _in_a_row, "mac_budget": _budget, "deadline": _budget},
    **{"confidence_bands": _bands, "any": _several, "all": _several},
    **{"recurrent": _recurrent, "final_answer": _recurrent},
}
