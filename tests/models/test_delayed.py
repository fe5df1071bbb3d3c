"""Delays on a network by name: built, saved, loaded and trained like any other model."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import anytime
from anytime.cli import main

CONTRACT_ARGUMENTS = {
    "delayed": {
        "backbone": "anytime.studies.lee2018.resnext.Backbone",
        "options": {"blocks": (1, 2), "width": 8, "cardinality": 2},
    },
}

BACKBONE = {
    "backbone": "anytime.studies.lee2018.resnext.Backbone",
    "options": {"blocks": [1, 1], "width": 4, "cardinality": 2},
    "input_size": (1, 8, 8),
}


def test_it_is_saved_and_loaded(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = anytime.create_model("delayed", 5, in_channels=1, num_steps=2, **BACKBONE).eval()
    assert model.branches == ("blocks.0.conv3", "blocks.1.conv3")
    x = torch.rand(2, 1, 8, 8)
    model.save(tmp_path / "model")
    again = anytime.load(tmp_path / "model", trust=True).eval()
    assert again.branches == model.branches
    assert torch.equal(again(x), model(x))


class Functional(nn.Module):
    """Its branches are not modules."""

    def __init__(self, num_classes: int = 5, in_channels: int = 3) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(in_channels, 4, 3, 1, 1), nn.Conv2d(4, 4, 3, 1, 1)
        self.norm, self.head = nn.BatchNorm2d(4), nn.Linear(4, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.a(x))
        x = x + torch.tanh(self.b(x))
        x = x + self.norm(self.b(x)).mul(0.5)
        return self.head(x.mean((2, 3)))


def test_branches_that_are_not_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are found again; their names only serve messages and cannot be looked up."""
    monkeypatch.setitem(sys.modules, "own_network", types.SimpleNamespace(Functional=Functional))
    torch.manual_seed(0)
    model = anytime.create_model("delayed", 5, backbone="own_network.Functional", input_size=(3, 8, 8))
    assert model.branches == ("tanh", "mul")
    assert model.config["arguments"]["branches"] is None
    x = torch.rand(2, 3, 8, 8)
    model(x)
    assert model.network.norm.running_mean.shape == (2, 4)
    assert not torch.equal(*model.network.norm.running_mean)
    model.eval().save(tmp_path / "model")
    again = anytime.load(tmp_path / "model", trust=True).eval()
    assert again.branches == model.branches
    assert torch.equal(again(x), model(x))
    named = anytime.create_model("delayed", backbone="own_network.Functional", branches=["b"], input_size=(3, 8, 8))
    named.save(tmp_path / "named")
    assert anytime.load(tmp_path / "named", trust=True).branches == ("b",)


def test_weights_of_a_file(tmp_path: Path) -> None:
    from anytime.studies.lee2018.resnext import Backbone

    torch.manual_seed(0)
    network = Backbone(7, 1, (1, 1), 4, 2).eval()
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    given = {**BACKBONE, "in_channels": 1, "pretrained": str(tmp_path / "weights.pt")}
    model = anytime.create_model("delayed", 7, **given).eval()
    x = torch.rand(2, 1, 8, 8)
    assert (model(x)[-1] - network(x)).abs().max() < 1e-6
    with pytest.raises(ValueError, match="7 classes, but num_classes=3; reset=True"):
        anytime.create_model("delayed", 3, **given)
    new = anytime.create_model("delayed", 3, reset=True, **given).eval()
    assert new(x).shape == (3, 2, 3)
    assert torch.equal(new.network.stem[0].weight, network.stem[0].weight)
    new.save(tmp_path / "model")
    (tmp_path / "weights.pt").unlink()
    assert torch.equal(anytime.load(tmp_path / "model").eval()(x), new(x))


def test_it_trains_by_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    flags = ["--model=delayed", f"--model.backbone={BACKBONE['backbone']}", "--objective=TDLambda", "--data=digits"]
    options = '--model.options={"blocks": [1, 1], "width": 4, "cardinality": 2}'
    rest = ["--data.limit=64", "--data.validation=0", "--epochs=1", "--progress=false", "--model.input_size=[1, 8, 8]"]
    assert main(["train", *flags, options, *rest, "--run", "run"]) == 0
    assert anytime.load("run").num_steps == 3


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match=r"input_size must be .* with in_channels=3, got \(1, 8, 8\)"):
        anytime.create_model("delayed", **BACKBONE)
    with pytest.raises(ValueError, match="branches must be a list of names of modules, got 'stem'"):
        anytime.create_model("delayed", in_channels=1, branches="stem", **BACKBONE)
