"""Exits on backbones: costs of the networks, heads only leave the network unchanged, and an end-to-end run."""

import functools
import json

import pytest
import torch

from anytime import attach_exits, load, step_macs
from anytime.cli import main
from anytime.commands import study as command
from anytime.models.surgery.small_networks import ResNet20, SmallMobileNet
from anytime.studies import backbones, find_recipe, run_all
from anytime.studies.backbones import BACKBONES, EXITS, FLAGS, HEADS_ONLY, PLAIN, STUDY, heads_only
from anytime.training.config import read_recipe


def resnet20_macs() -> int:
    """3x3 convolutions of the stem and 9 blocks, a 1x1 where the shape changes, and the classifier."""
    macs, before = 32**2 * 9 * 3 * 16, 16
    for width, size in ((16, 32), (32, 16), (64, 8)):
        macs += size**2 * (9 * before * width + 5 * 9 * width**2 + (before * width if before != width else 0))
        before = width
    return macs + 640


def mobilenet_macs() -> int:
    """Expansion, depthwise 3x3 and projection of 10 blocks, between a 3x3 stem and a 1x1 to 1,280 channels."""
    macs, before, size = 16**2 * 9 * 3 * 16, 16, 16
    blocks = [(8, 1, 1), *[(16, 6, 1)] * 2, *zip([16] * 3 + [32] * 3, [6] * 6, [2, 1, 1] * 2, strict=True), (48, 6, 1)]
    for width, expansion, stride in blocks:
        inner, smaller = before * expansion, size // stride
        macs += size**2 * before * inner * (expansion > 1) + smaller**2 * inner * (9 + width)
        before, size = width, smaller
    return macs + size**2 * before * 1280 + 12800


@pytest.mark.parametrize(
    ("network", "parameters", "macs"), [(ResNet20, 272_474, resnet20_macs()), (SmallMobileNet, 150_378, mobilenet_macs())]
)
def test_networks(network, parameters, macs):
    built = network()
    assert sum(p.numel() for p in built.parameters()) == parameters
    model = attach_exits(built, exits=1, input_size=(3, 32, 32))
    assert step_macs(model, (3, 32, 32)) == [macs]
    assert network(num_classes=7, in_channels=1)(torch.rand(2, 1, 16, 16)).shape == (2, 7)


def test_one_recipe_for_all():
    runs = STUDY.items["table resnet20"].runs("cifar10", "cpu", [0, 1])
    assert len(runs) == 2 * len(FLAGS)
    configs = [run.config() for run in runs]
    for key in ("data", "optimizer", "schedule", "epochs", "precision", "compile"):
        assert all(config[key] == configs[0][key] for config in configs)
    assert [list(run.views) for run in runs[:2]] == [
        [f"resnet20: {PLAIN}", f"resnet20: {HEADS_ONLY}"],
        ["resnet20: joint"],
    ]
    for name, epochs in (("resnet20", 8), ("mobilenet", 4)):
        configs = {run.name: run.config() for run in STUDY.items[f"table {name}"].runs("cifar10", "cpu", [0])}
        assert {config["epochs"] for config in configs.values()} == {epochs}
        mixed = configs[f"cifar10_cpu_{name}_mixed_seed0"]
        assert mixed["regime"]["init_args"]["backbone_epochs"] == epochs // 2


def test_from_end_to_end_on_digits(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = find_recipe("backbones_cifar10_cpu.yaml").read_text()
    text = text.replace("CIFAR10", "Digits").replace("exits: 4", "exits: 4\n    options: {width: 4}")
    text = text.replace("epochs: 8", "epochs: 5").replace("compile: true", "compile: false").replace("bf16-mixed", "32-true")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(text)
    monkeypatch.setattr(backbones, "find_recipe", lambda name: recipe)
    train = functools.partial(run_all, train=lambda arguments, log: main(["train", *arguments]))
    monkeypatch.setattr(command, "run_all", train)
    assert read_recipe(recipe)["model"]["init_args"]["backbone"].endswith(BACKBONES["resnet20"])
    arguments = ["backbones", "--table", "resnet20", "--seeds", "0", "--data.limit=128", "--progress=false"]
    assert command.run(arguments) == 0
    numbers = json.loads((tmp_path / "results/backbones/table_resnet20_cifar10_cpu.json").read_text())
    rows = {row["trained"]: row for row in numbers["rows"]}
    assert list(rows) == [PLAIN, HEADS_ONLY, *(name for name in FLAGS if name != PLAIN)]
    assert "answer_1" not in rows[PLAIN]
    assert rows[HEADS_ONLY]["answer_4"] == rows[PLAIN]["answer_4"]  # the network is unchanged
    assert all(f"answer_{t}" in rows[HEADS_ONLY] for t in range(1, EXITS + 1))
    assert rows[PLAIN]["macs"] == numbers["plain_macs"][-1] < numbers["macs"][-1] == rows["joint"]["macs"]
    assert "joint above heads only at the first answer" in capsys.readouterr().out
    plain = load(tmp_path / "runs/backbones/cifar10_cpu_resnet20_plain_network_seed0")
    fitted = heads_only(plain).state_dict()
    assert all(torch.equal(fitted[name], value) for name, value in plain.state_dict().items())
