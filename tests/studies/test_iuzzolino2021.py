"""The trainings match the paper, the figures are right on hand-made traces, and an end-to-end run."""

import functools
import json
import math

import pytest
import torch

from anytime import create_model
from anytime.cli import main
from anytime.commands import study as command
from anytime.studies import find_recipe, run_all
from anytime.studies.iuzzolino2021 import STUDY
from anytime.studies.iuzzolino2021.figures import BEFORE, COLOURS, EVERYWHERE, MEAN, _compared, figure_3, figure_4
from anytime.studies.iuzzolino2021.networks import LAMBDAS, RECIPES, cascaded_td
from anytime.studies.iuzzolino2021.published import CURVES
from anytime.studies.study import plain
from anytime.trace import Trace
from anytime.training.config import read_recipe

META = {
    "model": "by hand",
    "parameters": 5,
    "dataset": "CIFAR10",
    "part": "test",
    "recipe": {"epochs": 10, "objective": "TDLambda", "data": {"class_path": "CIFAR10", "init_args": {}}},
    "trained_on": "CPU",
    "hardware": "CPU",
    "date": "2026-01-01T00:00:00",
}


def trace(stops: list[int], right: list[bool] | None = None, clock: str = "asymptotic") -> Trace:
    """Sample n answers 1 with probability 0.6 before step `stops[n]` (0..8), then 0 with 0.99; `right`: 0 is true."""
    sure = torch.arange(9)[:, None] >= torch.tensor(stops)
    p = torch.where(sure, 0.99, 0.4)
    return Trace(
        logits=torch.stack([p, 1 - p], dim=2).log(),
        labels=torch.tensor([0 if r else 1 for r in right or [True] * len(stops)]),
        macs=torch.arange(1, 10) * 100,
        contract_macs=None,
        seconds=torch.arange(1, 10, dtype=torch.float64) / 1000,
        class_names=("a", "b"),
        meta=META | {"model_arguments": {"clock": clock}},
    )


# -- the trainings ---------------------------------------------------------------------------------------------------------


def test_the_trainings_of_figure_4():
    runs = STUDY.items["figure 4"].runs("cifar10", "cpu", [0, 7])
    configs = [run.config() for run in runs[:7]]
    chosen = [
        (c["model"]["class_path"], c["model"]["init_args"]["heads"], c["objective"]["init_args"].get("lam")) for c in configs
    ]
    assert chosen == [
        ("cascaded_resnet18", "shared", 0),
        ("cascaded_resnet18", "separate", 0),
        ("serial_resnet18", "shared", 1),
        ("serial_resnet18", "separate", 1),
        ("serial_resnet18", "shared", 0),
        ("serial_resnet18", "separate", 0),
        ("cascaded_resnet18", "shared", None),
    ]
    assert configs[6]["objective"] == {
        "class_path": "Weighted",
        "init_args": {"weights": "final_only", "label_smoothing": 0.0, "normalize": "none", "loss": None},
    }
    assert configs[6]["model"]["init_args"]["kernel"] == "instant"
    for config in configs:
        assert {k: v for k, v in config.items() if k not in ("model", "objective")} == {
            k: v for k, v in configs[0].items() if k not in ("model", "objective")
        }
        assert {k: config["model"]["init_args"][k] for k in ("width", "pool", "layout", "clock")} == {
            "width": 16,
            "pool": True,
            "layout": "cifar",
            "clock": "asymptotic",
        }
    assert [run.seed for run in runs] == [0] * 7 + [7] * 7
    assert len({run.name for run in runs}) == 14
    assert {name for run in runs for name in run.views} == set(COLOURS)


def test_the_trainings_of_figure_3_share_that_of_lambda_0():
    runs = STUDY.items["figure 3"].runs("cifar100", "cpu", [0])
    assert [run.config()["objective"]["init_args"]["lam"] for run in runs] == list(LAMBDAS)
    assert runs[0].config()["data"]["class_path"] == "CIFAR100"
    assert runs[0].config()["data"]["init_args"]["validation"] == 0.1
    assert runs[0] == STUDY.items["figure 4"].runs("cifar100", "cpu", [0])[0]


@pytest.mark.parametrize("data", RECIPES["full"])
def test_full_scale_is_the_published_setting(data):
    recipe = read_recipe(find_recipe(RECIPES["full"][data][0]))
    assert recipe["model"]["init_args"] | {"layout": None} == {"width": 64, "layout": None, "pool": True, "clock": "published"}
    assert recipe["objective"]["init_args"] == {"lam": 0, "skip": 1}
    assert recipe["epochs"] == 120
    milestones = recipe["schedule"]["init_args"]["milestones"]
    assert [120 * share for share in milestones] == [30, 60, 90]
    assert recipe["schedule"]["init_args"]["gamma"] == 0.2
    batch, lr = (32, 0.01) if data == "terriers" else (128, 0.1)
    assert recipe["data"]["init_args"]["batch_size"] == batch
    assert recipe["optimizer"]["init_args"] == {"lr": lr, "momentum": 0.9, "nesterov": True, "weight_decay": 0.0005}
    serial = STUDY.items["figure 4"].runs(data, "full", [0])[2]
    assert {"--model.clock=published", "--model.form=published"} <= set(serial.flags)


