"""Tables 1 and 4 of Hu et al. 2017 and its Proposition 3.1, from traces; errors are shares, the paper's beside ours."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from anytime.analysis.curves import error
from anytime.analysis.inflation import best_base, expected_inflation, sequence_inflation, simulate, sup_inflation
from anytime.analysis.optimal import Exits
from anytime.reporting.tables import Column, format_table
from anytime.studies.claims import gain_of
from anytime.studies.hu2017 import published
from anytime.studies.hu2017.networks import Base, Network, Scale, family, last_optimal, milestone_exits
from anytime.studies.hu2017.published import METRICS, MILESTONES, PAPER
from anytime.studies.runner import Traces
from anytime.studies.study import Result, facts
from anytime.trace import Trace

NEAR = 0.05  # "keeps the final error at OPT's": at most so much more, relative
Scores = Mapping[str, Sequence[float]]
"""Errors by metric, one for each seed; nan where nothing was trained for it."""


@dataclass(frozen=True)
class Measured:
    """What a network scores.

    Attributes:
        by_seed: Errors at the milestones and AE.
        exits: Mean error of each exit; of OPT nan for exits without a network.
        trace: Of the first seed.
    """

    by_seed: Scores
    exits: Sequence[float]
    trace: Trace

    @property
    def means(self) -> dict[str, float]:
        """By metric."""
        return {metric: mean(values) for metric, values in self.by_seed.items()}

    def increase(self, best: Measured) -> dict[str, float]:
        """Mean over seeds of the relative increase over OPT; nan where OPT is not known, or perfect."""
        return {
            metric: mean([e / o - 1 if o else math.nan for e, o in zip(values, best.by_seed[metric], strict=True)])
            for metric, values in self.by_seed.items()
        }


def mean(values: Sequence[float]) -> float:
    """nan where any value is."""
    return sum(values) / len(values)


def measure(traces: Traces, net: Network) -> Measured:
    """The scores of one network that was trained for all its exits."""
    stored = traces[net.name]
    rows = [[*Exits.of(trace).at(), mean(error(trace).tolist())] for trace in stored.values()]
    exits = [error(trace).tolist() for trace in stored.values()]
    by_metric = zip(METRICS, zip(*rows, strict=True), strict=True)
    return Measured(dict(by_metric), [mean(e) for e in zip(*exits, strict=True)], next(iter(stored.values())))


def measure_optimal(traces: Traces, base: Base) -> Measured:
    """The scores of OPT: at each milestone those of the network trained for that exit alone; AE where every exit has one."""
    by_exit = {int(net.exit or 0): traces[net.name] for net in family(base, "every") if net.name in traces}
    errors = {exit: [float(error(trace)[exit - 1]) for trace in stored.values()] for exit, stored in by_exit.items()}
    any_traces = next(iter(by_exit.values()))
    missing = [math.nan] * len(any_traces)
    scores: dict[str, Sequence[float]] = {
        metric: errors.get(exit, missing) for metric, exit in zip(MILESTONES, milestone_exits(base), strict=True)
    }
    exits = [errors.get(exit, missing) for exit in range(1, len(base.exits) + 1)]
    scores["AE"] = [mean(e) for e in zip(*exits, strict=True)]
    return Measured(scores, [mean(e) for e in exits], next(iter(any_traces.values())))


def row_of(method: str, found: Measured, best: Measured | None, paper: Mapping[str, float] | None) -> dict[str, Any]:
    arguments = found.trace.meta["model_arguments"]
    return {
        "method": method,
        "network": {key: arguments[key] for key in ("units", "width", "period", "regime")},
        "objective": found.trace.meta["recipe"]["objective"],
        "error": found.means,
        "increase_over_optimal": None if best is None else found.increase(best),
        "paper": None if paper is None else {metric: value / 100 for metric, value in paper.items()},
        "by_seed": found.by_seed,
        "by_exit": found.exits,
    }


def as_text(rows: Iterable[Mapping[str, Any]], title: str = "error") -> str:
    """Two lines a row where the paper has one, too."""
    lines: list[dict[str, Any]] = []
    for row in rows:
        increase = row.get("increase_over_optimal") or {}
        lines.append({"name": row["method"], **row["error"], **{f"+{metric}": value for metric, value in increase.items()}})
        if row["paper"]:
            lines.append({"name": "  paper", **row["paper"]})
    columns = [Column(metric, metric, ".2%") for metric in METRICS]
    columns += [Column(f"+{metric}", f"{metric} over OPT", "+.1%") for metric in MILESTONES]
    return format_table(lines, [Column("name", title), *columns])


def told(claims: Sequence[Mapping[str, Any]]) -> str:
    """One line a claim: yes, NO or unknown."""
    said = {True: "yes", False: "NO", None: "unknown"}
    return "\n".join(f"{said[claim['shows']]:<8} {claim['claim']}" for claim in claims)


def head(table: str, traces: Traces, net: Network, data: str) -> dict[str, Any]:
    """What every result carries."""
    scale = "weights: the largest of every scheme is 1; the paper gives proportions only"
    return {"paper": PAPER, "table": table, "data": data, **facts(traces[net.name]), "scale_of_losses": scale}


# -- table 1 -----------------------------------------------------------------------------------------------------------

BELOW = (  # (one, another, metrics): the error of one is smaller at all of these
    ("sieve", "linear", ("1/4", "1/2")),
    ("sieve", "expb2", ("1/4", "1/2")),
    ("AdaLoss", "linear", ("1/4", "1/2")),
    ("AdaLoss", "expb2", ("1/4", "1/2")),
    ("sieve", "half-end", ("1/4", "1/2", "3/4")),
    ("AANN", "sieve", ("1/4", "1/2", "3/4")),
    ("optimal", "constant", ("1",)),
    ("sieve", "constant", ("1",)),
    ("AdaLoss", "constant", ("1",)),
    ("constant", "sieve", ("AE",)),
    ("expb2", "expb0.5", ("1",)),
    ("expb0.5", "expb2", ("1/4", "1/2")),
    ("optimal", "midfeat", ("1/4", "1/2", "3/4")),
    ("sieve", "no-grad", ("1/2", "3/4", "1")),
)


def table_1(traces: Traces, data: str, scale: Scale, networks: Sequence[Network]) -> Result:
    """Weight schemes against OPT on one network, the paper's on n = 5, c = 16."""
    best = measure_optimal(traces, scale.chosen)
    found = {"optimal": best} | {net.method: measure(traces, net) for net in networks if net.exit is None}
    theirs = published.TABLE_1.get(data, {})
    rows = [row_of(method, scores, best, theirs.get(method)) for method, scores in found.items()]
    claims = [
        _near(method, found, theirs) for method in found if method in ("sieve", "AdaLoss", "half-end", "linear", "expb2")
    ]
    claims += [claim for one, other, at in BELOW if (claim := _below(one, other, at, found, theirs))]
    numbers = {
        **head("1: errors of weight schemes at the milestones of cost, and AE", traces, last_optimal(scale.chosen), data),
        "published": "n = 5, c = 16, on 5,000 images held out from training; ours on test images",
        "milestone_exits": milestone_exits(scale.chosen),
        "rows": rows,
        "claims": claims,
    }
    return Result(numbers, f"{as_text(rows, str(scale.chosen))}\n\n{told(claims)}")


