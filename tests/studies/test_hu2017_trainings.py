"""The trainings of Hu et al. (2017) match the paper, and the numbers that it publishes are read correctly."""

import math
from dataclasses import replace

import pytest
import torch

from anytime.cli import main
from anytime.studies import find_recipe
from anytime.studies.hu2017 import STUDY
from anytime.studies.hu2017 import published as hu2017_published
from anytime.studies.hu2017.networks import PERIOD_WIDTH, SCALES, Base, TrainedNet, last_optimal, milestone_exits
from anytime.studies.hu2017.published import METRICS, TABLE_1, TABLE_4, TABLE_6, compared, mean_increase
from anytime.training.config import find, read_recipe

CPU = SCALES["cpu"].chosen


def test_the_trainings_of_table_1_are_ordered_by_value():
    runs = STUDY.items["table 1"].runs("cifar10", "cpu", [0])
    assert [run.name.removeprefix("cifar10_cpu_").removesuffix("_n3_c16_seed0") for run in runs] == [
        *("optimal_9", "constant", "sieve", "adaloss", "linear", "expb2", "optimal_6", "optimal_4", "optimal_2"),
        *("halfend", "expb05", "aann", "nograd"),
    ]
    assert list(runs[0].views) == [last_optimal(CPU).name, TrainedNet("midfeat", CPU).name]
    assert [run.name for run in STUDY.items["table 1a"].runs("cifar10", "cpu", [0])] == [run.name for run in runs[:6]]
    assert [run.name for run in STUDY.items["table 1b"].runs("cifar10", "cpu", [0])] == [run.name for run in runs[:9]]
    cifar100 = STUDY.items["table 1"].runs("cifar100", "cpu", [0])
    assert [run.name.split("_")[2] for run in cifar100] == ["optimal", "constant", "sieve"]
    assert cifar100[0].config()["data"]["init_args"]["validation"] == 0
    assert list(cifar100[0].views) == [last_optimal(CPU).name]


def test_at_full_scale_the_largest_weight_is_1():
    for run in STUDY.items["table 1"].runs("cifar10", "full", [3]):
        objective = run.config()["objective"]
        built = find("objective", objective["class_path"])(**objective["init_args"])
        if hasattr(built, "step_weights"):
            assert float(built.step_weights(torch.zeros(9, dtype=torch.float64)).max()) == pytest.approx(1, abs=1e-12)


def test_only_objective_and_regime_differ_and_the_largest_weight_is_1():
    runs = STUDY.items["table 1"].runs("cifar10", "cpu", [3]) + STUDY.items["table 5"].runs("cifar10", "cpu", [3])
    configs = [run.config() for run in runs]
    for config in configs:
        assert {k: v for k, v in config.items() if k not in ("model", "objective")} == {
            k: v for k, v in configs[0].items() if k not in ("model", "objective")
        }
        arguments = config["model"]["init_args"]
        assert (arguments["units"], arguments["width"], arguments["period"]) == (3, 16, 1)
        objective = find("objective", config["objective"]["class_path"])(**config["objective"]["init_args"])
        if hasattr(objective, "step_weights"):
            weights = objective.step_weights(torch.zeros(9, dtype=torch.float64))
            assert float(weights.max()) == pytest.approx(1, abs=1e-12)
        if "seed" in config["objective"]["init_args"]:
            assert objective.seed == 3
        if "warmup" in config["objective"]["init_args"]:
            assert objective.warmup == 100
        if config["objective"]["class_path"] == "AdaLoss":
            assert objective.update_every == 100, "as in the stored results"
    regimes = {
        run.name.split("_")[2]: config["model"]["init_args"]["regime"] for run, config in zip(runs, configs, strict=True)
    }
    assert {name for name, regime in regimes.items() if regime != "joint"} == {"nograd"}
    kinds = {run.name.split("_")[2]: c["objective"]["class_path"] for run, c in zip(runs, configs, strict=True)}
    assert {name: kinds[name] for name in ("aann", "milestone", "exp3", "rwm", "avgl", "adaloss", "optimal", "sieve")} == {
        "aann": "AANN",
        "milestone": "Milestone",
        "exp3": "EXP3",
        "rwm": "RWM",
        "avgl": "AVGL",
        "adaloss": "AdaLoss",
        "optimal": "Optimal",
        "sieve": "Weighted",
    }


@pytest.mark.parametrize(
    ("base", "units"),
    [(Base(5, 16), (3, 7, 11, 15)), (Base(9, 16), (6, 13, 20, 27)), (Base(25, 16, 3), (18, 36, 54, 75))],
)
def test_exits_at_the_milestones_of_cost(base, units):
    assert tuple(base.exits[exit - 1] for exit in milestone_exits(base)) == units


