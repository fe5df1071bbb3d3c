"""A training so small that a test can run it many times."""

import errno
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from anytime.data import Digits
from anytime.model import AnytimeModel, create_model
from anytime.models.surgery.attach.model import AttachedExits
from anytime.objectives import Weighted
from anytime.training import OneCycle, Regime, Settings, fit

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


class Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv, self.norm, self.drop = (
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.BatchNorm2d(channels),
            nn.Dropout(0.3),
        )

    def forward(self, h: Tensor) -> Tensor:
        return self.drop(torch.relu(h + self.norm(self.conv(h))))


class Plain(nn.Module):
    """A backbone with batch norm and dropout."""

    def __init__(self, num_classes: int = 10, in_channels: int = 1) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_channels, 4, 3, padding=1)
        self.blocks = nn.Sequential(Block(4), Block(4), Block(4))
        self.fc = nn.Linear(4, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.blocks(self.stem(x)).mean((2, 3)))


class Chain(AnytimeModel):
    """h_t = tanh(layer_t(h_{t-1})), logits_t = head(h_t), one head for all; every layer is used once."""

    num_steps = 3

    def __init__(self, num_classes: int = 10, in_channels: int = 1) -> None:
        super().__init__(num_classes, in_channels)
        self.stem = nn.Linear(64 * in_channels, 6)
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(3))
        self.head = nn.Linear(6, num_classes)

    def initial_state(self, x: Tensor) -> Any:
        self.check_input(x)
        return {"h": self.stem(self.normalize(x).flatten(1)), "step": 0}

    def step(self, state: Any) -> tuple[Tensor, Any]:
        h = torch.tanh(self.layers[state["step"]](state["h"]))
        return self.head(h), {"h": h, "step": state["step"] + 1}


def _chain(**attributes: Any) -> Chain:
    model = Chain()
    for name, value in attributes.items():
        setattr(model, name, value)
    return model


def _exits(**arguments: Any) -> AttachedExits:
    torch.manual_seed(0)
    given: Any = {"backbone": f"{__name__}.Plain", "exits": ("stem", "blocks.1"), "input_size": (1, 8, 8)}
    model = create_model("attach", 10, in_channels=1, **given, **arguments)
    assert isinstance(model, AttachedExits)
    return model


def _digits(**arguments: Any) -> Digits:
    data = Digits(limit=96, batch_size=32, **arguments)
    data.setup("fit")
    return data


def _train(model: AnytimeModel, regime: Regime, run: Path, *, epochs: int = 2, data: Any = None, **more: Any) -> L.Trainer:
    objective = more.pop("objective", None) or Weighted("constant")
    schedule = more.pop("schedule", None) or OneCycle()
    given = {"gradient_clip": None} | more.pop("settings", {})  # as in the loops that tests write by hand
    settings = Settings(epochs=epochs, progress=False, deterministic=True, accelerator="cpu", **given)
    optimizer = lambda groups: torch.optim.SGD(groups, lr=0.05, momentum=0.9, weight_decay=1e-3)  # noqa: E731
    return fit(model, data or _digits(), objective, optimizer, schedule, settings, run, regime=regime, **more)


class Each(L.Callback):
    """Calls a function before every training step."""

    def __init__(self, function: Callable[[L.LightningModule, Any], None]) -> None:
        self.function = function

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.function(pl_module, batch)


class Interrupt(L.Callback):
    """Ctrl-C in the middle of step number `step`."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step + 1 == self.step:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture
def interrupt() -> type[Interrupt]:
    return Interrupt


@pytest.fixture
def second_checkpoint_finds_the_disk_full(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the second checkpoint fails; later ones are written."""
    calls, fsync = [], os.fsync

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    monkeypatch.setattr("anytime.training.checkpoints.os.fsync", full)


@pytest.fixture
def exits() -> Callable[..., AttachedExits]:
    """`exits(**arguments)`: three exits on `Plain`, always with the same weights."""
    return _exits


@pytest.fixture
def chain() -> Callable[..., Chain]:
    """`chain(**attributes)`: three layers and one head."""
    return _chain


@pytest.fixture
def digits() -> Callable[..., Digits]:
    """`digits(**arguments)`: 96 digits in 3 batches."""
    return _digits


@pytest.fixture
def train() -> Callable[..., L.Trainer]:
    """`train(model, regime, run, ...)`: deterministic training on 96 digits, by SGD with learning rate 0.05."""
    return _train


@pytest.fixture
def each() -> type[Each]:
    return Each


@pytest.fixture
def watch() -> Callable[[nn.Module], Callable[[], set[str]]]:
    """`changed = watch(model)`; later, `changed()` returns the names of weights and statistics that have changed."""

    def watched(model: nn.Module) -> Callable[[], set[str]]:
        before = {name: value.clone() for name, value in model.state_dict().items()}
        return lambda: {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}

    return watched
