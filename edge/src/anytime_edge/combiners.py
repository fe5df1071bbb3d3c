"""Combiners: probabilities after each step from the logits so far; the formulas and names are those of `anytime.combine`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

SIMPLE = ("last", "caching", "product")
Update = Callable[[Any, np.ndarray, int], tuple[np.ndarray, Any]]
"""Takes the state (None at first), the logits `[1, K]` and the step 1..T; returns the probabilities `[1, K]` and the state."""


def softmax(logits: np.ndarray) -> np.ndarray:
    """exp(z_k) / sum_j exp(z_j); NaN if all logits are -inf, or one is NaN or inf."""
    with np.errstate(invalid="ignore"):
        powers = np.exp(logits - logits.max(1, keepdims=True))
        return powers / powers.sum(1, keepdims=True)


def combiner(values: Mapping[str, Any], steps: int, classes: int) -> Update:
    """A combiner from its values in a manifest, such as `{"kind": "product", "weights": None}`, for one level of `classes`.

    Raises:
        ValueError: The kind is unknown, or the values are damaged or of another number of steps.
    """
    kind: Any = values.get("kind")
    if kind not in _KINDS:
        raise ValueError(f"unknown combiner {kind!r}; this version knows {', '.join(_KINDS)}")
    numbers = values.get({"temperature": "temperatures"}.get(kind, "weights"))
    if numbers is None and kind == "product":
        values = {**values, "weights": [t / steps for t in range(1, steps + 1)]}
    elif (numbers is not None or kind not in SIMPLE) and len(numbers or ()) != steps:
        raise ValueError(f"the combiner {kind!r} is not of {steps} steps")
    if kind == "temperature":
        inner = combiner(values.get("combiner") or {"kind": "last"}, steps, classes)
        values = {**values, "inner": inner}

    def update(state: Any, logits: np.ndarray, step: int) -> tuple[np.ndarray, Any]:
        return _KINDS[kind](values, state, logits, step)

    state = None
    try:
        for step in range(1, steps + 1):
            probabilities, state = update(state, np.ones((1, classes), np.float32), step)
            if not np.isfinite(probabilities).all():
                raise ValueError("it makes no probabilities")
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        raise ValueError(f"the combiner {kind!r} is damaged: {error}") from error
    return update


def _last(values: Mapping, state: Any, logits: np.ndarray, step: int) -> tuple[np.ndarray, Any]:
    return softmax(logits), None


def _caching(values: Mapping, state: Any, logits: np.ndarray, step: int) -> tuple[np.ndarray, Any]:
    new = softmax(logits)
    kept = state is not None and (new.max() <= state.max() or np.isnan(new).any())
    return (state, state) if kept else (new, new)


def _product(values: Mapping, state: Any, logits: np.ndarray, step: int) -> tuple[np.ndarray, Any]:
    with np.errstate(divide="ignore", invalid="ignore"):
        expert = np.log(np.maximum(logits, 0)) if math.isfinite(logits.max()) else np.zeros_like(logits)
        total = np.float32(values["weights"][step - 1]) * expert + (0 if state is None else state)
    product = softmax(total)
    return softmax(logits) if np.isnan(product).any() else product, total


def _mixture(values: Mapping, state: Any, logits: np.ndarray, step: int) -> tuple[np.ndarray, Any]:
    weight, new = values["weights"][step - 1], softmax(logits)
    if state is None:
        return new, (weight, new)
    total, mean = state[0] + weight, state[1]
    if np.isnan(mean).any():
        mean = new
    elif not np.isnan(new).any():
        mean = mean + np.float32(weight / total) * (new - mean)
    return mean, (total, mean)


def _temperature(values: Mapping, state: Any, logits: np.ndarray, step: int) -> tuple[np.ndarray, Any]:
    return values["inner"](state, logits / np.float32(values["temperatures"][step - 1]), step)


def _geometric(values: Mapping, state: Any, logits: np.ndarray, step: int) -> tuple[np.ndarray, Any]:
    finite = math.isfinite(logits.max())
    with np.errstate(divide="ignore"):
        expert = np.maximum(np.log(softmax(logits)), np.float32(-100)) if finite else np.zeros_like(logits)
    experts = (*(state or ()), expert)
    total = np.log(np.asarray([values["biases"][step - 1]], np.float32))
    for weight, each in zip(values["weights"][step - 1], experts, strict=True):
        total = total + np.float32(weight) * each
    return softmax(total) if finite else np.full_like(logits, np.nan), experts


_KINDS: dict[Any, Callable[..., tuple[np.ndarray, Any]]] = {
    "last": _last,
    "caching": _caching,
    "product": _product,
    "mixture": _mixture,
    "temperature": _temperature,
    "geometric": _geometric,
}