def test_full_scale_is_the_setting_of_the_paper():
    recipe = read_recipe(find_recipe("hu2017_cifar10.yaml"))
    assert recipe["epochs"] == 164  # 64,000 steps of 128 of 50,000 images
    assert recipe["schedule"]["init_args"] == {"milestones": [0.5, 0.75], "gamma": 0.1}
    assert recipe["optimizer"]["init_args"] == {"lr": 0.1, "momentum": 0.9, "nesterov": False, "weight_decay": 0.0001}
    full = SCALES["full"]
    assert len(full.models) == 13
    assert {base.period for base in full.models if base.units == 25} == {3}
    first = STUDY.items["table 1"].runs("cifar10", "full", [0])[0].config()
    assert (first["model"]["init_args"]["units"], first["model"]["init_args"]["width"]) == (5, 16)
    assert first["data"]["init_args"]["validation"] == 5000
    table_4 = STUDY.items["table 4"].runs("cifar100", "full", [0])
    assert len(table_4) == sum(map(len, TABLE_4.values()))
    assert table_4[-1].config()["data"]["init_args"]["validation"] == 0
    svhn = STUDY.items["figure 4"].runs("svhn", "full", [0])[0].config()
    assert (svhn["data"]["init_args"]["batch_size"], svhn["epochs"]) == (64, 60)
    assert {n: tuple(periods) for n, periods in TABLE_4.items()} == full.periods
    assert [base.exits[-1] for base in full.members] == [3, 9, 21, 39, 75]


def test_scales_that_share_networks_differ_only_in_their_recipes():
    """Traces do not name their scale, so a table is made by the first scale that has all of its networks."""
    cpu, full = (
        {scale.chosen, scale.sampled, *scale.models, *scale.members} | {Base(n, PERIOD_WIDTH) for n in scale.periods}
        for scale in (SCALES["cpu"], SCALES["full"])
    )
    assert not cpu & full
    assert replace(SCALES["fast"], recipes=SCALES["cpu"].recipes) == SCALES["cpu"]
    fast = STUDY.items["figure 4"].runs("cifar100", "fast", [0])[0].config()
    assert (fast["epochs"], fast["data"]["class_path"], fast["data"]["init_args"]["flip"]) == (2, "CIFAR100", "alternating")


def test_published_numbers():
    assert len(TABLE_1["cifar10"]) == 9
    assert TABLE_1["cifar100"]["sieve"] == {"1/4": 73.37, "1/2": 50.64, "3/4": 39.20, "1": 30.48, "AE": 55.51}
    assert TABLE_6["cifar10", 9, 128, "AANN"] == {"1/4": 9.97, "1/2": 5.53, "3/4": 4.59, "1": 4.41, "AE": 8.57}
    assert TABLE_6["svhn", 7, 16, "sieve"] == {"1/4": 6.97, "1/2": 3.50, "3/4": 2.62}
    assert ("svhn", 17, 32, "RWM") not in TABLE_6
    for method, values in {"sieve": (54.9, 28.7, 13.5, 2.7), "AANN": (49.4, 22.7, 5.6, 1.1)}.items():
        truncated = {("svhn", 7, 16, "sieve")}  # truncated in our copy
        complete = {key: row for key, row in TABLE_6.items() if key not in truncated}
        for metric, value in zip(METRICS, values, strict=False):
            ours = [
                row[metric] / complete[(*key[:3], "optimal")][metric] - 1
                for key, row in complete.items()
                if key[3] == method and (*key[:3], "optimal") in complete
            ]
            assert len(ours) == 33
            assert 100 * sum(ours) / 33 == pytest.approx(value, abs=0.06)
    assert mean_increase("AANN", "1/4") == pytest.approx(0.494, abs=6e-4)
    assert math.isnan(mean_increase("midfeat", "1"))
    count = compared("AANN", "AE")
    assert count is not None
    assert count.runs == 33
    assert sum(compared("AANN", "3/4", data).better for data in hu2017_published.DATA) == compared("AANN", "3/4").better
    assert compared("optimal", "AE") is None


def test_flags_that_the_study_compares_cannot_be_set(capsys, monkeypatch):
    monkeypatch.setattr("anytime.commands.study.training_seconds", lambda config: None)
    for flag in ("--model.units=5", "--objective.exit=3"):
        assert main(["study", "hu2017", "--table", "1b", "--dry-run", flag]) == 2
        assert f"{flag.partition('=')[0]} cannot be set: it is what hu2017 compares" in capsys.readouterr().err
    assert main(["study", "hu2017", "--table", "1a", "--seeds", "0", "--dry-run", "--model.first_relu=true"]) == 0
