"""`anytime train` as a user calls it: runs that finish, are killed, interrupted, or fail."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from anytime.cli import main
from anytime.training.checkpoints import read_checkpoint
from anytime.training.config import parse
from anytime.training.launch import default_run

CHECKPOINT = "checkpoints/last.ckpt"
LARGE = """
from torch import nn

from anytime import AnytimeModel


class Large(AnytimeModel):
    num_steps = 1

    def __init__(self, num_classes=10, in_channels=1):
        super().__init__(num_classes, in_channels)
        self.head = nn.Linear(in_channels, num_classes)

    def initial_state(self, x):
        self.check_input(x, 16)
        return x

    def step(self, state):
        return self.head(state.mean((2, 3))), state
"""


def state(run: Path) -> str:
    return json.loads((run / "run.json").read_text())["state"]


def same(run: Path, other: Path) -> bool:
    left, right = load_file(run / "model.safetensors"), load_file(other / "model.safetensors")
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.fixture(autouse=True)
def in_tmp(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def start():
    """Starts `anytime` in a subprocess that does not outlive the test."""
    processes = []

    def started(*arguments: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "anytime", *arguments]
        processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        return processes[-1]

    yield started
    for process in processes:
        process.kill()
        process.communicate()


def wait_for(path: Path, process: subprocess.Popen, newer_than: float = 0.0) -> None:
    for _ in range(30_000):  # five minutes, for a busy machine
        if path.exists() and path.stat().st_mtime > newer_than:
            return
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    raise TimeoutError(path)


def test_run_directory_and_training_again_from_its_configuration(tiny, capsys):
    assert main(["train", *tiny]) == 0
    run = Path("runs/anytimenet_Digits")
    out, err = capsys.readouterr()
    claimed, *rest = out.splitlines()
    assert rest == [f"wrote {run}", f"next: anytime evaluate {run}"]
    percents = r"\d+\.\d, \d+\.\d %"
    pattern = rf"trained in \d+:\d\d min on .+: \d+ images/s; validation accuracy {percents} \(one run\)"
    assert re.fullmatch(pattern, claimed)
    with (run / "metrics/metrics.csv").open() as file:
        last = [row for row in csv.DictReader(file) if row["val/accuracy"]][-1]
    training = json.loads((run / "run.json").read_text())["training"]
    assert training["validation_accuracy"] == [round(float(last[f"val/accuracy_{t}"]), 4) for t in (1, 2)]
    assert err == ""
    names = {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()}
    expected = {"config.yaml", "run.json", "config.json", "model.safetensors", "images.safetensors"}
    expected |= {CHECKPOINT, "metrics/metrics.csv"}
    assert {name for name in names if not name.startswith("tensorboard")} == expected
    assert state(run) == "finished"
    assert main(["train", "--config", str(run / "config.yaml"), "--run", "again"]) == 0
    assert same(run, Path("again"))
    assert yaml.safe_load((run / "config.yaml").read_text()) == yaml.safe_load(Path("again/config.yaml").read_text())


def test_recipe_with_overrides(tiny):
    Path("recipe.yaml").write_text("model: anytimenet\ndata: digits\nepochs: 50\nprogress: true\n")
    assert main(["train", "--config", "recipe.yaml", "--run", "a", *tiny[1:4], *tiny[5:]]) == 0
    assert json.loads(Path("a/config.json").read_text())["metadata"]["recipe"]["epochs"] == 3


def test_own_model_in_the_current_folder(tiny, own_net, monkeypatch):
    own = Path("own_net.py").read_text()
    Path("work").mkdir()
    monkeypatch.chdir("work")
    Path("net_of_mine.py").write_text(own)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", os.getcwd())])
    rest = [flag for flag in tiny if not flag.startswith("--model")]
    assert main(["train", "--model", "net_of_mine.Net", "--model.width", "8", *rest]) == 0
    assert main(["evaluate", "runs/Net_Digits"]) == 0


def test_default_run_is_named_by_model_and_data():
    assert default_run(parse(["--model", "anytimenet", "--data", "cifar10"])) == Path("runs/anytimenet_CIFAR10")
    assert (
        default_run(parse(["--model", "anytime.models.anytimenet.AnytimeNet", "--data", "digits"])).name == "AnytimeNet_Digits"
    )


def test_existing_run(tiny, capsys):
    Path("run").mkdir()
    Path("run/precious").touch()
    assert main(["train", *tiny, "--run", "run"]) == 2
    for flags in ([], ["--overwrite"]):
        assert main(["train", *tiny, "--run", "run", *flags]) == 2
        message = "run exists and is not a run directory (run.json is missing), so it is not overwritten; give another --run"
        assert message in capsys.readouterr().err
    assert Path("run/precious").exists()
    assert main(["train", *tiny, "--run", "mine", "--epochs", "1"]) == 0
    before = Path("mine/run.json").stat().st_mtime_ns
    assert main(["train", *tiny, "--run", "mine"]) == 2
    assert "mine exists; give another --run, --resume mine to continue, or --overwrite" in capsys.readouterr().err
    Path("large.py").write_text(LARGE)
    assert main(["train", "--model=large.Large", "--data=digits", "--run", "mine", "--overwrite"]) == 2
    assert "images must be at least 16x16 pixels, got 8x8" in capsys.readouterr().err
    assert main(["train", *tiny, "--run", "mine", "--overwrite", "--data.classes", "nothing"]) == 2
    assert "no class matches 'nothing'" in capsys.readouterr().err
    assert Path("mine/run.json").stat().st_mtime_ns == before  # nothing is lost by a wrong command
    assert main(["train", *tiny, "--run", "mine", "--overwrite"]) == 0
    assert main(["train", "--resume", "mine"]) == 2
    assert "mine is finished" in capsys.readouterr().err
    assert main(["train", "--resume", "mine", "--epochs", "9"]) == 2
    options = "--optimizer.lr, --gradient_clip and --progress"
    assert f"--resume mine can change only {options}; leave out --epochs" in capsys.readouterr().err
    assert main(["train", "--resume", "mine", "--run", "other"]) == 2
    assert "--resume mine continues the run there; leave out --config, --run and --overwrite" in capsys.readouterr().err


def test_resume_of_a_directory_that_cannot_be_resumed(tiny, capsys):
    assert main(["train", "--resume", "nowhere"]) == 2
    assert "there is no run directory nowhere" in capsys.readouterr().err
    Path("half").mkdir()
    Path("half/config.yaml").write_text("model: anytimenet")
    assert main(["train", "--resume", "half"]) == 1
    assert "half is not a complete run directory: run.json is missing" in capsys.readouterr().err
    Path("half/run.json").write_text('{"format": 1}')
    assert main(["train", "--resume", "half"]) == 1
    assert "half/run.json is damaged: the state of the run is missing" in capsys.readouterr().err
    Path("half/run.json").write_text('{"format": 1, "state": "interrupted"}')
    Path("half/config.yaml").write_text("model: anytimenet\nfoo: 1")
    assert main(["train", "--resume", "half"]) == 1
    assert "half is damaged: recipe half/config.yaml: unknown key 'foo'" in capsys.readouterr().err


def test_resume_with_a_checkpoint_of_another_model(tiny, capsys):
    assert main(["train", *tiny, "--run", "run", "--epochs", "1"]) == 0
    for name, old, new in (("config.yaml", "width: 4", "width: 8"), ("run.json", "finished", "interrupted")):
        path = Path("run", name)
        path.write_text(path.read_text().replace(old, new))
    assert main(["train", "--resume", "run"]) == 1
    assert capsys.readouterr().err == (
        "anytime train: error: run/checkpoints/last.ckpt does not fit the configuration: "
        "model.stem.weight is [4, 1, 3, 3], here [8, 1, 3, 3]\n"
    )


def test_run_without_a_checkpoint_starts_again(tiny):
    assert main(["train", *tiny, "--run", "whole"]) == 0
    for name in ("config.yaml", "run.json"):
        Path("early").mkdir(exist_ok=True)
        text = Path("whole", name).read_text().replace("finished", "started")
        Path("early", name).write_text(text)
    assert main(["train", "--resume", "early"]) == 0
    assert same(Path("whole"), Path("early"))


def test_nan(tiny, capsys):
    assert main(["train", *tiny, "--optimizer.lr", "1e30", "--run", "run", "--schedule", "constant"]) == 1
    err = capsys.readouterr().err
    assert "is nan at step" in err or "is inf at step" in err
    assert "there is no checkpoint yet; a smaller learning rate may help" in err
    assert err.count("\n") == 1
    assert state(Path("run")) == "failed"


@pytest.mark.usefixtures("second_checkpoint_finds_the_disk_full")
def test_full_disk(tiny, capsys):
    assert main(["train", *tiny, "--run", "run"]) == 1
    assert capsys.readouterr().err == (
        "anytime train: error: No space left on device: run/checkpoints/last.ckpt; "
        "the last good checkpoint is run/checkpoints/last.ckpt; resume with: anytime train --resume run\n"
    )
    assert state(Path("run")) == "failed"
    assert main(["train", "--resume", "run"]) == 0
    assert main(["train", *tiny, "--run", "whole"]) == 0
    assert same(Path("whole"), Path("run"))


def test_unexpected_errors_keep_their_traceback(tiny, monkeypatch):
    monkeypatch.setattr("anytime.training.build.fit", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["train", *tiny, "--run", "run"])
    assert state(Path("run")) == "failed"


def test_interrupted_command_ends_with_130_and_resumes(tiny, start):
    """A real Ctrl-C in mid-epoch, then kill -9, then to the end: the weights are those of an uninterrupted training."""
    tiny = [*tiny, "--data.batch_size", "2", "--epochs", "6"]
    assert main(["train", *tiny, "--run", "whole"]) == 0
    run = Path("run")
    process = start("train", *tiny, "--run", "run")
    wait_for(run / CHECKPOINT, process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 130, err
    assert err == "anytime train: error: interrupted; checkpoint saved; resume with: anytime train --resume run\n"
    assert state(run) == "interrupted"
    first = read_checkpoint(run / CHECKPOINT)["global_step"]

    process = start("train", "--resume", "run")
    wait_for(run / CHECKPOINT, process, newer_than=(run / CHECKPOINT).stat().st_mtime)
    process.kill()
    process.communicate(timeout=300)
    assert process.returncode == -signal.SIGKILL
    assert read_checkpoint(run / CHECKPOINT)["global_step"] > first

    assert main(["train", "--resume", "run"]) == 0
    assert same(Path("whole"), run)


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.0, 0.05, 0.2, 0.4])
def test_killed_at_any_moment(tiny, start, seconds):
    tiny = [*tiny, "--data.batch_size", "2", "--epochs", "6"]
    assert main(["train", *tiny, "--run", "whole"]) == 0
    process = start("train", *tiny, "--run", "run")
    wait_for(Path("run/run.json"), process)
    time.sleep(seconds)
    process.kill()
    process.communicate(timeout=300)
    if state(Path("run")) != "finished":
        assert main(["train", "--resume", "run"]) == 0
    assert same(Path("whole"), Path("run"))


def test_signal_handlers_are_left_as_they_were(tmp_path, monkeypatch):
    """Lightning and an interruption set handlers of their own."""
    monkeypatch.chdir(tmp_path)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    flags = ["--data", "digits", "--data.limit", "40", "--epochs", "1", "--progress", "false", "--model.width", "2"]
    assert main(["train", "--model", "anytimenet", *flags, "--run", "run"]) == 0
    assert {number: signal.getsignal(number) for number in before} == before
