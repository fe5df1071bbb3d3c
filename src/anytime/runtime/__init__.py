"""The run-time: answers under deadlines. Imports no training, plotting or data code."""

from anytime.runtime.execution import Answer
from anytime.runtime.predictor import Predictor, parse_seconds
from anytime.runtime.profile import Profile, profile
from anytime.runtime.session import Session

__all__ = ["Answer", "Predictor", "Profile", "Session", "parse_seconds", "profile"]
