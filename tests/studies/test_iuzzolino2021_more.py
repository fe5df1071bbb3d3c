"""What the time course tells, as tables and figures: the trainings, the numbers on hand-made measures, and runs on digits."""

from __future__ import annotations

import functools
import itertools
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from anytime import calibrate, create_model
from anytime.cli import main
from anytime.commands import study as command
from anytime.data import CIFAR10, Digits, Split
from anytime.studies import run_all
from anytime.studies.iuzzolino2021 import STUDY, measured, noisy, typical, unknown
from anytime.studies.iuzzolino2021.dynamics import SMOOTHING, compliance_result, figure_2, sooner_is_right
from anytime.studies.iuzzolino2021.folds import CIFAR10Folds, Folded
from anytime.studies.iuzzolino2021.networks import RECIPES
from anytime.studies.iuzzolino2021.noisy import LOSSY, NETWORKS, NOISES, noise_result
from anytime.studies.iuzzolino2021.norms import AS_RUN, norm_result
from anytime.studies.iuzzolino2021.others import network_result, with_delays
from anytime.studies.iuzzolino2021.published import NOISES as PUBLISHED
from anytime.studies.iuzzolino2021.typical import typicality_result
from anytime.studies.iuzzolino2021.unknown import detections, unknown_result
from anytime.studies.runner import with_all_views
from anytime.studies.study import plain
from anytime.trace import Trace
from anytime.training.rundir import _own_files

META = {
    "model": "by hand",
    "dataset": "CIFAR10",
    "part": "test",
    "recipe": {"epochs": 1, "data": {"class_path": "CIFAR10", "init_args": {}}},
    "trained_on": "CPU",
    "hardware": "CPU",
    "date": "2026-01-01T00:00:00",
    "model_arguments": {"clock": "asymptotic"},
}
NUMBERS = {"dataset": "CIFAR10", "seeds": [0]}


def trace(answers: torch.Tensor, labels: list[int], classes: int = 4, sure: float = 0.9) -> Trace:
    """Answers `[T, N]` with probability `sure`."""
    p = torch.full((*answers.shape, classes), (1 - sure) / (classes - 1)).scatter(2, answers[..., None], sure)
    macs = torch.arange(1, len(answers) + 1)
    names = tuple("abcdefgh"[:classes])
    return Trace(p.log(), torch.tensor(labels), macs, None, macs.double(), names, meta=META)


def json_of(result: Any) -> str:
    return json.dumps(plain([result.numbers, result.claims]), allow_nan=False)


# -- trainings -------------------------------------------------------------------------------------------------------------


def names(item: str, data: str = "cifar10", seeds: tuple[int, ...] = (0, 1)) -> list[str]:
    return [run.name for run in STUDY.items[item].runs(data, "fast", seeds)]


def test_trainings_are_shared() -> None:
    """TD and CE are those of figure 4; only folds, noises and norms need others."""
    shared = {f"cifar10_fast_{part}_seed{seed}" for part in ("cascadedtd", "ce") for seed in (0, 1)}
    assert shared <= set(names("figure 4"))
    assert set(names("figure 2")) == shared
    assert set(names("figure 7")) == {name for name in shared if "td" in name}
    assert shared < set(names("table norm"))
    assert len(names("table norm")) == 8
    assert names("figure 5") == names("table 1", "cifar100") == []
    assert set(names("figure 5", "cifar100")) < set(names("figure 4", "cifar100"))
    for item, count in (("table 1", 10), ("table 2", 12)):
        assert len({*names(item)}) == len(names(item)) == count
        assert all(name.endswith("_seed0") for name in names(item)), "one seed"
    runs = [run for item in ("figure 7", "figure 2", "figure 4") for run in STUDY.items[item].runs("cifar10", "fast", [0])]
    [td] = [run for run in with_all_views(runs) if run.name == "cifar10_fast_cascadedtd_seed0"]
    assert set(td.views) == {"CascadedTD", "CascadedTD (validation)", f"CascadedTD{SMOOTHING}"}


