"""Figure 5 of Lee and Shin 2018: errors of each sub-network of an IS-ResNeXt on fine and coarse labels."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch

from anytime.analysis.taxonomy import level_accuracies, level_errors
from anytime.reporting.plots import COLOURS
from anytime.reporting.tables import Column, format_table
from anytime.stopping.levels import choose_levels, chosen_accuracy, highest_target
from anytime.studies.claims import told
from anytime.studies.figures import Line, error_lines
from anytime.studies.lee2018.figures import COST_LABELS, costs_of, headed
from anytime.studies.runner import Traces
from anytime.studies.study import Result
from anytime.support.units import macs_text

HIERARCHICAL = "IS-ResNeXt, label levels"
VALIDATION = f"{HIERARCHICAL}, on validation"
PUBLISHED_CUB = {"class alone": 0.312, "level chosen": 0.475}
PUBLISHED_CUB_SOURCE = "section 4.3, worst accuracy of any sub-network on CUB-200 with 4 levels; CIFAR-100 has no numbers"


def figure_5(traces: Traces, data: str) -> Result:
    """Errors over MACs at each label level, and the worst accuracy of any step with and without a choice of levels.

    The levels are chosen on validation images, the finest with which every step reaches the highest accuracy that all can.
    """
    if HIERARCHICAL not in traces:
        note = f"{data} has one label level, figure 5 needs several: --data cifar100"
        return Result({"figure": "5", "note": note}, note)
    stored = traces[HIERARCHICAL]
    by_seed = torch.stack([level_errors(trace) for trace in stored.values()])  # [S, T, D]
    errors, any_trace = by_seed.mean(0), next(iter(stored.values()))
    fine = [float(level_accuracies(trace)[:, 0].min()) for trace in stored.values()]
    choices = {seed: choose_levels(trace, highest_target(trace)) for seed, trace in traces[VALIDATION].items()}
    chosen = [float(chosen_accuracy(trace, choices[seed]).min()) for seed, trace in stored.items()]
    worst = {"class alone": sum(fine) / len(fine), "level chosen": sum(chosen) / len(chosen)}
    levels = [f"{size} classes" for size in any_trace.levels]
    claims: list[dict[str, Any]] = [
        {
            "claim": "at every sub-network coarser labels are answered with fewer errors",
            "shows": bool((errors.diff(dim=1) < 0).all()),
            "paper": {"shows": True, "source": "section 4.3"},
        },
        {
            "claim": "at every label level each sub-network makes fewer errors than the thinner one",
            "shows": all(bool((b < a).all()) for a, b in pairwise(errors)),
            "paper": {"shows": True, "source": "section 4.3"},
        },
        {
            "claim": "a label level chosen for each sub-network raises the worst accuracy of any",
            "shows": worst["level chosen"] > worst["class alone"],
            "worst_accuracy": worst,
            "levels_chosen": {seed: choice.steps for seed, choice in choices.items()},
            "paper": {"shows": True, "worst_accuracy": PUBLISHED_CUB, "source": PUBLISHED_CUB_SOURCE},
        },
    ]
    contract = costs_of(stored, "contract")
    numbers = headed("5: errors on fine and coarse labels", stored, "section 4.3; the figure has no table") | {
        "levels": any_trace.levels,
        "contract_macs": contract,
        "macs": any_trace.macs,
        "error": dict(zip(levels, errors.T, strict=True)),
        "by_seed": by_seed,
        "claims": claims,
    }
    rows = [
        {"k": k, "macs": spent, **dict(zip(levels, row.tolist(), strict=True))}
        for k, (spent, row) in enumerate(zip(contract, errors, strict=True), 1)
    ]
    columns = [Column("k", "k"), Column("macs", "MACs", macs_text), *(Column(level, level, ".1%") for level in levels)]
    lines = [
        Line(level, contract, column.tolist(), colour)
        for level, column, colour in zip(levels, errors.T, COLOURS[: len(levels)], strict=True)
    ]
    drawn = error_lines({COST_LABELS["contract"]: lines}, f"{numbers['dataset']}, n = {len(stored)}")
    return Result(numbers, f"{format_table(rows, columns)}\n\n{told(claims)}", drawn)
