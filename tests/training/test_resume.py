"""Checkpoints that are damaged or incomplete, and runs that are resumed with other options."""

import copy
import json
import random
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from anytime import load
from anytime.cli import main
from anytime.training.build import build
from anytime.training.callbacks import Interrupted
from anytime.training.checkpoints import read_checkpoint
from anytime.training.config import parse
from anytime.training.fit import fit
from anytime.training.resumed import first_oddity, kept_entries

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


def group(checkpoint) -> dict:
    return checkpoint["optimizer_states"][0]["param_groups"][0]


def schedule(checkpoint) -> dict:
    return checkpoint["lr_schedulers"][0]


def state(checkpoint) -> dict:
    return checkpoint["optimizer_states"][0]["state"]


def buffers(checkpoint, value) -> None:
    for kept in state(checkpoint).values():
        kept["momentum_buffer"] = value


ODD = {
    "a rate as text": (lambda c: group(c).update(lr="x"), "lr of the optimizer's group 1 is 'x', not a number of at least 0"),
    "another first rate": (
        lambda c: group(c).update(initial_lr=1e300),
        "base_lrs of the schedule is [0.1, 0.1], but init",
    ),
    "no first rate": (lambda c: group(c).pop("initial_lr"), "initial_lr of the optimizer's group 1 is None, not a number"),
    "no momentum": (lambda c: group(c).update(momentum=0.0), "momentum of the optimizer's group 1 is 0.0, here 0.9"),
    "momentum as a tensor": (
        lambda c: group(c).update(momentum=torch.ones(2)),
        "momentum of the optimizer's group 1 is tens",
    ),
    "ascent": (lambda c: group(c).update(maximize=True), "maximize of the optimizer's group 1 is True, here False"),
    "negative decay": (
        lambda c: group(c).update(weight_decay=-5),
        "weight_decay of the optimizer's group 1 is -5, here 0",
    ),
    "another order": (lambda c: group(c)["params"].reverse(), "params of the optimizer's group 1 is ["),
    "text as rates": (lambda c: schedule(c).update(base_lrs=["x"]), "base_lrs of the schedule is ['x'], not 2 numbers"),
    "other rates": (lambda c: schedule(c).update(base_lrs=[1e9, 1e9]), "base_lrs of the schedule is [1000000000.0, 10000"),
    "NaN as last rates": (lambda c: schedule(c).update(_last_lr=[float("nan")] * 2), "_last_lr of the schedule is [nan, nan]"),
    "a later epoch": (
        lambda c: schedule(c).update(last_epoch=10**12),
        "last_epoch of the schedule is 1000000000000 after",
    ),
    "an earlier epoch": (lambda c: schedule(c).update(last_epoch=-1), "last_epoch of the schedule is -1 after 4 steps"),
    "another step": (lambda c: schedule(c).update(_step_count=0), "_step_count of the schedule is 0 after 4 steps"),
    "an optimizer": (lambda c: schedule(c).update(optimizer="x"), "the schedule has an entry 'optimizer'"),
    "functions": (
        lambda c: schedule(c).update(lr_lambdas=[{"a": 1}] * 2),
        "lr_lambdas of the schedule is [{'a': 1}, ",
    ),
    "text as momentum": (
        lambda c: buffers(c, "x"),
        "momentum_buffer of the optimizer's state of parameter 0 is str, ",
    ),
    "null as momentum": (lambda c: buffers(c, None), "momentum_buffer of the optimizer's state of parameter 0 is NoneType"),
    "another shape": (lambda c: buffers(c, torch.zeros(1)), "parameter 0 is numbers of shape [1], here numbers of shape [4,"),
    "whole numbers": (lambda c: buffers(c, torch.zeros(4, 1, 3, 3).long()), "parameter 0 is torch.int64 of shape"),
    "NaN as momentum": (
        lambda c: buffers(c, torch.full((4, 1, 3, 3), torch.nan)),
        "momentum_buffer of the optimizer's state of parameter 0 holds NaN or infinity",
    ),
    "infinite momentum": (lambda c: buffers(c, torch.full((4, 1, 3, 3), torch.inf)), "parameter 0 holds NaN or infinity"),
    "momentum of another type": (
        lambda c: buffers(c, torch.zeros(4, 1, 3, 3).double()),
        "is torch.float64, here torch.float32",
    ),
    "NaN as weights": (lambda c: next(iter(c["state_dict"].values())).fill_(torch.nan), "model."),
    "no state": (lambda c: state(c).clear(), "the optimizer's state is empty after 4 steps"),
    "state of no parameter": (lambda c: state(c).update(x={}), "state of parameter 'x' is [], here []"),
    "more state": (lambda c: state(c)[0].update(step=3), "0 is ['momentum_buffer', 'step'], here ["),
    "two optimizers": (lambda c: c["optimizer_states"].append({}), "optimizer_states holds 2 entries, not 1"),
    "two schedules": (lambda c: c["lr_schedulers"].append({}), "lr_schedulers holds 2 entries, not 1"),
    "more steps": (lambda c: c.update(global_step=5), "last_epoch of the schedule is 4 after 5 steps"),
    "more steps everywhere": (
        lambda c: (c.update(global_step=5), schedule(c).update(last_epoch=5, _step_count=6)),
        "global_step is 5, but the loop has made 4 steps",
    ),
}


