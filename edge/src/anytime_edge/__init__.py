"""Answers at a deadline on a device: runs what `anytime export` wrote, with numpy and ONNX Runtime only."""

from anytime_edge.answer import Answer
from anytime_edge.camera import Frame, frames
from anytime_edge.network import Network, load
from anytime_edge.predictor import Predictor, Session
from anytime_edge.profile import Profile, profile
from anytime_edge.recorder import FlightRecorder

__version__ = "0.1.0"
__all__ = ["Answer", "FlightRecorder", "Frame", "Network", "Predictor", "Profile", "Session", "frames", "load", "profile"]
