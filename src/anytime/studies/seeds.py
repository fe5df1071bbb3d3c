"""Numbers of one network trained with several seeds, and the facts that they must carry."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from anytime.analysis.curves import Cost, costs
from anytime.analysis.slicing import macs_saved, relative_error_saved
from anytime.analysis.statistics import difference
from anytime.trace import Trace

BySeed = Mapping[int, Trace]
"""The traces of one network, by seed."""


def first_trace(by_seed: BySeed) -> Trace:
    """The trace of the first seed."""
    return next(iter(by_seed.values()))


def per_seed(measure: Callable[[Trace], Tensor], by_seed: BySeed) -> list[list[float]]:
    """A measure of each step, e.g. `analysis.curves.error`, for each seed: `[S][T]`."""
    return [measure(trace).tolist() for trace in by_seed.values()]


def mean(values: Sequence[float]) -> float:
    """The mean; nan if any value is nan."""
    return sum(values) / len(values)


def means(rows: Sequence[Sequence[float]]) -> list[float]:
    """Mean over seeds: `[S][T]` to `[T]`."""
    return [mean(column) for column in zip(*rows, strict=True)]


def gain(values: Sequence[float], others: Sequence[float]) -> dict[str, Any]:
    """Mean over seeds of value - other, with its standard error, which is nan for a single seed."""
    mean_gain, standard_error = difference(values, others)
    return {"gain": mean_gain, "standard_error": standard_error, "seeds": len(values)}


def reductions(errors: Sequence[float], references: Sequence[float]) -> list[float]:
    """1 - error / reference, element by element; nan if neither makes errors, -inf if only the reference makes none."""
    return (1 - torch.tensor(errors, dtype=torch.float64) / torch.tensor(references, dtype=torch.float64)).tolist()


def facts(by_seed: BySeed, **reference: Any) -> dict[str, Any]:
    """What a published number must carry: a reference to the paper, data set, recipe, seeds, epochs, hardware and date."""
    metas = [trace.meta for trace in by_seed.values()]
    recipe = {key: value for key, value in metas[0]["recipe"].items() if key not in ("seed", "progress")}
    arguments = {key: value for key, value in recipe["data"]["init_args"].items() if key not in ("root", "download")}
    return {
        **reference,
        "dataset": metas[0]["dataset"],
        "part": metas[0]["part"],
        "images": first_trace(by_seed).num_samples,
        "seeds": list(by_seed),
        "epochs": recipe["epochs"],
        "trained_on": sorted({meta["trained_on"] for meta in metas}),
        "measured_on": sorted({meta["hardware"] for meta in metas}),
        "date": max(meta["date"] for meta in metas)[:10],
        "recipe": recipe | {"data": recipe["data"] | {"init_args": arguments}},
    }


def figure_title(numbers: Mapping[str, Any]) -> str:
    """Title of a figure, from numbers that hold `facts`: the data set and the number of seeds."""
    return f"{numbers['dataset']}, n = {len(numbers['seeds'])}"


def costs_of(by_seed: BySeed, cost: Cost) -> list[int]:
    """The cost of each step, which is the same for all seeds."""
    return costs(first_trace(by_seed), cost).tolist()


def saved(one: BySeed, other: BySeed, cost: Cost) -> tuple[list[float], list[float]]:
    """Relative error that one network saves over another at equal cost, and cost at equal error (`analysis.slicing`).

    Both by step, as means over seeds; nan where no seed has a value.
    """
    pairs = list(zip(one.values(), other.values(), strict=True))
    errors, spent = ([measure(a, b, cost) for a, b in pairs] for measure in (relative_error_saved, macs_saved))
    return torch.stack(errors).nanmean(0).tolist(), torch.stack(spent).nanmean(0).tolist()


def all_positive(values: Sequence[float]) -> bool | None:
    """Whether all values that are not nan are above 0; None if all are nan."""
    known = [value for value in values if not math.isnan(value)]
    return min(known) > 0 if known else None
