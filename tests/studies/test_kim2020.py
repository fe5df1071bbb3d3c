"""The study of AnytimeNet: counts on the running network, figures on hand-made traces, and an end-to-end run."""

import functools
import json

import pytest
import torch

from anytime import create_model
from anytime.cli import main
from anytime.commands import study as command
from anytime.studies import run_all
from anytime.studies.kim2020 import STUDY, networks, tables
from anytime.studies.kim2020.figures import figure_3, figure_4
from anytime.studies.kim2020.published import TABLE_1
from anytime.studies.study import plain
from anytime.trace import Trace

META = {
    "model": "by hand",
    "model_arguments": {},
    "parameters": 5,
    "input_size": (3, 32, 32),
    "dataset": "CIFAR10",
    "part": "test",
    "recipe": {"epochs": 8, "objective": "Weighted", "data": {"class_path": "CIFAR10", "init_args": {}}},
    "trained_on": "CPU",
    "hardware": "CPU",
    "date": "2026-01-01T00:00:00",
}


def trace(of_true: list[list[float]], macs: list[int]) -> Trace:
    """Two classes, two images each: `of_true[t]` are the probabilities of the correct labels."""
    labels = torch.tensor([0, 0, 1, 1])
    p = torch.tensor(of_true, dtype=torch.float64)
    by_class = torch.where(labels[None, :, None] == torch.arange(2), p[..., None], 1 - p[..., None])
    return Trace(by_class.log().float(), labels, torch.tensor(macs), None, None, ("a", "b"), meta=META)


def claims(result):
    json.dumps(plain([result.numbers, result.claims]), allow_nan=False)
    return {claim.statement: claim for claim in result.claims}


# -- the tables ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", ["cifar10", "gtsrb"])
def test_table_1_is_counted_on_the_running_network(data):
    result = tables.table_1({}, data)
    *iterations, baseline = result.numbers["rows"]
    assert [row["total"] for row in iterations] == [5, 12, 18, 24, 29, 34, 38]
    assert all(row[part] == row["paper"][part] for row in iterations for part in ("IN", "SEC 1", "SEC 2", "SEC 3", "OUT"))
    assert (baseline["total"], result.numbers["runs_beyond_baseline"]) == (26, 12)
    assert all(claim.shows for claim in claims(result).values())


def test_other_counts_do_not_equal_the_papers(monkeypatch):
    small = functools.partial(create_model, "anytimenet", blocks=(2, 1, 1), scheme=((1, 1, 1), (1, 0, 0)), width=4)
    assert tables.executed(small(10).eval()) == [(1, 1, 1, 1, 1), (1, 2, 2, 2, 2)]
    wrong = (*TABLE_1[:-1], (1, 8, 10, 12, 8))
    monkeypatch.setattr(tables.published, "TABLE_1", wrong)
    same = claims(tables.table_1({}, "cifar10"))["every count equals the paper's"]
    assert (same.shows, same.measured) == (False, {"equal_iterations": 6})


def test_table_2_has_exact_macs_and_measured_seconds(monkeypatch):
    """A stand-in clock: a stream takes 2 s and BASELINE 3 s, for 50 of 10,000 images."""
    calls = iter(["warm-up", *["timed"] * 3])

    class Timed:
        def __init__(self, median):
            self.median = median

    def step_seconds(model, size, batch, repeats, warmup):
        assert (size, batch, repeats, warmup) == ((3, 32, 32), 50, 1, 0)
        slow = 100 if model.num_steps == 7 and next(calls) == "warm-up" else 1
        return Timed([slow * 2 * (t + 1) / 7 for t in range(7)] if model.num_steps == 7 else [3.0])

    monkeypatch.setattr(tables, "step_seconds", step_seconds)
    monkeypatch.setattr(tables, "REPEATS", 3)
    result = tables.table_2({}, "cifar10")
    rows = result.numbers["rows"]
    assert [round(row["macs"] * row["blocks"] / 1e6, 2) for row in rows] == [
        *(12.24, 38.19, 59.43, 81.84, 99.54, 118.41, 132.57),
        111.33,
    ]
    assert rows[-2]["seconds"] == pytest.approx(2 * 200 / 38)
    assert rows[-1]["seconds"] == pytest.approx(3 * 200 / 26)
    assert [row.get("paper_seconds") for row in rows] == [None] * 6 + [0.063, 0.084]
    assert result.numbers["whole_macs_over_baseline"] == pytest.approx(1.191, abs=5e-4)
    assert result.numbers["whole_time_over_baseline"] == pytest.approx(2 / 3)
    shown = claims(result)
    less = shown["an average block of AnytimeNet takes less time than one of BASELINE"]
    assert less.measured["time_ratio"] == pytest.approx(2 / 38 / (3 / 26))
    assert less.paper["time_ratio"] == 0.75
    assert not shown["the average MACs of a block fall from the first iteration to the last"].shows
    assert "an average block takes 0.46 of BASELINE's time, the paper's 0.75" in result.text


# -- the figures -----------------------------------------------------------------------------------------------------------

FIRST, BETTER, BEST = [0.6, 0.4, 0.3, 0.3], [0.7, 0.6, 0.6, 0.4], [0.9, 0.8, 0.7, 0.6]


