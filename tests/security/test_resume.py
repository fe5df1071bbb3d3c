"""What the configuration of a run from elsewhere may set when it is resumed: values of the right type that stay in the run."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
import yaml

from anytime.cli import main
from anytime.training.config import _section_hints, offered, parse
from anytime.training.foreign import HERE, OFFLINE
from anytime.training.launch import _resumed_config, resume_training
from anytime.training.rundir import create_run, read_run, set_state
from anytime.training.written import kinds_of

TINY = ["--model", "anytimenet", "--model.blocks", "[1,1]", "--model.scheme", "[[1,1]]", "--model.width", "2"]
FLAGS = [*TINY, "--epochs", "1", "--data", "digits", "--data.limit", "40", "--progress", "false", "--logger", "csv"]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that somebody else began; whoever uses the network fails."""
    monkeypatch.chdir(tmp_path)

    def offline(*arguments: Any, **_: Any) -> None:
        raise AssertionError(f"the network was used: {arguments}")

    for name in ("getaddrinfo", "create_connection"):
        monkeypatch.setattr(socket, name, offline)
    monkeypatch.setattr(socket.socket, "connect", offline)
    folder = create_run(Path("theirs"), parse(FLAGS))
    set_state(folder, "interrupted")
    return folder


def change(run: Path, **sections: Any) -> None:
    """Sets arguments, such as `optimizer={"lr": 1}`, or whole sections and settings."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    for key, value in sections.items():
        if isinstance(value, dict) and "class_path" not in value and key in ("data", "model", "objective", "optimizer"):
            config[key]["init_args"] |= value
        else:
            config[key] = value
    (run / "config.yaml").write_text(yaml.safe_dump(config))


def fails(capsys: pytest.CaptureFixture[str], *names: str) -> None:
    assert main(["train", "--resume", "theirs"]) in (1, 2)
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    assert "theirs/config.yaml" in error
    assert all(name in error for name in names), error
    assert len(error) < 700


SETS = ["CIFAR10", "CUB200", "SVHN", "GTSRB", "TinyImageNet"]
SPELLINGS = [("MNIST", value) for value in (True, "true", "yes", "on", 2, 1.0, [1], [True], {"a": 1}, "x")]


@pytest.mark.parametrize(("data", "value"), [*SPELLINGS, *((name, "true") for name in SETS)], ids=str)
def test_no_spelling_of_download_reaches_the_network(
    run: Path, data: str, value: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    change(run, data={"class_path": data, "init_args": {"root": "elsewhere", "download": value}})
    fails(capsys, "download")
    assert not Path("elsewhere").exists()


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "a logger in a list": ({"logger": ["wandb"]}, "logger"),
    "an unknown logger": ({"logger": "x"}, "logger must be one of 'auto', 'csv', 'tensorboard', 'wandb', got 'x'"),
    "wandb": ({"logger": "wandb"}, "sets logger, which uses the network"),
    "another strategy": ({"strategy": "ddp_notebook"}, "sets strategy to 'ddp_notebook', not one of auto, ddp,"),
    "a strategy of another package": ({"strategy": "colossalai"}, "--trust"),
    "a strategy that is an object": ({"strategy": {"class_path": "os.system"}}, "strategy"),
    "another accelerator": ({"accelerator": "tpu"}, "sets accelerator to 'tpu', not one of auto, cpu, gpu, cuda, mps"),
    "a loss in a list": ({"objective": {"loss": ["x"]}}, "objective.loss must be str or null, got ['x']"),
    "epochs as text": ({"epochs": "many"}, "epochs must be int, got 'many'"),
    "a limit as a list": ({"data": {"limit": [40]}}, "data.limit"),
    "a rate as a mapping": ({"optimizer": {"lr": {"a": 1}}}, "optimizer.lr"),
    "a width as text": ({"model": {"width": "wide"}}, "model.width must be int, got 'wide'"),
    "arguments that are text": (
        {"model": {"class_path": "boosted", "init_args": {"base": "anytimenet", "arguments": "text"}}},
        "model.arguments must be dict",
    ),
    "compilation as a path": ({"compile": "/tmp/x"}, "compile must be bool or one of 'blocks', got '/tmp/x'"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_values_of_a_foreign_run(run: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    changes, message = WRONG[kind]
    change(run, **changes)
    fails(capsys, message)
    assert sorted(path.name for path in run.iterdir() if path.name != ".lock") == ["config.yaml", "run.json"]


def test_every_argument_that_could_leave_the_run_is_known() -> None:
    """Numbers and truth values leave nothing but `download`; each text either stays in the run, only reads, or is limited."""
    hints = dict(_section_hints())
    for name in offered("data"):
        hints |= {key: hint for key, hint in _section_hints("data", name).items() if key.startswith("data.")}
    plain = {int, float, bool, type(None)}
    texts = {key for key, hint in hints.items() if "help" not in key and (set(kinds_of(hint)) - plain or not kinds_of(hint))}
    listed = {"precision", "data.augment", "data.split_by", "data.labels", "data.flip", "data.crop_padding"}
    reading = {"weights", "devices", "data.root", "data.taxonomy", "data.classes"}
    assert texts - listed - reading == (OFFLINE.keys() | HERE.keys()) - {"data.download"}
    switches = {key for key, hint in hints.items() if kinds_of(hint) == [bool] and key.startswith("data.")}
    assert "data.download" in switches


def test_an_honest_foreign_run_is_resumed(run: Path) -> None:
    change(run, strategy="auto", accelerator="cpu")
    resume_training(run)
    assert read_run(run)[1]["state"] == "finished"


@pytest.mark.parametrize("flags", [[], ["--optimizer.lr", "0.01"]], ids=["as it was", "with another rate"])
def test_arguments_that_an_earlier_version_did_not_know_stay_out(run: Path, flags: list[str]) -> None:
    written = yaml.safe_load((run / "config.yaml").read_text())
    del written["data"]["init_args"]["split_by"], written["regime"]
    (run / "config.yaml").write_text(yaml.safe_dump(written))
    config = _resumed_config(run, read_run(run)[0], flags)
    assert "split_by" not in config["data"]["init_args"]
    assert config["optimizer"]["init_args"]["lr"] == (0.01 if flags else 0.1)
    assert config["model"] == written["model"]
