"""The leaderboard: every row is small enough, builds and answers; the area; rows by hand; and an end-to-end run."""

import functools
import json
import math
import re
import shutil
import warnings
from pathlib import Path

import pytest
import torch

from anytime import create_model
from anytime.analysis.area import log_area
from anytime.cli import main
from anytime.commands import study as command
from anytime.studies import run_all
from anytime.studies.leaderboard import STUDY, board, networks
from anytime.studies.leaderboard import rows as rows_module
from anytime.studies.leaderboard.networks import MOST_PARAMETERS, NETWORKS, Network
from anytime.studies.leaderboard.rows import recipe_of
from anytime.trace import Trace

# -- the networks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("net", NETWORKS, ids=lambda net: net.name)
def test_every_network_is_small_enough_builds_and_answers(net):
    """With 100 classes, so that it is small enough with 10 as well."""
    more = {"input_size": (3, 32, 32)} if net.model == "attach" else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # attach says where no place is near
        model = create_model(net.model, 100, **net.arguments, **more).eval()
    assert sum(p.numel() for p in model.parameters()) <= MOST_PARAMETERS
    with torch.inference_mode():
        answers = model(torch.rand(1, 3, 32, 32))
    assert answers.shape == (model.num_steps, 1, 100)
    assert bool(answers.isfinite().all())
    assert (model.num_steps == 1) is net.static


def test_one_recipe_for_all():
    runs = STUDY.items["table 1"].runs("cifar100", "fast", [0])
    assert len({run.name for run in runs}) == len(NETWORKS)
    configs = {net.name: run.config() for net, run in zip(NETWORKS, runs, strict=True)}
    first = configs[NETWORKS[0].name]
    for net in NETWORKS:
        config = configs[net.name]
        for key in ("data", "epochs", "channels_last", "gradient_clip", "seed", "normalize"):
            assert config[key] == first[key], f"{net.name}: {key}"
        if "optimizer" not in net.flags:
            assert (config["optimizer"], config["schedule"]) == (first["optimizer"], first["schedule"])
        assert config["model"]["class_path"] == net.model
        given = config["model"]["init_args"]
        assert {key: given[key] for key in net.arguments} == net.arguments, net.name
    assert (first["data"]["class_path"], first["data"]["init_args"]["validation"], first["epochs"]) == ("CIFAR100", 0, 6)
    assert configs["cascaded TD"]["objective"] == {
        "class_path": "TDLambda",
        "init_args": {"lam": 0, "reduction": "sum", "skip": 0, "outputs": "classification"},
    }
    assert STUDY.items["table 1"].runs("cifar10", "full", [3])[0].config()["epochs"] == 100


# -- the area --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("costs", "values"),
    [([2.0, 30.0, 500.0], [0.4, 0.7, 0.6]), ([0.5, 3.0], [0.3, 0.9]), ([5000.0], [0.9]), ([1.0, 1000.0], [0.5, 0.9])],
)
def test_the_area_is_the_mean_accuracy_over_log_budgets(costs, values):
    low, high, guess, points = 1.0, 1000.0, 0.1, 20_000
    total = 0.0
    for i in range(points):
        budget = math.exp(math.log(low) + (i + 0.5) / points * math.log(high / low))
        affordable = [value for cost, value in zip(costs, values, strict=True) if cost <= budget]
        total += affordable[-1] if affordable else guess
    assert log_area(costs, values, low, high, guess) == pytest.approx(total / points, abs=1e-4)


def test_the_area_is_not_of_other_things():
    assert log_area([10, 100], [0.5, 0.9], 1, 1000, 0.1) == pytest.approx(0.5)
    for costs, values, low, high, message in (
        ([], [], 1, 2, "0 costs and 0 accuracies"),
        ([1, 2], [0.5], 1, 2, "2 costs and 1 accuracies"),
        ([2, 1], [0.5, 0.6], 1, 2, "rise from answer to answer"),
        ([0, 1], [0.5, 0.6], 1, 2, "above 0"),
        ([1], [0.5], 2, 2, "0 < low < high"),
    ):
        with pytest.raises(ValueError, match=message):
            log_area(costs, values, low, high, 0.1)


# -- the table -------------------------------------------------------------------------------------------------------------