def test_flags_of_the_trainings() -> None:
    by_noise = STUDY.items["table 2"].runs("cifar10", "fast", [0])
    assert [run.flags[-1] for run in by_noise] == [f"--data.noise={noise}" for noise in NOISES for _ in range(2)]
    config = by_noise[3].config()
    assert (config["data"]["init_args"]["noise"], config["epochs"]) == ("occlusion", 4)
    assert config["model"]["init_args"]["kernel"] == "instant"
    model = STUDY.items["table norm"].runs("cifar10", "fast", [0])[-1].config()["model"]["init_args"]
    assert (model["norm_eps"], model["norm_momentum"], model["kernel"]) == (0.1, 1.0, "instant")
    folds = STUDY.items["table 1"].runs("cifar10", "fast", [0])
    assert [run.flags[-2] for run in folds] == [f"--data.fold={fold}" for fold in range(5) for _ in range(2)]
    assert folds[2].config()["data"]["init_args"]["folds"] == 5
    other = [run.config()["model"] for run in STUDY.items["table networks"].runs("cifar10", "fast", [0])[1:3]]
    assert [model["class_path"] for model in other] == ["cascaded_densenet", "cascaded_vit"]
    assert [model["init_args"]["kernel"] for model in other] == ["instant", "osd"]


def test_folds_hold_out_each_image_once(monkeypatch) -> None:
    images = torch.arange(40, dtype=torch.uint8)[:, None, None, None].expand(40, 3, 32, 32)
    monkeypatch.setattr(
        CIFAR10, "read", lambda self, part: None if part == "validation" else Split(images, torch.arange(40) % 10, "x")
    )
    seen = []
    for fold in range(4):
        data = CIFAR10Folds(fold=fold, folds=4)
        rows, labels = data.held_out()
        assert torch.equal(data.split("validation").images[:, 0, 0, 0].long(), rows)
        assert torch.equal(labels, torch.arange(40) % 10)
        assert not set(rows.tolist()) & set(data.split("train").images[:, 0, 0, 0].tolist())
        seen += rows.tolist()
    assert sorted(seen) == list(range(40))
    with pytest.raises(ValueError, match=r"fold must lie in 0\.\.3, got 4"):
        CIFAR10Folds(fold=4, folds=4)


# -- numbers ---------------------------------------------------------------------------------------------------------------


def test_figure_2_by_hand() -> None:
    """Of class 0, the first image is decided at once and rightly, the second late and wrongly."""
    course = torch.tensor([[0, 0, 1, 2], [0, 1, 1, 0], [0, 1, 1, 1]])
    traces = {f"{name}{SMOOTHING}": {0: trace(course, [0, 0, 1, 2])} for name in ("CascadedTD", "CascadedCE")}
    result = figure_2(traces, "cifar10")
    row = result.numbers["rows"][0]
    assert (row["latency"], row["threshold"]) == (pytest.approx(1.75), pytest.approx(0.45))
    assert result.numbers["images_of_class"]["CascadedTD"]["fastest"][0] == [0, 1]
    claim = result.claims[0]
    assert claim.shows is False, "with all images shown, fastest and slowest are the same"
    assert (claim.measured["gain"], claim.measured["images"], row["accuracy"]) == (0, 4, 0.5)
    assert result.figure is None
    json_of(result)


def test_figure_2_has_an_interval() -> None:
    """46 of 60 against 10 of 60 by Newcombe's method, computed by hand; two seeds count twice."""
    rows = [{"shown": 60, "fastest_right": 46 / 60, "slowest_right": 10 / 60}]
    claim = sooner_is_right("CascadedTD", rows)
    found = [claim.measured[key] for key in ("gain", "low", "high")]
    assert found == pytest.approx([0.6, 0.4340, 0.7154], abs=1e-4)
    assert claim.shows is True
    both = sooner_is_right("CascadedTD", rows * 2)
    assert both.measured["images"] == 120
    assert both.measured["low"] > claim.measured["low"]
    few = sooner_is_right("CascadedTD", [{"shown": 4, "fastest_right": 0.75, "slowest_right": 0.5}])
    assert (few.shows, few.measured["gain"]) == (False, 0.25)


def test_figure_5_by_hand() -> None:
    """At t = 2, three of four mistakes of TD stay in the superclass {0, 1} or {2, 3}, and none of CE's."""
    labels = [0, 1, 2, 3] * 50
    near, far = torch.tensor([1, 0, 3, 2] * 50), torch.tensor([2, 3, 0, 1] * 50)
    mixed = torch.where(torch.arange(200) % 4 == 0, far, near)
    td, ce = (trace(torch.stack([far, second, near]), labels) for second in (mixed, far))
    result = compliance_result({"CascadedTD": {0: td}, "CascadedCE": {0: ce}}, [0, 0, 1, 1])
    values = [row["compliance"] for row in result.numbers["rows"]]
    assert values == [0, 0.75, 1, 0, 0, 1]
    assert [(row["time"], row["macs"], row["ms"]) for row in result.numbers["rows"][:3]] == [
        (t, t, 1000 * t) for t in (1, 2, 3)
    ]
    assert [axes.get_xlabel() for axes in result.figure.axes] == ["t", "MACs", "ms"]
    assert [row["chance"] for row in result.numbers["rows"]] == pytest.approx([1 / 3] * 6)
    first, second = result.claims
    assert first.shows is True
    assert first.measured["gain"] == 0.75
    assert first.measured["low"] == pytest.approx(0.75 - 1.96 * math.sqrt(0.75 * 0.25 / 200))
    assert second.measured["time_of_first"] == {"CascadedTD": 2, "CascadedCE": 3}
    assert second.shows is True
    json_of(result)


