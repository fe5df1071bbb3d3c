"""What to minimise over all answers of an anytime model."""

from anytime.objectives import weighting
from anytime.objectives.weighted import Objective, Weighted, step_losses

__all__ = ["Objective", "Weighted", "step_losses", "weighting"]
