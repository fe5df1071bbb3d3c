"""Tables and figures of Hu et al. (2017) are right on hand-made traces, and an end-to-end run."""

import csv
import dataclasses
import functools
import json
from collections.abc import Sequence

import pytest
import torch

from anytime import load
from anytime.cli import main
from anytime.commands import study as command
from anytime.studies import run_all
from anytime.studies.hu2017 import STUDY
from anytime.studies.hu2017.figures import read_probabilities, training_losses
from anytime.studies.hu2017.networks import SCALES, Base, TrainedNet, last_optimal, milestone_exits
from anytime.studies.study import plain
from anytime.trace import Trace

CPU = SCALES["cpu"].chosen
META = {
    "dataset": "CIFAR10",
    "part": "test",
    "recipe": {"epochs": 8, "objective": "Weighted", "data": {"class_path": "CIFAR10", "init_args": {}}},
    "trained_on": "CPU",
    "hardware": "CPU",
    "date": "2026-01-01T00:00:00",
}


def trace(wrong: Sequence[int], base: Base = CPU) -> Trace:
    """100 samples of class 0, `wrong[t]` of them wrong at exit t; each exit adds the same cost."""
    steps = len(wrong)
    answers = (torch.arange(100) < torch.tensor(wrong)[:, None]).long()
    return Trace(
        logits=torch.nn.functional.one_hot(answers, 2).float(),
        labels=torch.zeros(100, dtype=torch.int64),
        macs=torch.arange(1, steps + 1) * 10,
        contract_macs=torch.arange(1, steps + 1) * 10,
        seconds=None,
        class_names=("a", "b"),
        meta=META | {"model_arguments": {**base._asdict(), "regime": "joint"}},
    )


def by_hand(method: str, *seeds: Sequence[int], base: Base = CPU) -> dict[str, dict[int, Trace]]:
    return {TrainedNet(method, base).name: {seed: trace(wrong, base) for seed, wrong in enumerate(seeds)}}


def optimal(base: Base, *seeds: Sequence[int]) -> dict[str, dict[int, Trace]]:
    """OPT at the milestones; each network is good only at its own exit."""
    made = {}
    for place, exit in enumerate(milestone_exits(base)):
        rows = [[90 if e != exit else wrong[place] for e in range(1, len(base.exits) + 1)] for wrong in seeds]
        made[TrainedNet("optimal", base, exit).name] = {seed: trace(row, base) for seed, row in enumerate(rows)}
    return made


def make(item: str, traces: dict[str, dict[int, Trace]], data: str = "cifar10") -> dict:
    result = STUDY.items[item].make(traces, data)
    numbers = plain({**result.numbers, "claims": result.claims})
    json.dumps(numbers, allow_nan=False)
    return numbers | {"text": result.text, "figure_drawn": result.figure}


def claims(numbers: dict) -> dict[str, dict]:
    return {claim["claim"]: claim for claim in numbers["claims"]}


CONSTANT = [60, 40, 30, 20, 19, 18, 17, 16, 15]
SIEVE = [80, 50, 40, 22, 20, 16, 14, 12, 10]


@pytest.fixture
def schemes() -> dict[str, dict[int, Trace]]:
    rising = [90, 70, 60, 40, 30, 20, 15, 12, 10]
    rows = {"constant": CONSTANT, "sieve": SIEVE, "AdaLoss": SIEVE, "linear": rising, "expb2": rising}
    return {name: net for method, row in rows.items() for name, net in by_hand(method, row, row).items()} | optimal(
        CPU, [40, 20, 15, 10], [30, 20, 15, 10]
    )


