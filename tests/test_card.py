"""The model card states what was measured."""

import torch

from anytime import Trace, create_model
from anytime.analysis.summary import summary
from anytime.reporting.card import model_card
from anytime.saving import ModelInfo


def test_card_holds_every_step_recipe_and_hardware() -> None:
    model = create_model("anytimenet", num_classes=2, blocks=(1, 1, 1), scheme=(1,), width=4)
    model.info = ModelInfo(class_names=("cat", "dog"), recipe={"model": {"class_path": "anytimenet"}, "seed": 7})
    logits = torch.tensor([[[2.0, 0.0], [0.0, 2.0], [0.0, 2.0], [2.0, 0.0]]])
    meta = {
        "model": "anytimenet", "parameters": 123, "input_size": [3, 8, 8], "hardware": "Abacus", "torch": "2.0",
        "dataset": "Pets", "part": "test", "seconds_low": [0.001], "seconds_high": [0.003],
    }  # fmt: skip
    trace = Trace(
        logits=logits, labels=torch.tensor([0, 1, 1, 1]), macs=torch.tensor([1000]), contract_macs=torch.tensor([1000]),
        seconds=torch.tensor([0.002], dtype=torch.float64), class_names=("cat", "dog"), meta=meta,
    )  # fmt: skip
    card = model_card("pets", model, summary(trace), trained_on="2 pocket calculators", notes="A note.")
    for text in (
        "# pets",
        "75.00%",
        "Abacus",
        "seed 7",
        "cat, dog",
        "class_path: anytimenet",
        "2 pocket calculators",
        "A note.",
    ):
        assert text in card
    (row,) = [line for line in card.splitlines() if line.startswith("| 1 |")]
    assert row.split(" | ")[1:3] == ["1.000 k", "100.0%"]


def test_card_of_a_trace_without_seconds() -> None:
    model = create_model("anytimenet", num_classes=2, blocks=(1, 1, 1), scheme=(1,), width=4)
    model.info = ModelInfo(class_names=("cat", "dog"), recipe={"model": {"class_path": "anytimenet"}})
    meta = {"model": "anytimenet", "parameters": 123, "input_size": [3, 8, 8], "dataset": "Pets", "part": "test"}
    trace = Trace(torch.eye(2)[None], torch.tensor([0, 1]), torch.tensor([1000]), None, None, ("cat", "dog"), meta=meta)
    card = model_card("pets", model, summary(trace))
    assert "100.0%" in card
    assert "median" not in card
