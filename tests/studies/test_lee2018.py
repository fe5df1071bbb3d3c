"""The trainings match the paper, the figures are right on hand-made traces, and an end-to-end run."""

import functools
import json
import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from anytime import create_model
from anytime.cli import main
from anytime.commands import study as command
from anytime.cost import step_macs
from anytime.models.slicing.sliced import branch_l1_norms
from anytime.studies import find_recipe, run_all
from anytime.studies.lee2018 import STUDY
from anytime.studies.lee2018.figures import figure_3a, figure_3b, figure_3c, figure_4, figure_5
from anytime.studies.lee2018.networks import SCALES, Scale, shallow_alone, thin_alone, with_norms
from anytime.studies.runner import on_validation
from anytime.studies.study import plain
from anytime.trace import Trace
from anytime.training.config import read_recipe

META = {
    "model": "by hand",
    "parameters": 5,
    "dataset": "CIFAR10",
    "part": "test",
    "recipe": {"epochs": 8, "objective": "Weighted", "data": {"class_path": "CIFAR10", "init_args": {}}},
    "trained_on": "CPU",
    "hardware": "CPU",
    "date": "2026-01-01T00:00:00",
}


def trace(wrong: list[int], contract: list[int], norms: list[list[float]] | None = None) -> Trace:
    """100 samples, `wrong[t]` of them wrong at step t; the stream costs the sum of all sub-networks so far."""
    right = torch.arange(100) >= torch.tensor(wrong)[:, None]
    return Trace(
        logits=torch.stack([right, ~right], 2).float(),
        labels=torch.zeros(100, dtype=torch.int64),
        macs=torch.tensor(contract).cumsum(0),
        contract_macs=torch.tensor(contract),
        seconds=None,
        class_names=("right", "wrong"),
        meta=META | {"model_arguments": {} if norms is None else {"branch_l1_norms": norms}},
    )


def claims(result: Any) -> dict[str, Any]:
    json.dumps(plain([result.numbers, result.claims]), allow_nan=False)
    return {claim.statement: claim.to_dict() for claim in result.claims}


# -- the trainings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", ["cpu", "fast", "full"])
def test_all_trainings_share_one_recipe_except_for_the_model(scale):
    runs = [run for item in STUDY.items.values() for run in item.runs("cifar10", scale, [0])]
    other = STUDY.items["figure 4"].runs("cifar100", scale, [0])[0].config()
    names = {run.name: run for run in runs}
    configs = {name: run.config() for name, run in names.items()}
    first = next(iter(configs.values()))
    (sandwich,) = (name for name in configs if "sandwich" in name)
    assert configs[sandwich].pop("regime")["init_args"]["samples"] == (2 if scale == "full" else 1)
    for config in configs.values():
        same = first.keys() - {"model", *first.keys() - config.keys()}
        assert {key: config[key] for key in same} == {key: first[key] for key in same}
    assert all("regime" in config for name, config in configs.items() if name != sandwich)
    assert first["objective"]["init_args"]["weights"] == "constant"
    own = other["data"]["init_args"].keys() - first["data"]["init_args"].keys()
    assert own == {"labels"}
    assert other["data"]["init_args"] == first["data"]["init_args"] | {"labels": "fine"}
    assert len(names) == (2 + 7 + 7 + 1 + 1 + 3 if scale == "full" else 8)
    assert all(names[run.name] == run and names[run.name].views == run.views for run in runs)


def test_the_published_setting():
    recipe = read_recipe(find_recipe("lee2018_cifar10.yaml"))
    assert recipe["epochs"] == 300
    assert recipe["schedule"]["init_args"] == {"milestones": [0.5, 0.75], "gamma": 0.1}
    assert recipe["optimizer"]["init_args"] == {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.0001}
    assert recipe["data"]["init_args"] == {"validation": 0.1, "batch_size": 64}
    deep, sparse, _ = (run.config()["model"] for run in STUDY.items["figure 4"].runs("cifar10", "full", [0]))
    shape = {key: deep["init_args"][key] for key in ("blocks", "width", "steps", "cardinality", "batch_norm")}
    assert shape == {"blocks": [7, 7, 7], "width": 64, "steps": 8, "cardinality": 8, "batch_norm": "independent"}
    shape = {key: sparse["init_args"][key] for key in ("blocks", "width", "steps", "cardinality")}
    assert shape == {"blocks": [5, 5, 5], "width": 96, "steps": 6, "cardinality": 18}