def test_what_no_training_saves_ends_in_one_sentence(interrupted, capsys):
    """Values of the optimizer and its schedule that fail in the middle of a training, or change its numbers silently."""
    whole = (interrupted / CHECKPOINT).read_bytes()
    for kind, (change, message) in ODD.items():
        (interrupted / CHECKPOINT).write_bytes(whole)
        change(checkpoint := read_checkpoint(interrupted / CHECKPOINT))
        torch.save(checkpoint, interrupted / CHECKPOINT)
        assert main(["train", "--resume", "run"]) == 1, kind
        error = capsys.readouterr().err
        assert error.startswith(f"anytime train: error: run/{CHECKPOINT} does not fit the configuration: "), kind
        assert message in error, kind
        assert error.count("\n") == 1


@pytest.mark.parametrize(
    "name",
    ["SGD", "Adam", "AdamW", "NAdam", "RAdam", "Adamax", "Adagrad", "Adadelta", "Adafactor", "RMSprop", "Rprop", "ASGD"],
)
def test_what_each_optimizer_keeps_is_known(name):
    """A state that it saves after some steps fits; with one tensor of another shape, NaN or a negative square it does not."""
    squares = {
        *("exp_avg_sq", "square_avg", "acc_delta", "sum", "exp_inf", "row_var", "col_var", "variance", "step_size"),
    }

    def make(groups):
        return getattr(torch.optim, name)(groups, lr=0.01, **({"momentum": 0.9} if name == "SGD" else {}))

    parameters = [torch.rand(3, 2, 2, 2, requires_grad=True), torch.rand(5, requires_grad=True)]
    groups = [{"params": [parameter]} for parameter in parameters]
    optimizer = make([*map(dict, groups)])
    rates = LambdaLR(optimizer, lambda step: 1.0)
    for _ in range(3):
        for parameter in parameters:
            parameter.grad = torch.rand_like(parameter)
        optimizer.step()
        rates.step()
    before = [parameter.detach().clone() for parameter in parameters]
    made = {"optimizer": {"step": {"total": {"completed": 3}}}}
    checkpoint = {
        "global_step": 3,
        "optimizer_states": [copy.deepcopy(optimizer.state_dict())],
        "lr_schedulers": [rates.state_dict()],
        "loops": {"fit_loop": {"epoch_loop.automatic_optimization.optim_progress": made}},
    }
    new = make([*map(dict, groups)])
    known = (new, LambdaLR(new, lambda step: 1.0), kept_entries(make, [*map(dict, groups)]))
    assert first_oddity(checkpoint, *known) == ""
    kept = dict(state(checkpoint)[0])
    for key, value in kept.items():
        if isinstance(value, Tensor):
            state(checkpoint)[0] = kept | {key: torch.zeros(7)}
            assert f"{key} of the optimizer's state of parameter 0 is numbers of shape [7]" in first_oddity(checkpoint, *known)
            if key != "step":
                state(checkpoint)[0] = kept | {key: torch.full_like(value, torch.nan)}
                assert "holds NaN or infinity" in first_oddity(checkpoint, *known)
                state(checkpoint)[0] = kept | {key: torch.full_like(value, -1.0)}
                assert ("never negative" in first_oddity(checkpoint, *known)) == (key in squares)
    assert all(map(torch.equal, parameters, before))


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
