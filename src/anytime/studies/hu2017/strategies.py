"""Tables 2, 3, 5 and 6 of Hu et al. (2017), from traces: ANN, AANN and its rivals on several networks, EANN and OPT+."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from anytime.analysis.curves import error
from anytime.analysis.optimal import Exits, opt_plus
from anytime.analysis.statistics import Comparison, compare, holm, mean
from anytime.models.ann.eann import reported_exits
from anytime.studies.claims import Claim
from anytime.studies.hu2017 import published
from anytime.studies.hu2017.networks import STRATEGIES, Base, Setting, TrainedNet, family
from anytime.studies.hu2017.published import METRICS, MILESTONES
from anytime.studies.hu2017.tables import NEAR, Measured, as_shares, as_text, heading, measure, measure_optimal, row_of
from anytime.studies.runner import Traces
from anytime.studies.study import Result


def table_2(traces: Traces, data: str, scale: Setting, networks: Sequence[TrainedNet]) -> Result:
    """Amplifying by the sieve and by milestones against ANN, and how far ANN and AANN are from OPT."""
    best = [measure_optimal(traces, base) for base in scale.models]
    counts, text, claims = _strategies(traces, data, scale, ("milestone", "AANN"))
    increases: list[dict[str, Any]] = []
    for method in ("sieve", "AANN"):
        by_base = [ours.increase(opt) for ours, opt in zip(_measure(traces, method, scale), best, strict=True)]
        increases.append(
            {
                "method": method,
                "error": {metric: mean([row[metric] for row in by_base]) for metric in MILESTONES},
                "paper": as_shares(published.INCREASE[method]),
                "published_cells": {metric: published.mean_increase(method, metric, data) for metric in MILESTONES},
            }
        )
    ann, aann = (row["error"] for row in increases)
    claims += [
        Claim(
            "the gap between ANN and OPT shrinks with the cost",
            ann["1/4"] > ann["1/2"] > ann["3/4"] > ann["1"],
            {"increases": ann},
        ),
        Claim(
            "AANN is nearer to OPT than ANN at every milestone",
            all(aann[metric] < ann[metric] for metric in MILESTONES),
            {"increases": aann},
        ),
    ]
    start = heading("2: amplified losses against ANN, and increase over OPT", traces, networks[0], data)
    numbers = {**start, "better_than_ANN": counts, "increase_over_optimal": increases}
    return Result(numbers, f"{text}\n\n{as_text(increases, 'increase over OPT')}", claims=claims)


def table_5(traces: Traces, data: str, scale: Setting, networks: Sequence[TrainedNet]) -> Result:
    """Every strategy of amplification against ANN."""
    counts, text, claims = _strategies(traces, data, scale, STRATEGIES)
    aann = _measure(traces, "AANN", scale)
    for method in ("EXP3", "RWM", "AVGL"):
        counted = compare(_all(_measure(traces, method, scale), "AE"), _all(aann, "AE"))
        statement = f"{method} is no better than AANN: its AE is smaller in at most half of the runs"
        claims.append(Claim(statement, counted.share <= 0.5, vars(counted)))
    start = heading("5: strategies of amplification against ANN", traces, networks[0], data)
    return Result({**start, "better_than_ANN": counts}, text, claims=claims)


def _measure(traces: Traces, method: str, scale: Setting) -> list[Measured]:
    """The scores of a method on each network of tables 2, 5 and 6."""
    return [measure(traces, TrainedNet(method, base)) for base in scale.models]


def _all(networks: Sequence[Measured], metric: str) -> list[float]:
    return [value for measured in networks for value in measured.by_seed[metric]]


def _strategies(
    traces: Traces, data: str, scale: Setting, methods: Sequence[str]
) -> tuple[list[dict[str, Any]], str, list[Claim]]:
    """The share of runs in which each method is better than ANN, by metric: numbers, a table, claims.

    All p-values of the table are one family, and so are those of the paper's cells.
    """
    ann = _measure(traces, "sieve", scale)
    measured_by, published_by = {}, {}
    for method in methods:
        ours = _measure(traces, method, scale)
        for metric in METRICS:
            measured_by[method, metric] = compare(_all(ours, metric), _all(ann, metric))
            if (cell := published.compared(method, metric, data)) is not None:
                published_by[method, metric] = cell
    counted, counted_there = _with_p_values(measured_by), _with_p_values(published_by)
    counts, claims = [], []
    for method in methods:
        row = {metric: measured_by[method, metric] for metric in METRICS}
        counts.append(
            {
                "method": method,
                "share": {metric: count.share for metric, count in row.items()},
                "p_value": {metric: counted[method, metric]["p_value"] for metric in METRICS},
                "p_value_holm": {metric: counted[method, metric]["p_value_holm"] for metric in METRICS},
                "runs": row["AE"].runs,
                "paper": as_shares(published.BETTER[method]),
                "published_cells": {metric: counted_there.get((method, metric)) for metric in METRICS},
            }
        )
        for metric in METRICS:
            if published.BETTER[method][metric] > 50:
                statement = f"{method} beats ANN at {metric} in more than half of the runs"
                claims.append(Claim(statement, row[metric].share > 0.5, counted[method, metric]))
    return counts, as_text([count | {"error": count["share"]} for count in counts], "better than ANN"), claims


def _with_p_values(counts: Mapping[tuple[str, str], Comparison]) -> dict[tuple[str, str], dict[str, Any]]:
    """Each comparison with its p-value, alone and corrected for the whole family."""
    corrected = holm([count.p_value for count in counts.values()])
    return {
        key: vars(count) | {"p_value": count.p_value, "p_value_holm": value}
        for (key, count), value in zip(counts.items(), corrected, strict=True)
    }


def table_6(traces: Traces, data: str, scale: Setting, networks: Sequence[TrainedNet]) -> Result:
    """Every network under every strategy."""
    rows = _cells(traces, data, scale.models, ("sieve", *STRATEGIES))
    start = heading("6: every network under every strategy", traces, networks[0], data)
    return Result({**start, "rows": rows}, as_text(rows))


def _cells(traces: Traces, data: str, bases: Sequence[Base], methods: Sequence[str]) -> list[dict[str, Any]]:
    """The rows of tables 3 and 6: OPT and each method on each network."""
    rows = []
    for base in bases:
        best = measure_optimal(traces, base)
        for method in ("optimal", *methods):
            measured = best if method == "optimal" else measure(traces, TrainedNet(method, base))
            paper = published.TABLE_6.get((data, base.units, base.width, method))
            rows.append(row_of(f"{method} {base}", measured, best, paper))
    return rows


def eann_exits(traces: Traces, members: Sequence[Base], seed: int) -> Exits:
    """EANN of networks trained as AANN: the error reported after each exit, over the total cost up to then.

    The cost includes heads whose answers are not reported; they cost next to nothing.
    """
    stored = [traces[TrainedNet("AANN", base).name][seed] for base in members]
    errors = [error(trace).tolist() for trace in stored]
    spent, costs = 0, []
    for trace in stored:
        costs += [spent + cost for cost in trace.macs.tolist()]
        spent = costs[-1]
    return Exits(tuple(errors[j][e] for j, e in reported_exits([base.exits for base in members])), tuple(costs))


def opt_plus_exits(traces: Traces, bases: Sequence[Base], seed: int) -> tuple[Exits, float]:
    """OPT+ of `bases`, networks of one width, over the exits for which OPT was trained, and the cost of the deepest."""
    networks = []
    for base in bases:
        nets = [net for net in family(base, "every") if net.name in traces]
        networks.append(Exits.of_family({int(net.exit or 0): traces[net.name][seed] for net in nets}))
    return opt_plus(networks), max(exits.costs[-1] for exits in networks)


def rivals(scale: Setting) -> list[Base]:
    """The networks of OPT+, which have EANN's width (paper, section 4.6)."""
    return [base for base in scale.models if base.width == scale.members[-1].width]


