"""Where consent cannot be remembered, such as in a container, everything else works."""

from __future__ import annotations

from pathlib import Path

import pytest

import anytime
from anytime.model import create_model
from anytime.support.trust import is_remembered, remember
from anytime.training.config import parse
from anytime.training.launch import start_training

FLAGS = ["--model=ann", "--model.units=1", "--model.width=2", "--data=digits", "--data.limit=40", "--epochs=1"]


def no_home() -> Path:
    raise RuntimeError("Could not determine home directory.")


@pytest.mark.parametrize("home", ["a file", "unknown"])
def test_consent_that_cannot_be_remembered(home: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "null").touch()
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setattr(Path, "home", no_home if home == "unknown" else lambda: tmp_path / "null")
    with pytest.warns(UserWarning, match=r"is not remembered .*: if it names classes outside this library"):
        remember(tmp_path / "config.json", "content")
    assert not is_remembered(tmp_path / "config.json", "content")
    create_model("ann", 3, units=1, width=2).save(tmp_path / "model")
    assert anytime.load(tmp_path / "model").num_steps == 3


@pytest.mark.filterwarnings("default::UserWarning")
def test_a_training_without_a_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "null").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "null"))
    run = start_training(parse([*FLAGS, "--progress=false"]), tmp_path / "run")
    assert anytime.load(run).info.data == "Digits"
