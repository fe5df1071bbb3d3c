"""The run-time: answers under deadlines. Imports no training, plotting or data code."""

from anytime.runtime.predictor import Answer, Predictor, parse_seconds

__all__ = ["Answer", "Predictor", "parse_seconds"]
