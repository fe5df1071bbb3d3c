"""A trace as a table of pandas, one row per sample and answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy
import torch
from torch import Tensor

if TYPE_CHECKING:
    from pandas import DataFrame

    from anytime.trace import Trace


def frame(trace: Trace) -> DataFrame:
    """See `Trace.to_pandas`."""
    if trace.task == "dense":
        raise ValueError(
            "the answers of a dense trace are maps, not values of a row: compute a number from trace.outputs first"
        )
    try:
        import pandas
    except ImportError:
        raise ImportError("to_pandas needs pandas, which is not installed: pip install pandas") from None
    steps, samples = trace.num_steps, trace.num_samples
    columns: dict[str, Any] = {
        "sample": torch.arange(samples).repeat(steps),
        "step": torch.arange(1, steps + 1).repeat_interleave(samples),
    }
    for name in ("macs", "contract_macs", "seconds"):
        if (cost := getattr(trace, name)) is not None:
            columns[name] = cost.repeat_interleave(samples)
    if (groups := trace.meta.get("groups")) is not None:
        columns["group"] = numpy.array(groups * steps)
    columns |= _regression(trace) if trace.task == "regression" else _classification(trace)
    table = pandas.DataFrame({name: numpy.asarray(values) for name, values in columns.items()})
    for name in [name for name in columns if name.partition("_")[0] == "correct"]:
        table[name] = table[name].astype("boolean").mask(table[name.replace("correct", "label")] < 0)
    return table


def _classification(trace: Trace) -> dict[str, Tensor]:
    columns: dict[str, Tensor] = {}
    sizes = trace.levels or (trace.num_classes,)
    labels = trace.labels.reshape(trace.num_samples, -1).T
    for level, (logits, label) in enumerate(zip(trace.logits.split(sizes, 2), labels, strict=True)):
        best, end = logits.double().softmax(2).max(2), f"_{level}" if trace.levels else ""
        values = {"label": label.expand_as(best.indices), "answer": best.indices, "correct": best.indices == label}
        columns |= {f"{name}{end}": value.flatten() for name, value in {**values, "confidence": best.values}.items()}
    return columns


def _regression(trace: Trace) -> dict[str, Tensor]:
    columns = {f"output_{k}": values.flatten() for k, values in enumerate(trace.outputs.unbind(2))}
    if trace.targets is not None:
        wanted = trace.targets.reshape(trace.num_samples, -1).T
        columns |= {f"target_{k}": values.repeat(trace.num_steps) for k, values in enumerate(wanted)}
    return columns
