"""What to minimise over all answers of an anytime model."""

from anytime.objectives import weighting
from anytime.objectives.adaptive import AdaLoss
from anytime.objectives.alternating import AANN, AVGL, EXP3, RWM, Milestone
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
    "IncrementalTD",
    "Milestone",
    "Objective",
    "Optimal",
    "Outputs",
    "SDNRamp",
    "TDLambda",
    "Weighted",
    "step_losses",
    "td_targets",
    "weighting",
]
