"""Objectives learn how long the training is: by phases, by batches when several are accumulated, and again on resuming."""

from __future__ import annotations

import csv
import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from anytime import objectives
from anytime.cli import main
from anytime.objectives import AVGL, EXP3, RWM, AdaLoss, Objective, SDNRamp
from anytime.objectives.weighting import sdn_ramp
from anytime.training import Joint, Mixed, Regime
from anytime.training.callbacks import Interrupted
from anytime.training.module import AnytimeModule


class Recorded(SDNRamp):
    """Keeps the weights of every call in train mode, which are the gradient of the loss by the answers' losses."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.seen: list[list[float]] = []

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        if self.training:
            self.seen.append(self._ramp(logits).tolist())
        return super().forward(logits, target)


def ramp(epochs: int, batches: int) -> list[Any]:
    return [pytest.approx(sdn_ramp(3, epoch, epochs)) for epoch in range(1, epochs + 1) for _ in range(batches)]


@pytest.mark.parametrize(
    ("regime", "accumulate", "batch_size", "expected"),
    [
        (Joint(), 5, 8, ramp(3, 12)),  # it is called for every batch
        (Mixed(1), 2, 16, ramp(2, 6)),  # it is called in the second phase
    ],
)
def test_the_ramp_ends_with_the_training(
    regime: Regime, accumulate: int, batch_size: int, expected: Any, exits: Any, digits: Any, train: Any, tmp_path: Path
) -> None:
    objective, data = Recorded(), digits(augment="none")
    data.batch_size = batch_size
    train(exits(), regime, tmp_path, epochs=3, data=data, objective=objective, settings={"accumulate": accumulate})
    assert objective.seen == expected
    assert objective.answer_weights is not None
    assert objective.answer_weights.tolist() == pytest.approx(sdn_ramp(3, 1, 1))


def test_what_is_given_stays(exits: Any, train: Any, tmp_path: Path) -> None:
    one, both = Recorded(epochs=6), Recorded(epochs=2, epoch_steps=2)
    train(exits(), Joint(), tmp_path / "one", epochs=2, objective=one)
    assert one.seen == ramp(6, 3)[:6]
    train(exits(), Joint(), tmp_path / "both", epochs=2, objective=both)
    assert both.seen == [*ramp(2, 2), *ramp(2, 2)[-2:]]


def test_the_same_objective_in_a_longer_training() -> None:
    objective = SDNRamp(epoch_steps=5)
    for epochs in (1, 4):
        objective.set_length(epochs, 3)
        assert (objective.epochs, objective.epoch_steps) == (epochs, 5)


def test_a_resumed_training_climbs_on(exits: Any, train: Any, interrupt: Any, tmp_path: Path) -> None:
    first, second = Recorded(), Recorded()
    with pytest.raises(Interrupted):
        train(exits(), Joint(), tmp_path, epochs=3, objective=first, callbacks=[interrupt(5)])
    train(exits(), Joint(), tmp_path, epochs=3, objective=second, resume=True)
    assert first.seen + second.seen == ramp(3, 3)
    assert second.seen


@pytest.mark.parametrize("kind", [EXP3, RWM, AVGL])
def test_learning_starts_after_an_epoch_but_within_a_tenth_of_the_training(
    kind: Any, exits: Any, train: Any, each: Any, tmp_path: Path
) -> None:
    for epochs, expected in ((4, 1), (20, 3)):  # 3 batches each: a tenth is 1.2 and 6
        objective = kind()
        objective.set_length(epochs, 3)
        assert objective.warmup == expected
    assert kind().warmup == 391, "without a training, that of the published code"
    given = kind(warmup=7)
    given.set_length(4, 3)
    assert given.warmup == 7
    uniform = []

    def look(module: AnytimeModule, _: Any) -> None:
        p = module.objective.probabilities
        uniform.append(p is None or p.tolist() == pytest.approx([1 / 3] * 3, abs=1e-6))

    train(exits(), Joint(), tmp_path, epochs=4, objective=kind(), callbacks=[each(look)])
    assert uniform[:2] == [True, True]
    assert uniform[2:] != [True] * 10


def test_without_a_training_the_ramp_asks_for_its_length() -> None:
    objective = SDNRamp(epochs=3)
    with pytest.raises(ValueError, match="SDNRamp does not know how long the training is: give epochs and epoch_steps"):
        objective(torch.zeros(2, 1, 3), torch.zeros(1, dtype=torch.int64))
    objective.set_length(9, 4)
    objective(torch.zeros(2, 1, 3), torch.zeros(1, dtype=torch.int64))
    assert (objective.epochs, objective.epoch_steps) == (3, 4)


def _rows(run: Path) -> list[dict[str, str]]:
    with (run / "metrics/metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("name", ["AdaLoss", "SDNRamp", "Weighted"])
def test_weights_that_change_are_logged(name: str, own_net: str, tmp_path: Path) -> None:
    flags = (
        f"--model {own_net} --data digits --data.limit 96 --data.batch_size 8 --data.validation 0 --epochs 2 --progress false"
    )
    assert main(["train", *flags.split(), "--objective", name, "--run", str(tmp_path / "run")]) == 0
    rows = _rows(tmp_path / "run")
    assert "train/weight_3" not in rows[0]
    if name == "Weighted":
        assert "train/weight_1" not in rows[0]
        return
    found = {int(row["step"]): [float(row[f"train/weight_{t}"]) for t in (1, 2)] for row in rows if row["train/weight_1"]}
    assert list(found) == [9, 19]
    if name == "SDNRamp":  # 12 steps per epoch
        assert [found[9], found[19]] == [pytest.approx(sdn_ramp(2, epoch, 2)) for epoch in (1, 2)]
    else:
        assert all(max(weights) == pytest.approx(1) and min(weights) < 1 for weights in found.values())


def test_ada_loss_learns_in_a_training_of_few_steps(exits: Any, train: Any, tmp_path: Path) -> None:
    objective = AdaLoss()
    train(exits(), Joint(), tmp_path, epochs=1, objective=objective)  # 3 steps
    assert objective.weights is not None
    assert objective.means is not None
    expected = 1 / objective.means
    expected = 0.93 * expected / expected.max() + 0.07
    torch.testing.assert_close(objective.weights, expected, rtol=1e-5, atol=1e-5)
    assert objective.weights.min() < 1


def test_no_objective_needs_to_be_told_the_length() -> None:
    for name in objectives.__all__:
        kind = getattr(objectives, name)
        if inspect.isclass(kind) and issubclass(kind, Objective) and name not in ("Objective", "Optimal"):
            kind()
