"""Figures 2 to 5 and 7 and tables 1 and 2 of Iuzzolino, Mozer, Bengio, "Improving Anytime Prediction with Parallel Cascaded
Networks and a Temporal-Difference Loss", NeurIPS 2021, and two tables of our own: `norm`, which asks whether the comparison of
TD and CE depends on the batch norm that the published code runs with, and `networks`, cascades of other networks.

The time t of an answer counts as in the paper: an image enters at t = 0, and with a one-step delay the first answer that
depends on it comes at t = 1. Networks at CPU scale answer at t = 1..9; networks at full scale use the published clock and
answer at t = 0..8.
"""

from __future__ import annotations

from anytime.studies.iuzzolino2021.dynamics import figure_2, figure_2_runs, figure_5, figure_5_runs
from anytime.studies.iuzzolino2021.figures import figure_3, figure_4
from anytime.studies.iuzzolino2021.networks import RECIPES, figure_3_runs, figure_4_runs
from anytime.studies.iuzzolino2021.noisy import table_2, table_2_runs
from anytime.studies.iuzzolino2021.norms import norm_runs, norm_table
from anytime.studies.iuzzolino2021.others import DATA, network_runs, network_table
from anytime.studies.iuzzolino2021.published import PAPER
from anytime.studies.iuzzolino2021.typical import table_1, table_1_runs
from anytime.studies.iuzzolino2021.unknown import figure_7, figure_7_runs
from anytime.studies.study import Item, Study

STUDY = Study(
    paper=PAPER,
    items={
        "figure 2": Item("images that are decided first and last", figure_2_runs, figure_2),
        "figure 3": Item("accuracy at the asymptote over lambda", figure_3_runs, figure_3),
        "figure 4": Item("speed-accuracy trade-off of six networks", figure_4_runs, figure_4),
        "figure 5": Item("mistakes within the superclass over time", figure_5_runs, figure_5, data=("cifar100",)),
        "figure 7": Item("images of unknown classes, by the last step or the whole course", figure_7_runs, figure_7),
        "table 1": Item("typicality and fast decisions, five folds", table_1_runs, table_1, data=("cifar10",)),
        "table 2": Item("persistent and transient noise, six noises", table_2_runs, table_2),
        "table norm": Item("TD and CE under batch norm as the published code means and as it runs it", norm_runs, norm_table),
        "table networks": Item("a DenseNet and a vision transformer as cascades", network_runs, network_table, data=(*DATA,)),
    },
    data={scale: list(recipes) for scale, recipes in RECIPES.items()},
    seeds={"cpu": (0, 1, 2), "fast": (0, 1), "full": (0, 1, 2, 3, 4)},
)
