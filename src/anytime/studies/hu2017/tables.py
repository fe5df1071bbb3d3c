"""Tables 1 and 4 and Proposition 3.1 of Hu et al. (2017), from traces; errors are shares, with the paper's beside ours."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from anytime.analysis.curves import error
from anytime.analysis.inflation import best_base, expected_inflation, sequence_inflation, simulate, sup_inflation
from anytime.analysis.optimal import Exits
from anytime.analysis.statistics import BySeed, first_trace, gain, mean, means, per_seed
from anytime.reporting.tables import Column, format_table
from anytime.studies.claims import Claim
from anytime.studies.facts import facts
from anytime.studies.hu2017 import published
from anytime.studies.hu2017.networks import PERIOD_WIDTH, Base, Setting, TrainedNet, family, last_optimal, milestone_exits
from anytime.studies.hu2017.published import METRICS, MILESTONES, PAPER, Row
from anytime.studies.runner import Traces
from anytime.studies.study import Result
from anytime.trace import Trace

NEAR = 0.05  # largest relative increase at which a final error counts as equal to OPT's
Scores = Mapping[str, Sequence[float]]
"""Errors by metric, one per seed; nan where no network was trained for the metric."""


@dataclass(frozen=True)
class Measured:
    """The scores of a network."""

    by_seed: Scores  # errors at the milestones and AE
    exits: Sequence[float]  # mean error of each exit; nan for exits for which OPT has no network
    trace: Trace  # the trace of the first seed

    @property
    def means(self) -> dict[str, float]:
        """Mean over seeds, by metric."""
        return {metric: mean(values) for metric, values in self.by_seed.items()}

    def increase(self, best: Measured) -> dict[str, float]:
        """Mean over seeds of the relative increase over OPT; nan where OPT was not measured or makes no errors."""
        return {
            metric: mean([e / o - 1 if o else math.nan for e, o in zip(values, best.by_seed[metric], strict=True)])
            for metric, values in self.by_seed.items()
        }


def measure(traces: Traces, net: TrainedNet) -> Measured:
    """The scores of one network that was trained for all its exits."""
    stored = traces[net.name]
    exits = per_seed(error, stored)
    rows = [[*Exits.of(trace).at(), mean(errors)] for trace, errors in zip(stored.values(), exits, strict=True)]
    by_metric = zip(METRICS, zip(*rows, strict=True), strict=True)
    return Measured(dict(by_metric), means(exits), first_trace(stored))


def measure_optimal(traces: Traces, base: Base) -> Measured:
    """The scores of OPT: each milestone has its own network, trained for that exit only; AE needs a network for every exit."""
    by_exit = {int(net.exit or 0): traces[net.name] for net in family(base, "every") if net.name in traces}
    errors = {exit: [float(error(trace)[exit - 1]) for trace in stored.values()] for exit, stored in by_exit.items()}
    any_exit: BySeed = next(iter(by_exit.values()))
    missing = [math.nan] * len(any_exit)
    scores: dict[str, Sequence[float]] = {
        metric: errors.get(exit, missing) for metric, exit in zip(MILESTONES, milestone_exits(base), strict=True)
    }
    exits = [errors.get(exit, missing) for exit in range(1, len(base.exits) + 1)]
    scores["AE"] = means(exits)
    return Measured(scores, [mean(errors) for errors in exits], first_trace(any_exit))


def as_shares(row: Row | None) -> dict[str, float] | None:
    """Published per cent as shares."""
    return None if row is None else {metric: value / 100 for metric, value in row.items()}


def row_of(method: str, measured: Measured, best: Measured | None, paper: Row | None) -> dict[str, Any]:
    """A row of a table, with the increase over OPT (`best`) and the paper's errors."""
    arguments = measured.trace.meta["model_arguments"]
    return {
        "method": method,
        "network": {key: arguments[key] for key in ("units", "width", "period", "regime")},
        "objective": measured.trace.meta["recipe"]["objective"],
        "error": measured.means,
        "increase_over_optimal": None if best is None else measured.increase(best),
        "paper": as_shares(paper),
        "by_seed": measured.by_seed,
        "by_exit": measured.exits,
    }


def as_text(rows: Iterable[Mapping[str, Any]], title: str = "error") -> str:
    """Rows as aligned text, each followed by the paper's row if there is one."""
    lines: list[dict[str, Any]] = []
    for row in rows:
        increase = row.get("increase_over_optimal") or {}
        lines.append({"name": row["method"], **row["error"], **{f"+{metric}": value for metric, value in increase.items()}})
        if row["paper"]:
            lines.append({"name": "  paper", **row["paper"]})
    columns = [Column(metric, metric, ".2%") for metric in METRICS]
    columns += [Column(f"+{metric}", f"{metric} over OPT", "+.1%") for metric in MILESTONES]
    return format_table(lines, [Column("name", title), *columns])


def heading(table: str, traces: Traces, net: TrainedNet, data: str) -> dict[str, Any]:
    """The first entries of every result."""
    scale = "weights: the largest of every scheme is 1; the paper gives proportions only"
    return facts(traces[net.name], paper=PAPER, table=table, data=data) | {"scale_of_losses": scale}