def test_table_1_by_hand() -> None:
    """TD decides in the order of every measure; CE in no order of centrality, and the scores of people are alike."""
    order = torch.arange(60)
    shuffled = order[torch.randperm(60, generator=torch.Generator().manual_seed(0))]
    reached = torch.ones(60, dtype=torch.bool)

    def one(steps: torch.Tensor) -> dict[str, torch.Tensor]:
        speed = {"steps": steps, "reached": reached, "paper_steps": torch.full_like(steps, 70), "paper_reached": ~reached}
        right = {"right": order < 30, "settled_right": order < 45, "threshold": torch.tensor([0.4, 0.5])}
        return {"rows": order, "labels": order, "centrality": -order.double(), **speed, **right}

    held_out = {"TD": one(order + 1), "CE": one(shuffled + 1)}
    scores = {"C-score": -(order.double() ** 3), "human consistency": shuffled.double()}
    tests = {"TD": one(order + 1), "CE": one(order + 1)}
    result = typicality_result(held_out, tests, scores, NUMBERS, [])
    rows = {(row["measure"], row["network"]): row for row in result.numbers["rows"]}
    assert rows["centrality", "TD"]["rho"] == rows["C-score", "TD"]["rho"] == pytest.approx(1)
    assert abs(rows["centrality", "CE"]["rho"]) < 0.3
    assert (rows["centrality", "TD"]["paper"], rows["C-score", "CE"]["paper"]) == (0.352, 0.326)
    assert math.isnan(rows["centrality", "TD"]["rho_at_083"]), "no image reaches the paper's threshold"
    assert rows["centrality", "TD"]["never_at_083"] == 1
    assert [claim.shows for claim in result.claims] == [True, True, True]
    assert result.numbers["images"] == {"held-out training images": 60, "test images": 60}
    network = result.numbers["networks"][1]
    assert (network["network"], network["accuracy"], network["settled_accuracy"]) == ("TD", 0.5, 0.75)
    assert network["thresholds"].tolist() == pytest.approx([0.4, 0.5])
    alone = typicality_result(held_out, tests, {}, NUMBERS, ["cscores.npz"])
    assert len(alone.claims) == 1
    assert "missing: cscores.npz" in alone.text
    json_of(result)


def test_side_data_are_looked_for(tmp_path) -> None:
    found, missing = typical.side_scores(tmp_path, torch.zeros(3), torch.zeros(3))
    assert found == {}
    assert [Path(file).name for file in missing] == ["cifar10-cscores-orig-order.npz", "cifar10h-counts.npy"]


def test_table_2_by_hand() -> None:
    """TD is 5 points better in every group, and at rotation as good as the others."""
    found = {}
    for noise in NOISES:
        better = torch.full((10,), 0.05 if noise in LOSSY else 0.0) + 0.001 * (torch.arange(10) % 2) * (noise in LOSSY)
        found[noise] = {f"{name}, {key}": torch.full((10,), 0.5) for name in NETWORKS for key in ("accuracy", "drop", "area")}
        found[noise]["CascadedTD, accuracy"] = 0.5 + better
        found[noise]["CascadedTD, drop"] = 0.5 - better
    result = noise_result(found, NUMBERS)
    rows = {(row["noise"], row["network"]): row for row in result.numbers["rows"]}
    assert rows["focus", "CascadedTD"]["accuracy"] == pytest.approx(0.5505)
    assert rows["focus", "CascadedTD"]["paper_accuracy"] == 0.8731
    assert rows["occlusion", "SerialCE x 9"]["paper_drop"] == 7.70
    assert "paper_drop" not in rows["rotation", "CascadedTD"]
    assert len(result.claims) == 24
    assert result.claims[4].to_dict()["paper"]["gain"] == pytest.approx(0.8976 - 0.8626)
    assert result.claims[7].to_dict()["paper"]["gain"] == pytest.approx(8.25 - 0.93)
    assert "gain 0.0505 [0.0501, 0.0509]; paper: gain 0.0304" in result.text
    assert all(claim.shows for claim in result.claims)
    assert "yes      CascadedTD is not more accurate under persistent rotation than CascadedCE" in result.text
    assert set(PUBLISHED) == set(LOSSY)
    json_of(result)


