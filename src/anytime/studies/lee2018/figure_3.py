"""Figure 3 of Lee and Shin (2018): batch norm, norms of the branches, and thin against shallow sub-networks.

Costs are MACs of a sub-network alone (contract cost), as in the paper.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from anytime.analysis.curves import error
from anytime.reporting.plots import BLUE, GREY, RED
from anytime.reporting.tables import Column, format_table
from anytime.studies import seeds
from anytime.studies.claims import Claim
from anytime.studies.figures import COST_LABELS, Curve, error_curves, panels
from anytime.studies.lee2018.networks import INCLUSIVE, PLAIN, SHALLOW, SHARED, shallow_alone, thin_alone
from anytime.studies.lee2018.published import PAPER, PUBLISHED, PUBLISHED_SOURCE
from anytime.studies.runner import Traces
from anytime.studies.study import Result
from anytime.support.units import macs_text

heading = functools.partial(seeds.facts, paper=PAPER, source=PUBLISHED_SOURCE)
COLOURS = {INCLUSIVE: BLUE, PLAIN: GREY, "independent": BLUE, "shared": RED, "thin": BLUE, "shallow": RED}


def figure_3a(traces: Traces, data: str) -> Result:
    """Errors of the sub-networks with independent and with shared batch norm."""
    stored = {"independent": traces[INCLUSIVE], "shared": traces[SHARED]}
    errors = {kind: seeds.per_seed(error, by_seed) for kind, by_seed in stored.items()}
    mean_errors = {kind: seeds.means(rows) for kind, rows in errors.items()}
    reductions = [1 - a / b for a, b in zip(mean_errors["independent"], mean_errors["shared"], strict=True)]
    thinnest = seeds.gain([row[0] for row in errors["shared"]], [row[0] for row in errors["independent"]])
    paper = PUBLISHED["reduction"] if data == "cifar10" else None
    claims = [
        Claim(
            "independent batch norm makes fewer errors at every sub-network",
            min(reductions) > 0,
            {"relative_reductions": reductions},
            "section 4.1",
        ),
        Claim(
            "independent batch norm at least halves the errors of the thinnest sub-network",
            reductions[0] >= 0.5,
            {"relative_reduction": reductions[0], **thinnest},
            paper and {"shows": True, "relative_reduction": paper["thinnest"]},
        ),
        Claim(
            "independent batch norm helps the thinnest sub-network more than the full one",
            reductions[0] > reductions[-1],
            {"full": reductions[-1]},
            paper and {"shows": True, "full": paper["full"]},
        ),
    ]
    steps = len(reductions)
    ends = {0: "thinnest", steps - 1: "full"}
    rows = [
        {
            "k": k + 1,
            "contract_macs": seeds.costs_of(stored["independent"], "contract")[k],
            **{kind: row[k] for kind, row in mean_errors.items()},
            "reduction": reductions[k],
            **{f"paper_{kind}": PUBLISHED[kind][end] for kind in stored if (end := ends.get(k)) and paper},
        }
        for k in range(steps)
    ]
    numbers = heading(stored["independent"], figure="3a: independent against shared batch norm") | {
        "rows": rows,
        "by_seed": errors,
        "published": PUBLISHED if paper else None,
    }
    columns = [
        Column("k", "k"),
        Column("contract_macs", "MACs", macs_text),
        Column("independent", "independent", ".1%"),
        Column("shared", "shared", ".1%"),
        Column("reduction", "fewer errors", ".1%"),
        Column("paper_independent", "paper", ".1%"),
        Column("paper_shared", "paper, shared", ".1%"),
    ]
    shares = [(k + 1) / steps for k in range(steps)]
    curves = [Curve(f"{kind} batch norm", shares, row, COLOURS[kind]) for kind, row in mean_errors.items()]
    if paper:
        curves += [
            Curve(f"the paper's, {kind}", [1 / 8, 1], [*PUBLISHED[kind].values()], COLOURS[kind], published=True)
            for kind in stored
        ]
    drawn = error_curves({"share of the branches": curves}, seeds.figure_title(numbers))
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
    drawn = _norm_curves(shown, f"{seeds.figure_title(numbers)}, block {middle + 1}")
    return Result(numbers, table, drawn, claims)


def _norm_curves(norms: Mapping[str, Sequence[float]], title: str) -> Figure:
    """Norms of the branches 1..C of one block."""
    with panels(4.2, 3.0) as (figure, [axes]):
        for name, values in norms.items():
            axes.plot(range(1, len(values) + 1), values, label=name, color=COLOURS[name], marker="o")
        axes.set(xlabel="branch", ylabel="l1 norm of its last convolution", title=title)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_ylim(bottom=0)
        axes.legend(loc="best")
    return figure


def figure_3c(traces: Traces, data: str) -> Result:
    """Errors of thin and shallow sub-networks, trained jointly and alone."""
    joint = {"thin": traces[INCLUSIVE], "shallow": traces[SHALLOW]}
    count = {kind: seeds.first_trace(by_seed).num_steps for kind, by_seed in joint.items()}
    names = {
        "thin": {k: thin_alone(k, count["thin"]) for k in range(1, count["thin"] + 1)},
        "shallow": {b - 1: shallow_alone(b) for b in range(2, count["shallow"] + 1)} | {count["shallow"]: PLAIN},
    }
    errors = {kind: seeds.per_seed(error, by_seed) for kind, by_seed in joint.items()}
    rows: list[dict[str, Any]] = []
    for kind, by_seed in joint.items():
        macs, mean_errors = seeds.costs_of(by_seed, "contract"), seeds.means(errors[kind])
        for step in range(1, count[kind] + 1):
            row = {"kind": kind, "step": step, "contract_macs": macs[step - 1], "jointly": mean_errors[step - 1]}
            if (name := names[kind][step]) in traces:
                alone = [values[-1] for values in seeds.per_seed(error, traces[name])]
                lost = seeds.gain([values[step - 1] for values in errors[kind]], alone)
                row |= {"alone": seeds.mean(alone), "loss": lost["gain"], "loss_sem": lost["standard_error"]}
            rows.append(row)
    claims = _claims_3c(rows, errors, joint, data)
    numbers = heading(joint["thin"], figure="3c: thin against shallow sub-networks of one ResNeXt") | {
        "rows": rows,
        "by_seed": errors,
        "published": PUBLISHED if data == "cifar10" else None,
    }
    columns = [
        Column("kind", "sub-network"),
        Column("step", "step"),
        Column("contract_macs", "MACs", macs_text),
        Column("jointly", "jointly", ".1%"),
        Column("alone", "alone", ".1%"),
        Column("loss", "lost by joint training", "+.1%"),
    ]
    curves = []
    for kind in joint:
        for key in ("jointly", "alone"):
            shown = [row for row in rows if row["kind"] == kind and key in row]
            x, y = [row["contract_macs"] for row in shown], [row[key] for row in shown]
            curves.append(Curve(f"{kind}, {key}", x, y, COLOURS[kind], dashed=key == "alone"))
    drawn = error_curves({COST_LABELS["contract"]: curves}, seeds.figure_title(numbers))
    return Result(numbers, format_table(rows, columns), drawn, claims)


def _claims_3c(
    rows: list[dict[str, Any]], errors: dict[str, list[list[float]]], joint: Mapping[str, seeds.BySeed], data: str
) -> list[Claim]:
    """Thin sub-networks lose less by joint training and are better than shallow ones."""
    paper: Any = PUBLISHED if data == "cifar10" else None
    losses = {kind: max(row["loss"] for row in rows if row["kind"] == kind and "loss" in row) for kind in joint}
    smallest = {kind: next(row for row in rows if row["kind"] == kind) for kind in joint}
    thin, shallow = smallest["thin"], smallest["shallow"]
    fewer = seeds.gain([row[0] for row in errors["shallow"]], [row[0] for row in errors["thin"]])
    errors_saved, macs_saved = seeds.saved(joint["thin"], joint["shallow"], "contract")
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
                "relative": 1 - thin["jointly"] / shallow["jointly"],
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
            seeds.all_positive(errors_saved),
            {"relative_error_saved": errors_saved, "macs_saved_at_equal_error": macs_saved},
            "section 4.1: under any MACs",
        ),
    ]