def trace(right: list[int], macs: list[int]) -> Trace:
    """100 images, the first `right[t]` of them answered correctly at step t."""
    correct = torch.arange(100) < torch.tensor(right)[:, None]
    meta = {
        **{"parameters": 5, "dataset": "CIFAR10", "part": "test", "trained_on": "CPU", "hardware": "CPU"},
        **{"input_size": [3, 32, 32], "model_arguments": {}, "date": "2026-01-01T00:00:00"},
        "recipe": networks.runs("cifar10", "fast", [0])[0].config(),
    }
    logits = torch.stack([correct, ~correct], 2).float()
    return Trace(logits, torch.zeros(100, dtype=torch.int64), torch.tensor(macs), None, None, ("a", "b"), meta=meta)


def test_rows_by_hand(monkeypatch):
    monkeypatch.setattr(board, "build", lambda *_: None)
    monkeypatch.setattr(rows_module, "is_current", lambda *_: True)
    monkeypatch.setattr(board, "one_thread_seconds", lambda found, _: {n: [0.001] * traces[n][0].num_steps for n in found})
    million = 1_000_000
    traces = {
        "AnytimeNet": {0: trace([60, 70, 90], [2 * million, 10 * million, 100 * million])},
        "MSDNet": {0: trace([65, 80], [4 * million, 40 * million]), 1: trace([67, 82], [4 * million, 40 * million])},
        "ResNet-20 (8)": {0: trace([75], [8 * million])},
    }
    result = board.leaderboard(traces, "cifar10")
    rows = {row["network"]: row for row in result.numbers["rows"]}
    assert rows["MSDNet"]["accuracy"] == pytest.approx([0.66, 0.81])
    assert [training["seed"] for training in rows["MSDNet"]["trainings"]] == [0, 1]
    assert (result.numbers["seeds"], result.numbers["epochs"], result.numbers["classes"]) == ([0, 1], [6], 2)
    assert rows["AnytimeNet"]["below_static"] == 1  # 70 % for 10 M MACs is below 75 % for 8 M; 60 % for 2 M is not
    assert rows["MSDNet"]["below_static"] == 0
    assert "below_static" not in rows["ResNet-20 (8)"]
    assert [row["area"] for row in result.numbers["rows"]] == sorted((row["area"] for row in rows.values()), reverse=True)
    expected = (0.5 * math.log(8) + 0.75 * math.log(25)) / math.log(200)  # before 8 M: guessing one of two classes
    assert rows["ResNet-20 (8)"]["area"] == pytest.approx(expected)
    assert result.numbers["not_trained_yet"] == [net.name for net in NETWORKS if net.name not in traces]
    assert "missing, because not trained yet: cascaded TD, serial TD, ANN, sieve" in result.text
    assert "70.0% at 10.00 M, 1.00 ms" in result.text
    with pytest.raises(ValueError, match="none of its networks is trained yet"):
        board.leaderboard({}, "cifar10")


# -- from end to end -------------------------------------------------------------------------------------------------------

TINY = (
    Network("tiny", "anytimenet", {"blocks": [1, 2, 1], "scheme": [[1, 1, 1], [0, 1, 0]], "width": 4}),
    Network("still", "anytimenet_baseline", {"blocks": [1, 1, 1], "width": 4}, static=True),
)


WORDS = ["leaderboard", "--epochs=1", "--precision=32-true", "--compile=false", "--progress=false"]
TABLE = Path("results/leaderboard/table_1_cifar10_fast.json")


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """Trains within this process, on few digits; names of the run directories in which trainings began."""
    began = []

    def train(words, log):
        began.append(Path(words[words.index("--run") + 1]).name)
        return main(["train", *words])

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "run_all", functools.partial(run_all, train=train))
    monkeypatch.setattr(board, "one_thread_seconds", functools.partial(board.one_thread_seconds, rounds=1))
    monkeypatch.setitem(networks.DATA, "cifar10", ("--data=Digits", "--data.limit=64"))
    for module in (networks, board):
        monkeypatch.setattr(module, "NETWORKS", TINY)
    return began