def test_figure_7_by_hand() -> None:
    """Known images are sure early, unknown ones only at the end: the last step tells nothing, the course everything."""
    known, unknown_ = (trace(torch.zeros(3, 20, dtype=torch.int64), [0] * 20) for _ in range(2))
    logits = unknown_.logits.clone()
    logits[:2] = 0
    unknown_ = replace(unknown_, logits=logits)
    found = detections({"fit": known, "test": known}, {"fit": unknown_, "test": unknown_}, 1)
    assert next(iter(found)) == "baseline, last"
    assert all(one["auroc"] == (1 if name.endswith("trace") else 0.5) for name, one in found.items())
    result = unknown_result({"noise": {0: found, 1: found}, "digits": {0: found, 1: found}}, NUMBERS)
    assert [claim.shows for claim in result.claims] == [True] * 4
    assert result.claims[0].measured["gain"] == 0.5
    single = unknown_result({"noise": {0: found}}, NUMBERS)
    assert [claim.shows for claim in single.claims] == [None] * 4, "one set and one seed have no interval"
    assert single.figure.axes[1].get_title(loc="left") == "bars: ± 1 SEM over sets and seeds"
    json_of(result)


def test_norms_by_hand() -> None:
    """With the norm as run, TD loses 20 points of its gain in both seeds, so the comparison depends on it."""

    def of(right: int, seed: int) -> Trace:
        answers = (torch.arange(100) >= right + seed).long().expand(9, -1)
        return trace(answers, [0] * 100)

    right = {"CascadedTD": 80, "CascadedCE": 50, f"CascadedTD{AS_RUN}": 40, f"CascadedCE{AS_RUN}": 30}
    stored = {name: {seed: of(count, seed) for seed in (0, 1)} for name, count in right.items()}
    result = norm_result(stored, NUMBERS)
    assert [line["asymptote"] for line in result.numbers["gains"]] == pytest.approx([0.3, 0.1, -0.1])
    claims = result.claims[2:]
    assert [claim.shows for claim in claims] == [True, True]
    assert [claim.measured["change"] for claim in claims] == pytest.approx([-0.2, -0.4])
    assert [claim.note for claim in claims] == ["", "the sign changes"]
    for spread, shows in ((0, False), (20, None)):  # between the seeds: alike in both, or once for and once against
        other = {f"CascadedTD{AS_RUN}": {seed: of(80 + spread * (2 * seed - 1), seed) for seed in (0, 1)}}
        same = norm_result(stored | other | {f"CascadedCE{AS_RUN}": stored["CascadedCE"]}, NUMBERS)
        assert [claim.shows for claim in same.claims] == [shows] * 4
    one = norm_result({name: {0: by_seed[0]} for name, by_seed in stored.items()}, NUMBERS)
    assert [claim.shows for claim in one.claims] == [None] * 4
    json_of(result)


