"""Figures 3 and 4 of Kim et al. (2020): accuracy and confidence by iteration, and by class."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, PercentFormatter
from torch import Tensor

from anytime.analysis.calibration import per_class
from anytime.analysis.curves import accuracy, confidence, true_class_probability
from anytime.analysis.statistics import costs_of, first_trace, gain, mean, means, per_seed
from anytime.reporting import plots
from anytime.reporting.plots import BLUE, RED
from anytime.reporting.tables import Column, format_table
from anytime.studies.claims import Claim
from anytime.studies.facts import facts, figure_title
from anytime.studies.figures import panels
from anytime.studies.kim2020 import published
from anytime.studies.kim2020.networks import ANYTIMENET, BASELINE
from anytime.studies.runner import Traces
from anytime.studies.study import Result
from anytime.studies.timing import ROUNDS, build, one_thread_seconds
from anytime.support.units import macs_text, ms_text
from anytime.trace import Trace

NEAR = 0.15  # relative difference of two costs that are roughly the same
LINEAR = 0.9  # Pearson's r from which on a relation counts as linear
MEASURES: dict[str, Callable[[Trace], Tensor]] = {
    "accuracy": accuracy,
    "confidence": true_class_probability,  # eq. 5
    "max_softmax": confidence,
}


def figure_3(traces: Traces, data: str) -> Result:
    """Accuracy and confidence over the cost, with BASELINE."""
    stored = {name: traces[name] for name in (ANYTIMENET, BASELINE)}
    by_seed = {name: {key: per_seed(measure, found) for key, measure in MEASURES.items()} for name, found in stored.items()}
    macs = {name: costs_of(found, "macs") for name, found in stored.items()}
    first = {name: first_trace(found) for name, found in stored.items()}
    times = _seconds(first)
    rows: list[dict[str, Any]] = []
    for name, measured in by_seed.items():
        by_key = {key: means(values) for key, values in measured.items()}
        for t, cost in enumerate(macs[name]):
            label = f"iteration {t + 1}" if name == ANYTIMENET else name
            row = {"iteration": label, "macs": cost, "share_of_baseline": cost / macs[BASELINE][-1]}
            rows.append(row | {key: values[t] for key, values in by_key.items()})
            if times:
                rows[-1]["seconds"] = times[name][t]
    steps = len(macs[ANYTIMENET])
    shares = [row["share_of_baseline"] for row in rows[:steps]]
    claims = [_rises(f"the {key}", [row[key] for row in rows[:steps]], "section III-B1") for key in ("accuracy", "confidence")]
    for key in ("accuracy", "confidence"):
        ours, theirs = ([values[-1] for values in by_seed[name][key]] for name in (ANYTIMENET, BASELINE))
        more = gain(ours, theirs)
        statement = f"the {key} of the last iteration exceeds BASELINE's"
        claims.append(Claim(statement, more["gain"] > 0, more, "section III-B1"))
    before = sum(share < 1 for share in shares)
    at = published.AS_LONG_AS_BASELINE
    claims.append(
        Claim(
            "most iterations answer before BASELINE, in MACs",
            before > steps / 2,
            {"iterations_before": before, "iterations": steps},
            "section III-B1, in seconds",
        )
    )
    if steps >= at:
        claims.append(
            Claim(
                f"by iteration {at} AnytimeNet has cost as much as BASELINE within {NEAR:.0%}, in MACs",
                abs(shares[at - 1] - 1) <= NEAR,
                {"share_of_baseline": shares[at - 1]},
                "section III-B3, in seconds",
            )
        )
    numbers = facts(stored[ANYTIMENET], paper=published.PAPER, figure="3: accuracy and confidence by iteration") | {
        "published": published.FIGURES,
        "confidence": "mean softmax output of the correct label (eq. 5); max_softmax needs no labels",
        "networks": {
            name: {key: trace.meta[key] for key in ("model", "model_arguments", "parameters", "input_size")}
            for name, trace in first.items()
        },
        **({"seconds": f"one image, one thread, medians of {ROUNDS} rounds, both networks in turn"} if times else {}),
        "rows": rows,
        "by_seed": by_seed,
    }
    columns = [Column("iteration", "answer"), Column("macs", "MACs", macs_text)]
    columns += [Column("share_of_baseline", "of BASELINE's", ".0%"), Column("seconds", "median ms", ms_text)]
    columns += [Column("accuracy", "accuracy", ".2%"), Column("confidence", "confidence", ".2%")]
    columns.append(Column("max_softmax", "max softmax", ".2%"))
    table = f"{format_table(rows, columns)}\n\n{published.FIGURES}"
    return Result(numbers, table, _drawn_3(rows, steps, figure_title(numbers)), claims)


def _seconds(traces: Mapping[str, Trace]) -> dict[str, Sequence[float]]:
    """Seconds until each answer, by network, all timed now in turn; none if a trace was recorded without."""
    if any(trace.seconds is None for trace in traces.values()):
        return {}
    networks = {name: build(trace.meta["model"], trace.meta["model_arguments"], name) for name, trace in traces.items()}
    return one_thread_seconds(networks, next(iter(traces.values())).meta["input_size"])


def _rises(what: str, values: Sequence[float], source: str) -> Claim:
    smallest = min((b - a for a, b in pairwise(values)), default=math.nan)
    shows = None if math.isnan(smallest) else smallest > 0
    return Claim(f"{what} rises from each iteration to the next", shows, {"smallest_rise": smallest}, source)


def _drawn_3(rows: Sequence[dict[str, Any]], steps: int, title: str) -> Figure:
    with panels(7.4, 3.2, 2) as (figure, grid):
        for axes, key in zip(grid, ("accuracy", "confidence"), strict=True):
            ours, baseline = rows[:steps], rows[-1]
            axes.plot([row["macs"] for row in ours], [row[key] for row in ours], color=BLUE, marker="o", label=ANYTIMENET)
            axes.plot([baseline["macs"]], [baseline[key]], color=RED, marker="s", linestyle="none", label=BASELINE)
            axes.set(xlabel="MACs of the stream", ylabel=key)
            axes.set_xlim(left=0)
            axes.xaxis.set_major_formatter(EngFormatter())
            axes.yaxis.set_major_formatter(PercentFormatter(1))
        grid[0].set_title(title)
        grid[0].legend(loc="lower right")
    return figure


def figure_4(traces: Traces, data: str) -> Result:
    """Mean confidence against accuracy of each class, at each iteration; the drawing is of the first seed."""
    stored = traces[ANYTIMENET]
    found = [per_class(trace) for trace in stored.values()]
    r = [classes.pearson.tolist() for classes in found]
    points = {  # [T, K], mean over seeds
        key: torch.stack([getattr(classes, key) for classes in found]).mean(0) for key in ("accuracy", "confidence")
    }
    centre = {key: values.nanmean(1).tolist() for key, values in points.items()}
    rows = [
        {"iteration": t + 1, "r": mean([row[t] for row in r]), **{key: values[t] for key, values in centre.items()}}
        for t in range(first_trace(stored).num_steps)
    ]
    least = min((row["r"] for row in rows if not math.isnan(row["r"])), default=math.nan)
    claims = [
        Claim(
            f"confidence and accuracy of the classes are linearly related at every iteration: r of at least {LINEAR:g}",
            None if math.isnan(least) else least >= LINEAR,
            {"least_r": least},
            "section III-B2",
        ),
        *(_rises(f"the mean {key} of the classes", values, "section III-B2") for key, values in centre.items()),
    ]
    numbers = facts(stored, paper=published.PAPER, figure="4: confidence against accuracy by class") | {
        "published": published.FIGURES,
        "rows": rows,
        "pearson_by_seed": dict(zip(stored, r, strict=True)),
        "class_names": first_trace(stored).class_names,
        "by_class": points,
    }
    columns = [Column("iteration", "iteration"), Column("accuracy", "accuracy, mean of classes", ".2%")]
    columns += [Column("confidence", "confidence", ".2%"), Column("r", "Pearson's r over classes", ".3f")]
    table = f"{format_table(rows, columns)}\n\n{published.FIGURES}"
    return Result(numbers, table, plots.per_class(first_trace(stored)), claims)
