"""Figure 5 of Lee and Shin (2018): errors of each sub-network of an IS-ResNeXt on fine and coarse labels."""

from __future__ import annotations

from itertools import pairwise

import torch

from anytime.analysis.taxonomy import level_accuracies, level_errors
from anytime.reporting.plots import COLOURS
from anytime.reporting.tables import Column, format_table
from anytime.stopping.levels import choose_levels, chosen_accuracy, highest_target
from anytime.studies.claims import Claim
from anytime.studies.figures import COST_LABELS, Curve, error_curves
from anytime.studies.lee2018.networks import HIERARCHICAL, VALIDATION
from anytime.studies.lee2018.published import PAPER, PUBLISHED_CUB, PUBLISHED_CUB_SOURCE
from anytime.studies.runner import Traces
from anytime.studies.seeds import costs_of, facts, figure_title, first_trace, mean
from anytime.studies.study import Result
from anytime.support.units import macs_text


def figure_5(traces: Traces, data: str) -> Result:
    """Errors over MACs at each label level, and the worst accuracy of any step with and without a choice of levels.

    The levels are chosen on validation images: the finest at which every step reaches the highest accuracy that all steps can
    reach.
    """
    if HIERARCHICAL not in traces:
        note = f"{data} has one label level, figure 5 needs several: --data cifar100"
        return Result({"figure": "5", "note": note}, note)
    stored = traces[HIERARCHICAL]
    by_seed = torch.stack([level_errors(trace) for trace in stored.values()])  # [S, T, D]
    errors, any_trace = by_seed.mean(0), first_trace(stored)
    fine = [float(level_accuracies(trace)[:, 0].min()) for trace in stored.values()]
    choices = {seed: choose_levels(trace, highest_target(trace)) for seed, trace in traces[VALIDATION].items()}
    chosen = [float(chosen_accuracy(trace, choices[seed]).min()) for seed, trace in stored.items()]
    worst = {"class alone": mean(fine), "level chosen": mean(chosen)}
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
            {"shows": True, "worst_accuracy": PUBLISHED_CUB, "source": PUBLISHED_CUB_SOURCE},
        ),
    ]
    contract = costs_of(stored, "contract")
    numbers = facts(
        stored, paper=PAPER, figure="5: errors on fine and coarse labels", source="section 4.3; the figure has no table"
    ) | {
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
