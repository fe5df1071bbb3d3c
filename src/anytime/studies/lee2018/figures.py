"""What the figures of Lee and Shin 2018 show: ours from traces, beside the paper's numbers.

Costs are MACs: of a sub-network alone (contract cost) as in the paper, and of the stream up to it (interruptible) beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from anytime.analysis.curves import Cost, costs, error
from anytime.analysis.slicing import macs_saved, relative_error_saved
from anytime.analysis.statistics import difference
from anytime.reporting.plots import BLUE, GREEN, GREY, RED, SKY
from anytime.reporting.tables import Column, format_table
from anytime.studies.claims import told
from anytime.studies.figures import Line, error_lines
from anytime.studies.lee2018.norm_figure import norm_lines
from anytime.studies.runner import Traces
from anytime.studies.study import Result, facts
from anytime.support.units import macs_text
from anytime.trace import Trace

PAPER = "Lee, Shin, Anytime Neural Prediction via Slicing Networks Vertically, 2018"

PUBLISHED = {  # of CIFAR-10 in shares; those of shared batch norm and of the last two are implied by stated differences
    "independent": {"thinnest": 0.129, "full": 0.072},
    "shared": {"thinnest": 0.705, "full": 0.0896},
    "reduction": {"thinnest": 0.817, "full": 0.196},
    "shallow alone": {"shallowest": 0.199},
    "shallow jointly": {"shallowest": 0.250},
    "thin alone": {"thinnest": 0.117},
    "largest loss": {"thin": 0.012, "shallow": 0.051},
}
PUBLISHED_SOURCE = "section 4.1: 29 layers, W = 64, 8 sub-networks, 300 epochs, mean of 5 trials; the figure has no table"
PUBLISHED_AGAINST_MSDNET = {  # I-ResNeXt of 65 layers; IS-ResNeXt of 47
    "cifar10": {"full error smaller": 0.107, "MACs saved, up to": 0.560, "thinnest IS to shallowest": 0.172},
    "cifar100": {"full error smaller": 0.058, "MACs saved, up to": 0.487, "thinnest IS to shallowest": 0.121},
}

INCLUSIVE, SHARED, PLAIN, SHALLOW, SPARSE = "I-ResNeXt", "I-ResNeXt, shared BN", "ResNeXt", "ResNeXt with exits", "IS-ResNeXt"
SANDWICH = "I-ResNeXt, sandwich"
DEEP = "I-ResNeXt-65"  # of figure 4 at full scale, where the ablation has 29 layers
COLOURS = {INCLUSIVE: BLUE, SPARSE: GREEN, SANDWICH: SKY, PLAIN: GREY}
COLOURS |= {"independent": BLUE, "shared": RED, "thin": BLUE, "shallow": RED}
COST_LABELS: dict[Cost, str] = {"contract": "MACs of the sub-network alone", "macs": "MACs of the stream"}


def thin_alone(k: int, of: int) -> str:
    """The name of the thin sub-network k of `of`, trained alone."""
    return PLAIN if k == of else f"ResNeXt, {k} of {of} branches"


def shallow_alone(blocks: int) -> str:
    """The name of the shallow sub-network of so many blocks, trained alone."""
    return f"ResNeXt, {blocks} blocks"


# -- the figures -------------------------------------------------------------------------------------------------------


def figure_3a(traces: Traces, data: str) -> Result:
    """Errors of the sub-networks with independent and with shared batch norm."""
    stored = {"independent": traces[INCLUSIVE], "shared": traces[SHARED]}
    errors = {kind: _errors(by_seed) for kind, by_seed in stored.items()}
    means = {kind: _means(by_seed) for kind, by_seed in errors.items()}
    reductions = [1 - a / b for a, b in zip(means["independent"], means["shared"], strict=True)]
    thinnest = _difference([row[0] for row in errors["shared"]], [row[0] for row in errors["independent"]])
    theirs = PUBLISHED["reduction"] if data == "cifar10" else None
    claims = [
        {
            "claim": "independent batch norm makes fewer errors at every sub-network",
            "shows": min(reductions) > 0,
            "relative_reductions": reductions,
            "paper": {"shows": True, "source": "section 4.1"},
        },
        {
            "claim": "independent batch norm at least halves the errors of the thinnest sub-network",
            "shows": reductions[0] >= 0.5,
            "relative_reduction": reductions[0],
            **thinnest,
            "paper": theirs and {"shows": True, "relative_reduction": theirs["thinnest"]},
        },
        {
            "claim": "independent batch norm helps the thinnest sub-network more than the full one",
            "shows": reductions[0] > reductions[-1],
            "full": reductions[-1],
            "paper": theirs and {"shows": True, "full": theirs["full"]},
        },
    ]
    steps = len(reductions)
    ends = {0: "thinnest", steps - 1: "full"}
    rows = [
        {
            "k": k + 1,
            "contract_macs": costs_of(stored["independent"], "contract")[k],
            **{kind: row[k] for kind, row in means.items()},
            "reduction": reductions[k],
            **{f"paper_{kind}": PUBLISHED[kind][end] for kind in means if (end := ends.get(k)) and data == "cifar10"},
        }
        for k in range(steps)
    ]
    numbers = headed("3a: independent against shared batch norm", stored["independent"]) | {
        "rows": rows,
        "by_seed": errors,
        "published": PUBLISHED if data == "cifar10" else None,
        "claims": claims,
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
    lines = [Line(f"{kind} batch norm", shares, means[kind], COLOURS[kind]) for kind in means]
    if data == "cifar10":
        lines += [
            Line(f"the paper's, {kind}", [1 / 8, 1], [*PUBLISHED[kind].values()], COLOURS[kind], published=True)
            for kind in means
        ]
    drawn = error_lines({"share of the branches": lines}, _title(numbers))
    return Result(numbers, f"{format_table(rows, columns)}\n\n{told(claims)}", drawn)


def figure_3b(traces: Traces, data: str) -> Result:
    """l1 norms of the branches in the middle block, and their fall from the first branch to the last in all blocks."""
    stored = {name: traces[name] for name in (INCLUSIVE, PLAIN)}
    norms = {
        name: torch.tensor([trace.meta["model_arguments"]["branch_l1_norms"] for trace in by_seed.values()]).double()
        for name, by_seed in stored.items()
    }
    means = {name: values.mean(0) for name, values in norms.items()}  # [L, C]
    falls = {name: 1 - values[:, -1] / values[:, 0] for name, values in means.items()}
    middle = len(means[INCLUSIVE]) // 2
    claims = [
        {
            "claim": f"in block {middle + 1} of I-ResNeXt the norm falls from each branch to the next",
            "shows": bool((means[INCLUSIVE][middle].diff() < 0).all()),
            "paper": {"shows": True, "source": "figure 3b, block 5 of 9"},
        },
        {
            "claim": f"in block {middle + 1} it falls by a larger share from first to last than in the ResNeXt trained alone",
            "shows": bool(falls[INCLUSIVE][middle] > falls[PLAIN][middle]),
            "falls": {name: values[middle] for name, values in falls.items()},
            "paper": {"shows": True, "source": "figure 3b: flat in the ResNeXt"},
        },
        {
            "claim": "on average over blocks it falls by a larger share than in the ResNeXt trained alone",
            "shows": bool(falls[INCLUSIVE].mean() > falls[PLAIN].mean()),
            "falls": {name: values.mean() for name, values in falls.items()},
            "paper": None,
        },
    ]
    numbers = headed("3b: l1 norm of the last convolution of each branch", stored[INCLUSIVE]) | {
        "block": middle + 1,
        "norms": means,
        "falls": falls,
        "by_seed": norms,
        "claims": claims,
    }
    drawn_norms = {name: values[middle].tolist() for name, values in means.items()}
    rows = [
        {"name": name, **{str(branch): value for branch, value in enumerate(values, 1)}, "fall": float(falls[name][middle])}
        for name, values in drawn_norms.items()
    ]
    branches = [Column(str(branch), f"branch {branch}", ".2f") for branch in range(1, len(drawn_norms[INCLUSIVE]) + 1)]
    table = format_table(rows, [Column("name", f"block {middle + 1}"), *branches, Column("fall", "fall", ".0%")])
    drawn = norm_lines(drawn_norms, COLOURS, f"{_title(numbers)}, block {middle + 1}")
    return Result(numbers, f"{table}\n\n{told(claims)}", drawn)


def figure_3c(traces: Traces, data: str) -> Result:
    """Errors of thin and shallow sub-networks, trained jointly and alone."""
    joint = {"thin": traces[INCLUSIVE], "shallow": traces[SHALLOW]}
    count = {kind: next(iter(stored.values())).num_steps for kind, stored in joint.items()}
    names = {
        "thin": {k: thin_alone(k, count["thin"]) for k in range(1, count["thin"] + 1)},
        "shallow": {b - 1: shallow_alone(b) for b in range(2, count["shallow"] + 1)} | {count["shallow"]: PLAIN},
    }
    errors = {kind: _errors(stored) for kind, stored in joint.items()}
    rows: list[dict[str, Any]] = []
    for kind, stored in joint.items():
        spent, means = costs_of(stored, "contract"), _means(errors[kind])
        for step in range(1, count[kind] + 1):
            row = {"kind": kind, "step": step, "contract_macs": spent[step - 1], "jointly": means[step - 1]}
            if (name := names[kind][step]) in traces:
                alone = [values[-1] for values in _errors(traces[name])]
                gap = _difference([values[step - 1] for values in errors[kind]], alone)
                row |= {"alone": sum(alone) / len(alone), "loss": gap["gain"], "loss_sem": gap["standard_error"]}
            rows.append(row)
    numbers = headed("3c: thin against shallow sub-networks of one ResNeXt", joint["thin"]) | {
        "rows": rows,
        "by_seed": errors,
        "published": PUBLISHED if data == "cifar10" else None,
        "claims": (claims := _claims_3c(rows, errors, joint, data)),
    }
    columns = [
        Column("kind", "sub-network"),
        Column("step", "step"),
        Column("contract_macs", "MACs", macs_text),
        Column("jointly", "jointly", ".1%"),
        Column("alone", "alone", ".1%"),
        Column("loss", "lost by joint training", "+.1%"),
    ]
    lines = []
    for kind in joint:
        mine = [row for row in rows if row["kind"] == kind]
        for key, those in {"jointly": mine, "alone": [row for row in mine if "alone" in row]}.items():
            x, y = [row["contract_macs"] for row in those], [row[key] for row in those]
            lines.append(Line(f"{kind}, {key}", x, y, COLOURS[kind], dashed=key == "alone"))
    drawn = error_lines({"MACs of the sub-network alone": lines}, _title(numbers))
    return Result(numbers, f"{format_table(rows, columns)}\n\n{told(claims)}", drawn)


def _claims_3c(
    rows: Sequence[Mapping[str, Any]],
    errors: Mapping[str, Sequence[Sequence[float]]],
    joint: Mapping[str, Mapping[int, Trace]],
    data: str,
) -> list[dict[str, Any]]:
    """What must show: thin sub-networks lose less by joint training, and are better than shallow ones."""
    theirs: Any = PUBLISHED if data == "cifar10" else None
    losses = {kind: max(row["loss"] for row in rows if row["kind"] == kind and "loss" in row) for kind in joint}
    ends = {kind: next(row for row in rows if row["kind"] == kind) for kind in joint}
    gain = _difference([row[0] for row in errors["shallow"]], [row[0] for row in errors["thin"]])
    saved = _mean_over_seeds(relative_error_saved, joint["thin"], joint["shallow"], "contract")
    macs = _mean_over_seeds(macs_saved, joint["thin"], joint["shallow"], "contract")
    return [
        {
            "claim": "joint training costs the thin sub-networks less than the shallow ones",
            "shows": losses["thin"] < losses["shallow"],
            "largest_loss": losses,
            "paper": theirs and {"shows": True, "largest_loss": theirs["largest loss"]},
        },
        {
            "claim": "trained jointly, the thinnest makes fewer errors than the shallowest for fewer MACs",
            "shows": gain["gain"] > 0 and ends["thin"]["contract_macs"] < ends["shallow"]["contract_macs"],
            **gain,
            "relative": 1 - ends["thin"]["jointly"] / ends["shallow"]["jointly"],
            "macs": {kind: row["contract_macs"] for kind, row in ends.items()},
            "paper": theirs and {"shows": True, "relative": 0.484, "source": "section 4.1"},
        },
        {
            "claim": "trained alone, the thinnest makes fewer errors than the shallowest",
            "shows": ends["thin"]["alone"] < ends["shallow"]["alone"],
            "alone": {kind: row["alone"] for kind, row in ends.items()},
            "paper": theirs and {"shows": True, "alone": theirs["thin alone"] | theirs["shallow alone"]},
        },
        {
            "claim": "trained jointly, thin sub-networks make fewer errors than shallow ones at equal MACs",
            "shows": _all_above_0(saved),
            "relative_error_saved": saved,
            "macs_saved_at_equal_error": macs,
            "paper": {"shows": True, "source": "section 4.1: under any MACs"},
        },
    ]


def figure_4(traces: Traces, data: str) -> Result:
    """Errors of I-ResNeXt and IS-ResNeXt over the cost of a sub-network alone, and of the stream."""
    stored = {INCLUSIVE: traces[DEEP if DEEP in traces else INCLUSIVE], SPARSE: traces[SPARSE], SANDWICH: traces[SANDWICH]}
    errors = {name: _errors(by_seed) for name, by_seed in stored.items()}
    means = {name: _means(rows) for name, rows in errors.items()}
    contract = _mean_over_seeds(relative_error_saved, stored[INCLUSIVE], stored[SPARSE], "contract")
    stream = _mean_over_seeds(relative_error_saved, stored[SPARSE], stored[INCLUSIVE], "macs")
    networks = {}
    for name, by_seed in stored.items():
        trace = next(iter(by_seed.values()))
        networks[name] = {
            "arguments": {key: value for key, value in trace.meta["model_arguments"].items() if key != "branch_l1_norms"},
            "parameters": trace.meta["parameters"],
            "contract_macs": trace.contract_macs,
            "macs": trace.macs,
            "error": means[name],
            "by_seed": errors[name],
        }
    claims: list[dict[str, Any]] = [
        {
            "claim": "at equal MACs alone, IS-ResNeXt makes slightly more errors than I-ResNeXt",
            "shows": _all_above_0(contract),
            "relative_error_saved_by_I": contract,
            "macs_saved_by_I": _mean_over_seeds(macs_saved, stored[INCLUSIVE], stored[SPARSE], "contract"),
            "paper": {"shows": True, "source": "section 4.2, without numbers"},
        },
        {
            "claim": "at equal MACs of the stream, IS-ResNeXt makes fewer errors than I-ResNeXt, which reuses nothing",
            "shows": _all_above_0(stream),
            "relative_error_saved_by_IS": stream,
            "macs_saved_by_IS": _mean_over_seeds(macs_saved, stored[SPARSE], stored[INCLUSIVE], "macs"),
            "paper": None,
        },
        {
            "claim": "by the sandwich recipe no sub-network of I-ResNeXt makes more errors than by K passes",
            "shows": all(a <= b for a, b in zip(means[SANDWICH], means[INCLUSIVE], strict=True)),
            "more_errors": [a - b for a, b in zip(means[SANDWICH], means[INCLUSIVE], strict=True)],
            "training_macs_of_K_passes": _sandwich_share(stored[SANDWICH]),
            "paper": None,
        },
        *(
            {
                "claim": f"each sub-network of {name} makes fewer errors than the thinner one",
                "shows": all(a > b for a, b in pairwise(row)),
                "paper": {"shows": True, "source": "figure 4"},
            }
            for name, row in means.items()
        ),
    ]
    numbers = headed("4: errors over MACs", stored[INCLUSIVE], "section 4.2; the figure has no table") | {
        "networks": networks,
        "published": {"against MSDNet, relatively": PUBLISHED_AGAINST_MSDNET.get(data), "source": "section 4.2; no table"},
        "claims": claims,
    }
    panels = {
        label: [Line(name, costs_of(by_seed, cost), means[name], COLOURS[name]) for name, by_seed in stored.items()]
        for cost, label in COST_LABELS.items()
    }
    rows = [
        {"name": name, "k": k + 1, "alone": c, "stream": m, "error": e}
        for name, by_seed in stored.items()
        for k, (c, m, e) in enumerate(zip(costs_of(by_seed, "contract"), costs_of(by_seed, "macs"), means[name], strict=True))
    ]
    columns = [
        Column("name", "network"),
        Column("k", "k"),
        Column("alone", "MACs alone", macs_text),
        Column("stream", "of the stream", macs_text),
        Column("error", "error", ".2%"),
    ]
    return Result(numbers, f"{format_table(rows, columns)}\n\n{told(claims)}", error_lines(panels, _title(numbers)))


def _sandwich_share(by_seed: Mapping[int, Trace]) -> float:
    """MACs of a training step by the sandwich recipe, in the mean, as a share of those of K passes."""
    trace = next(iter(by_seed.values()))
    alone = costs_of(by_seed, "contract")
    between = alone[1:-1]
    samples = trace.meta["recipe"]["regime"]["init_args"]["samples"]
    return (alone[0] + alone[-1] + samples * sum(between) / max(len(between), 1)) / sum(alone)


# -- numbers over seeds ------------------------------------------------------------------------------------------------


def headed(figure: str, stored: Mapping[int, Trace], source: str = PUBLISHED_SOURCE) -> dict[str, Any]:
    """What every JSON file begins with."""
    return {"paper": PAPER, "figure": figure, "source": source, **facts(stored)}


def _title(numbers: Mapping[str, Any]) -> str:
    return f"{numbers['dataset']}, n = {len(numbers['seeds'])}"


def _errors(stored: Mapping[int, Trace]) -> list[list[float]]:
    """Error of each step by seed, `[S][T]`."""
    return [error(trace).tolist() for trace in stored.values()]


def _means(rows: Sequence[Sequence[float]]) -> list[float]:
    return [sum(column) / len(column) for column in zip(*rows, strict=True)]


def costs_of(stored: Mapping[int, Trace], cost: Cost) -> list[int]:
    """They are the same for all seeds."""
    return costs(next(iter(stored.values())), cost).tolist()


def _difference(left: Sequence[float], right: Sequence[float]) -> dict[str, Any]:
    gain, sem = difference(left, right)
    return {"gain": gain, "standard_error": sem, "seeds": len(left)}


def _mean_over_seeds(
    measure: Callable[[Trace, Trace, Cost], Tensor], left: Mapping[int, Trace], right: Mapping[int, Trace], cost: Cost
) -> list[float]:
    """Mean of a measure of two networks, by step; nan where it is none at any seed."""
    pairs = zip(left.values(), right.values(), strict=True)
    return torch.stack([measure(a, b, cost) for a, b in pairs]).nanmean(0).tolist()


def _all_above_0(values: Sequence[float]) -> bool | None:
    """Whether all are above 0 that are numbers; None where none is."""
    known = [value for value in values if value == value]
    return min(known) > 0 if known else None
