"""Training from trained weights: those of a run, for heads on a frozen trunk, for every exit of a family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import anytime
from anytime.analysis.optimal import Exits
from anytime.cli import main
from anytime.objectives import AdaLoss, Optimal, SDNRamp, Weighted
from anytime.objectives.weighted import StepObjective
from anytime.studies import train_family
from anytime.training.build import build
from anytime.training.config import UsageError, parse

ANN = [
    *("--model=ann", "--model.units=1", "--model.width=2", "--data=digits", "--data.limit=96", "--data.validation=0"),
    *("--epochs=1", "--progress=false"),
]


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A run of an ANN with 3 exits."""
    monkeypatch.chdir(tmp_path)
    assert main(["train", *ANN, "--run", "joint"]) == 0
    return "joint"


def test_heads_on_the_features_of_a_run(trained: str) -> None:
    flags = [*ANN, "--model.regime=midfeat", "--weights", trained]
    before = anytime.load(trained).state_dict()
    assert main(["train", *flags, "--run", "midfeat"]) == 0
    after = anytime.load("midfeat").state_dict()
    changed = {key for key, value in after.items() if not torch.equal(value, before[key])}
    assert changed == {key for key in after if key.startswith("heads.")}


def test_weights_of_another_network_and_of_none(trained: str) -> None:
    wider = [flag.replace("width=2", "width=3") for flag in ANN]
    with pytest.raises(UsageError, match=r"joint are those of another network: stem.* is \[2, 1, .*\], here \[3, 1, "):
        build(parse([*wider, "--weights", trained]))
    with pytest.raises((UsageError, FileNotFoundError, ValueError), match="nowhere"):
        build(parse([*ANN, "--weights", "nowhere"]))
    job = build(parse([*ANN, "--weights", trained, "--data.augment=none", "--seed=5"]))
    assert all(torch.equal(value, job.model.state_dict()[key]) for key, value in anytime.load(trained).state_dict().items())


def test_weights_of_a_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    anytime.create_model("serial_resnet18", width=2, in_channels=1).save("serial")
    flags = ["--data=digits", "--model.width=2", "--weights=serial"]
    job = build(parse(["--model=cascaded_resnet18", *flags]))
    assert torch.equal(job.model.state_dict()["heads.0.weight"], anytime.load("serial").state_dict()["heads.0.weight"])
    anytime.create_model("cascaded_resnet18", width=2, in_channels=1, num_steps=3).save("short")
    with pytest.raises(UsageError, match=r"the weights of short do not fit: .* settled network"):
        build(parse(["--model=serial_resnet18", *flags[:2], "--weights=short"]))
    with pytest.raises(UsageError, match=r"another network: stem.0.weight is \[2, 1, 3, 3\], here \[3, 1, 3, 3\]"):
        build(parse(["--model=serial_resnet18", flags[0], "--model.width=3", "--weights=serial"]))


def test_optimal_of_any_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("small.yaml").write_text("model: ann\ndata: digits\nepochs: 1\nprogress: false\n")
    asked: list[list[str]] = []

    def train(arguments: Any, log: Path) -> int:
        asked.append(list(arguments))
        return main(["train", *arguments])

    flags = ("--model.units=1", "--model.width=2", "--data.limit=96", "--data.validation=0")
    traces = train_family("small.yaml", [3, 1], "family", flags, train=train)
    assert list(traces) == [3, 1]
    optimal = Exits.of_family(traces)
    assert len(optimal.errors) == 2
    assert optimal.costs[0] < optimal.costs[1]
    assert [arguments[-1] for arguments in asked] == ["family/small_optimal_3_seed0", "family/small_optimal_1_seed0"]
    assert train_family("small.yaml", [3], "family", flags, train=train).keys() == {3}
    assert len(asked) == 2
    with pytest.raises(ValueError, match=r"exits must hold at least one exit and none twice, got \[1, 1\]"):
        train_family("small.yaml", [1, 1], "family")


@pytest.mark.parametrize(
    "objective", [Weighted("constant"), Optimal(2), SDNRamp(1, 1), AdaLoss()], ids=lambda objective: type(objective).__name__
)
def test_label_levels_are_summed_by_every_objective_of_step_losses(objective: StepObjective) -> None:
    torch.manual_seed(0)
    logits, target = torch.randn(3, 5, 6, dtype=torch.float64), torch.stack([torch.arange(5) % 4, torch.arange(5) % 2], 1)
    objective.set_levels((4, 2))
    one = Weighted("constant")
    expected = one.losses(logits[..., :4], target[:, 0]) + one.losses(logits[..., 4:], target[:, 1])
    torch.testing.assert_close(objective.losses(logits, target), expected)
    assert torch.isfinite(objective(logits, target))
