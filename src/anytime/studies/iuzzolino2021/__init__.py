"""Figures 3 and 4 of Iuzzolino, Mozer, Bengio, "Improving Anytime Prediction with Parallel Cascaded Networks and a
Temporal-Difference Loss", NeurIPS 2021.

The time t of an answer counts as in the paper: an image enters at t = 0, and with a one-step delay the first answer that
depends on it comes at t = 1. Networks at CPU scale answer at t = 1..9; networks at full scale use the published clock and
answer at t = 0..8.
"""

from __future__ import annotations

from anytime.studies.iuzzolino2021.figures import figure_3, figure_4
from anytime.studies.iuzzolino2021.networks import RECIPES, figure_3_runs, figure_4_runs
from anytime.studies.iuzzolino2021.published import PAPER
from anytime.studies.study import Item, Study

STUDY = Study(
    paper=PAPER,
    items={
        "figure 3": Item("accuracy at the asymptote over lambda", figure_3_runs, figure_3),
        "figure 4": Item("speed-accuracy trade-off of six networks", figure_4_runs, figure_4),
    },
    data={scale: list(recipes) for scale, recipes in RECIPES.items()},
    seeds={"cpu": (0, 1, 2), "full": (0, 1, 2, 3, 4)},
)
