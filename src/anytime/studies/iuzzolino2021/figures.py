"""Figures 3 and 4 of Iuzzolino et al. (2021)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from anytime.analysis.curves import accuracy
from anytime.analysis.speed_accuracy import THRESHOLDS, mean_curve, speed_accuracy
from anytime.analysis.statistics import first_trace, gain, gain_at_least, mean, means, per_seed, standard_error
from anytime.reporting.plots import BLUE, GREEN, GREY, ORANGE, PURPLE, RED, SKY
from anytime.reporting.tables import Column, format_table
from anytime.studies import figures
from anytime.studies.claims import Claim
from anytime.studies.facts import facts, figure_title
from anytime.studies.iuzzolino2021 import published
from anytime.studies.iuzzolino2021.networks import LAMBDAS, cascaded_td
from anytime.studies.runner import Traces
from anytime.studies.study import Result
from anytime.trace import Trace

TIMES = tuple(range(1, 9))
EVERYWHERE, MEAN = "at every mean stop time", "on average over mean stop times"
BEFORE = f"{EVERYWHERE} before the asymptote"
MARGIN = 0.005  # a loss of accuracy at the asymptote that does not count
COLOURS = {  # of the networks in figure 4, in its order
    "CascadedTD": BLUE,
    "CascadedTD-MultiHead": SKY,
    "CascadedCE": "#000000",
    "SerialTD": RED,
    "SerialTD-MultiHead": ORANGE,
    "SerialCE": GREY,
    "SerialTD(0)": PURPLE,
    "SerialTD(0)-MultiHead": GREEN,
}
CLAIMS = (  # the last three compare dynamics and heads at lambda = 0; in the paper lambda differs as well
    ("CascadedTD", "SerialTD-MultiHead", EVERYWHERE),
    ("CascadedTD", "CascadedCE", BEFORE),
    ("SerialTD", "SerialCE", BEFORE),
    ("SerialTD-MultiHead", "SerialTD", MEAN),
    ("CascadedTD", "CascadedTD-MultiHead", MEAN),
    ("CascadedTD", "SerialTD(0)-MultiHead", EVERYWHERE),
    ("CascadedTD", "SerialTD(0)", EVERYWHERE),
    ("SerialTD(0)-MultiHead", "SerialTD(0)", MEAN),
)


def first_time(trace: Trace) -> int:
    """t of the first answer."""
    return 0 if trace.meta["model_arguments"]["clock"] == "published" else 1


def step_costs(trace: Trace, first: int) -> dict[str, list[Any]]:
    """What each answer has cost: the time t of the cascade, MACs, and milliseconds if they were measured."""
    milliseconds = [None] * trace.num_steps if trace.seconds is None else (1e3 * trace.seconds).tolist()
    return {"t": [*range(first, first + trace.num_steps)], "MACs": trace.macs.tolist(), "ms": milliseconds}


def figure_3(traces: Traces, data: str) -> Result:
    """Accuracy of CascadedTD's last answer over lambda."""
    stored = {lam: traces[cascaded_td(lam)] for lam in LAMBDAS}
    steps = {lam: per_seed(accuracy, by_seed) for lam, by_seed in stored.items()}
    last = {lam: [values[-1] for values in rows] for lam, rows in steps.items()}
    errors = dict(zip(LAMBDAS, standard_error([*zip(*last.values(), strict=True)]), strict=True))
    mean_last = {lam: mean(values) for lam, values in last.items()}
    theirs = published.BY_LAMBDA.get(data, {})
    below_1 = {lam: value for lam, value in mean_last.items() if lam != 1}
    next_worst, best = min(below_1, key=below_1.__getitem__), max(below_1, key=below_1.__getitem__)
    claims = [
        Claim(
            "lambda = 1 is the worst at the asymptote",
            mean_last[1.0] < below_1[next_worst],
            _gain_of(f"lambda = {next_worst:g}, the next worst", last[next_worst], last[1.0])
            | {"best": {"lambda": best, "gain": mean_last[best] - mean_last[1.0]}},
            "caption of figure 3; for terriers the published code's figure",
            _one_seed(stored[0.0]),
        ),
        Claim(
            "lambda = 0 is above lambda = 1 at the asymptote",
            mean_last[0.0] > mean_last[1.0],
            _gain_of("lambda = 0", last[0.0], last[1.0]),
            "figure 3",
            _one_seed(stored[0.0]),
        ),
    ]
    rows = [
        {"lambda": lam, "accuracy": mean_last[lam], "sem": errors[lam], "by_seed": last[lam], "paper": theirs.get(lam)}
        for lam in LAMBDAS
    ]
    figure, source = "3: accuracy at the asymptote over lambda", published.BY_LAMBDA_SOURCE.get(data)
    numbers = facts(stored[0.0], paper=published.PAPER, figure=figure, published=source) | {
        "first_time": first_time(first_trace(stored[0.0])),
        "rows": rows,
        "all_published": theirs,
        "accuracy_by_step": {f"{lam:g}": means(values) for lam, values in steps.items()},
    }
    columns = [Column("lambda", "lambda", "g"), Column("accuracy", "accuracy", ".2%"), Column("sem", "SEM", ".2%")]
    table = format_table(rows, [*columns, Column("paper", "paper", ".1%")])
    title = f"CascadedTD, {figure_title(numbers)}"
    drawn = figures.points(mean_last, errors, theirs, title, "λ", "accuracy at the asymptote")
    return Result(numbers, table, drawn, claims)