def table_3(traces: Traces, data: str, scale: Setting, networks: Sequence[TrainedNet]) -> Result:
    """ANN and AANN on several networks, and EANN against OPT+."""
    rows = _cells(traces, data, scale.shown, ("sieve", "AANN"))
    seeds = list(traces[TrainedNet("AANN", scale.members[-1]).name])
    sequences = [eann_exits(traces, scale.members, seed) for seed in seeds]
    eann = {metric: mean([exits.at()[i] for exits in sequences]) for i, metric in enumerate(MILESTONES)}
    plus = [opt_plus_exits(traces, rivals(scale), seed) for seed in seeds]
    best = {m: mean([exits.at(total=total)[i] for exits, total in plus]) for i, m in enumerate(MILESTONES)}
    both = {"OPT+": best, "EANN": eann | {"AE": mean([mean(exits.errors) for exits in sequences])}}
    for name, errors in both.items():
        rows.append({"method": name, "error": errors, "paper": as_shares(published.EANN[name].get(data))})
    increase = {metric: eann[metric] / best[metric] - 1 if best[metric] else math.nan for metric in MILESTONES}
    claim = Claim(
        f"EANN is near OPT+ at every milestone: at most {NEAR:.0%} more, relative",
        all(value <= NEAR for value in increase.values()),
        {"increase": increase},
    )
    start = heading("3: ANN and AANN on several networks, EANN and OPT+", traces, networks[0], data)
    numbers = {**start, "members": [str(base) for base in scale.members], "rows": rows}
    return Result(numbers, as_text(rows), claims=[claim])
