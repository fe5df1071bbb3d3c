"""A training so small that a test can run it many times."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

NET = """
from torch import nn
from anytime import AnytimeModel


class Net(AnytimeModel):
    '''Two answers from two linear layers; state is the features.

    Args:
        width: Features.
        dropout: Share of features dropped while training.
    '''

    num_steps = 2

    def __init__(self, num_classes: int = 10, in_channels: int = 3, width: int = 16, dropout: float = 0.0) -> None:
        super().__init__(num_classes, in_channels)
        self.inner = nn.Sequential(nn.Flatten(), nn.Linear(in_channels * 64, width), nn.Dropout(dropout), nn.ReLU())
        self.grow = nn.Sequential(nn.Linear(width, width), nn.ReLU())
        self.head = nn.Linear(width, num_classes)

    def initial_state(self, x):
        self.check_input(x)
        return {"features": self.inner(self.normalize(x)), "step": 0}

    def step(self, state):
        features = self.grow(state["features"]) if state["step"] else state["features"]
        return self.head(features), {"features": features, "step": state["step"] + 1}
"""


@pytest.fixture
def own_net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The import path of a user's own model, without batch norm and with dropout as an argument."""
    (tmp_path / "own_net.py").write_text(NET)
    monkeypatch.syspath_prepend(tmp_path)
    return "own_net.Net"


@pytest.fixture
def tiny() -> list[str]:
    """Flags of a training of 9 steps in 3 epochs, on 96 digits."""
    options = {
        "model": "anytimenet",
        "model.blocks": "[1,2,1]",
        "model.scheme": "[[1,1,1],[0,1,0]]",
        "model.width": "4",
        "data": "digits",
        "data.limit": "96",
        "data.batch_size": "32",
        "epochs": "3",
        "deterministic": "true",
        "progress": "false",
    }
    return [f"--{key}={value}" for key, value in options.items()]


@pytest.fixture
def weights() -> Callable[[Path], dict[str, Tensor]]:
    return lambda run: load_file(run / "model.safetensors")


@pytest.fixture(autouse=True)
def restored_determinism() -> None:
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_default_dtype(torch.float32)
