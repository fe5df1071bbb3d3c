"""What an analysis needs of a trace, said before it computes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from anytime.trace import Trace


def require_steps(trace: Trace, steps: int, what: str) -> None:
    """Raises ValueError, a sentence that begins with `what`, if a trace has fewer steps."""
    if trace.num_steps < steps:
        raise ValueError(f"{what} needs at least {steps} steps, and this trace has {trace.num_steps}")


def require_count(value: Any, what: str) -> None:
    """Raises ValueError, a sentence that begins with `what`, unless the value is a whole number of at least 1."""
    if isinstance(value, bool) or not hasattr(value, "__index__") or value < 1:
        raise ValueError(f"{what} must be a whole number of at least 1, got {value!r}")


def require_features(trace: Trace) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """The features `[N, F_t]` and class weights `[K, F_t]` of each step; raises ValueError if the trace lacks them."""
    missing = " and no ".join(
        name for name, given in (("features", trace.features), ("class weights", trace.class_weights)) if given is None
    )
    if trace.features is None or trace.class_weights is None:
        raise ValueError(f"this trace has no {missing}: record them with anytime.record(model, data, features=True)")
    return trace.features, trace.class_weights


def require_layers(trace: Trace, names: Sequence[str]) -> list[Tensor]:
    """The activations `[N, T, ...]` of some layers; raises ValueError if the trace lacks one."""
    for name in names:
        if name not in trace.activations:
            known = f"it has those of {', '.join(trace.activations)}" if trace.activations else "it has none"
            raise ValueError(
                f"this trace has no activations of layer {name!r} ({known}): record them with "
                f"anytime.record(model, data, layers=[{name!r}])"
            )
    return [trace.activations[name] for name in names]
