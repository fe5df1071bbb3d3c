"""Everything that `anytime` offers, imported when one of its names is first used."""

from anytime import combine, models, objectives, stopping, testing
from anytime.cost import StepSeconds, step_macs, step_seconds
from anytime.export.folder import export_model
from anytime.model import AnytimeModel, create_model, map_state, select_samples
from anytime.models.cascaded.conversion import calibrate, convert
from anytime.models.surgery.attach.build import attach_exits
from anytime.models.surgery.delays.model import add_delays
from anytime.pretrained import chain_networks, list_pretrained, load
from anytime.registry import list_models, register_model
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
    "add_delays",
    "attach_exits",
    "calibrate",
    "chain_networks",
    "combine",
    "convert",
    "create_model",
    "export_model",
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