@pytest.mark.parametrize("scale", ["cpu", "full"])
def test_ce_weights_under_both_dynamics(scale):
    """By the paper's clock, both end with the trained network's answer; by the published clock, one step before it."""
    ce = STUDY.items["figure 4"].runs("cifar10", scale, [0])[6]
    torch.manual_seed(0)
    model = create_model("cascaded_resnet18", 3, **ce.config()["model"]["init_args"] | {"width": 8})
    for name, buffer in model.named_buffers():
        if "running" in name:
            buffer.uniform_(0.5, 1.5) if name.endswith("var") else buffer.uniform_(-0.5, 0.5)
    views = [view(model).double().eval() for view in ce.views.values()]
    model.double().eval()
    x = torch.rand(2, 3, 16, 16, dtype=torch.float64)
    with torch.no_grad():
        cascaded, serial = (view(x) for view in views)
    assert model(x).shape == (1, 2, 3)
    assert cascaded.shape == serial.shape == (9, 2, 3)
    torch.testing.assert_close(cascaded[-1], serial[-1], rtol=0, atol=1e-10)
    same = torch.allclose(cascaded[-1], model(x)[0], rtol=0, atol=1e-10)
    assert same == (scale == "cpu")
    assert not torch.allclose(cascaded[3], serial[3])


def test_published_rows_are_complete():
    assert all(len(row) == 8 for rows in CURVES.values() for row in rows.values())
    assert all(list(rows) == list(COLOURS)[:6] for rows in CURVES.values())


# -- the figures -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def stops() -> dict[str, list[int]]:
    """Stops of four samples, counted from 0, so that t = stop + 1; their means of t are 3, 4, 9 and so on."""
    return {
        "CascadedTD": [1, 1, 3, 3],
        "CascadedTD-MultiHead": [2, 2, 4, 4],
        "CascadedCE": [8, 8, 8, 8],
        "SerialTD": [3, 3, 7, 7],
        "SerialTD-MultiHead": [2, 4, 4, 6],
        "SerialCE": [8, 8, 8, 8],
        "SerialTD(0)": [3, 3, 5, 5],
        "SerialTD(0)-MultiHead": [5, 5, 7, 7],
    }


def test_figure_4_by_hand(stops):
    traces = {name: {0: trace(given), 1: trace(given)} for name, given in stops.items()}
    result = figure_4(traces, "cifar10")
    json.dumps(plain([result.numbers, result.claims]), allow_nan=False)
    rows = result.numbers["rows"]
    # thresholds up to 0.6 stop at t = 1, all wrong; those up to 0.99 at t = 3, all right; the rest at t = 9, all right
    assert rows["CascadedTD"]["accuracy"] == pytest.approx([0, 0.5, 1, 1, 1, 1, 1, 1], abs=1e-12)
    assert rows["CascadedCE"]["accuracy"] == pytest.approx([t / 8 for t in range(8)], abs=1e-12)
    assert rows["SerialTD-MultiHead"]["accuracy"] == pytest.approx([0, 0.25, 0.5, 0.75, 1, 1, 1, 1], abs=1e-12)
    assert rows["CascadedTD"]["sem"] == [0] * 8
    assert rows["CascadedTD"]["in_gaps"] == [4, 5, 6, 7, 8]
    drawn = torch.tensor(result.figure.axes[0].lines[0].get_ydata())
    assert drawn.isnan().nonzero().tolist() == [[99]], "the line is interrupted between t = 3 and 9"
    assert rows["CascadedCE"]["in_gaps"] == [2, 3, 4, 5, 6, 7, 8]
    assert "empty, because no threshold comes near: CascadedTD at t = 4, 5, 6, 7, 8; " in result.text
    assert rows["CascadedTD"]["paper"] == pytest.approx([0.107, 0.484, 0.78, 0.912, 0.916, 0.916, 0.916, 0.916])
    assert rows["SerialTD(0)"]["paper"] is None
    assert result.numbers["clock"] == "answers at t = 1..9"
    curve = result.numbers["curves"]["CascadedTD"]
    assert curve["time"][[0, 59, 60, 98, 99, 100]].tolist() == [1, 1, 3, 3, 9, 9]  # 59 / 99 < 0.6 < 60 / 99
    assert curve["macs"][[0, 60, 100]].tolist() == [100, 300, 900]
    assert curve["seconds"][[0, 60, 100]].tolist() == pytest.approx([0.001, 0.003, 0.009])
    claims = {claim.statement: claim.to_dict() for claim in result.claims}
    first = claims["CascadedTD above SerialTD-MultiHead at every mean stop time"]
    assert first["gains"] == [0, *[None] * 7]  # where one has no threshold, an interpolated gain would be 0.25 or 0.5
    assert first["shows"] is False
    assert first["paper"]["shows"] is False  # 10.7 to 11.8 at t = 1
    before = claims["SerialTD above SerialCE at every mean stop time before the asymptote"]
    assert before["gains"] == [0, *[None] * 7]
    assert before["paper"]["shows"] is False  # 87.1 to 91.2 at t = 7
    assert not any(claim["shows"] for name, claim in claims.items() if "on average" in name)
    assert claims["SerialTD(0)-MultiHead above SerialTD(0) on average over mean stop times"]["paper"] is None
    same = claims["CascadedCE and SerialCE agree at the asymptote"]
    assert (same["shows"], same["gain"], same["seeds"]) == (True, 0, 2)
    assert "NO       CascadedTD above SerialTD-MultiHead at every mean stop time" in result.text
    assert len(result.figure.axes) == 3


