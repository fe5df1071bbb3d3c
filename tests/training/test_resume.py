"""Checkpoints that are damaged or incomplete, and runs that are resumed with other options."""

import copy
import json
import random
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor

from anytime import load
from anytime.cli import main
from anytime.training.build import build
from anytime.training.callbacks import Interrupted
from anytime.training.checkpoints import read_checkpoint
from anytime.training.config import parse
from anytime.training.fit import fit

CHECKPOINT = "checkpoints/last.ckpt"


@pytest.fixture(autouse=True)
def in_tmp(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def equal(left, right) -> bool:
    if isinstance(left, dict):
        return list(left) == list(right) and all(equal(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(equal, left, right))
    return torch.equal(left, right) if isinstance(left, Tensor) else left == right


@pytest.fixture
def interrupted(tiny, interrupt) -> Path:
    """A run that was interrupted in step 4 of 9."""
    job = build(parse(tiny))
    with pytest.raises(Interrupted):
        fit(
            *(job.model, job.data, job.objective, job.optimizer, job.schedule, job.settings, "run"),
            callbacks=[interrupt(4)],
        )
    Path("run/config.yaml").write_text(yaml.safe_dump(job.config))
    Path("run/run.json").write_text(json.dumps({"format": 1, "anytime": "", "state": "interrupted"}))
    return Path("run")


def test_no_flipped_bit_gives_other_numbers(interrupted):
    """zip's own fields, such as dates, are not covered by checksums and change nothing."""
    path = interrupted / CHECKPOINT
    whole, before, draw = path.read_bytes(), read_checkpoint(path), random.Random(0)
    rejected = 0
    for _ in range(300):
        flipped = bytearray(whole)
        flipped[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        path.write_bytes(flipped)
        try:
            found = read_checkpoint(path)
        except ValueError:
            rejected += 1
        else:
            assert equal(found, before)
    assert rejected > 200


@pytest.mark.parametrize(
    "missing",
    [
        *("state_dict", "global_step", "epoch", "loops", "optimizer_states", "lr_schedulers", "pytorch-lightning_version"),
        *("loops/fit_loop", "loops/fit_loop/epoch_loop.batch_progress", "lr_schedulers/0/base_lrs", "optimizer_states/0"),
        *("optimizer_states/0/param_groups", "loops/fit_loop/state_dict/combined_loader/0/epoch"),
    ],
)
def test_incomplete_checkpoints_end_in_one_sentence(interrupted, capsys, missing):
    path = interrupted / CHECKPOINT
    checkpoint = part = copy.deepcopy(read_checkpoint(path))
    *way, last = [int(key) if key.isdigit() else key for key in missing.split("/")]
    for key in way:
        part = part[key]
    del part[last]
    torch.save(checkpoint, path)
    code = main(["train", "--resume", "run"])
    err = capsys.readouterr().err
    if code:  # Lightning does without its version
        assert code == 1
        assert err.startswith("anytime train: error: ")
        assert err.count("\n") == 1
    else:
        assert missing == "pytorch-lightning_version"


@pytest.mark.parametrize("content", [[1, 2], {"state_dict": 3}, torch.zeros(2)])
def test_other_objects_are_no_checkpoint(tmp_path, content):
    torch.save(content, tmp_path / "last.ckpt")
    with pytest.raises(ValueError, match="is incomplete: it has no "):
        read_checkpoint(tmp_path / "last.ckpt")


def test_a_run_that_died_of_nan_is_resumed_with_another_learning_rate(interrupted, capsys):
    assert main(["train", "--resume", "run", "--optimizer.lr", "1.5e30", "--progress=true"]) == 1
    err = capsys.readouterr().err
    assert "the last good checkpoint is run/checkpoints/last.ckpt; a smaller learning rate may help: " in err
    assert "anytime train --resume run --optimizer.lr RATE" in err
    good = read_checkpoint(interrupted / CHECKPOINT)
    assert good["global_step"] == 4
    assert main(["train", "--resume", "run", "--optimizer.lr", "0.02", "--gradient_clip", "0.5"]) == 0
    assert "training:" in capsys.readouterr().err  # --progress stays as it was given
    last = read_checkpoint(interrupted / CHECKPOINT)
    assert last["lr_schedulers"][0]["base_lrs"] == [0.02, 0.02]
    config = yaml.safe_load(Path("run/config.yaml").read_text())
    assert (config["optimizer"]["init_args"]["lr"], config["gradient_clip"], config["epochs"]) == (0.02, 0.5, 3)
    assert load("run").info.recipe["optimizer"]["init_args"]["lr"] == 0.02
    assert json.loads(Path("run/run.json").read_text())["changed"] == [
        {"step": 4, "optimizer.lr": 1.5e30, "progress": True},
        {"step": 4, "optimizer.lr": 0.02, "gradient_clip": 0.5},
    ]


def test_biases_keep_their_multiple_of_another_learning_rate(tiny):
    assert main(["train", *tiny, "--epochs", "1", "--bias_lr", "4", "--optimizer.lr", "0.1", "--run", "run"]) == 0
    saved = read_checkpoint(Path("run") / CHECKPOINT)
    assert saved["lr_schedulers"][0]["base_lrs"] == pytest.approx([0.1, 0.4])
    (optimizer,) = saved["optimizer_states"]
    assert [group["initial_lr"] for group in optimizer["param_groups"]] == pytest.approx([0.1, 0.4])
    model = load("run")
    ndim = [parameter.ndim for parameter in model.parameters()]
    weights, others = [len(group["params"]) for group in optimizer["param_groups"]]
    assert (weights, others) == (sum(n > 1 for n in ndim), sum(n <= 1 for n in ndim))
    job = build(parse([*tiny, "--epochs", "2", "--bias_lr", "4", "--optimizer.lr", "0.02"]))
    job.fit("run", resume=True)
    assert read_checkpoint(Path("run") / CHECKPOINT)["lr_schedulers"][0]["base_lrs"] == pytest.approx([0.02, 0.08])


@pytest.mark.parametrize("value", ["0", "-1", ".inf"])
def test_bias_lr_is_above_0(tiny, value, capsys):
    assert main(["train", *tiny, "--bias_lr", value]) == 2
    assert "bias_lr must be above 0 and finite" in capsys.readouterr().err


def test_another_learning_rate_counts_from_the_first_resumed_step(interrupted, each):
    """As if it had been the rate from the beginning; the schedule goes on where it was."""
    seen = []
    config = parse([], ["run/config.yaml"])
    job, given = build(config, filled_later=True), config["optimizer"]["init_args"] | {"lr": 0.02}
    parts = (job.model, job.data, job.objective, lambda groups: torch.optim.SGD(groups, **given), job.schedule, job.settings)
    look = each(lambda module, _: seen.append(module.optimizers().param_groups[1]["lr"]))
    fit(*parts, "run", resume=True, callbacks=[look])
    assert seen == pytest.approx([0.02 * job.schedule(step / 9) for step in range(4, 9)])


@pytest.mark.parametrize(
    "flag", ["--epochs=4", "--optimizer.momentum=0.1", "--data.batch_size=8", "--optimizer=adam", "--seed=1"]
)
def test_other_options_cannot_change(interrupted, capsys, flag):
    before = {path: path.read_bytes() for path in interrupted.rglob("*") if path.is_file()}
    assert main(["train", "--resume", "run", "--optimizer.lr", "0.02", flag]) == 2
    assert f"leave out {flag.partition('=')[0]}" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in interrupted.rglob("*") if path.is_file()} == before


def test_a_wrong_value_changes_nothing(interrupted, capsys):
    before = Path("run/config.yaml").read_bytes()
    assert main(["train", "--resume", "run", "--optimizer.lr", "fast"]) == 2
    assert "optimizer.lr must be float" in capsys.readouterr().err
    assert Path("run/config.yaml").read_bytes() == before
