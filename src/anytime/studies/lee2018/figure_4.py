"""Figure 4 of Lee and Shin (2018): errors of I-ResNeXt and IS-ResNeXt over MACs.

The paper counts MACs of a sub-network alone (contract cost); MACs of the stream up to it (interruptible) stand beside them.
"""

from __future__ import annotations

from itertools import pairwise

from anytime.analysis.curves import error
from anytime.reporting.plots import BLUE, GREEN, SKY
from anytime.reporting.tables import Column, format_table
from anytime.studies import seeds
from anytime.studies.claims import Claim
from anytime.studies.figures import COST_LABELS, Curve, error_curves
from anytime.studies.lee2018.networks import DEEP, INCLUSIVE, SANDWICH, SPARSE
from anytime.studies.lee2018.published import PAPER, PUBLISHED_AGAINST_MSDNET
from anytime.studies.runner import Traces
from anytime.studies.study import Result
from anytime.support.units import macs_text

COLOURS = {INCLUSIVE: BLUE, SPARSE: GREEN, SANDWICH: SKY}


def figure_4(traces: Traces, data: str) -> Result:
    """Errors of I-ResNeXt and IS-ResNeXt over the cost of a sub-network alone, and of the stream."""
    stored = {INCLUSIVE: traces[DEEP if DEEP in traces else INCLUSIVE], SPARSE: traces[SPARSE], SANDWICH: traces[SANDWICH]}
    errors = {name: seeds.per_seed(error, by_seed) for name, by_seed in stored.items()}
    mean_errors = {name: seeds.means(rows) for name, rows in errors.items()}
    any_trace = {name: seeds.first_trace(by_seed) for name, by_seed in stored.items()}
    networks = {
        name: {
            "arguments": {key: value for key, value in trace.meta["model_arguments"].items() if key != "branch_l1_norms"},
            "parameters": trace.meta["parameters"],
            "contract_macs": trace.contract_macs,
            "macs": trace.macs,
            "error": mean_errors[name],
            "by_seed": errors[name],
        }
        for name, trace in any_trace.items()
    }
    source = "section 4.2; the figure has no table"
    numbers = seeds.facts(stored[INCLUSIVE], paper=PAPER, figure="4: errors over MACs", source=source) | {
        "networks": networks,
        "published": {"against MSDNet, relatively": PUBLISHED_AGAINST_MSDNET.get(data), "source": "section 4.2; no table"},
    }
    costs = {name: (seeds.costs_of(by_seed, "contract"), seeds.costs_of(by_seed, "macs")) for name, by_seed in stored.items()}
    rows = [
        {"name": name, "k": k, "alone": alone, "stream": stream, "error": value}
        for name, row in mean_errors.items()
        for k, (alone, stream, value) in enumerate(zip(*costs[name], row, strict=True), 1)
    ]
    curves = {
        label: [Curve(name, costs[name][i], row, COLOURS[name]) for name, row in mean_errors.items()]
        for i, label in enumerate((COST_LABELS["contract"], COST_LABELS["macs"]))
    }
    columns = [
        Column("name", "network"),
        Column("k", "k"),
        Column("alone", "MACs alone", macs_text),
        Column("stream", "of the stream", macs_text),
        Column("error", "error", ".2%"),
    ]
    drawn = error_curves(curves, seeds.figure_title(numbers))
    return Result(numbers, format_table(rows, columns), drawn, _claims(stored, mean_errors))


def _claims(stored: Traces, mean_errors: dict[str, list[float]]) -> list[Claim]:
    inclusive, sparse = stored[INCLUSIVE], stored[SPARSE]
    contract, contract_macs = seeds.saved(inclusive, sparse, "contract")
    stream, stream_macs = seeds.saved(sparse, inclusive, "macs")
    more = [a - b for a, b in zip(mean_errors[SANDWICH], mean_errors[INCLUSIVE], strict=True)]
    return [
        Claim(
            "at equal MACs alone, IS-ResNeXt makes slightly more errors than I-ResNeXt",
            seeds.all_positive(contract),
            {"relative_error_saved_by_I": contract, "macs_saved_by_I": contract_macs},
            "section 4.2, without numbers",
        ),
        Claim(
            "at equal MACs of the stream, IS-ResNeXt makes fewer errors than I-ResNeXt, which reuses nothing",
            seeds.all_positive(stream),
            {"relative_error_saved_by_IS": stream, "macs_saved_by_IS": stream_macs},
        ),
        Claim(
            "by the sandwich recipe no sub-network of I-ResNeXt makes more errors than by K passes",
            all(value <= 0 for value in more),
            {"more_errors": more, "training_macs_of_K_passes": _sandwich_share(stored[SANDWICH])},
        ),
        *(
            Claim(
                f"each sub-network of {name} makes fewer errors than the thinner one",
                all(a > b for a, b in pairwise(row)),
                paper="figure 4",
            )
            for name, row in mean_errors.items()
        ),
    ]


def _sandwich_share(by_seed: seeds.BySeed) -> float:
    """Mean MACs of a training step by the sandwich recipe, as a share of those of K passes."""
    alone = seeds.costs_of(by_seed, "contract")
    between = alone[1:-1]
    samples = seeds.first_trace(by_seed).meta["recipe"]["regime"]["init_args"]["samples"]
    return (alone[0] + alone[-1] + samples * sum(between) / max(len(between), 1)) / sum(alone)