def test_interpolated_accuracies_do_not_count():
    """They are None, and only the other times decide."""
    rows = {"a": [0.1, None, None, 0.5, 0.5, 0.5, 0.5, 0.5], "b": [0.2, 0.9, 0.9, 0.4, 0.4, 0.4, 0.4, None]}
    others = pytest.approx([-0.1, 0.1, 0.1, 0.1, 0.1])
    for where, shows in ((EVERYWHERE, False), (BEFORE, False), (MEAN, True)):
        found = _compared(rows, "a", "b", where, 9)
        assert found["shows"] is shows
        assert [gain for gain in found["gains"] if gain is not None] == others
        assert found["gains"][1:3] + found["gains"][7:] == [None] * 3
        assert found["mean_gain"] == pytest.approx(0.06)
    assert _compared({"a": [None] * 8, "b": [0.1] * 8}, "a", "b", MEAN, 9)["shows"] is None
    assert _compared(rows, "a", "c", MEAN, 9) is None


def test_claims_at_the_asymptote_allow_for_noise(stops):
    stops = {name: given * 5 for name, given in stops.items()}
    ten = [True] * 20
    traces = {name: {seed: trace(given) for seed in range(3)} for name, given in stops.items()}
    wrong = [[2, 4, 6], [2, 2, 2]]  # of 20 samples, by seed
    for name, counts in zip(("CascadedTD", "CascadedCE"), wrong, strict=True):
        traces[name] = {seed: trace(stops[name], [False] * count + ten[count:]) for seed, count in enumerate(counts)}
    claim = next(c for c in figure_4(traces, "cifar10").claims if "at most 0.5% below" in c.statement)
    assert claim.measured["gain"] == pytest.approx(-0.1)
    assert claim.measured["standard_error"] == pytest.approx(0.1 / math.sqrt(3))
    assert claim.measured["at_least"] == pytest.approx(-0.1 - 2.919986 * 0.1 / math.sqrt(3), abs=1e-6)
    assert claim.shows is False  # a wide interval does not make one network as good as the other
    assert claim.paper == {"gain": pytest.approx(-0.002)}
    one = {name: {0: by_seed[0]} for name, by_seed in traces.items()}
    claim = next(c for c in figure_4(one, "terriers").claims if "at most 0.5% below" in c.statement)
    assert claim.shows is None  # a single seed cannot tell
    assert claim.paper is None
    traces["CascadedTD"] = traces["CascadedCE"] = {seed: trace(stops["CascadedCE"]) for seed in range(3)}
    claim = next(c for c in figure_4(traces, "cifar10").claims if "at most 0.5% below" in c.statement)
    assert (claim.measured["gain"], claim.shows) == (0, True)


def test_the_published_clock_counts_from_0(stops):
    traces = {name: {0: trace(given, clock="published")} for name, given in stops.items()}
    result = figure_4(traces, "cifar10")
    numbers = result.numbers
    assert numbers["clock"] == "answers at t = 0..8"
    assert numbers["rows"]["CascadedTD"]["accuracy"] == pytest.approx([0.5, 1, 1, 1, 1, 1, 1, 1], abs=1e-12)
    names = [claim.statement for claim in result.claims]
    assert "CascadedCE and SerialCE agree at the asymptote" not in names  # which comes at t = 9
    before = next(c for c in result.claims if c.statement.startswith("CascadedTD above CascadedCE"))
    assert before.measured["gains"] == [None] * 7 + [0]
    assert before.shows is None  # because t = 8 is the end
    assert before.note == "in this run, one seed"