def test_table_1_by_hand(schemes):
    numbers = make("table 1b", schemes)
    rows = {row["method"]: row for row in numbers["rows"]}
    assert list(rows) == ["optimal", "constant", "sieve", "AdaLoss", "linear", "expb2"]
    assert rows["sieve"]["error"] == {"1/4": 0.5, "1/2": 0.22, "3/4": 0.16, "1": 0.1, "AE": pytest.approx(264 / 900, rel=1e-5)}
    assert rows["optimal"]["error"] == {"1/4": 0.35, "1/2": 0.2, "3/4": 0.15, "1": 0.1, "AE": None}
    increase = rows["sieve"]["increase_over_optimal"]
    assert increase["1/4"] == pytest.approx((0.5 / 0.4 + 0.5 / 0.3) / 2 - 1, rel=1e-5)
    assert (increase["1"], increase["AE"]) == (0, None)
    assert rows["optimal"]["increase_over_optimal"]["1/2"] == 0
    assert rows["linear"]["paper"] == pytest.approx({"1/4": 0.3796, "1/2": 0.2023, "3/4": 0.1218, "1": 0.0735, "AE": 0.2263})
    assert rows["AdaLoss"]["paper"] is None
    assert rows["optimal"]["by_exit"][:2] == [None, 0.35]
    found = claims(numbers)
    assert found["sieve below linear at 1/4, 1/2"]["shows"] is True
    assert found["sieve below linear at 1/4, 1/2"]["gains"]["1/2"]["gain"] == pytest.approx(0.18)
    assert found["sieve below linear at 1/4, 1/2"]["paper"]["shows"] is True
    assert found["sieve below constant at 1"]["gains"]["1"] == {"gain": 0.05, "standard_error": 0, "seeds": 2}
    assert found["constant below sieve at AE"]["shows"] is True
    near = found["sieve keeps the final error at OPT's: at most 5% more, relative"]
    assert (near["shows"], near["increase"]) == (True, 0)
    assert near["paper"] == {"shows": True, "increase": pytest.approx(7.34 / 7.14 - 1, rel=1e-4)}
    assert not [claim for claim in found if "midfeat" in claim or "half-end" in claim]  # not part of table 1b
    assert "yes      sieve below linear at 1/4, 1/2" in numbers["text"]


def test_table_1_is_made_in_parts(schemes):
    """With only OPT's last exit, there is an increase only at the end."""
    last = last_optimal(CPU).name
    few = {name: net for name, net in schemes.items() if not name.startswith("optimal") or name == last}
    rows = {row["method"]: row for row in make("table 1a", few)["rows"]}
    assert rows["constant"]["increase_over_optimal"] == {"1/4": None, "1/2": None, "3/4": None, "1": 0.5, "AE": None}
    with pytest.raises(ValueError, match="traces are missing"):
        make("table 1b", few)
    three = {name: few[name] for name in (last, TrainedNet("constant", CPU).name, TrainedNet("sieve", CPU).name)}
    found = claims(make("table 1", three, "cifar100"))
    assert found["sieve below constant at 1"]["paper"]["gains"]["1"] == pytest.approx(0.1985)


def test_tables_2_and_5_by_hand():
    traces = by_hand("sieve", SIEVE, SIEVE, SIEVE) | optimal(CPU, *[[40, 20, 15, 10]] * 3)
    better = [wrong - 2 for wrong in SIEVE]
    worse_at_the_end = [*SIEVE[:-1], 11]
    traces |= by_hand("AANN", better, better, SIEVE) | by_hand("milestone", worse_at_the_end, worse_at_the_end, SIEVE)
    numbers = make("table 2", traces)
    shares = {row["method"]: row for row in numbers["better_than_ANN"]}
    assert shares["AANN"]["share"]["1"] == pytest.approx(2.5 / 3, rel=1e-5)
    assert shares["AANN"]["p_value"]["1"] == 0.5
    assert shares["AANN"]["p_value"]["1/4"] == 0.5
    assert shares["AANN"]["p_value_holm"]["1/4"] == 1  # one of ten tests
    assert shares["milestone"]["share"]["1"] == pytest.approx(0.5 / 3, rel=1e-5)
    assert shares["milestone"]["paper"]["1"] == pytest.approx(0.1528)
    assert shares["AANN"]["runs"] == 3
    sieve, aann = numbers["increase_over_optimal"]
    assert sieve["error"] == pytest.approx({"1/4": 0.25, "1/2": 0.1, "3/4": 1 / 15, "1": 0}, rel=1e-5)
    assert aann["error"]["1/4"] == pytest.approx((2 * 0.2 + 0.25) / 3, rel=1e-5)
    assert sieve["paper"]["1/4"] == 0.5272
    found = claims(numbers)
    assert found["AANN beats ANN at AE in more than half of the runs"]["better"] == 2
    assert found["the gap between ANN and OPT shrinks with the cost"]["shows"] is True
    for method in ("EXP3", "RWM", "AVGL"):
        traces |= by_hand(method, *[SIEVE] * 3)
    found = claims(make("table 5", traces))
    assert found["RWM is no better than AANN: its AE is smaller in at most half of the runs"]["shows"] is True
    rows = {row["method"]: row for row in make("table 6", traces)["rows"]}
    assert len(rows) == 7
    assert rows["AANN n=3 c=16"]["paper"] is None  # not one of the paper's networks