def test_from_end_to_end_on_digits(trained, monkeypatch, capsys):
    for module in (networks, board):
        monkeypatch.setattr(module, "NETWORKS", TINY[:1])
    assert command.run([*WORDS, "--finished"]) == 0
    assert "table 1 is left out: 1 of its 1 trainings are not finished" in capsys.readouterr().out
    assert command.run(WORDS) == 0
    for module in (networks, board):
        monkeypatch.setattr(module, "NETWORKS", TINY)
    assert command.run([*WORDS, "--finished"]) == 0
    assert "missing, because not trained yet: still" in capsys.readouterr().out
    assert command.run(WORDS) == 0
    assert trained == ["cifar10_fast_tiny_seed0", "cifar10_fast_still_seed0"]
    numbers = json.loads(TABLE.read_text())
    assert TABLE.with_suffix(".png").is_file()
    assert (numbers["not_trained_yet"], numbers["dataset"], numbers["images"]) == ([], "Digits", 360)
    assert numbers["timed_on"].endswith("1 thread")
    rows = {row["network"]: row for row in numbers["rows"]}
    assert set(rows) == {"tiny", "still"}
    for row in rows.values():
        assert len(row["seconds"]) == len(row["accuracy"]) == len(row["macs"])
        assert row["training_seconds"] > 0
        assert row["images_per_second"] > 0
        assert sorted(row["seconds"]) == row["seconds"]


def measured(table):
    """What a table says of its networks to 4 digits, without their times, which are measured for each table."""

    def rounded(value):
        if isinstance(value, dict):
            return {key: rounded(item) for key, item in value.items() if key != "seconds"}
        if isinstance(value, list):
            return [rounded(item) for item in value]
        return float(f"{value:.4g}") if isinstance(value, float) else value

    return {row["network"]: rounded(row) for row in table["rows"]}