def test_figure_3_by_hand():
    traces = {"AnytimeNet": {0: trace([FIRST, BETTER, BEST], [10, 60, 120])}, "BASELINE": {0: trace([BETTER], [100])}}
    result = figure_3(traces, "cifar10")
    rows = result.numbers["rows"]
    assert [row["accuracy"] for row in rows] == pytest.approx([0.25, 0.75, 1.0, 0.75])
    assert [row["confidence"] for row in rows] == pytest.approx([0.4, 0.575, 0.75, 0.575])
    assert [row["max_softmax"] for row in rows] == pytest.approx([0.65, 0.625, 0.75, 0.625])
    assert [row["share_of_baseline"] for row in rows] == pytest.approx([0.1, 0.6, 1.2, 1])
    assert [row["iteration"] for row in rows] == ["iteration 1", "iteration 2", "iteration 3", "BASELINE"]
    shown = claims(result)
    assert len(shown) == 5  # three iterations have no fifth
    assert all(claim.shows for claim in shown.values())
    assert shown["the accuracy of the last iteration exceeds BASELINE's"].measured["gain"] == pytest.approx(0.25)
    assert "figures 3 and 4 are drawings" in result.text
    traces["AnytimeNet"] = {0: trace([FIRST, BEST, BETTER], [110, 115, 120])}
    assert [claim.shows for claim in figure_3(traces, "gtsrb").claims] == [False, False, False, False, False]


def test_the_fifth_iteration_costs_as_much_as_baseline():
    for share, shows in ((90, True), (70, False)):
        stream = trace([FIRST] * 5 + [BEST], [10, 20, 30, 40, share, 130])
        shown = claims(figure_3({"AnytimeNet": {0: stream}, "BASELINE": {0: trace([BEST], [100])}}, "cifar10"))
        assert shown["by iteration 5 AnytimeNet has cost as much as BASELINE within 15%, in MACs"].shows is shows


def test_figure_4_by_hand():
    """At each iteration the class that is more often right is the more confident one, or the reverse: r is 1 or -1."""
    result = figure_4({"AnytimeNet": {0: trace([FIRST, BETTER], [1, 2]), 1: trace([FIRST, BETTER], [1, 2])}}, "cifar10")
    rows = result.numbers["rows"]
    assert [row["r"] for row in rows] == pytest.approx([1, 1])
    assert result.numbers["by_class"]["confidence"].tolist() == [pytest.approx([0.5, 0.3]), pytest.approx([0.65, 0.5])]
    assert result.numbers["by_class"]["accuracy"].tolist() == [[0.5, 0.0], [1.0, 0.5]]
    assert all(claim.shows for claim in claims(result).values())
    inverse = figure_4({"AnytimeNet": {0: trace([[0.99, 0.4, 0.6, 0.6], FIRST], [1, 2])}}, "cifar10")
    assert inverse.numbers["rows"][0]["r"] == pytest.approx(-1)
    assert [claim.shows for claim in inverse.claims] == [False, False, False]
    flat = figure_4({"AnytimeNet": {0: trace([BEST, BEST], [1, 2])}}, "cifar10")
    assert flat.claims[0].shows is None, "all classes are always right: there is no correlation"


# -- from end to end -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", ["cpu", "fast", "full"])
def test_both_networks_share_one_recipe_except_for_the_model(scale):
    for data in STUDY.data[scale]:
        runs = STUDY.items["figure 3"].runs(data, scale, [0])
        ours, baseline = (run.config() for run in runs)
        assert [config["model"]["class_path"] for config in (ours, baseline)] == ["anytimenet", "anytimenet_baseline"]
        assert {**ours, "model": 0} == {**baseline, "model": 0}
        assert STUDY.items["figure 4"].runs(data, scale, [0]) == runs[:1]
        assert STUDY.items["table 1"].runs(data, scale, [0]) == []
        given = ours["data"]
        assert given["class_path"].lower() == data
        assert scale != "full" or given["init_args"].get("size", 32) == networks.IMAGES[data].pixels


def test_from_end_to_end_on_digits(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "run_all", functools.partial(run_all, train=lambda words, log: main(["train", *words])))
    tiny = ("--data=Digits", "--model.blocks=[1,2,1]", "--model.width=4", "--data.limit=64")
    grows = "--model.scheme=[[1,1,1],[0,1,0]]"
    monkeypatch.setitem(networks.SCALES["cpu"], "cifar10", ("kim2020_cifar10_cpu.yaml", tiny))
    monkeypatch.setitem(networks.FLAGS, networks.ANYTIMENET, (grows,))
    monkeypatch.setitem(networks.FLAGS, networks.BASELINE, (*networks.FLAGS[networks.BASELINE], *tiny[1:]))
    arguments = ["kim2020", "--figure", "3", "4", "--epochs=1", "--precision=32-true", "--compile=false", "--progress=false"]
    assert command.run(arguments) == 0
    numbers = json.loads((tmp_path / "results/kim2020/figure_3_cifar10_cpu.json").read_text())
    assert (numbers["dataset"], numbers["epochs"], numbers["seeds"], numbers["images"]) == ("Digits", 1, [0], 360)
    assert [row["iteration"] for row in numbers["rows"]] == ["iteration 1", "iteration 2", "BASELINE"]
    assert all(0 < row["confidence"] < 1 and row["seconds"] > 0 for row in numbers["rows"])
    assert len(json.loads((tmp_path / "results/kim2020/figure_4_cifar10_cpu.json").read_text())["by_class"]["accuracy"]) == 2
    assert all((tmp_path / f"results/kim2020/figure_{n}_cifar10_cpu.png").is_file() for n in (3, 4))
    assert "the accuracy of the last iteration exceeds BASELINE's" in capsys.readouterr().out
