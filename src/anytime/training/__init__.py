"""Training: regimes, schedules, the Lightning module, callbacks and the run directory."""

from anytime.training.fit import Settings, fit
from anytime.training.module import AnytimeModule, NonFiniteLoss
from anytime.training.regimes import CutMix, GradientRescaling, HeadsOnly, Joint, Mixed, Regime, Sandwich
from anytime.training.schedules import Constant, Cosine, MultiStep, OneCycle, Schedule

__all__ = [
    "AnytimeModule",
    "Constant",
    "Cosine",
    "CutMix",
    "GradientRescaling",
    "HeadsOnly",
    "Joint",
    "Mixed",
    "MultiStep",
    "NonFiniteLoss",
    "OneCycle",
    "Regime",
    "Sandwich",
    "Schedule",
    "Settings",
    "fit",
]
