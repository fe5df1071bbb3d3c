"""The numbers of a trace as plain JSON-able values, and the rows that compare several traces."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from torch import Tensor

from anytime.analysis import calibration, curves, monotonicity
from anytime.trace import Trace

"""Columns of `summary(trace)["steps"]` for `tables.format_table` and reports."""

"""Columns of the rows of `comparison`."""


def summary(trace: Trace) -> dict[str, Any]:
    """Every metric of one trace as plain values, ready for JSON; None where a value does not exist.

    Returns:
        `steps`: one row per step (`STEP_COLUMNS`); `accuracy` of the last step, `average_error`, `timeliness`;
        `error_at_cost` per cost and share of it; `largest_drop`, `answer_changes`, `overthinking`; `threshold`: area
        under the threshold curve, and the cheapest threshold that loses no accuracy on this trace; `meta`.
    """
    table = {
        "macs": trace.macs,
        "share_of_macs": trace.macs.double() / trace.macs[-1],
        "contract_macs": trace.contract_macs,
        "accuracy": curves.accuracy(trace),
        "confidence": curves.confidence(trace),
        "true_class_probability": curves.true_class_probability(trace),
        "ece": calibration.ece(trace),
        "pearson": calibration.per_class(trace).pearson,
        "seconds": trace.seconds,
        "seconds_low": trace.meta.get("seconds_low"),
        "seconds_high": trace.meta.get("seconds_high"),
    }
    columns = {key: _plain(values) for key, values in table.items() if values is not None}
    steps = [{"step": t + 1, **{key: values[t] for key, values in columns.items()}} for t in range(trace.num_steps)]
    curve = curves.threshold_curve(trace)
    final = float(curve.accuracy[-1])
    free = curve.cheapest(final)
    assert free is not None  # the last threshold never stops early
    return {
        "steps": steps,
        "samples": trace.num_samples,
        "classes": trace.num_classes,
        "accuracy": final,
        "average_error": curves.average_error(trace),
        "timeliness": curves.timeliness(trace),
        "error_at_cost": {cost: _milestones(trace, cost) for cost in _held_costs(trace)},
        "largest_drop": monotonicity.largest_drop(trace),
        "answer_changes": monotonicity.answer_changes(trace).tolist(),
        "overthinking": _plain(asdict(monotonicity.overthinking(trace))),
        "threshold": {
            "area": curve.area(),
            "lossless": _plain(float(curve.thresholds[free])),
            "lossless_share_of_macs": float(curve.macs[free] / trace.macs[-1]),
        },
        "meta": dict(trace.meta),
    }


def comparison(traces: Mapping[str, Trace], cost: curves.Cost = "macs") -> list[dict[str, Any]]:
    """One row per trace (`COMPARISON_COLUMNS`); a network of one step has no AE, for it cannot be stopped earlier.

    Args:
        traces: By name.
        cost: Which cost the errors at 1/4, 1/2, 3/4 and 1 go by; each trace's own last step is 1.
    """
    return [
        {
            "name": name,
            "dataset": trace.meta.get("dataset"),
            "parameters": trace.meta.get("parameters"),
            "steps": trace.num_steps,
            "macs": int(trace.macs[-1]),
            "accuracy": float(curves.accuracy(trace)[-1]),
            "average_error": curves.average_error(trace) if trace.num_steps > 1 else None,
            "timeliness": curves.timeliness(trace) if trace.num_steps > 1 else None,
            **{f"error_at_{share}": value for share, value in _milestones(trace, cost).items()},
            "seconds": None if trace.seconds is None else float(trace.seconds[-1]),
        }
        for name, trace in traces.items()
    ]


def _held_costs(trace: Trace) -> list[curves.Cost]:
    held: dict[curves.Cost, Tensor | None]
    held = {"macs": trace.macs, "contract": trace.contract_macs, "seconds": trace.seconds}
    return [cost for cost, values in held.items() if values is not None]


def _milestones(trace: Trace, cost: curves.Cost) -> dict[str, float | None]:
    errors = _plain(curves.error_at_cost(trace, curves.MILESTONES, cost))
    return {f"{share:g}": value for share, value in zip(curves.MILESTONES, errors, strict=True)}


def _plain(value: Any) -> Any:
    """Tensors as lists, numbers that JSON lacks as None."""
    if isinstance(value, Tensor):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