def build(run: Any) -> Any:
    model = run.config()["model"]
    more = {"input_size": (3, 32, 32)} if model["class_path"] == "attach" else {}
    return create_model(model["class_path"], 10, **model["init_args"] | more)


def test_sub_networks_trained_alone_cost_what_they_cost_jointly():
    """So each dashed line of figure 3c shares its costs with the solid one; up to 29 layers, 8 thin and 8 shallow nets."""
    by_name = {name: run for run in STUDY.items["figure 3c"].runs("cifar10", "full", [0]) for name in run.views}
    size = (3, 32, 32)
    joint = step_macs(build(by_name["I-ResNeXt"]), size, contract=True)
    assert [round(macs / 1e6, 1) for macs in (joint[0], joint[-1])] == [7.8, 50.1]
    thin = [build(by_name[thin_alone(k, 8)]) for k in (1, 8)]
    assert [step_macs(model, size) for model in thin] == [[joint[k - 1]] for k in (1, 8)]
    shallow = build(by_name["ResNeXt with exits"])
    assert shallow.num_steps == 8
    alone = [build(by_name[shallow_alone(count)]) for count in (2, 4)]
    costs = step_macs(shallow, size, contract=True)
    assert [step_macs(model, size) for model in alone] == [[costs[count - 2]] for count in (2, 4)]
    assert costs[-1] == joint[-1]
    parameters = [sum(p.numel() for p in model.parameters()) for model in (shallow, thin[-1])]
    heads = sum(p.numel() for head in shallow.heads for p in head.parameters())
    assert parameters[0] - heads == parameters[1]


