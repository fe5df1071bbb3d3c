"""Tables 2, 3, 5 and 6 of Hu et al. 2017, from traces: ANN, AANN and its rivals on several networks, EANN and OPT+."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from anytime.analysis.curves import error
from anytime.analysis.optimal import Exits, opt_plus
from anytime.analysis.statistics import compare
from anytime.models.ann.eann import reported_exits
from anytime.studies.hu2017 import published
from anytime.studies.hu2017.networks import STRATEGIES, Base, Network, Scale, family
from anytime.studies.hu2017.published import METRICS, MILESTONES
from anytime.studies.hu2017.tables import NEAR, Measured, as_text, head, mean, measure, measure_optimal, row_of, told
from anytime.studies.runner import Traces
from anytime.studies.study import Result


def table_2(traces: Traces, data: str, scale: Scale, networks: Sequence[Network]) -> Result:
    """Amplifying by the sieve and by milestones against ANN, and how far ANN and AANN are from OPT."""
    ann = {base: measure(traces, Network("sieve", base)) for base in scale.models}
    aann = {base: measure(traces, Network("AANN", base)) for base in scale.models}
    best = {base: measure_optimal(traces, base) for base in scale.models}
    counts, text, claims = _strategies(traces, data, scale, ("milestone", "AANN"))
    increases: list[dict[str, Any]] = []
    for method, found in (("sieve", ann), ("AANN", aann)):
        by_base = [found[base].increase(best[base]) for base in scale.models]
        increases.append(
            {
                "method": method,
                "error": {metric: mean([row[metric] for row in by_base]) for metric in MILESTONES},
                "paper": {metric: value / 100 for metric, value in published.INCREASE[method].items()},
                "published_cells": {metric: published.mean_increase(method, metric, data) for metric in MILESTONES},
            }
        )
    first, second = (row["error"] for row in increases)
    claims += [
        {
            "claim": "the gap between ANN and OPT shrinks with the cost",
            "shows": first["1/4"] > first["1/2"] > first["3/4"] > first["1"],
            "increases": first,
        },
        {
            "claim": "AANN is nearer to OPT than ANN at every milestone",
            "shows": all(second[metric] < first[metric] for metric in MILESTONES),
            "increases": second,
        },
    ]
    start = head("2: amplified losses against ANN, and increase over OPT", traces, networks[0], data)
    numbers = {**start, "better_than_ANN": counts, "increase_over_optimal": increases, "claims": claims}
    return Result(numbers, f"{text}\n\n{as_text(increases, 'increase over OPT')}\n\n{told(claims)}")


def table_5(traces: Traces, data: str, scale: Scale, networks: Sequence[Network]) -> Result:
    """Every strategy of amplification against ANN."""
    counts, text, claims = _strategies(traces, data, scale, STRATEGIES)
    aann = [measure(traces, Network("AANN", base)) for base in scale.models]
    for method in ("EXP3", "RWM", "AVGL"):
        found = [measure(traces, Network(method, base)) for base in scale.models]
        counted = compare(_all(found, "AE"), _all(aann, "AE"))
        claims.append(
            {
                "claim": f"{method} is no better than AANN: its AE is smaller in at most half of the runs",
                "shows": counted.share <= 0.5,
                **vars(counted),
            }
        )
    start = head("5: strategies of amplification against ANN", traces, networks[0], data)
    return Result({**start, "better_than_ANN": counts, "claims": claims}, f"{text}\n\n{told(claims)}")


def _all(found: Sequence[Measured], metric: str) -> list[float]:
    return [value for scores in found for value in scores.by_seed[metric]]


def _strategies(
    traces: Traces, data: str, scale: Scale, methods: Sequence[str]
) -> tuple[list[dict[str, Any]], str, list[dict[str, Any]]]:
    """In how many runs each method is better than ANN, by metric: numbers, a table, what must show."""
    ann = [measure(traces, Network("sieve", base)) for base in scale.models]
    counts, lines, claims = [], [], []
    for method in methods:
        found = [measure(traces, Network(method, base)) for base in scale.models]
        row = {metric: compare(_all(found, metric), _all(ann, metric)) for metric in METRICS}
        cells = {metric: published.compared(method, metric, data) for metric in METRICS}
        counts.append(
            {
                "method": method,
                "share": {metric: count.share for metric, count in row.items()},
                "p_value": {metric: count.p_value for metric, count in row.items()},
                "runs": row["AE"].runs,
                "paper": {metric: value / 100 for metric, value in published.BETTER[method].items()},
                "published_cells": {metric: cell and vars(cell) | {"p_value": cell.p_value} for metric, cell in cells.items()},
            }
        )
        lines += [{"method": method, "error": counts[-1]["share"], "paper": counts[-1]["paper"]}]
        wins = [metric for metric in METRICS if published.BETTER[method][metric] > 50]
        for metric in wins:
            claims.append(
                {
                    "claim": f"{method} beats ANN at {metric} in more than half of the runs",
                    "shows": row[metric].share > 0.5,
                    **vars(row[metric]),
                    "p_value": row[metric].p_value,
                }
            )
    return counts, as_text(lines, "better than ANN"), claims


def table_6(traces: Traces, data: str, scale: Scale, networks: Sequence[Network]) -> Result:
    """Every network under every strategy."""
    rows = _cells(traces, data, scale.models, ("sieve", *STRATEGIES))
    start = head("6: every network under every strategy", traces, networks[0], data)
    return Result({**start, "rows": rows}, as_text(rows))


def _cells(traces: Traces, data: str, bases: Sequence[Base], methods: Sequence[str]) -> list[dict[str, Any]]:
    """The rows of tables 3 and 6: OPT and each method on each network."""
    rows = []
    for base in bases:
        best = measure_optimal(traces, base)
        for method in ("optimal", *methods):
            found = best if method == "optimal" else measure(traces, Network(method, base))
            paper = published.TABLE_6.get((data, base.units, base.width, method))
            rows.append(row_of(f"{method} {base}", found, best, paper))
    return rows


def eann_exits(traces: Traces, members: Sequence[Base], seed: int) -> Exits:
    """EANN of networks trained as AANN: the error that is reported after each exit, over all that was spent until then.

    Heads whose answers are not reported are counted, too; they cost next to nothing.
    """
    stored = [traces[Network("AANN", base).name][seed] for base in members]
    errors = [error(trace).tolist() for trace in stored]
    spent, costs = 0, []
    for trace in stored:
        costs += [spent + cost for cost in trace.macs.tolist()]
        spent = costs[-1]
    return Exits(tuple(errors[j][e] for j, e in reported_exits([base.exits for base in members])), tuple(costs))


def opt_plus_exits(traces: Traces, bases: Sequence[Base], seed: int) -> tuple[Exits, float]:
    """OPT+ of the networks of one width whose OPT was trained, and the cost of the deepest."""
    networks = []
    for base in bases:
        nets = [net for net in family(base, "every") if net.name in traces]
        networks.append(Exits.of_family({int(net.exit or 0): traces[net.name][seed] for net in nets}))
    return opt_plus(networks), max(exits.costs[-1] for exits in networks)


def rivals(scale: Scale) -> list[Base]:
    """The networks of OPT+: those of EANN's width (paper, section 4.6)."""
    return [base for base in scale.models if base.width == scale.members[-1].width]


