"""Delays on a network by name: built, saved, loaded and trained like any other model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import anytime
from anytime.cli import main

BACKBONE = {
    "backbone": "anytime.studies.lee2018_shallow.Backbone",
    "options": {"blocks": [1, 1], "width": 4, "cardinality": 2},
    "input_size": (1, 8, 8),
}


def test_it_is_saved_and_loaded(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = anytime.create_model("delayed", 5, in_channels=1, num_steps=2, **BACKBONE).eval()
    assert model.branches == ("blocks.0.conv3", "blocks.1.conv3")
    x = torch.rand(2, 1, 8, 8)
    model.save(tmp_path / "model")
    again = anytime.load(tmp_path / "model").eval()
    assert again.config["arguments"]["branches"] == model.branches
    assert torch.equal(again(x), model(x))


def test_weights_of_a_file(tmp_path: Path) -> None:
    from anytime.studies.lee2018_shallow import Backbone

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