def figure_4(traces: Traces, data: str) -> Result:
    """Accuracy over the mean time, MACs and ms at which networks stop by confidence."""
    curves, networks, at, last = {}, {}, {}, {}
    for name in COLOURS:
        stored = traces[name]
        by_seed = [speed_accuracy(trace, first_time(trace)) for trace in stored.values()]
        any_trace = first_trace(stored)
        curves[name] = mean_curve(by_seed)
        at[name] = [curve.at(TIMES) for curve in by_seed]
        last[name] = [values[-1] for values in per_seed(accuracy, stored)]
        networks[name] = {
            "model": any_trace.meta["model"],
            "arguments": any_trace.meta["model_arguments"],
            "objective": any_trace.meta["recipe"]["objective"],
            "parameters": any_trace.meta["parameters"],
            "macs": any_trace.macs,
            "seconds": means([trace.seconds.tolist() for trace in stored.values() if trace.seconds is not None]),
        }
    asymptote = first_time(any_trace) + any_trace.num_steps - 1
    errors = [  # [times][networks]
        standard_error([[times[i] for times in by_name] for by_name in zip(*at.values(), strict=True)])
        for i in range(len(TIMES))
    ]
    ours = {name: curve.at(TIMES) for name, curve in curves.items()}
    theirs = {name: [value / 100 for value in row] for name, row in published.CURVES.get(data, {}).items()}
    rows: dict[str, dict[str, Any]] = {
        name: {
            "accuracy": ours[name],
            "sem": [at_time[index] for at_time in errors],
            "in_gaps": curves[name].in_gaps(TIMES),
            "paper": theirs.get(name),
            "asymptote": mean(last[name]),
            "asymptote_by_seed": last[name],
        }
        for index, name in enumerate(curves)
    }
    claims = []
    note = _one_seed(traces["CascadedTD"])
    reached = {
        name: [None if t in row["in_gaps"] else a for t, a in zip(TIMES, ours[name], strict=True)]
        for name, row in rows.items()
    }
    for better, worse, where in CLAIMS:
        compared = _compared(reached, better, worse, where, asymptote) or {}
        measured = compared | {"asymptote": _gain_of(better, last[better], last[worse])}
        paper = _compared(theirs, better, worse, where, TIMES[-1])
        claims.append(Claim(f"{better} above {worse} {where}", measured.pop("shows"), measured, paper, note))
    claims += _claims_at_the_asymptote(last, theirs, asymptote)
    figure = "4: speed-accuracy trade-off by a threshold on confidence"
    numbers = facts(traces["CascadedTD"], paper=published.PAPER, figure=figure, published=published.CURVES_SOURCE) | {
        "clock": f"answers at t = {asymptote - any_trace.num_steps + 1}..{asymptote}",
        "networks": networks,
        "mean_stop_times": TIMES,
        "rows": rows,
        "thresholds": THRESHOLDS,
        "curves": {name: vars(curve) for name, curve in curves.items()},
    }
    drawn = figures.speed_accuracy(
        curves, COLOURS, {name: (TIMES, row) for name, row in theirs.items()}, figure_title(numbers)
    )
    return Result(numbers, _table(rows), drawn, claims)