def test_other_networks_by_hand() -> None:
    right, wrong = torch.zeros(40, dtype=torch.int64), torch.ones(40, dtype=torch.int64)
    td, ce = trace(torch.stack([right, right, right]), [0] * 40), trace(torch.stack([wrong, wrong, right]), [0] * 40)
    result = network_result({"ViT, TD": {0: td}, "ViT, CE": {0: ce}}, NUMBERS)
    assert [row["accuracy"] for row in result.numbers["rows"]] == [1, 1, 1, 0, 0, 1]
    assert [(row["t"], row["macs"]) for row in result.numbers["rows"][:3]] == [*enumerate(td.macs.tolist())]
    assert [row["ms"] for row in result.numbers["rows"]] == [1e3, 2e3, 3e3] * 2
    assert [claim.shows for claim in result.claims] == [True, True]
    assert result.claims[0].measured["gain"] == 1
    json_of(result)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("cascaded_vit", {"layers": 1, "width": 12}), ("cascaded_densenet", {"layers": (1, 1), "growth": 4})],
)
def test_ce_networks_get_delays(name: str, arguments: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = create_model(name, 3, kernel="instant", **arguments).eval()
    model.info.class_names = ("a", "b", "c")
    cascade, x = with_delays(model).eval(), torch.rand(2, 3, 8, 8)
    assert cascade.num_steps > 1
    assert cascade.info.class_names == ("a", "b", "c")
    with torch.no_grad():
        assert (cascade(x)[-1] - model(x)[0]).abs().max() < 1e-6


def test_what_is_kept_in_a_run_is_measured_again_for_other_weights(tmp_path: Path) -> None:
    """After `train --overwrite` the numbers of the earlier network were used. Files of an earlier version do not say."""
    (tmp_path / "model.safetensors").write_bytes(b"one")
    for value, wanted in ((1.0, 1.0), (2.0, 1.0)):
        assert measured.kept(tmp_path / "noise.safetensors", lambda value=value: {"x": torch.tensor([value])})["x"] == wanted
    (tmp_path / "model.safetensors").write_bytes(b"two")
    for made, value, wanted in (("", 3.0, 3), ("augmented", 4.0, 4), ("augmented", 5.0, 4)):
        assert (
            measured.kept(tmp_path / "noise.safetensors", lambda value=value: {"x": torch.tensor([value])}, made)["x"]
            == wanted
        )
    steps = torch.zeros(1, 4, dtype=torch.int64)
    path = tmp_path / "trace-unknown-noise-test.safetensors"
    for label, weights, wanted in ((0, "one", 0), (1, "one", 0), (2, "two", 2)):
        made = replace(trace(steps, [label] * 4), meta={"weights": weights, "trained_on": "a machine"})
        assert measured.kept_trace(path, lambda made=made: made, weights).labels[0] == wanted
    assert _own_files(tmp_path) >= {Path(path.name)}, "with --overwrite it goes"


# -- from end to end -------------------------------------------------------------------------------------------------------


def test_smoothing_keeps_the_last_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The statistics are of images as training sees them, so once settled the network under smoothing is the trained one."""
    monkeypatch.setattr(measured, "CALIBRATION", 64)
    data = Digits(batch_size=32, augment="crop+flip")
    monkeypatch.setattr(measured, "trained_on", lambda _: data)
    torch.manual_seed(0)
    model = create_model("cascaded_resnet18", 10, in_channels=1, width=4, kernel="instant")
    seen = [images for images, _ in itertools.islice(data.loader(data.split("train"), train=True), 2)]
    calibrate(model.eval(), seen)
    x = torch.rand(4, 1, 8, 8)
    with torch.no_grad():
        assert (measured.smoothed(model)(x)[-1] - model(x)[-1]).abs().max() < 0.02 * model(x)[-1].abs().max()


class DigitsFolds(Folded, Digits):
    """Digits in folds."""


@pytest.mark.slow
def test_tables_and_figures_on_digits(tmp_path, monkeypatch, capsys) -> None:
    """Each is made from one-epoch trainings of tiny networks, and a second call trains and measures nothing."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ANYTIME_DATA", str(tmp_path))  # which has no C-scores of CIFAR-10
    trained: list[str] = []

    def train(arguments, log):
        trained.append(arguments[-1])
        return main(["train", *arguments])

    monkeypatch.setattr(command, "run_all", functools.partial(run_all, train=train))
    monkeypatch.setitem(RECIPES["cpu"], "cifar10", (RECIPES["cpu"]["cifar10"][0], ("--data=Digits",)))
    monkeypatch.setattr(typical, "DATA", f"{__name__}.DigitsFolds")
    for module, constants in (
        (typical, {"FOLDS": 2, "HELD_OUT": 60}),
        (unknown, {"SETS": {}, "IMAGES": 60}),
        (noisy, {"NOISES": ("resolution",), "IMAGES": 40, "BATCHES": 2, "DURATIONS": (1,)}),
        (measured, {"STEPS": 12, "CALIBRATION": 64}),
    ):
        for name, value in constants.items():
            monkeypatch.setattr(module, name, value)
    arguments = ["iuzzolino2021", "--figure", "2", "7", "--table", "1", "2", "norm", "--seeds", "0"]
    arguments += ["--model.width=4", "--epochs=1", "--data.limit=64", "--compile=false", "--precision=32-true"]
    arguments += ["--progress=false"]
    assert command.run(arguments) == 0
    assert len(trained) == 2 + 4 + 2 + 2
    out = capsys.readouterr().out
    for item in ("figure_2", "figure_7", "table_1", "table_2", "table_norm"):
        numbers = json.loads((tmp_path / f"results/iuzzolino2021/{item}_cifar10_cpu.json").read_text())
        assert numbers["rows"]
        assert len(numbers.get("recipes", [])) == {"figure_2": 2, "table_1": 4, "table_2": 2, "table_norm": 4}.get(item, 0)
        assert numbers["claims"]
        assert f"{item}_cifar10_cpu.json" in out
    for module in (noisy, typical):
        monkeypatch.setattr(module, "measured", lambda *_: pytest.fail("measured again"))
    assert command.run(arguments) == 0
    assert len(trained) == 10