def test_table_3_by_hand():
    """EANN of 3 and 9 units with costs 10 to 30 and 40 to 120: the small net's last answer holds until unit 4 of the other."""
    small = Base(1, 16)
    traces = by_hand("AANN", [70, 60, 45], base=small) | by_hand("AANN", SIEVE) | by_hand("sieve", SIEVE)
    traces |= optimal(CPU, [40, 20, 25, 10])
    numbers = make("table 3", traces)
    rows = {row["method"]: row for row in numbers["rows"]}
    reported = [70, 60, 45, 45, 45, 45, 22, 20, 16, 14, 12, 10]
    assert rows["EANN"]["error"]["AE"] == pytest.approx(sum(reported) / 1200, rel=1e-5)
    assert [rows["EANN"]["error"][m] for m in ("1/4", "1/2", "3/4", "1")] == [0.45, 0.45, 0.16, 0.1]
    assert [rows["OPT+"]["error"][m] for m in ("1/4", "1/2", "3/4", "1")] == [0.4, 0.2, 0.2, 0.1]  # the best so far
    assert rows["EANN"]["paper"]["1/4"] == 0.0553
    assert next(iter(claims(numbers).values()))["shows"] is False
    curves = make("figure 2e", traces)
    assert curves["mean_base"] == 3
    assert curves["curves"]["OPT+"][0][0] == 20
    assert len(curves["figure_drawn"].axes[0].lines) == 3


def test_table_4_and_figure_3_by_hand():
    traces = {}
    for s, wrong in {1: SIEVE, 2: [60, 40, 30, 20, 10], 3: [40, 20, 10], 4: [50, 30, 12]}.items():
        traces |= by_hand("sieve", wrong, base=Base(3, 16, s))
    numbers = make("table 4", traces, "cifar100")
    assert [row["method"] for row in numbers["rows"]] == ["n=3 s=1", "n=3 s=2", "n=3 s=3", "n=3 s=4"]
    assert numbers["rows"][2]["error"] == {
        "1/4": None,
        "1/2": 0.4,
        "3/4": 0.2,
        "1": 0.1,
        "AE": pytest.approx(0.7 / 3, rel=1e-5),
    }
    shown = [claim["shows"] for claim in numbers["claims"]]
    assert shown == [False, False]  # AE 30.7 % with s = 4, 29.3 % with s = 1; a final error of 12 % is too far from 10 %
    figure = make("figure 3", traces, "cifar100")
    assert figure["curves"]["n=3"]["s=3"] == [[10, 20, 20, 30, 30], [0.4, 0.4, 0.2, 0.2, 0.1]]


def test_proposition_needs_no_training():
    assert STUDY.items["table 3.1"].runs("cifar10", "cpu", [0]) == []
    numbers = make("table 3.1", {})
    rows = {round(row["base"], 3): row for row in numbers["rows"]}
    assert (rows[2.0]["anytime_sup"], rows[2.0]["plain_sup"]) == (3, 4)
    assert rows[2.0]["anytime_mean"] == pytest.approx(2.44, abs=0.005)
    assert rows[2.0]["anytime_found_mean"] == pytest.approx(2.44, abs=0.05)
    assert rows[2.414]["plain_mean"] == pytest.approx(2.914, abs=0.001)
    assert numbers["claims"][0]["shows"] is True
    assert numbers["paper_sequence"]["depths"] == [3, 9, 21, 39, 75]


