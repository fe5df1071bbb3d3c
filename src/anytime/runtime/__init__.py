"""The run-time: answers under deadlines. Imports no training, plotting or data code."""

from anytime.runtime.camera import Frame, frames
from anytime.runtime.execution import Answer
from anytime.runtime.predictor import Predictor, parse_seconds
from anytime.runtime.profile import Profile, profile
from anytime.runtime.session import Session

__all__ = ["Answer", "Frame", "Predictor", "Profile", "Session", "frames", "parse_seconds", "profile"]