def table_3(traces: Traces, data: str, scale: Scale, networks: Sequence[Network]) -> Result:
    """ANN and AANN on several networks, and EANN against OPT+."""
    rows = _cells(traces, data, scale.shown, ("sieve", "AANN"))
    seeds = list(traces[Network("AANN", scale.members[-1]).name])
    sequences = [eann_exits(traces, scale.members, seed) for seed in seeds]
    eann = {metric: mean([exits.at()[i] for exits in sequences]) for i, metric in enumerate(MILESTONES)}
    plus = [opt_plus_exits(traces, rivals(scale), seed) for seed in seeds]
    best = {m: mean([exits.at(total=total)[i] for exits, total in plus]) for i, m in enumerate(MILESTONES)}
    both = {"OPT+": best, "EANN": eann | {"AE": mean([mean(exits.errors) for exits in sequences])}}
    for name, found in both.items():
        paper = published.EANN[name].get(data)
        theirs = None if paper is None else {metric: value / 100 for metric, value in paper.items()}
        rows.append({"method": name, "error": found, "paper": theirs})
    increase = {metric: eann[metric] / best[metric] - 1 if best[metric] else math.nan for metric in MILESTONES}
    claim = {
        "claim": f"EANN is near OPT+ at every milestone: at most {NEAR:.0%} more, relative",
        "shows": all(value <= NEAR for value in increase.values()),
        "increase": increase,
    }
    start = head("3: ANN and AANN on several networks, EANN and OPT+", traces, networks[0], data)
    numbers = {**start, "members": [str(base) for base in scale.members], "rows": rows, "claims": [claim]}
    return Result(numbers, f"{as_text(rows)}\n\n{told([claim])}")
