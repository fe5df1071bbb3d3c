"""Figures 3 to 5 of Lee, Shin, "Anytime Neural Prediction via Slicing Networks Vertically", 2018."""

from __future__ import annotations

import functools

from anytime.studies.lee2018.figures import figure_3a, figure_3b, figure_3c, figure_4, figure_5
from anytime.studies.lee2018.networks import SCALES, figure_5_runs, runs_of
from anytime.studies.lee2018.published import PAPER
from anytime.studies.study import Item, Study

FIGURES = {
    "figure 3a": ("errors with independent and with shared batch norm", figure_3a),
    "figure 3b": ("l1 norms of the branches", figure_3b),
    "figure 3c": ("thin and shallow sub-networks, trained jointly and alone", figure_3c),
    "figure 4": ("errors of I-ResNeXt (also by the sandwich recipe) and IS-ResNeXt over MACs", figure_4),
}
STUDY = Study(
    paper=PAPER,
    items={name: Item(title, functools.partial(runs_of, name), make) for name, (title, make) in FIGURES.items()}
    | {"figure 5": Item("errors of IS-ResNeXt on fine and coarse labels", figure_5_runs, figure_5, data=("cifar100",))},
    data={scale: list(here.data) for scale, here in SCALES.items()},
    seeds={"cpu": (0, 1, 2), "fast": (0, 1, 2, 3, 4), "full": (0, 1, 2, 3, 4)},
)
