"""Training: the Lightning module, schedules, callbacks and the run directory."""

from anytime.training.fit import Settings, fit
from anytime.training.module import AnytimeModule, NonFiniteLoss
from anytime.training.schedules import Constant, Cosine, OneCycle, Schedule, Steps

__all__ = ["AnytimeModule", "Constant", "Cosine", "NonFiniteLoss", "OneCycle", "Schedule", "Settings", "Steps", "fit"]
