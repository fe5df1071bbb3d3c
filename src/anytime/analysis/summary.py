"""The metrics of a trace as plain values for JSON, and rows that compare several traces."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from itertools import takewhile
from typing import Any

from torch import Tensor

from anytime.analysis import calibration, curves, monotonicity
from anytime.analysis.statistics import interval
from anytime.trace import Trace, labelled

__all__ = ["comparison", "grouped_comparison", "summary", "timing_differences"]


def summary(trace: Trace) -> dict[str, Any]:
    """Every metric of one trace as plain values, ready for JSON; None if a value does not exist.

    Returns:
        `steps`: one row per step (columns: `STEP_COLUMNS`); `accuracy` of the last step, `average_error`, `timeliness`;
        `error_at_cost` per cost and share of it; `largest_drop`, `answer_changes`, `overthinking`; `threshold`: area under
        the threshold curve, and the cheapest threshold that loses no accuracy on this trace; `meta` without
        the groups of the samples.
    """
    trace = labelled(trace)
    worst, worst_accuracy = calibration.worst_classes(trace)
    table = {
        "macs": trace.macs,
        "share_of_macs": trace.macs.double() / trace.macs[-1],
        "contract_macs": trace.contract_macs,
        "accuracy": curves.accuracy(trace),
        "worst_class_accuracy": worst_accuracy,
        "worst_class": worst,
        "confidence": curves.confidence(trace),
        "true_class_probability": curves.true_class_probability(trace),
        "ece": calibration.ece(trace),
        "pearson": calibration.per_class(trace).pearson,
        "seconds": trace.seconds,
        "seconds_low": trace.meta.get("seconds_low"),
        "seconds_high": trace.meta.get("seconds_high"),
    }
    columns = {key: _json_value(values) for key, values in table.items() if values is not None}
    steps = [{"step": t + 1, **{key: values[t] for key, values in columns.items()}} for t in range(trace.num_steps)]
    curve = curves.threshold_curve(trace)
    final = float(curve.accuracy[-1])
    lossless = curve.cheapest(final)
    assert lossless is not None  # the last threshold never stops early
    return {
        "steps": steps,
        "samples": trace.num_samples,
        "classes": trace.num_classes,
        "accuracy": final,
        "average_error": curves.average_error(trace),
        "timeliness": curves.timeliness(trace),
        "error_at_cost": {cost: _milestones(trace, cost) for cost in curves.measured_costs(trace)},
        "largest_drop": monotonicity.largest_drop(trace),
        "answer_changes": monotonicity.answer_changes(trace).tolist(),
        "overthinking": _json_value(asdict(monotonicity.overthinking(trace))),
        "threshold": {
            "area": curve.area(),
            "lossless": _json_value(float(curve.thresholds[lossless])),
            "lossless_share_of_macs": float(curve.macs[lossless] / trace.macs[-1]),
        },
        "meta": {key: value for key, value in trace.meta.items() if key != "groups"},
    }


def comparison(traces: Mapping[str, Trace]) -> list[dict[str, Any]]:
    """One row per trace (columns: `COMPARISON_COLUMNS`); a network of one step has no AE, as it cannot be stopped earlier.

    The errors at 1/4, 1/2, 3/4 and 1 are those within these shares of the MACs of each trace's own last step.

    Args:
        traces: Traces by name.
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
            **{f"error_at_{share}": value for share, value in _milestones(trace, "macs").items()},
            "seconds": None if trace.seconds is None else float(trace.seconds[-1]),
        }
        for name, trace in traces.items()
    ]


def grouped_comparison(traces: Mapping[str, Trace]) -> list[dict[str, Any]]:
    """One row per recipe (columns: `GROUP_COLUMNS`): mean and 95 % interval over the runs that differ only in their seed.

    Measures are `(mean, half width)`, see `statistics.interval`; a run without a recipe stands for itself. Runs on other
    images or of another cost never share a row. Milliseconds of other hardware are not averaged.

    Args:
        traces: Traces by name.

    Raises:
        ValueError: Two runs have the same recipe and the same seed.
    """
    groups: dict[str, dict[str, Trace]] = {}
    for name, trace in traces.items():
        groups.setdefault(_but_seed(trace) or name, {})[name] = trace
    rows = []
    for group in groups.values():
        seeds: dict[Any, str] = {}
        for name, trace in group.items():
            if len(group) > 1 and (same := seeds.setdefault(trace.meta["recipe"].get("seed"), name)) != name:
                raise ValueError(f"{same} and {name} have the same recipe and the same seed: one of them is a copy")
        runs = comparison(group)
        row: dict[str, Any] = {key: runs[0][key] for key in ("dataset", "parameters", "steps", "macs")}
        for key in runs[0].keys() - row.keys() - {"name"}:
            values = [run[key] for run in runs]
            row[key] = None if None in values else interval(values)
        if len({trace.meta.get("hardware") for trace in group.values()}) > 1:
            row["seconds"] = None
        rows.append(row | {"name": _common_name([*group]), "seeds": len(group)})
    return rows


def _but_seed(trace: Trace) -> str | None:
    """The recipe of a trace without its seed and the run that it starts from, its images and costs; None without a recipe."""
    recipe = trace.meta.get("recipe")
    if not isinstance(recipe, Mapping):
        return None
    same = {key: value for key, value in recipe.items() if key not in ("seed", "weights")}
    images = [trace.meta.get("dataset"), trace.meta.get("part"), trace.num_samples]
    return json.dumps([same, images, trace.macs.tolist()], sort_keys=True)


def _common_name(names: list[str]) -> str:
    """What the names of runs begin with, up to a separator: `sieve` of `sieve_10` and `sieve_11`; else the first name."""
    if len(names) == 1:
        return names[0]
    same = "".join(letters[0] for letters in takewhile(lambda letters: len(set(letters)) == 1, zip(*names, strict=False)))
    return re.sub(r"[_\-. ][^_\-. ]*$", "", same) or names[0]


def timing_differences(traces: Mapping[str, Trace]) -> str | None:
    """A sentence that says why the milliseconds of these traces cannot be compared; None if nothing is known against it.

    They were measured on other hardware, with another number of threads or another batch size, or the loads differ by more
    than one busy core.
    """
    timed = {name: trace.meta for name, trace in traces.items() if trace.seconds is not None}
    titles = {"hardware": "hardware", "seconds_batch": "batch size", "load": "load (busy cores)"}
    for key, title in titles.items():
        known = {name: meta[key] for name, meta in timed.items() if meta.get(key) is not None}
        differ = bool(known) and _spread(known.values()) > 1 if key == "load" else len(set(known.values())) > 1
        if differ:
            found = "; ".join(f"{name}: {value}" for name, value in known.items())
            return f"the milliseconds were not measured under the same conditions: {title} of {found}"
    return None


def _spread(values: Iterable[float]) -> float:
    values = list(values)
    return max(values) - min(values)


def _milestones(trace: Trace, cost: curves.Cost) -> dict[str, float | None]:
    errors = _json_value(curves.error_at_cost(trace, curves.MILESTONES, cost))
    return {f"{share:g}": value for share, value in zip(curves.MILESTONES, errors, strict=True)}


def _json_value(value: Any) -> Any:
    """Tensors as lists, infinity and NaN as None."""
    if isinstance(value, Tensor):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {key: _json_value(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_json_value(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
