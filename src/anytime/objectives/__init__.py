"""Losses over all answers of an anytime model."""

from anytime.objectives import weighting
from anytime.objectives.adaptive import AdaLoss
from anytime.objectives.alternating import AANN, AVGL, EXP3, RWM, Milestone
from anytime.objectives.distillation import SelfDistillation
from anytime.objectives.hierarchical import Hierarchical
from anytime.objectives.other_tasks import pixel_cross_entropy, squared_error
from anytime.objectives.td import Classification, HeatMaps, IncrementalTD, Outputs, TDLambda, td_targets
from anytime.objectives.weighted import Objective, Optimal, SDNRamp, Weighted, step_losses

__all__ = [
    "AANN",
    "AVGL",
    "EXP3",
    "RWM",
    "AdaLoss",
    "Classification",
    "HeatMaps",
    "Hierarchical",
    "IncrementalTD",
    "Milestone",
    "Objective",
    "Optimal",
    "Outputs",
    "SDNRamp",
    "SelfDistillation",
    "TDLambda",
    "Weighted",
    "pixel_cross_entropy",
    "squared_error",
    "step_losses",
    "td_targets",
    "weighting",
]
