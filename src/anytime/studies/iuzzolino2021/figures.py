"""Figures 3 and 4 of Iuzzolino et al. (2021)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from anytime.analysis.curves import accuracy
from anytime.analysis.speed_accuracy import THRESHOLDS, mean_curve, speed_accuracy
from anytime.analysis.statistics import difference, standard_error
from anytime.reporting.plots import BLUE, GREEN, GREY, ORANGE, PURPLE, RED, SKY
from anytime.reporting.tables import Column, format_table
from anytime.studies import figures
from anytime.studies.iuzzolino2021.networks import LAMBDAS, cascaded_td
from anytime.studies.iuzzolino2021.published import (
    PAPER,
    PUBLISHED_CURVES,
    PUBLISHED_CURVES_SOURCE,
    PUBLISHED_LAMBDA,
    PUBLISHED_LAMBDA_SOURCE,
)
from anytime.studies.runner import Traces
from anytime.studies.study import Result, facts
from anytime.trace import Trace

TIMES = tuple(range(1, 9))
EVERYWHERE, MEAN = "at every mean stop time", "on average over mean stop times"


COLOURS = {  # of the networks of figure 4, in their order
    "CascadedTD": BLUE,
    "CascadedTD-MultiHead": SKY,
    "CascadedCE": "#000000",
    "SerialTD": RED,
    "SerialTD-MultiHead": ORANGE,
    "SerialCE": GREY,
    "SerialTD(0)": PURPLE,
    "SerialTD(0)-MultiHead": GREEN,
}
BEFORE = f"{EVERYWHERE} before the asymptote"
CLAIMS = (  # the last three compare dynamics and heads at lambda = 0, where the paper compares lambda too
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


def figure_3(traces: Traces, data: str) -> Result:
    """Accuracy of CascadedTD's last answer over lambda."""
    stored = {lam: traces[cascaded_td(lam)] for lam in LAMBDAS}
    steps = {lam: [accuracy(trace).tolist() for trace in by_seed.values()] for lam, by_seed in stored.items()}
    last = {lam: [values[-1] for values in by_seed] for lam, by_seed in steps.items()}
    errors = dict(zip(LAMBDAS, standard_error([*zip(*last.values(), strict=True)]), strict=True))
    means = {lam: _mean(values) for lam, values in last.items()}
    theirs = PUBLISHED_LAMBDA.get(data, {})
    rivals = {lam: value for lam, value in means.items() if lam != 1}
    nearest, best = min(rivals, key=rivals.__getitem__), max(rivals, key=rivals.__getitem__)
    claims = [
        {
            "claim": "lambda = 1 is the worst at the asymptote",
            "shows": means[1.0] < rivals[nearest],
            **_numbers(last[nearest], last[1.0], f"of lambda = {nearest:g}, the next worst"),
            "best": {"lambda": best, "gain": means[best] - means[1.0]},
            "paper": {"shows": True, "source": "caption of figure 3; for terriers the published code's figure"},
        },
        {
            "claim": "lambda = 0 is above lambda = 1 at the asymptote",
            "shows": means[0.0] > means[1.0],
            **_numbers(last[0.0], last[1.0], "of lambda = 0"),
            "paper": {"shows": True, "source": "figure 3"},
        },
    ]
    rows = [
        {"lambda": lam, "accuracy": means[lam], "sem": errors[lam], "by_seed": last[lam], "paper": theirs.get(lam)}
        for lam in LAMBDAS
    ]
    numbers = {
        "paper": PAPER,
        "figure": "3: accuracy at the asymptote over lambda",
        "published": PUBLISHED_LAMBDA_SOURCE.get(data),
        **facts(stored[0.0]),
        "first_time": first_time(next(iter(stored[0.0].values()))),
        "rows": rows,
        "all_published": theirs,
        "accuracy_by_step": {f"{lam:g}": _means(values) for lam, values in steps.items()},
        "claims": claims,
    }
    columns = [Column("lambda", "lambda", "g"), Column("accuracy", "accuracy", ".2%"), Column("sem", "SEM", ".2%")]
    text = format_table(rows, [*columns, Column("paper", "paper", ".1%")]) + "\n\n" + _told(claims)
    title = f"CascadedTD, {numbers['dataset']}, n = {len(last[0.0])}"
    drawn = figures.points(means, errors, theirs, title, "λ", "accuracy at the asymptote")
    return Result(numbers, text, drawn)


