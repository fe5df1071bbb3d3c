"""Neural networks that hold an answer at any moment, and answer better the longer they may compute."""

from anytime import combine, models, objectives, stopping, testing
from anytime.cost import StepSeconds, step_macs, step_seconds
from anytime.model import AnytimeModel, map_state, select_samples
from anytime.models.surgery.attach.build import attach_exits
from anytime.pretrained import list_pretrained, load
from anytime.registry import create_model, list_models, register_model
from anytime.runtime import Answer, Predictor, Profile, Session, profile
from anytime.trace import Trace, record
from anytime.version import __version__

__all__ = [
    "Answer",
    "AnytimeModel",
    "Predictor",
    "Profile",
    "Session",
    "StepSeconds",
    "Trace",
    "__version__",
    "attach_exits",
    "combine",
    "create_model",
    "list_models",
    "list_pretrained",
    "load",
    "map_state",
    "models",
    "objectives",
    "profile",
    "record",
    "register_model",
    "select_samples",
    "step_macs",
    "step_seconds",
    "stopping",
    "testing",
]
