"""What `import anytime` costs, and that nothing depends on what was imported before."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import anytime

FRESH = """
import json, sys
from anytime.cli import main
codes = [main(words) for words in ([], ["--help"], ["--version"], ["trian"])]
import anytime
light = not {"torch", "numpy", "anytime.model"} & set(sys.modules), anytime.__version__
from anytime.registry import find_loader, register_model  # a room, and nothing before it
def fast(num_classes=10):
    pass
try:
    register_model(fast)
    said = "registered"
except ValueError as error:
    said = str(error)
from anytime.model import create_model
print(json.dumps([codes, light, said, create_model("branchynet_lenet").num_steps, anytime.data.__name__]))
"""


def test_help_needs_no_torch_and_names_are_complete_when_they_are_looked_up() -> None:
    done = subprocess.run([sys.executable, "-c", FRESH], capture_output=True, text=True, check=True)
    codes, light, said, steps, room = json.loads(done.stdout.splitlines()[-1])
    assert codes == [0, 0, 0, 2]
    assert light == [True, anytime.__version__]
    assert said == "model 'fast' is registered already, by anytime.models.fast"
    assert (steps, room) == (2, "anytime.data")


def test_every_name_is_there() -> None:
    assert {"create_model", "Predictor", "models", "__version__"} <= {*anytime.__all__}
    assert {*anytime.__all__} <= {*dir(anytime)}
    for name in anytime.__all__:
        getattr(anytime, name)
    names: dict[str, object] = {}
    exec("from anytime import *", names)
    assert {*anytime.__all__} <= {*names}
    for wrong in ("nothing", "__wrapped__", "_private"):
        with pytest.raises(AttributeError, match=f"module 'anytime' has no attribute '{wrong}'"):
            getattr(anytime, wrong)
