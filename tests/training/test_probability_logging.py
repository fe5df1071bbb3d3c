"""The sampling probabilities of an objective that amplifies answers are in the metrics of every logged step."""

import csv
from pathlib import Path

import pytest

from anytime.cli import main
from anytime.objectives import AANN, Objective, Weighted


def _rows(run: Path) -> list[dict[str, str]]:
    with (run / "metrics/metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(("objective", "logged"), [("AANN", True), ("RWM", True), ("AdaLoss", False)])
def test_probabilities_are_logged_every_tenth_step(tmp_path, own_net, objective, logged):
    flags = [
        "--model",
        own_net,
        "--data=digits",
        "--data.limit=96",
        "--data.batch_size=8",
        "--data.validation=0",
        "--epochs=2",
    ]
    flags += [f"--objective={objective}", "--progress=false", "--run", str(tmp_path / "run")]
    flags += ["--objective.warmup=0"] if objective == "RWM" else []
    assert main(["train", *flags]) == 0
    rows = _rows(tmp_path / "run")
    found = {int(row["step"]): row for row in rows if row.get("train/probability_1")}
    if not logged:
        assert not found
        assert "train/probability_1" not in rows[0]
        return
    assert list(found) == [9, 19]  # of 24 steps, as the loss
    assert [int(row["step"]) for row in rows if row["train/loss_step"]] == [9, 19]
    for row in found.values():
        first, last = float(row["train/probability_1"]), float(row["train/probability_2"])
        assert first + last == pytest.approx(1, abs=1e-6)
        assert first == pytest.approx(0.5, abs=1e-6) if objective == "AANN" else first > 0
    assert "train/probability_3" not in rows[0]


def test_every_objective_has_the_attribute_that_is_logged() -> None:
    assert Objective().probabilities is Weighted().probabilities is AANN().probabilities is None