def figure_4(traces: Traces, data: str) -> Result:
    """Accuracy over the mean time, MACs and ms at which networks stop by confidence."""
    curves, networks, at, last = {}, {}, {}, {}
    common: dict[str, Any] = {}
    for name in COLOURS:
        stored = traces[name]
        each = [speed_accuracy(trace, first_time(trace)) for trace in stored.values()]
        any_trace = next(iter(stored.values()))
        common = common or facts(stored)  # of CascadedTD, the first
        curves[name] = mean_curve(each)
        at[name] = [curve.at(TIMES) for curve in each]
        last[name] = [float(accuracy(trace)[-1]) for trace in stored.values()]
        networks[name] = {
            "model": any_trace.meta["model"],
            "arguments": any_trace.meta["model_arguments"],
            "objective": any_trace.meta["recipe"]["objective"],
            "parameters": any_trace.meta["parameters"],
            "macs": any_trace.macs,
            "seconds": _means([trace.seconds.tolist() for trace in stored.values() if trace.seconds is not None]),
        }
    asymptote = first_time(any_trace) + any_trace.num_steps - 1
    names, seeds = list(curves), range(len(common["seeds"]))
    errors = [standard_error([[at[name][seed][i] for name in names] for seed in seeds]) for i in range(len(TIMES))]
    ours = {name: curve.at(TIMES) for name, curve in curves.items()}
    theirs = {name: [value / 100 for value in row] for name, row in PUBLISHED_CURVES.get(data, {}).items()}
    rows = {
        name: {
            "accuracy": ours[name],
            "sem": [at_time[index] for at_time in errors],
            "paper": theirs.get(name),
            "asymptote": _mean(last[name]),
            "asymptote_by_seed": last[name],
        }
        for index, name in enumerate(names)
    }
    claims = [
        {"claim": f"{better} above {worse} {where}"}
        | (_compared(ours, better, worse, where, asymptote) or {})
        | {"asymptote": _numbers(last[better], last[worse], f"of {better}")}
        | {"paper": _compared(theirs, better, worse, where, TIMES[-1])}
        for better, worse, where in CLAIMS
    ]
    claims += _asymptotes(last, theirs, asymptote)
    numbers = {
        "paper": PAPER,
        "figure": "4: speed-accuracy trade-off by a threshold on confidence",
        "published": PUBLISHED_CURVES_SOURCE,
        **common,
        "clock": f"answers at t = {asymptote - any_trace.num_steps + 1}..{asymptote}",
        "networks": networks,
        "mean_stop_times": TIMES,
        "rows": rows,
        "claims": claims,
        "thresholds": THRESHOLDS,
        "curves": {name: vars(curve) for name, curve in curves.items()},
    }
    title = f"{common['dataset']}, n = {len(common['seeds'])}"
    drawn = figures.speed_accuracy(curves, COLOURS, {name: (TIMES, row) for name, row in theirs.items()}, title)
    return Result(numbers, f"{_table(rows)}\n\n{_told(claims)}", drawn)


def _compared(
    rows: Mapping[str, Sequence[float]], better: str, worse: str, where: str, asymptote: int
) -> dict[str, Any] | None:
    """Whether one network is above another, and by how much at each mean stop time; None where one was not published."""
    if better not in rows or worse not in rows:
        return None
    gains = [b - w for b, w in zip(rows[better], rows[worse], strict=True)]
    counted = [gain for t, gain in zip(TIMES, gains, strict=True) if where != BEFORE or t < asymptote]
    shows = _mean(counted) > 0 if where == MEAN else all(gain > 0 for gain in counted)
    return {"shows": shows, "gains": gains, "mean_gain": _mean(counted)}


def _asymptotes(
    last: Mapping[str, Sequence[float]], theirs: Mapping[str, Sequence[float]], asymptote: int
) -> list[dict[str, Any]]:
    numbers = _numbers(last["CascadedTD"], last["CascadedCE"], "of CascadedTD")
    gain, error = numbers["gain"], numbers["standard_error"]
    claim = "the asymptote of CascadedTD not below that of CascadedCE by more than two standard errors"
    paper = {"gain": theirs["CascadedTD"][-1] - theirs["CascadedCE"][-1]} if theirs else None
    claims = [{"claim": claim, "shows": None if error != error else gain > -2 * error, **numbers, "paper": paper}]
    if asymptote > TIMES[-1]:  # where both have settled; at t = 8 they have not
        same = _numbers(last["CascadedCE"], last["SerialCE"], "of CascadedCE")
        claims.append({"claim": "CascadedCE and SerialCE agree at the asymptote", "shows": abs(same["gain"]) < 5e-4, **same})
    return claims


def _numbers(left: Sequence[float], right: Sequence[float], of: str) -> dict[str, Any]:
    gain, error = difference(left, right)
    return {"of": of, "gain": gain, "standard_error": error, "seeds": len(left)}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _means(rows: Sequence[Sequence[float]]) -> list[float]:
    return [_mean(column) for column in zip(*rows, strict=True)]


def _table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    lines: list[dict[str, Any]] = []
    for name, row in rows.items():
        lines.append({"name": name, "end": row["asymptote"], **dict(zip(map(str, TIMES), row["accuracy"], strict=True))})
        if row["paper"]:
            lines.append({"name": "  paper", **dict(zip(map(str, TIMES), row["paper"], strict=True))})
    columns = [Column(str(t), f"t = {t}", ".1%") for t in TIMES]
    return format_table(lines, [Column("name", "accuracy at mean stop time"), *columns, Column("end", "asymptote", ".2%")])


def _told(claims: Sequence[Mapping[str, Any]]) -> str:
    said = {True: "yes", False: "NO", None: "unknown"}
    return "\n".join(f"{said[claim['shows']]:<8} {claim['claim']}" for claim in claims)
