"""Figures 3 to 5 of Lee and Shin (2018): thin sub-networks by batch norm, norms of their branches, depth, and label levels.

Costs are MACs of a sub-network alone (contract cost), as in the paper; figure 4 also has those of the stream up to it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
from matplotlib.ticker import MaxNLocator

from anytime.analysis import statistics
from anytime.analysis.curves import error
from anytime.analysis.taxonomy import level_accuracies, level_errors
from anytime.reporting.plots import BLUE, COLOURS, GREEN, GREY, RED, SKY
from anytime.reporting.tables import Column, format_table
from anytime.stopping.levels import choose_levels, chosen_accuracy, highest_target
from anytime.studies.claims import Claim
from anytime.studies.facts import facts, figure_title
from anytime.studies.figures import COST_LABELS, Curve, error_curves, panels
from anytime.studies.lee2018 import networks, published
from anytime.studies.lee2018.networks import INCLUSIVE, PLAIN, SANDWICH, SHALLOW, SHARED, SPARSE
from anytime.studies.runner import Traces
from anytime.studies.study import Result
from anytime.support.units import macs_text

heading = functools.partial(facts, paper=published.PAPER, source=published.ERRORS_SOURCE)
LOOKS = {INCLUSIVE: BLUE, PLAIN: GREY, SPARSE: GREEN, SANDWICH: SKY}
LOOKS |= {"independent": BLUE, "shared": RED, "thin": BLUE, "shallow": RED}


def figure_3a(traces: Traces, data: str) -> Result:
    """Errors of the sub-networks with independent and with shared batch norm."""
    stored = {"independent": traces[INCLUSIVE], "shared": traces[SHARED]}
    errors = {kind: statistics.per_seed(error, by_seed) for kind, by_seed in stored.items()}
    mean_errors = {kind: statistics.means(rows) for kind, rows in errors.items()}
    reductions = statistics.reductions(mean_errors["independent"], mean_errors["shared"])
    thinnest = statistics.gain([row[0] for row in errors["shared"]], [row[0] for row in errors["independent"]])
    paper = published.ERRORS.get(data)
    claims = [
        Claim(
            "independent batch norm makes fewer errors at every sub-network",
            all(a < b for a, b in zip(mean_errors["independent"], mean_errors["shared"], strict=True)),
            {"relative_reductions": reductions},
            "section 4.1",
        ),
        Claim(
            "independent batch norm at least halves the errors of the thinnest sub-network",
            None if math.isnan(reductions[0]) else reductions[0] >= 0.5,
            {"relative_reduction": reductions[0], **thinnest},
            paper and {"shows": True, "relative_reduction": paper["reduction"]["thinnest"]},
        ),
        Claim(
            "independent batch norm helps the thinnest sub-network more than the full one",
            None if math.isnan(reductions[0] + reductions[-1]) else reductions[0] > reductions[-1],
            {"full": reductions[-1]},
            paper and {"shows": True, "full": paper["reduction"]["full"]},
        ),
    ]
    steps = len(reductions)
    ends = {0: "thinnest", steps - 1: "full"}
    rows = [
        {
            "k": k + 1,
            "contract_macs": statistics.costs_of(stored["independent"], "contract")[k],
            **{kind: row[k] for kind, row in mean_errors.items()},
            "reduction": reductions[k],
            **{f"paper_{kind}": paper[kind][end] for kind in stored if paper and (end := ends.get(k))},
        }
        for k in range(steps)
    ]
    numbers = heading(stored["independent"], figure="3a: independent against shared batch norm") | {
        "rows": rows,
        "by_seed": errors,
        "published": paper,
    }
    columns = [Column("k", "k"), Column("contract_macs", "MACs", macs_text), *(Column(kind, kind, ".1%") for kind in stored)]
    columns += [Column("reduction", "fewer errors", ".1%"), Column("paper_independent", "paper", ".1%")]
    columns.append(Column("paper_shared", "paper, shared", ".1%"))
    shares = [(k + 1) / steps for k in range(steps)]
    curves = [Curve(f"{kind} batch norm", shares, row, LOOKS[kind]) for kind, row in mean_errors.items()]
    if paper:
        curves += [
            Curve(f"the paper's, {kind}", [1 / 8, 1], [*paper[kind].values()], LOOKS[kind], published=True) for kind in stored
        ]
    drawn = error_curves({"share of the branches": curves}, figure_title(numbers))
    return Result(numbers, format_table(rows, columns), drawn, claims)


def figure_3b(traces: Traces, data: str) -> Result:
    """l1 norms of the branches in the middle block, and their fall from the first branch to the last in all blocks."""
    norms = {
        name: torch.tensor([trace.meta["model_arguments"]["branch_l1_norms"] for trace in traces[name].values()]).double()
        for name in (INCLUSIVE, PLAIN)
    }
    mean_norms = {name: values.mean(0) for name, values in norms.items()}  # [L, C]
    falls = {name: 1 - values[:, -1] / values[:, 0] for name, values in mean_norms.items()}
    middle = len(mean_norms[INCLUSIVE]) // 2
    claims = [
        Claim(
            f"in block {middle + 1} of I-ResNeXt the norm falls from each branch to the next",
            bool((mean_norms[INCLUSIVE][middle].diff() < 0).all()),
            paper="figure 3b, block 5 of 9",
        ),
        Claim(
            f"in block {middle + 1} it falls by a larger share from first to last than in the ResNeXt trained alone",
            bool(falls[INCLUSIVE][middle] > falls[PLAIN][middle]),
            {"falls": {name: values[middle] for name, values in falls.items()}},
            "figure 3b: flat in the ResNeXt",
        ),
        Claim(
            "on average over blocks it falls by a larger share than in the ResNeXt trained alone",
            bool(falls[INCLUSIVE].mean() > falls[PLAIN].mean()),
            {"falls": {name: values.mean() for name, values in falls.items()}},
        ),
    ]
    numbers = heading(traces[INCLUSIVE], figure="3b: l1 norm of the last convolution of each branch") | {
        "block": middle + 1,
        "norms": mean_norms,
        "falls": falls,
        "by_seed": norms,
    }
    shown = {name: values[middle].tolist() for name, values in mean_norms.items()}
    rows = [
        {"name": name, **{str(branch): value for branch, value in enumerate(values, 1)}, "fall": float(falls[name][middle])}
        for name, values in shown.items()
    ]
    branches = [Column(str(branch), f"branch {branch}", ".2f") for branch in range(1, len(shown[INCLUSIVE]) + 1)]
    table = format_table(rows, [Column("name", f"block {middle + 1}"), *branches, Column("fall", "fall", ".0%")])
    with panels(4.2, 3.0) as (figure, [axes]):
        for name, values in shown.items():
            axes.plot(range(1, len(values) + 1), values, label=name, color=LOOKS[name], marker="o")
        title = f"{figure_title(numbers)}, block {middle + 1}"
        axes.set(xlabel="branch", ylabel="l1 norm of its last convolution", title=title)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_ylim(bottom=0)
        axes.legend(loc="best")
    return Result(numbers, table, figure, claims)


def figure_3c(traces: Traces, data: str) -> Result:
    """Errors of thin and shallow sub-networks, trained jointly and alone."""
    joint = {"thin": traces[INCLUSIVE], "shallow": traces[SHALLOW]}
    count = {kind: statistics.first_trace(by_seed).num_steps for kind, by_seed in joint.items()}
    names = {
        "thin": {k: networks.thin_alone(k, count["thin"]) for k in range(1, count["thin"] + 1)},
        "shallow": {b - 1: networks.shallow_alone(b) for b in range(2, count["shallow"] + 1)} | {count["shallow"]: PLAIN},
    }
    errors = {kind: statistics.per_seed(error, by_seed) for kind, by_seed in joint.items()}
    rows: list[dict[str, Any]] = []
    for kind, by_seed in joint.items():
        macs, mean_errors = statistics.costs_of(by_seed, "contract"), statistics.means(errors[kind])
        for step in range(1, count[kind] + 1):
            row = {"kind": kind, "step": step, "contract_macs": macs[step - 1], "jointly": mean_errors[step - 1]}
            if (name := names[kind][step]) in traces:
                alone = [values[-1] for values in statistics.per_seed(error, traces[name])]
                lost = statistics.gain([values[step - 1] for values in errors[kind]], alone)
                row |= {"alone": statistics.mean(alone), "loss": lost["gain"], "loss_sem": lost["standard_error"]}
            rows.append(row)
    claims = _claims_3c(rows, errors, joint, data)
    numbers = heading(joint["thin"], figure="3c: thin against shallow sub-networks of one ResNeXt") | {
        "rows": rows,
        "by_seed": errors,
        "published": published.ERRORS.get(data),
    }
    columns = [Column("kind", "sub-network"), Column("step", "step"), Column("contract_macs", "MACs", macs_text)]
    columns += [Column("jointly", "jointly", ".1%"), Column("alone", "alone", ".1%")]
    columns.append(Column("loss", "lost by joint training", "+.1%"))
    curves = []
    for kind in joint:
        for key in ("jointly", "alone"):
            shown = [row for row in rows if row["kind"] == kind and key in row]
            x, y = [row["contract_macs"] for row in shown], [row[key] for row in shown]
            curves.append(Curve(f"{kind}, {key}", x, y, LOOKS[kind], dashed=key == "alone"))
    drawn = error_curves({COST_LABELS["contract"]: curves}, figure_title(numbers))
    return Result(numbers, format_table(rows, columns), drawn, claims)


def _claims_3c(
    rows: list[dict[str, Any]], errors: dict[str, list[list[float]]], joint: Mapping[str, statistics.BySeed], data: str
) -> list[Claim]:
    """Thin sub-networks lose less by joint training and are better than shallow ones."""
    paper: Any = published.ERRORS.get(data)
    losses = {kind: max(row["loss"] for row in rows if row["kind"] == kind and "loss" in row) for kind in joint}
    smallest = {kind: next(row for row in rows if row["kind"] == kind) for kind in joint}
    thin, shallow = smallest["thin"], smallest["shallow"]
    fewer = statistics.gain([row[0] for row in errors["shallow"]], [row[0] for row in errors["thin"]])
    errors_saved, macs_saved = statistics.saved(joint["thin"], joint["shallow"], "contract")
    return [
        Claim(
            "joint training costs the thin sub-networks less than the shallow ones",
            losses["thin"] < losses["shallow"],
            {"largest_loss": losses},
            paper and {"shows": True, "largest_loss": paper["largest loss"]},
        ),
        Claim(
            "trained jointly, the thinnest makes fewer errors than the shallowest for fewer MACs",
            fewer["gain"] > 0 and thin["contract_macs"] < shallow["contract_macs"],
            {
                **fewer,
                "relative": statistics.reductions([thin["jointly"]], [shallow["jointly"]])[0],
                "macs": {kind: row["contract_macs"] for kind, row in smallest.items()},
            },
            paper and {"shows": True, "relative": 0.484, "source": "section 4.1"},
        ),
        Claim(
            "trained alone, the thinnest makes fewer errors than the shallowest",
            thin["alone"] < shallow["alone"],
            {"alone": {kind: row["alone"] for kind, row in smallest.items()}},
            paper and {"shows": True, "alone": paper["thin alone"] | paper["shallow alone"]},
        ),
        Claim(
            "trained jointly, thin sub-networks make fewer errors than shallow ones at equal MACs",
            statistics.all_positive(errors_saved),
            {"relative_error_saved": errors_saved, "macs_saved_at_equal_error": macs_saved},
            "section 4.1: under any MACs",
        ),
    ]


def figure_4(traces: Traces, data: str) -> Result:
    """Errors of I-ResNeXt and IS-ResNeXt over the cost of a sub-network alone, and of the stream."""
    inclusive = traces[networks.DEEP if networks.DEEP in traces else INCLUSIVE]
    stored = {INCLUSIVE: inclusive, SPARSE: traces[SPARSE], SANDWICH: traces[SANDWICH]}
    errors = {name: statistics.per_seed(error, by_seed) for name, by_seed in stored.items()}
    mean_errors = {name: statistics.means(rows) for name, rows in errors.items()}
    described = {
        name: {
            "arguments": {key: value for key, value in trace.meta["model_arguments"].items() if key != "branch_l1_norms"},
            "parameters": trace.meta["parameters"],
            "contract_macs": trace.contract_macs,
            "macs": trace.macs,
            "error": mean_errors[name],
            "by_seed": errors[name],
        }
        for name, trace in ((name, statistics.first_trace(by_seed)) for name, by_seed in stored.items())
    }
    source = "section 4.2; the figure has no table"
    numbers = heading(stored[INCLUSIVE], figure="4: errors over MACs", source=source) | {
        "networks": described,
        "published": {"against MSDNet, relatively": published.AGAINST_MSDNET.get(data), "source": "section 4.2; no table"},
    }
    costs = {name: [statistics.costs_of(by_seed, cost) for cost in COST_LABELS] for name, by_seed in stored.items()}
    rows = [
        {"name": name, "k": k, "alone": alone, "stream": stream, "error": value}
        for name, row in mean_errors.items()
        for k, (alone, stream, value) in enumerate(zip(*costs[name], row, strict=True), 1)
    ]
    curves = {
        label: [Curve(name, costs[name][i], row, LOOKS[name]) for name, row in mean_errors.items()]
        for i, label in enumerate(COST_LABELS.values())
    }
    columns = [Column("name", "network"), Column("k", "k"), Column("alone", "MACs alone", macs_text)]
    columns += [Column("stream", "of the stream", macs_text), Column("error", "error", ".2%")]
    drawn = error_curves(curves, figure_title(numbers))
    return Result(numbers, format_table(rows, columns), drawn, _claims_4(stored, mean_errors))


def _claims_4(stored: Traces, mean_errors: dict[str, list[float]]) -> list[Claim]:
    inclusive, sparse = stored[INCLUSIVE], stored[SPARSE]
    contract, contract_macs = statistics.saved(inclusive, sparse, "contract")
    stream, stream_macs = statistics.saved(sparse, inclusive, "macs")
    more = [a - b for a, b in zip(mean_errors[SANDWICH], mean_errors[INCLUSIVE], strict=True)]
    return [
        Claim(
            "at equal MACs alone, IS-ResNeXt makes slightly more errors than I-ResNeXt",
            statistics.all_positive(contract),
            {"relative_error_saved_by_I": contract, "macs_saved_by_I": contract_macs},
            "section 4.2, without numbers",
        ),
        Claim(
            "at equal MACs of the stream, IS-ResNeXt makes fewer errors than I-ResNeXt, which reuses nothing",
            statistics.all_positive(stream),
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


def _sandwich_share(by_seed: statistics.BySeed) -> float:
    """Mean MACs of a training step by the sandwich recipe, as a share of those of K passes."""
    alone = statistics.costs_of(by_seed, "contract")
    between = alone[1:-1]
    samples = statistics.first_trace(by_seed).meta["recipe"]["regime"]["init_args"]["samples"]
    return (alone[0] + alone[-1] + samples * sum(between) / max(len(between), 1)) / sum(alone)


def figure_5(traces: Traces, data: str) -> Result:
    """Errors over MACs at each label level, and the worst accuracy of any step with and without a choice of levels.

    The levels are chosen on validation images: the finest at which every step reaches the highest accuracy that all steps can
    reach.
    """
    stored = traces[networks.HIERARCHICAL]
    by_seed = torch.stack([level_errors(trace) for trace in stored.values()])  # [S, T, D]
    errors, any_trace = by_seed.mean(0), statistics.first_trace(stored)
    fine = [float(level_accuracies(trace)[:, 0].min()) for trace in stored.values()]
    choices = {seed: choose_levels(trace, highest_target(trace)) for seed, trace in traces[networks.VALIDATION].items()}
    chosen = [float(chosen_accuracy(trace, choices[seed]).min()) for seed, trace in stored.items()]
    worst = {"class alone": statistics.mean(fine), "level chosen": statistics.mean(chosen)}
    levels = [f"{size} classes" for size in any_trace.levels]
    claims = [
        Claim(
            "at every sub-network coarser labels are answered with fewer errors",
            bool((errors.diff(dim=1) < 0).all()),
            paper="section 4.3",
        ),
        Claim(
            "at every label level each sub-network makes fewer errors than the thinner one",
            all(bool((b < a).all()) for a, b in pairwise(errors)),
            paper="section 4.3",
        ),
        Claim(
            "a label level chosen for each sub-network raises the worst accuracy of any",
            worst["level chosen"] > worst["class alone"],
            {"worst_accuracy": worst, "levels_chosen": {seed: choice.steps for seed, choice in choices.items()}},
            {"shows": True, "worst_accuracy": published.CUB, "source": published.CUB_SOURCE},
        ),
    ]
    contract = statistics.costs_of(stored, "contract")
    source = "section 4.3; the figure has no table"
    numbers = heading(stored, figure="5: errors on fine and coarse labels", source=source) | {
        "levels": any_trace.levels,
        "contract_macs": contract,
        "macs": any_trace.macs,
        "error": dict(zip(levels, errors.T, strict=True)),
        "by_seed": by_seed,
    }
    rows = [
        {"k": k, "macs": macs, **dict(zip(levels, row.tolist(), strict=True))}
        for k, (macs, row) in enumerate(zip(contract, errors, strict=True), 1)
    ]
    columns = [Column("k", "k"), Column("macs", "MACs", macs_text), *(Column(level, level, ".1%") for level in levels)]
    curves = [
        Curve(level, contract, column.tolist(), colour)
        for level, column, colour in zip(levels, errors.T, COLOURS[: len(levels)], strict=True)
    ]
    drawn = error_curves({COST_LABELS["contract"]: curves}, figure_title(numbers))
    return Result(numbers, format_table(rows, columns), drawn, claims)