BELOW = (  # (one, other, metrics): the error of one is below that of the other at all of these
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


def table_1(traces: Traces, data: str, scale: Setting, networks: Sequence[TrainedNet]) -> Result:
    """Weight schemes against OPT on one network; the paper's has n = 5, c = 16."""
    best = measure_optimal(traces, scale.chosen)
    ours = {"optimal": best} | {net.method: measure(traces, net) for net in networks if net.exit is None}
    theirs = published.TABLE_1.get(data, {})
    rows = [row_of(method, measured, best, theirs.get(method)) for method, measured in ours.items()]
    near = ("sieve", "AdaLoss", "half-end", "linear", "expb2")
    claims = [_near(method, ours, theirs) for method in ours if method in near]
    claims += [claim for one, other, metrics in BELOW if (claim := _below(one, other, metrics, ours, theirs))]
    table = "1: errors of weight schemes at the milestones of cost, and AE"
    numbers = heading(table, traces, last_optimal(scale.chosen), data) | {
        "published": "n = 5, c = 16, on 5,000 images held out from training; ours on test images",
        "milestone_exits": milestone_exits(scale.chosen),
        "rows": rows,
    }
    return Result(numbers, as_text(rows, str(scale.chosen)), claims=claims)


def _near(method: str, ours: Mapping[str, Measured], theirs: Mapping[str, Row]) -> Claim:
    increase = ours[method].increase(ours["optimal"])["1"]
    paper = theirs[method]["1"] / theirs["optimal"]["1"] - 1 if method in theirs else None
    return Claim(
        f"{method} keeps the final error at OPT's: at most {NEAR:.0%} more, relative",
        None if math.isnan(increase) else increase <= NEAR,
        {"increase": increase, **gain(ours[method].by_seed["1"], ours["optimal"].by_seed["1"])},
        None if paper is None else {"shows": paper <= NEAR, "increase": paper},
    )


def _below(
    one: str, other: str, metrics: Sequence[str], ours: Mapping[str, Measured], theirs: Mapping[str, Row]
) -> Claim | None:
    """None if one of the two, or a milestone of OPT, was not measured."""
    if one not in ours or other not in ours or any(math.isnan(ours[one].means[metric]) for metric in metrics):
        return None
    gains = {metric: gain(ours[other].by_seed[metric], ours[one].by_seed[metric]) for metric in metrics}
    paper: dict[str, Any] | None = None
    if one in theirs and other in theirs:
        published_gains = {metric: (theirs[other][metric] - theirs[one][metric]) / 100 for metric in metrics}
        paper = {"shows": min(published_gains.values()) > 0, "gains": published_gains}
    statement = f"{one} below {other} at {', '.join(metrics)}"
    return Claim(statement, all(found["gain"] > 0 for found in gains.values()), {"gains": gains}, paper)


def table_4(traces: Traces, data: str, scale: Setting, networks: Sequence[TrainedNet]) -> Result:
    """Units per exit."""
    rows, claims = [], []
    for units, periods in scale.periods.items():
        ours = {s: measure(traces, TrainedNet("sieve", Base(units, PERIOD_WIDTH, s))) for s in periods}
        for s, measured in ours.items():
            paper = published.TABLE_4.get(units, {}).get(s) if data == "cifar100" else None
            rows.append(row_of(f"n={units} s={s}", measured, None, paper))
        last = {s: measured.means["1"] for s, measured in ours.items()}
        longest = max(periods)
        claims += [
            Claim(
                f"n={units}: AE is smaller with s={longest} than with s=1",
                ours[longest].means["AE"] < ours[1].means["AE"],
                gain(ours[1].by_seed["AE"], ours[longest].by_seed["AE"]),
            ),
            Claim(
                f"n={units}: the final error is within {NEAR:.0%} of that with s=1, relative, for every s",
                all(abs(value - last[1]) <= NEAR * last[1] for value in last.values()),
                {"final_errors": last},
            ),
        ]
    numbers = heading("4: units per exit", traces, networks[0], data) | {"rows": rows}
    return Result(numbers, as_text(rows), claims=claims)


def proposition(traces: Traces, data: str, scale: Setting, networks: Sequence[TrainedNet]) -> Result:
    """The cost inflation of sequences of networks by their base b: the bounds, and what random and adverse stops give."""
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
    claim = Claim(
        "no stop costs more than the bound, and the mean of 25 networks is within 2 % of its limit",
        all(
            row[f"{kind}_found_sup"] <= row[f"{kind}_sup"] * (1 + 1e-9)
            and abs(row[f"{kind}_found_mean"] / row[f"{kind}_mean"] - 1) < 0.02
            for row in rows
            for kind in ("anytime", "plain")
        ),
    )
    numbers = {
        "paper": PAPER,
        "table": "proposition 3.1: cost inflation by base; no training",
        "rows": rows,
        "best_base_of_plain_members": smallest,
        "paper_sequence": {"depths": depths, **found._asdict()},
    }
    columns = [Column("base", "b", ".3g")]
    for kind in ("anytime", "plain"):
        for key, title in (("sup", "sup C"), ("found_sup", "found"), ("mean", "E[C]"), ("found_mean", "found")):
            columns.append(Column(f"{kind}_{key}", f"{kind}: {title}", ".3f"))
    sentence = f"depths {depths}: sup C = {found.sup:.3f}, E[C] = {found.mean:.3f}"
    return Result(numbers, f"{format_table(rows, columns)}\n\n{sentence}", claims=[claim])


SEQUENCE = tuple(Base(n, 32, 3 if n == 25 else 1) for n in (1, 3, 7, 13, 25))
"""The paper's EANN."""
