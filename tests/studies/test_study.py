"""Studies by name, and what their results hold: plain JSON, claims, the command and the facts of a number."""

import json
import math

import pytest
import torch

from anytime.studies.claims import Claim, format_claims
from anytime.studies.facts import facts, recipes
from anytime.studies.study import Item, Result, Study, find_study, list_studies, plain, study_command
from anytime.trace import Trace

TRACE = Trace(torch.zeros(2, 3, 2), torch.tensor([0, 1, 0]), torch.tensor([1, 2]), None, None, ("a", "b"))


def test_find_study():
    assert list_studies() == ["backbones", "hu2017", "iuzzolino2021", "kim2020", "leaderboard", "lee2018"]
    found = find_study("iuzzolino2021")
    assert isinstance(found, Study)
    assert all(isinstance(item, Item) for item in found.items.values())
    with pytest.raises(ValueError, match="did you mean 'iuzzolino2021'"):
        find_study("iuzzolino")


def test_results_are_plain_json(tmp_path):
    numbers = {1: torch.tensor([0.123456789, 1.0]), "none": float("nan"), "far": float("inf"), "rows": [{"a": (1, 2)}, [], {}]}
    command = "anytime study hu2017 --figure 4"
    written = Result(numbers, "text").write(tmp_path / "new" / "figure_4_0.5", command)
    assert [path.name for path in written] == ["figure_4_0.5.json"]
    expected = {"1": [0.123457, 1.0], "none": None, "far": None, "rows": [{"a": [1, 2]}, [], {}]}
    assert plain(numbers) == expected
    assert list(json.loads(written[0].read_text()).items()) == [("command", command), *expected.items()]
    assert '"1": [0.123457, 1.0],\n' in written[0].read_text()


def test_a_result_ends_with_its_claims(tmp_path):
    results = {"none": None, "no": [], "one": [Claim("a", True)]}
    made = {name: Result({"x": 1}, "table", claims=claims) for name, claims in results.items()}
    assert [result.text for result in made.values()] == ["table", "table", "table\n\nyes      a"]
    written = {name: json.loads(result.write(tmp_path / name, "c")[0].read_text()) for name, result in made.items()}
    assert "claims" not in written["none"]
    assert written["no"]["claims"] == []
    assert written["one"]["claims"] == [{"claim": "a", "shows": True, "paper": None}]
    assert list(written["one"]) == ["command", "x", "claims"]


def test_a_result_names_the_command_that_makes_it():
    command = study_command("hu2017", "table 1", "cifar10", "cpu", [0])
    assert command == "anytime study hu2017 --table 1 --data cifar10 --scale cpu --seeds 0"
    command = study_command("backbones", "table resnet20", "cifar10", "cpu", [0, 1], ["--model.blocks=[1, 2]"])
    start = "anytime study backbones --table resnet20 --data cifar10 --scale cpu --seeds 0 1"
    assert command == f"{start} '--model.blocks=[1, 2]'"


def test_claims_as_text_and_json():
    claims = [Claim("a", True, {"gain": 0.5}, {"shows": True}), Claim("b", False, {"gain": -0.25}, note="-25 %")]
    assert format_claims([*claims, Claim("c", None)]) == "yes      a (gain 0.5)\nNO       b (gain -0.25; -25 %)\nunknown  c"
    assert plain(claims) == [
        {"claim": "a", "shows": True, "gain": 0.5, "paper": {"shows": True}},
        {"claim": "b", "shows": False, "gain": -0.25, "paper": None},
    ]


def test_a_claim_is_printed_with_its_interval_and_the_papers_number():
    bounded = {"mean_gain": 0.16890, "low": 0.1581, "high": 0.1793, "p_value": 1e-9, "gains": [1.0]}
    paper = {"shows": True, "source": "figure 5", "gain": 0.35, "p_value": 0.29}
    unbounded = {"of": "of a", "time_ratio": math.nan, "macs": 1234567, "same_sign": True, "low": math.nan, "high": math.nan}
    claims = [Claim("a", True, bounded, paper, "one seed"), Claim("b", None, unbounded, "figure 2")]
    assert format_claims(claims).splitlines() == [
        "yes      a (mean gain 0.169 [0.158, 0.179]; paper: gain 0.35; one seed)",
        "unknown  b (macs 1,234,567)",
    ]


def test_recipes_of_several_networks_are_told_by_what_differs():
    def of(width: int, **more: object) -> dict[int, Trace]:
        data = {"class_path": "D", "init_args": {"root": "/x", **more}}
        model = {"class_path": f"m{width}", "init_args": {"width": width}}
        recipe = {"model": model, "data": data, "epochs": 7, "seed": width}
        return {0: Trace(TRACE.logits, TRACE.labels, TRACE.macs, None, None, ("a", "b"), meta={"recipe": recipe})}

    found = recipes({"a": of(1), "b": of(2), "c": of(1, noise="focus")})
    assert found == {"a": {}, "b": {"model": "m2", "model.width": 2}, "c": {"data.noise": "focus"}}


def test_facts_of_a_published_number():
    recipe = {
        "model": "m",
        "epochs": 7,
        "seed": 0,
        "progress": False,
        "data": {"class_path": "D", "init_args": {"root": "/x"}},
    }
    meta = {"dataset": "D", "part": "test", "recipe": recipe, "trained_on": "GPU", "hardware": "CPU"}
    traces = {
        seed: Trace(
            TRACE.logits, TRACE.labels, TRACE.macs, None, None, ("a", "b"), meta={**meta, "date": f"2026-01-0{seed}T1"}
        )
        for seed in (2, 5)
    }
    assert facts(traces) == {
        "dataset": "D",
        "part": "test",
        "images": 3,
        "seeds": [2, 5],
        "epochs": 7,
        "trained_on": ["GPU"],
        "measured_on": ["CPU"],
        "date": "2026-01-05",
        "recipe": {"model": "m", "epochs": 7, "data": {"class_path": "D", "init_args": {}}},
    }
