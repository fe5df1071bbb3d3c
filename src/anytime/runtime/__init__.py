"""The runtime: answers under deadlines. It imports no training, plotting or data code."""

from anytime.runtime.answer import Answer
from anytime.runtime.frames import Frame, frames
from anytime.runtime.predictor import Predictor
from anytime.runtime.profile import Profile, profile
from anytime.runtime.session import Session

__all__ = ["Answer", "Frame", "Predictor", "Profile", "Session", "frames", "profile"]