def test_the_sieve_of_15_exits_is_drawn(tmp_path):
    assert main(["study", "hu2017", "--figure", "2f", "--out", str(tmp_path)]) == 0
    weights = json.loads((tmp_path / "figure_2f_cifar10_cpu.json").read_text())["weights"]
    assert weights[-1] == 1
    assert sorted(range(15), key=weights.__getitem__)[-2] == 6  # the middle exit comes next


def test_table_1_and_figures_2_and_4_from_end_to_end_on_digits(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    base = Base(1, 2)
    small = dataclasses.replace(
        SCALES["cpu"],
        recipes={"cifar10": ("hu2017_cifar10_cpu.yaml", ("--data=Digits", "--data.validation=0"))},
        chosen=base,
        schemes={"cifar10": ("sieve", "AANN", "midfeat", "no-grad")},
        sampled=base,
        warmup={"cifar10": 2},
    )
    monkeypatch.setitem(SCALES, "cpu", small)
    trained: list[str] = []

    def train(arguments, log):
        trained.append(arguments[-1])
        return main(["train", *arguments])

    monkeypatch.setattr(command, "run_all", functools.partial(run_all, train=train))
    arguments = ["hu2017", "--table", "1", "--figure", "2", "4", "--seeds", "0"]
    arguments += ["--data.limit=64", "--data.batch_size=16", "--epochs=3", "--compile=false", "--precision=32-true"]
    arguments += ["--progress=false"]
    assert command.run(arguments) == 0
    optimal = [exit for exit in milestone_exits(base) if exit]
    assert len(trained) == len(set(optimal)) + 6  # and sieve, no-grad, and the strategies of figure 4
    results = tmp_path / "results/hu2017"
    table = json.loads((results / "table_1_cifar10_cpu.json").read_text())
    assert (table["dataset"], table["epochs"], table["images"]) == ("Digits", 3, 360)
    rows = {row["method"]: row for row in table["rows"]}
    assert list(rows) == ["optimal", "sieve", "AANN", "midfeat", "no-grad"]
    assert rows["midfeat"]["network"]["regime"] == "midfeat"
    assert rows["midfeat"]["error"]["1"] == rows["optimal"]["error"]["1"]
    run = tmp_path / "runs/hu2017" / f"cifar10_cpu_optimal_{len(base.exits)}_n1_c2_seed0"
    traces = {name: Trace.load(run / f"trace-test-{name}_n_1_c_2.safetensors") for name in ("optimal_3", "midfeat")}
    gap = (traces["midfeat"].logits - traces["optimal_3"].logits).abs().amax((1, 2))
    assert (gap > 1e-3).tolist() == [True, True, False]  # trunk and last head stay, the other heads are retrained
    assert gap[2] < 1e-5
    assert load(run).info.recipe["model"]["init_args"]["regime"] == "joint"
    sieve = tmp_path / "runs/hu2017/cifar10_cpu_sieve_n1_c2_seed0"
    losses = json.loads((results / "figure_2_cifar10_cpu.json").read_text())["training_losses"]
    assert losses["sieve"] == pytest.approx(training_losses(sieve), rel=1e-5)
    assert "midfeat" not in losses
    steps, probabilities = read_probabilities(tmp_path / "runs/hu2017/cifar10_cpu_aann_n1_c2_seed0")
    assert steps == [9]
    assert probabilities == [pytest.approx([2 / 6, 1 / 6, 3 / 6])]  # the sieve's 2, 1 and their sum
    stack = json.loads((results / "figure_4_cifar10_cpu.json").read_text())
    assert set(stack["probabilities"]) == {"EXP3", "RWM", "AVGL", "AANN"}
    assert sum(stack["probabilities"]["EXP3"][-1]) == pytest.approx(1)
    with pytest.raises(ValueError, match="holds no train/probability_1"):
        read_probabilities(sieve)
    assert all((results / f"figure_{n}_cifar10_cpu.png").is_file() for n in (2, 4))
    before = len(trained)
    assert command.run(arguments) == 0
    assert len(trained) == before
    with (sieve / "metrics/metrics.csv").open() as file:
        assert "train/loss_step" in next(csv.reader(file))