def _one_seed(by_seed: Mapping[int, Trace]) -> str:
    return "in this run, one seed" if len(by_seed) == 1 else ""


def _compared(
    rows: Mapping[str, Sequence[float | None]], better: str, worse: str, where: str, asymptote: int
) -> dict[str, Any] | None:
    """Whether one network is above another, and by how much at each mean stop time; None if one was not published.

    Times at which an accuracy is None do not count; if there are no others, the results cannot tell.
    """
    if better not in rows or worse not in rows:
        return None
    pairs = zip(rows[better], rows[worse], strict=True)
    gains = [None if b is None or w is None else b - w for b, w in pairs]
    counted = [g for t, g in zip(TIMES, gains, strict=True) if g is not None and (where != BEFORE or t < asymptote)]
    if not counted:
        return {"shows": None, "gains": gains, "mean_gain": None}
    shows = mean(counted) > 0 if where == MEAN else all(g > 0 for g in counted)
    return {"shows": shows, "gains": gains, "mean_gain": mean(counted)}


def _claims_at_the_asymptote(
    last: Mapping[str, Sequence[float]], theirs: Mapping[str, Sequence[float]], asymptote: int
) -> list[Claim]:
    measured = _gain_of("CascadedTD", last["CascadedTD"], last["CascadedCE"])
    least = gain_at_least(last["CascadedTD"], last["CascadedCE"])
    measured |= {"at_least": least, "margin": MARGIN}
    shows = None if math.isnan(least) else least > -MARGIN
    paper = {"gain": theirs["CascadedTD"][-1] - theirs["CascadedCE"][-1]} if theirs else None
    statement = f"the asymptote of CascadedTD at most {MARGIN:.1%} below that of CascadedCE (95 % confidence over seeds)"
    claims = [Claim(statement, shows, measured, paper)]
    if asymptote > TIMES[-1]:  # both have settled then, but not yet at t = 8
        same = _gain_of("CascadedCE", last["CascadedCE"], last["SerialCE"])
        claims.append(Claim("CascadedCE and SerialCE agree at the asymptote", abs(same["gain"]) < 5e-4, same))
    return claims


def _gain_of(name: str, values: Sequence[float], others: Sequence[float]) -> dict[str, Any]:
    return {"of": f"of {name}", **gain(values, others)}


def _table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    lines: list[dict[str, Any]] = []
    for name, row in rows.items():
        reached = {str(t): a for t, a in zip(TIMES, row["accuracy"], strict=True) if t not in row["in_gaps"]}
        lines.append({"name": name, "end": row["asymptote"], **reached})
        if row["paper"]:
            lines.append({"name": "  paper", **dict(zip(map(str, TIMES), row["paper"], strict=True))})
    columns = [Column(str(t), f"t = {t}", ".1%") for t in TIMES]
    table = format_table(lines, [Column("name", "accuracy at mean stop time"), *columns, Column("end", "asymptote", ".2%")])
    gaps = [f"{name} at t = {', '.join(map(str, row['in_gaps']))}" for name, row in rows.items() if row["in_gaps"]]
    return table + (f"\nempty, because no threshold comes near: {'; '.join(gaps)}" if gaps else "")