def _near(method: str, found: Mapping[str, Measured], theirs: Mapping[str, published.Row]) -> dict[str, Any]:
    increase = found[method].increase(found["optimal"])["1"]
    paper = theirs[method]["1"] / theirs["optimal"]["1"] - 1 if method in theirs else None
    return {
        "claim": f"{method} keeps the final error at OPT's: at most {NEAR:.0%} more, relative",
        "shows": None if math.isnan(increase) else increase <= NEAR,
        "increase": increase,
        **gain_of(found["optimal"].by_seed["1"], found[method].by_seed["1"]),
        "paper": None if paper is None else {"shows": paper <= NEAR, "increase": paper},
    }


def _below(
    one: str, other: str, metrics: Sequence[str], found: Mapping[str, Measured], theirs: Mapping[str, published.Row]
) -> dict[str, Any] | None:
    """None where one of the two, or a milestone of OPT, was not measured."""
    if one not in found or other not in found or any(math.isnan(found[one].means[metric]) for metric in metrics):
        return None
    gains = {metric: gain_of(found[one].by_seed[metric], found[other].by_seed[metric]) for metric in metrics}
    paper = None
    if one in theirs and other in theirs:
        paper = {metric: (theirs[other][metric] - theirs[one][metric]) / 100 for metric in metrics}
    return {
        "claim": f"{one} below {other} at {', '.join(metrics)}",
        "shows": all(gain["gain"] > 0 for gain in gains.values()),
        "gains": gains,
        "paper": None if paper is None else {"shows": all(gain > 0 for gain in paper.values()), "gains": paper},
    }