def test_rows_of_the_table_are_not_trained_again(trained, capsys):
    assert command.run(WORDS) == 0
    first = json.loads(TABLE.read_text())
    shutil.rmtree("runs")
    del trained[:]
    assert command.run([*WORDS, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "so not trained again: cifar10_fast_still_seed0, cifar10_fast_tiny_seed0" in said
    assert "# nothing to train" in said
    for how in ([], ["--finished"]):
        assert command.run([*WORDS, *how]) == 0
        again = json.loads(TABLE.read_text())
        assert measured(again) == measured(first)
        assert {**again, "rows": []} == {**first, "rows": []}
    assert trained == []
    assert command.run([*WORDS, "--seeds", "0", "1"]) == 0
    assert trained == ["cifar10_fast_tiny_seed1", "cifar10_fast_still_seed1"]
    both = json.loads(TABLE.read_text())
    for name, row in measured(first).items():
        assert [training["seed"] for training in measured(both)[name]["trainings"]] == [0, 1]
        assert measured(both)[name]["trainings"][0] == row["trainings"][0]
    shutil.rmtree("runs")
    for seeds in ([], ["--seeds", "1"]):  # seeds that are not asked for stay as well
        assert command.run([*WORDS, *seeds]) == 0
        assert measured(json.loads(TABLE.read_text())) == measured(both)
    assert "# in results/leaderboard/table_1_cifar10_fast.json, so not trained again" in capsys.readouterr().out


def test_rows_that_were_trained_otherwise_are_not_replaced(trained):
    assert command.run(WORDS) == 0
    before = TABLE.read_text()
    for words in (["--epochs=2"], ["--epochs=2", "--finished"], ["--optimizer.lr=0.1000001"], ["--data.classes=[0,1,2]"]):
        with pytest.raises(ValueError, match=r"a row of tiny that was trained otherwise: .*; give another --out and --runs"):
            command.run([word for word in WORDS if not word.startswith(words[0].partition("=")[0])] + words)
    assert TABLE.read_text() == before


def test_own_runs_do_not_replace_rows_and_other_flags_do_not_stand_in_their_way(trained):
    assert command.run(WORDS) == 0
    table = json.loads(TABLE.read_text())
    for row in table["rows"]:
        row["trainings"][0]["accuracy"] = [0.125] * len(row["macs"])
    TABLE.write_text(json.dumps(table))
    assert command.run(WORDS) == 0
    assert all(set(row["accuracy"]) == {0.125} for row in json.loads(TABLE.read_text())["rows"])
    other = [word for word in WORDS if word != "--epochs=1"]
    assert command.run([*other, "--epochs=2", "--out", "other", "--runs", "other"]) == 0
    assert command.run([*WORDS, "--runs", "other"]) == 0
    assert len(trained) == 4


def test_what_another_process_adds_meanwhile_stays(trained, monkeypatch):
    assert command.run([*WORDS, "--seeds", "0", "1"]) == 0
    whole = TABLE.read_text()
    shutil.rmtree("runs")
    TABLE.unlink()

    def train(runs, folder, executor=None):
        TABLE.write_text(whole)
        return {}

    monkeypatch.setattr(command, "run_all", train)
    assert command.run(WORDS) == 0
    assert measured(json.loads(TABLE.read_text())) == measured(json.loads(whole))


def test_a_network_that_has_changed_since_its_training_is_named(trained, monkeypatch):
    assert command.run(WORDS) == 0
    TABLE.unlink()
    monkeypatch.setattr(rows_module, "_counts", lambda *_: (5, [1]))
    with pytest.raises(ValueError, match=r"tiny has changed since it was trained in runs/leaderboard/cifar10_fast_tiny_seed0"):
        command.run([*WORDS, "--finished"])


def test_times_are_those_of_one_machine(trained):
    assert command.run([*WORDS, "--seeds", "0", "1"]) == 0
    shutil.rmtree("runs")
    table = json.loads(TABLE.read_text())
    for row in table["rows"]:
        row["trainings"][1] |= {"trained_on": "NVIDIA H200", "training_seconds": 3000.0}
    TABLE.write_text(json.dumps(table))
    assert command.run(WORDS) == 0
    for row in json.loads(TABLE.read_text())["rows"]:
        assert row["training_seconds"] == row["trainings"][0]["training_seconds"] < 3000


@pytest.mark.parametrize(("where", "value"), [("parameters", 1), ("macs", [1]), ("network", "another")])
def test_a_row_of_something_else_is_trained_again(trained, capsys, where, value):
    assert command.run(WORDS) == 0
    shutil.rmtree("runs")
    del trained[:]
    table = json.loads(TABLE.read_text())
    row = next(row for row in table["rows"] if row["network"] == "still")
    row[where] = value
    TABLE.write_text(json.dumps(table))
    assert command.run(WORDS) == 0
    assert trained == ["cifar10_fast_still_seed0"]
    assert f"but changed or no longer in this study, so left out: {row['network']}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda table: table.pop("rows"), "no 'rows'"),
        (lambda table: table["rows"][0].pop("macs"), "no 'macs'"),
        (lambda table: table["rows"][0]["trainings"][0]["accuracy"].append(0.5), "lacks answers or trainings"),
        (lambda table: table["rows"][0]["trainings"][0].update(accuracy=[1.5] * 3), "an accuracy is outside 0..1"),
        (lambda table: table["rows"][0].update(model="stranger.Net"), "was trained as anytimenet, not as stranger.Net"),
        (lambda table: table.update(images="many"), "cannot be interpreted as an integer"),
        (lambda table: table.update(images=5.5), "cannot be interpreted as an integer"),
        (lambda table: table.update(classes=0), "it is of no images"),
        (lambda table: table.update(dataset=None), "None is no text"),
        (lambda table: table["rows"].append(table["rows"][0]), "has two rows of a network"),
        (lambda table: table["rows"][0].update(trainings=2 * table["rows"][0]["trainings"]), "two trainings of a seed"),
        (lambda table: table["rows"][0]["trainings"][0].update(training_seconds=-5), "a time is not above 0"),
        (lambda table: table["rows"][0]["arguments"].pop("num_classes"), "the network tiny in results/leaderboard/"),
        (lambda table: table["rows"][0]["arguments"].update(width=10**30), "cannot be built: "),
        (lambda table: table["rows"][0]["arguments"].update(num_classes="ten"), "cannot be built: "),
    ],
)
def test_a_damaged_table_is_refused(trained, damage, message):
    row = {
        **{"network": "tiny", "model": "anytimenet", "arguments": {"num_classes": 10}, "parameters": 5, "macs": [1, 2, 3]},
        "recipe": recipe_of(networks.runs("cifar10", "fast", [0])[0].config()),
        "trainings": [
            {"seed": 0, "accuracy": [0.5] * 3, "trained_on": "CPU", "measured_on": "CPU", "date": "2026-01-01"}
            | {"training_seconds": None, "images_per_second": None}
        ],
    }
    table = {"command": "anytime study", "rows": [row], "dataset": "Digits", "part": "test", "images": 360, "classes": 10}
    table |= {"input_size": [1, 8, 8]}
    damage(table)
    TABLE.parent.mkdir(parents=True)
    TABLE.write_text(json.dumps(table))
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        command.run(["leaderboard"])
    assert str(TABLE) in str(caught.value)
    assert trained == []


def test_an_empty_table_is_none(trained):
    TABLE.parent.mkdir(parents=True)
    TABLE.write_bytes(bytes(100))
    assert command.run(WORDS) == 0
    assert len(trained) == 2
