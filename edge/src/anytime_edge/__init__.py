"""Answers at a deadline on a device: runs what `anytime export` wrote, with numpy and ONNX Runtime only."""

import sys

if sys.argv[:1] == ["-m"] and not sys.flags.safe_path and sys.orig_argv[-len(sys.argv)] in ("anytime_edge", "-manytime_edge"):
    # `python -m anytime_edge`: files of the working directory must not shadow what is imported from here on
    del sys.path[0]

from anytime_edge.answer import Answer
from anytime_edge.camera import Frame, frames
from anytime_edge.network import Network, load
from anytime_edge.predictor import Predictor, Session
from anytime_edge.profile import Profile, profile
from anytime_edge.recorder import FlightRecorder

__version__ = "0.1.0"
__all__ = ["Answer", "FlightRecorder", "Frame", "Network", "Predictor", "Profile", "Session", "frames", "load", "profile"]
