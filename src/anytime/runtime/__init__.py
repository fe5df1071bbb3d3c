"""The runtime: answers under deadlines. It imports no training, plotting or data code."""

from anytime.runtime.answer import Answer
from anytime.runtime.frames import Frame, frames
from anytime.runtime.predictor import Predictor
from anytime.runtime.profile import Profile, profile
from anytime.runtime.session import Session
from anytime.support.units import parse_seconds

__all__ = ["Answer", "Frame", "Predictor", "Profile", "Session", "frames", "parse_seconds", "profile"]
