"""Does the comparison of TD and CE depend on the batch norm that the published code runs with? Nobody has published this."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from anytime.analysis.curves import accuracy
from anytime.analysis.speed_accuracy import speed_accuracy
from anytime.analysis.statistics import interval, mean
from anytime.reporting.tables import Column, format_table
from anytime.studies.claims import Claim
from anytime.studies.facts import facts, recipes
from anytime.studies.iuzzolino2021 import published
from anytime.studies.iuzzolino2021.figures import TIMES, first_time
from anytime.studies.iuzzolino2021.networks import pair
from anytime.studies.runner import Traces, TrainingRun
from anytime.studies.study import Result
from anytime.trace import Trace

AS_RUN = " (eps 0.1, momentum 1)"
NORMS = {"": "eps 1e-5, momentum 0.1", AS_RUN: "eps 0.1, momentum 1"}
MATTERS = 0.01  # a change of the gain in accuracy by less, one point, would not matter
COMPARISONS = {  # norm of TD, norm of CE
    "both with the constants that the code means": ("", ""),
    "both with those it runs with": (AS_RUN, AS_RUN),
    "as published: TD with those it runs with, CE with those it means": (AS_RUN, ""),
}


def norm_runs(data: str, scale: str, seeds: Sequence[int]) -> list[TrainingRun]:
    """CascadedTD and CascadedCE under both norms, with the first two seeds."""
    constants = ("--model.norm_eps=0.1", "--model.norm_momentum=1")
    return [*pair(data, scale, seeds[:2]), *pair(data, scale, seeds[:2], AS_RUN, constants)]


def norm_table(traces: Traces, data: str) -> Result:
    """Accuracy of both networks under both norms, and what TD gains over CE for each choice of norms."""
    stored = {f"{name}{norm}": traces[f"{name}{norm}"] for norm in NORMS for name in ("CascadedTD", "CascadedCE")}
    numbers = facts(stored["CascadedTD"], paper=published.PAPER, table="batch norm as meant and as run")
    return norm_result(stored, numbers | {"recipes": recipes(stored)})


def norm_result(stored: Mapping[str, Mapping[int, Trace]], numbers: Mapping[str, Any]) -> Result:
    """The table from the traces by network and seed; a gain is TD - CE of the same seed.

    It depends on the norm if the interval of its change excludes 0. It does not if the whole interval lies within ±`MATTERS`.
    Otherwise the seeds are too few to tell.
    """
    seeds = [seed for seed in stored["CascadedTD"] if all(seed in by_seed for by_seed in stored.values())]
    found = {name: [_measures(by_seed[seed]) for seed in seeds] for name, by_seed in stored.items()}
    rows: list[dict[str, Any]] = []
    for norm, text in NORMS.items():
        for name in ("CascadedTD", "CascadedCE"):
            each = found[f"{name}{norm}"]
            row = {"network": name, "norm": text} | {key: mean([one[key] for one in each]) for key in each[0]}
            rows.append(row | {"asymptote_by_seed": [one["asymptote"] for one in each]})
    gains: dict[str, dict[str, list[float]]] = {
        what: {
            key: [a[key] - b[key] for a, b in zip(found[f"CascadedTD{td}"], found[f"CascadedCE{ce}"], strict=True)]
            for key in ("over_time", "asymptote")
        }
        for what, (td, ce) in COMPARISONS.items()
    }
    table, claims = [], []
    for what, by_key in gains.items():
        line: dict[str, Any] = {"what": what}
        for key, values in by_key.items():
            line[key], line[f"{key}_half"] = interval(values)
        table.append(line)
    fair, *others = gains
    for key, where in (("over_time", "on average over mean stop times"), ("asymptote", "at the asymptote")):
        for other in others:
            change = [a - b for a, b in zip(gains[other][key], gains[fair][key], strict=True)]
            middle, half = interval(change)
            signs = {math.copysign(1, mean(gains[what][key])) for what in (fair, other)}
            statement = f"what TD gains over CE {where} depends on the norm: {other}, against {fair}"
            shows = True if abs(middle) > half else False if abs(middle) + half <= MATTERS else None
            measured = {"change": middle, "low": middle - half, "high": middle + half, "same_sign": len(signs) == 1}
            claims.append(Claim(statement, shows, measured, note="" if len(signs) == 1 else "the sign changes"))
    columns = [Column("network", "network"), Column("norm", "batch norm")]
    columns += [Column("over_time", "mean accuracy over stop times", ".2%"), Column("asymptote", "asymptote", ".2%")]
    gain_columns = [Column("what", "TD - CE"), Column("over_time", "over stop times", "+.2%")]
    gain_columns += [
        Column("over_time_half", "+-", ".2%"),
        Column("asymptote", "asymptote", "+.2%"),
        Column("asymptote_half", "+-", ".2%"),
    ]
    text = f"{format_table(rows, columns)}\n\n{format_table(table, gain_columns)}"
    rule = f"yes: the interval excludes 0; no: it lies within ±{MATTERS:.0%}; else unknown"
    extra = {"seeds": seeds, "interval": "95 %, over seeds", "verdict": rule}
    tables = {"rows": rows, "gains": table, "gains_by_seed": gains}
    return Result({**numbers, **extra, **tables}, text, claims=claims)


def _measures(trace: Trace) -> dict[str, float]:
    """Mean accuracy over the mean stop times 1..8, and that of the last answer."""
    curve = [value for value in speed_accuracy(trace, first_time(trace)).at(TIMES) if not math.isnan(value)]
    return {"over_time": mean(curve), "asymptote": float(accuracy(trace)[-1])}
