"""Training: regimes, schedules, the Lightning module, callbacks and the run directory."""

from anytime.training.fit import Settings, fit
from anytime.training.module import AnytimeModule, NonFiniteLoss
from anytime.training.regimes.base import Joint, Regime
from anytime.training.regimes.heads_only import HeadsOnly
from anytime.training.regimes.mixed import Mixed
from anytime.training.regimes.rescaling import GradientRescaling
from anytime.training.regimes.sandwich import Sandwich
from anytime.training.schedules import Constant, Cosine, MultiStep, OneCycle, Schedule

__all__ = [
    "AnytimeModule",
    "Constant",
    "Cosine",
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
