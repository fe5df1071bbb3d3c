"""Figures 3 and 4 of Iuzzolino, Mozer, Bengio, "Improving Anytime Prediction with Parallel Cascaded Networks and a
Temporal-Difference Loss", NeurIPS 2021.

The time t of an answer counts as in the paper: an image enters at t = 0, and with a one-step delay the first answer that has
seen it comes at t = 1. Networks at CPU scale answer at t = 1..9, those at full scale, by the published clock, at t = 0..8.
"""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from anytime.analysis.curves import accuracy
from anytime.analysis.speed_accuracy import THRESHOLDS, mean_curve, speed_accuracy
from anytime.analysis.statistics import difference, standard_error
from anytime.models.cascaded.conversion import convert
from anytime.models.cascaded.serial import serial_resnet18
from anytime.reporting.plots import BLUE, GREEN, GREY, ORANGE, PURPLE, RED, SKY
from anytime.reporting.tables import Column, format_table
from anytime.studies import figures
from anytime.studies.iuzzolino2021.figures import figure_3, figure_4
from anytime.studies.iuzzolino2021.networks import LAMBDAS, RECIPES, cascaded_td, figure_3_runs, figure_4_runs
from anytime.studies.iuzzolino2021.published import (
    PAPER,
    PUBLISHED_CURVES,
    PUBLISHED_CURVES_SOURCE,
    PUBLISHED_LAMBDA,
    PUBLISHED_LAMBDA_SOURCE,
)
from anytime.studies.runner import Run, Traces, View, find_recipe
from anytime.studies.study import Item, Result, Study, facts
from anytime.trace import Trace
from anytime.training.config import read_recipe

EVERYWHERE, MEAN = "at every mean stop time", "on average over mean stop times"


# -- the trainings -----------------------------------------------------------------------------------------------------


# -- the figures -------------------------------------------------------------------------------------------------------


# -- what must show ----------------------------------------------------------------------------------------------------


STUDY = Study(
    paper=PAPER,
    items={
        "figure 3": Item("accuracy at the asymptote over lambda", figure_3_runs, figure_3),
        "figure 4": Item("speed-accuracy trade-off of six networks", figure_4_runs, figure_4),
    },
    data={scale: list(recipes) for scale, recipes in RECIPES.items()},
    seeds={"cpu": (0, 1, 2), "full": (0, 1, 2, 3, 4)},
)