def test_figure_3_by_hand():
    wrong = {0.0: [1, 2], 0.25: [0, 1], 0.5: [1, 0], 0.83: [1, 2], 1.0: [3, 2]}  # of four samples, by seed
    traces = {
        cascaded_td(lam): {seed: trace([0] * 4, [False] * count + [True] * (4 - count)) for seed, count in enumerate(counts)}
        for lam, counts in wrong.items()
    }
    result = figure_3(traces, "cifar100")
    rows = {row["lambda"]: row for row in result.numbers["rows"]}
    assert {lam: row["accuracy"] for lam, row in rows.items()} == {0: 0.625, 0.25: 0.875, 0.5: 0.875, 0.83: 0.625, 1: 0.375}
    # seed means 0.7 and 0.65, grand mean 0.675: lambda = 0 has 0.725 and 0.525 without them, a deviation of 0.2 / sqrt(2)
    assert rows[0.0]["sem"] == pytest.approx(0.1 * math.sqrt(5 / 4), rel=1e-9)  # Morey's factor for 5 conditions
    assert rows[0.25]["paper"] == 0.6493
    worst, above = result.claims
    assert worst.shows is True
    assert worst.measured["gain"] == pytest.approx(0.25)
    assert worst.measured["best"] == {"lambda": 0.25, "gain": 0.5}
    assert above.shows is True
    assert result.numbers["accuracy_by_step"]["0"] == [0.625] * 9
    assert "yes      lambda = 1 is the worst at the asymptote" in result.text
    single = figure_3({name: {0: by_seed[0]} for name, by_seed in traces.items()}, "cifar100")
    legends = [{text.get_text() for text in drawn.figure.axes[0].get_legend().get_texts()} for drawn in (result, single)]
    assert legends == [{"ours (± 1 SEM)", "the paper's"}, {"ours", "the paper's"}]


# -- from end to end -------------------------------------------------------------------------------------------------------


def test_the_command_lists_studies_and_rejects_wrong_arguments(capsys):
    assert command.run([]) == 0
    assert "--figure 4     speed-accuracy trade-off" in capsys.readouterr().out
    for arguments, message in {
        ("iuzzolino",): "did you mean 'iuzzolino2021'?",
        ("iuzzolino2021", "--figure", "6"): "iuzzolino2021 has no figure 6; valid: figure 2, figure 3, figure 4, figure 5",
        ("iuzzolino2021", "--scale", "ful"): "unknown --scale 'ful'; did you mean 'full'?",
        ("iuzzolino2021", "--data", "terrier"): "has no --data 'terrier' at scale cpu; valid: cifar10, cifar100",
        ("iuzzolino2021", "--figur", "4"): "unknown argument --figur; did you mean '--figure'?",
        ("iuzzolino2021", "--seed", "4"): "use --seeds to set the seeds",
    }.items():
        with pytest.raises(SystemExit) as stopped:
            command.run(arguments)
        assert stopped.value.code == 2
        assert message in capsys.readouterr().err


def test_dry_run_prints_commands(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "training_seconds", lambda config: None)
    assert command.run(["iuzzolino2021", "--figure", "3", "--seeds", "1", "--runs", str(tmp_path), "--dry-run"]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert len(lines) == 5
    assert all(line.startswith("anytime train --config ") and " --seed=1 --run " in line for line in lines)
    assert all("  # figure 3; " in line for line in lines)
    assert last.startswith("# 5 to train, ")


def test_figure_4_from_end_to_end_on_digits(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    trained: list[str] = []

    def train(arguments, log):
        trained.append(arguments[-1])
        return main(["train", *arguments])

    monkeypatch.setattr(command, "run_all", functools.partial(run_all, train=train))
    arguments = ["iuzzolino2021", "--figure", "4", "--seeds", "0", "--data=cifar10"]
    arguments += [
        "--model.width=2",
        "--epochs=1",
        "--data.limit=64",
        "--compile=false",
        "--precision=32-true",
        "--progress=false",
    ]
    monkeypatch.setitem(RECIPES["cpu"], "cifar10", (RECIPES["cpu"]["cifar10"][0], ("--data=Digits",)))
    assert command.run(arguments) == 0
    assert len(trained) == 7
    numbers = json.loads((tmp_path / "results/iuzzolino2021/figure_4_cifar10_cpu.json").read_text())
    assert (tmp_path / "results/iuzzolino2021/figure_4_cifar10_cpu.png").is_file()
    assert (numbers["dataset"], numbers["epochs"], numbers["seeds"], numbers["images"]) == ("Digits", 1, [0], 360)
    rows = numbers["rows"]
    assert rows["CascadedCE"]["asymptote"] == rows["SerialCE"]["asymptote"]
    assert "CascadedTD above SerialTD-MultiHead" in capsys.readouterr().out
    assert command.run(arguments) == 0
    assert len(trained) == 7
