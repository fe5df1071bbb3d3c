"""What a training step computes: all answers, some of them, only heads, on images as they are or mixed, or other gradients."""

from anytime.training.regimes.base import Joint, Regime
from anytime.training.regimes.cutmix import CutMix
from anytime.training.regimes.heads_only import HeadsOnly
from anytime.training.regimes.mixed import Mixed
from anytime.training.regimes.rescaling import GradientRescaling
from anytime.training.regimes.sandwich import Sandwich

__all__ = ["CutMix", "GradientRescaling", "HeadsOnly", "Joint", "Mixed", "Regime", "Sandwich"]
