"""What a training step computes, under any objective: all answers, some of them, only heads, or other gradients."""

from anytime.training.regimes.base import Joint, Regime
from anytime.training.regimes.heads_only import HeadsOnly
from anytime.training.regimes.mixed import Mixed
from anytime.training.regimes.rescaling import GradientRescaling
from anytime.training.regimes.sandwich import Sandwich

__all__ = ["GradientRescaling", "HeadsOnly", "Joint", "Mixed", "Regime", "Sandwich"]