# -- table 4 and proposition 3.1 ---------------------------------------------------------------------------------------


def table_4(traces: Traces, data: str, scale: Scale, networks: Sequence[Network]) -> Result:
    """Units per exit."""
    rows, claims = [], []
    for units, periods in scale.periods.items():
        found = {s: measure(traces, Network("sieve", Base(units, scale.period_width, s))) for s in periods}
        for s, scores in found.items():
            paper = published.TABLE_4.get(units, {}).get(s) if data == "cifar100" else None
            rows.append(row_of(f"n={units} s={s}", scores, None, paper))
        last = {s: scores.means["1"] for s, scores in found.items()}
        longest = max(periods)
        claims += [
            {
                "claim": f"n={units}: AE is smaller with s={longest} than with s=1",
                "shows": found[longest].means["AE"] < found[1].means["AE"],
                **gain_of(found[longest].by_seed["AE"], found[1].by_seed["AE"]),
            },
            {
                "claim": f"n={units}: the final error is within {NEAR:.0%} of that with s=1, relative, for every s",
                "shows": all(abs(value - last[1]) <= NEAR * last[1] for value in last.values()),
                "final_errors": last,
            },
        ]
    numbers = {**head("4: units per exit", traces, networks[0], data), "rows": rows, "claims": claims}
    return Result(numbers, f"{as_text(rows)}\n\n{told(claims)}")


def proposition(traces: Traces, data: str, scale: Scale, networks: Sequence[Network]) -> Result:
    """The cost inflation of sequences of networks by their base b: the bounds, and what random and adverse stops find."""
    rows = []
    for base in (1.4, 1.5, 2.0, 1 + math.sqrt(2), 2.5, 3.0, 4.0):
        depths = [base**k for k in range(25)]
        row: dict[str, Any] = {"base": base}
        for anytime, kind in ((True, "anytime"), (False, "plain")):
            row |= {f"{kind}_sup": sup_inflation(base, anytime), f"{kind}_mean": expected_inflation(base, anytime)}
            row |= {f"{kind}_found_{key}": value for key, value in simulate(depths, anytime)._asdict().items()}
        rows.append(row)
    depths = [base.exits[-1] for base in SEQUENCE]
    found = sequence_inflation(depths)
    smallest = {"sup": best_base("sup", anytime=False), "mean": best_base("mean", anytime=False)}
    numbers = {
        "paper": PAPER,
        "table": "proposition 3.1: cost inflation by base; no training",
        "rows": rows,
        "best_base_of_plain_members": smallest,
        "paper_sequence": {"depths": depths, **found._asdict()},
        "claims": [
            {
                "claim": "no stop costs more than the bound, and the mean of 25 networks is within 2 % of its limit",
                "shows": all(
                    row[f"{kind}_found_sup"] <= row[f"{kind}_sup"] * (1 + 1e-9)
                    and abs(row[f"{kind}_found_mean"] / row[f"{kind}_mean"] - 1) < 0.02
                    for row in rows
                    for kind in ("anytime", "plain")
                ),
            }
        ],
    }
    columns = [Column("base", "b", ".3g")]
    for kind in ("anytime", "plain"):
        for key, title in (("sup", "sup C"), ("found_sup", "found"), ("mean", "E[C]"), ("found_mean", "found")):
            columns.append(Column(f"{kind}_{key}", f"{kind}: {title}", ".3f"))
    sentence = f"depths {depths}: sup C = {found.sup:.3f}, E[C] = {found.mean:.3f}"
    return Result(numbers, f"{format_table(rows, columns)}\n\n{sentence}\n\n{told(numbers['claims'])}")  # type: ignore[arg-type]


SEQUENCE = tuple(Base(n, 32, 3 if n == 25 else 1) for n in (1, 3, 7, 13, 25))
"""The paper's EANN."""