def test_the_shallow_network_is_the_full_thin_one():
    """With equal weights, the network with exits and the ResNeXt trained alone give equal answers."""
    runs = {name: run for run in STUDY.items["figure 3c"].runs("cifar10", "cpu", [0]) for name in run.views}
    plain_network, shallow = build(runs["ResNeXt"]).double().eval(), build(runs["ResNeXt with exits"]).double().eval()
    shallow.backbone.load_state_dict({k: v for k, v in plain_network.subnetwork(1).state_dict().items() if "." in k})
    x = torch.rand(2, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(shallow(x)[-1], plain_network(x)[0], rtol=0, atol=1e-10)
        head = shallow.heads[0].layers
        two = plain_network.blocks[1](plain_network.blocks[0](plain_network.stem(x), 1), 1)
        torch.testing.assert_close(shallow(x)[0], head(two), rtol=0, atol=1e-10)


def test_norms_go_into_the_trace():
    model = create_model("iresnext", blocks=(1, 1), width=8, steps=2, cardinality=4, bottleneck=2)
    arguments = dict(model.config["arguments"])
    norms = branch_l1_norms(model).tolist()
    assert with_norms(model).config["arguments"] == arguments | {"branch_l1_norms": norms}


# -- the figures -----------------------------------------------------------------------------------------------------------


def test_figure_3a_by_hand():
    costs = [10, 20, 40]
    traces = {
        "I-ResNeXt": {0: trace([20, 12, 10], costs), 1: trace([30, 12, 10], costs)},
        "I-ResNeXt, shared BN": {0: trace([80, 30, 12], costs), 1: trace([70, 18, 13], costs)},
    }
    result = figure_3a(traces, "cifar10")
    rows = result.numbers["rows"]
    assert [row["independent"] for row in rows] == pytest.approx([0.25, 0.12, 0.1])
    assert [row["reduction"] for row in rows] == pytest.approx([1 - 25 / 75, 0.5, 0.2])
    assert [row.get("paper_shared") for row in rows] == [0.705, None, 0.0896]
    by_statement = claims(result)
    half = by_statement["independent batch norm at least halves the errors of the thinnest sub-network"]
    assert (half["shows"], half["seeds"]) == (True, 2)
    assert (half["gain"], half["standard_error"]) == (pytest.approx(0.5), pytest.approx(0.1))
    assert half["paper"]["relative_reduction"] == 0.817
    assert all(claim["shows"] for claim in by_statement.values())
    assert len(result.figure.axes[0].lines) == 4
    worse = figure_3a(
        traces | {"I-ResNeXt, shared BN": {0: trace([40, 30, 9], costs), 1: trace([40, 30, 9], costs)}}, "cifar100"
    )
    assert [claim.shows for claim in worse.claims] == [False, False, True]
    assert worse.numbers["published"] is None
    assert "NO       independent batch norm at least halves" in worse.text


@pytest.mark.parametrize(
    ("shared", "reductions", "shows"),
    [
        ([0, 30, 0], [None, 0.6, None], [False, None, None]),  # neither makes an error at the ends
        ([0, 30, 10], [None, 0.6, 1.0], [False, None, None]),
        ([10, 30, 0], [1.0, 0.6, None], [False, True, None]),
    ],
)
def test_figure_3a_of_networks_without_errors(shared, reductions, shows):
    costs = [10, 20, 40]
    traces = {"I-ResNeXt": {0: trace([0, 12, 0], costs)}, "I-ResNeXt, shared BN": {0: trace(shared, costs)}}
    result = figure_3a(traces, "cifar10")
    assert [row["reduction"] for row in plain(result.numbers["rows"])] == reductions
    assert [claim.shows for claim in result.claims] == shows
    traces = {"I-ResNeXt": {0: trace([5, 6, 7], costs)}, "I-ResNeXt, shared BN": {0: trace([0, 9, 9], costs)}}
    worse = figure_3a(traces, "cifar10")
    assert worse.numbers["rows"][0]["reduction"] == -math.inf
    assert [claim.shows for claim in worse.claims] == [False, False, False]


def test_figure_3b_by_hand():
    norms = [[4.0, 3.0], [9.0, 9.0], [8.0, 2.0]], [[4.0, 4.0], [7.0, 7.0], [4.0, 4.0]]
    flat = [[2.0, 2.0], [1.0, 3.0], [4.0, 3.0]]
    traces = {
        "I-ResNeXt": {seed: trace([10], [10], given) for seed, given in enumerate(norms)},
        "ResNeXt": {seed: trace([10], [10], flat) for seed in range(2)},
    }
    result = figure_3b(traces, "cifar10")
    assert result.numbers["block"] == 2
    assert result.numbers["norms"]["I-ResNeXt"].tolist() == [[4.0, 3.5], [8.0, 8.0], [6.0, 3.0]]
    assert result.numbers["falls"]["I-ResNeXt"].tolist() == [0.125, 0.0, 0.5]
    assert result.numbers["falls"]["ResNeXt"].tolist() == [0.0, -2.0, 0.25]
    assert [claim.shows for claim in result.claims] == [False, True, True]
    json.dumps(plain([result.numbers, result.claims]), allow_nan=False)


def test_figure_3c_by_hand():
    """Thin sub-networks lose at most 2 points, shallow ones 8. At 20 and 40 MACs shallow ones have 30 % and 12 % errors."""
    traces = {
        "I-ResNeXt": {0: trace([22, 18, 12], [10, 20, 40])},
        "ResNeXt with exits": {0: trace([38, 22, 12], [15, 25, 40])},
        "ResNeXt, 1 of 3 branches": {0: trace([20], [10])},
        "ResNeXt, 2 blocks": {0: trace([30], [15])},
        "ResNeXt": {0: trace([11], [40])},
    }
    result = figure_3c(traces, "cifar10")
    rows = {(row["kind"], row["step"]): row for row in result.numbers["rows"]}
    assert [row.get("loss") for row in rows.values()] == [
        pytest.approx(0.02),
        None,
        pytest.approx(0.01),
        pytest.approx(0.08),
        None,
        pytest.approx(0.01),
    ]
    by_statement = claims(result)
    loss = by_statement["joint training costs the thin sub-networks less than the shallow ones"]
    assert loss["shows"] is True
    assert loss["largest_loss"] == {"thin": pytest.approx(0.02), "shallow": pytest.approx(0.08)}
    assert loss["paper"]["largest_loss"] == {"thin": 0.012, "shallow": 0.051}
    thinnest = by_statement["trained jointly, the thinnest makes fewer errors than the shallowest for fewer MACs"]
    assert (thinnest["shows"], thinnest["gain"]) == (True, pytest.approx(0.16))
    assert thinnest["relative"] == pytest.approx(1 - 22 / 38)
    assert by_statement["trained alone, the thinnest makes fewer errors than the shallowest"]["shows"] is True
    equal = by_statement["trained jointly, thin sub-networks make fewer errors than shallow ones at equal MACs"]
    assert equal["relative_error_saved"][1:] == pytest.approx([1 - 18 / 30, 0])
    assert equal["relative_error_saved"][0] != equal["relative_error_saved"][0]  # no shallow one is as cheap
    assert equal["shows"] is False  # because the full networks are equal here
    assert len(result.figure.axes[0].lines) == 4
    perfect = figure_3c(traces | {"ResNeXt with exits": {0: trace([0, 0, 0], [15, 25, 40])}}, "cifar10")
    thinnest = claims(perfect)["trained jointly, the thinnest makes fewer errors than the shallowest for fewer MACs"]
    assert (thinnest["shows"], thinnest["relative"]) == (False, -math.inf)


def test_figure_4_by_hand():
    """At equal MACs alone, inclusive ones are better; in the stream, a sparse one costs only as much as it does alone."""
    sparse = trace([30, 20, 12], [10, 20, 40])
    object.__setattr__(sparse, "macs", torch.tensor([10, 20, 40]))
    sandwich = trace([27, 16, 10], [10, 20, 40])
    sandwich.meta["recipe"] = {"regime": {"init_args": {"samples": 1}}}
    traces = {"I-ResNeXt": {0: trace([28, 15, 10], [10, 20, 40], [[1.0]])}, "IS-ResNeXt": {0: sparse}}
    traces["I-ResNeXt, sandwich"] = {0: sandwich}
    result = figure_4(traces, "cifar100")
    by_statement = claims(result)
    alone = by_statement["at equal MACs alone, IS-ResNeXt makes slightly more errors than I-ResNeXt"]
    assert alone["relative_error_saved_by_I"] == pytest.approx([1 - 28 / 30, 0.25, 1 - 10 / 12])
    assert alone["shows"] is True
    stream = by_statement["at equal MACs of the stream, IS-ResNeXt makes fewer errors than I-ResNeXt, which reuses nothing"]
    assert stream["relative_error_saved_by_IS"] == pytest.approx([1 - 30 / 28, 1 - 20 / 21.5, 1 - 12 / 13.75])
    assert stream["shows"] is False
    assert by_statement["each sub-network of IS-ResNeXt makes fewer errors than the thinner one"]["shows"] is True
    cheaper = by_statement["by the sandwich recipe no sub-network of I-ResNeXt makes more errors than by K passes"]
    assert (cheaper["shows"], cheaper["training_macs_of_K_passes"]) == (False, 1.0)
    assert cheaper["more_errors"] == pytest.approx([-0.01, 0.01, 0])
    assert "branch_l1_norms" not in result.numbers["networks"]["I-ResNeXt"]["arguments"]
    assert result.numbers["published"]["against MSDNet, relatively"]["MACs saved, up to"] == 0.487
    deeper = figure_4(traces | {"I-ResNeXt-65": {0: trace([25, 15, 9], [20, 30, 60])}}, "cifar10")
    assert deeper.numbers["networks"]["I-ResNeXt"]["error"] == pytest.approx([0.25, 0.15, 0.09])


def test_the_trainings_of_figure_5():
    for scale, batch in {"cpu": 128, "fast": 128, "full": 64}.items():
        (run,) = STUDY.items["figure 5"].runs("cifar100", scale, [3])
        config = run.config()
        assert (config["model"]["class_path"], config["seed"]) == ("isresnext", 3)
        data = config["data"]["init_args"]
        assert (config["data"]["class_path"], data["labels"], data["validation"]) == ("CIFAR100", "both", 0.1)
        assert data["batch_size"] == batch
        assert config["objective"]["class_path"] == "Hierarchical"
        assert config["objective"]["init_args"]["weights"] == "constant"
        assert config["optimizer"]["init_args"]["weight_decay"] == 0.0001
        assert list(run.views.items()) == [
            ("IS-ResNeXt, label levels", None),
            ("IS-ResNeXt, label levels, on validation", on_validation),
        ]
    assert STUDY.items["figure 5"].runs("cifar10", "cpu", [0]) == []


def test_figure_5_by_hand():
    """Of four images, 1, 2, 3 classes and 2, 3, 4 superclasses are right, in both seeds except for one answer."""
    right = torch.arange(4) < torch.tensor([[[1, 2, 3], [2, 3, 4]], [[1, 2, 4], [2, 3, 4]]])[..., None]  # [S, D, T, N]
    fine, coarse = torch.nn.functional.one_hot((~right).long(), 3).float().unbind(1)
    by_hand = trace([50, 40, 30], [10, 20, 40])
    logits = torch.cat([fine, coarse[..., :2]], 3)
    facts = {"labels": torch.zeros(4, 2, dtype=torch.int64), "class_names": tuple("abcde")}
    meta = {**by_hand.meta, "levels": [3, 2]}
    test = {s: replace(by_hand, logits=logits[s], meta=meta, **facts) for s in range(2)}
    result = figure_5({"IS-ResNeXt, label levels": test, "IS-ResNeXt, label levels, on validation": test}, "cifar100")
    assert result.numbers["error"]["3 classes"].tolist() == [0.75, 0.5, 0.125]
    assert result.numbers["error"]["2 classes"].tolist() == [0.5, 0.25, 0.0]
    by_statement = claims(result)
    assert all(claim["shows"] for claim in by_statement.values())
    worst = by_statement["a label level chosen for each sub-network raises the worst accuracy of any"]
    assert worst["worst_accuracy"] == {"class alone": 0.25, "level chosen": 0.5}
    assert worst["paper"]["worst_accuracy"] == {"class alone": 0.312, "level chosen": 0.475}
    assert worst["levels_chosen"] == {0: (1, 0, 0), 1: (1, 0, 0)}
    assert len(result.figure.axes[0].lines) == 2
    other = {s: replace(trace, logits=trace.logits[[2, 1, 0]]) for s, trace in test.items()}  # steps in reverse order
    result = figure_5({"IS-ResNeXt, label levels": test, "IS-ResNeXt, label levels, on validation": other}, "cifar100")
    worst = claims(result)["a label level chosen for each sub-network raises the worst accuracy of any"]
    assert worst["levels_chosen"] == {0: (0, 0, 1), 1: (0, 0, 1)}
    assert (worst["shows"], worst["worst_accuracy"]["level chosen"]) == (False, 0.25)


# -- from end to end -------------------------------------------------------------------------------------------------------


def test_from_end_to_end_on_digits(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    trained: list[str] = []

    def train(arguments, log):
        trained.append(arguments[-1])
        return main(["train", *arguments])

    monkeypatch.setattr(command, "run_all", functools.partial(run_all, train=train))
    tiny = Scale(
        data={"cifar10": ("lee2018_cifar10_cpu.yaml", ("--data=Digits",))},
        ablation=("--model.blocks=[1,2]", "--model.width=8", "--model.steps=2", "--model.cardinality=2"),
        blocks=(1, 2),
        width=8,
        cardinality=2,
        thin=(1,),
        shallow=(2,),
        sparse=("--model.blocks=[1,1]", "--model.width=8", "--model.steps=2", "--model.cardinality=2"),
        samples=0,
        deep=False,
        levels=("hierarchical_cifar100.yaml", ()),
    )
    monkeypatch.setitem(SCALES, "cpu", tiny)
    arguments = ["lee2018", "--seeds", "0", "--data=cifar10", "--epochs=1", "--data.limit=64"]
    arguments += ["--precision=32-true", "--compile=false", "--progress=false"]
    assert command.run(arguments) == 0
    assert len(trained) == 8
    folder = tmp_path / "results/lee2018"
    for figure in ("3a", "3b", "3c", "4"):
        numbers = json.loads((folder / f"figure_{figure}_cifar10_cpu.json").read_text())
        assert (folder / f"figure_{figure}_cifar10_cpu.png").is_file()
        assert (numbers["dataset"], numbers["epochs"], numbers["seeds"], numbers["images"]) == ("Digits", 1, [0], 360)
        assert all(claim["shows"] in (True, False, None) for claim in numbers["claims"])
    norms = json.loads((folder / "figure_3b_cifar10_cpu.json").read_text())["norms"]
    assert [len(row) for row in norms["I-ResNeXt"]] == [2] * 3
    assert "joint training costs the thin sub-networks less than the shallow ones" in capsys.readouterr().out
