"""Following frames against starting anew: accuracy at equal updates and at equal time, with a clock of the steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from anytime import convert, create_model
from anytime.models.cascaded.resnet import CascadedResNet
from anytime.models.cascaded.serial import SerialResNet
from anytime.runtime import anew
from anytime.runtime.anew import Gain, compare_with_anew
from anytime.testing import _randomise


@pytest.fixture
def networks() -> tuple[Any, Any]:
    torch.manual_seed(0)
    with torch.no_grad():
        model = _randomise(create_model("cascaded_resnet18", num_classes=3, width=4)).eval()
    return model, convert(model, "serial_resnet18").eval()


def test_comparison(networks, monkeypatch, tmp_path: Path) -> None:
    """An update of the cascade takes 1 s, a step of the serial network 0.375 s: 2 of these fit into the time of an update."""
    now, (model, serial) = [0.0], networks
    for kind, seconds in ((CascadedResNet, 1.0), (SerialResNet, 0.375)):

        def step(self, state, inner=kind.step, seconds=seconds):
            now[0] += seconds
            return inner(self, state)

        monkeypatch.setattr(kind, "step", step)
    films, labels = torch.rand(3, 4, 3, 8, 8), torch.randint(3, (3, 4))
    found = compare_with_anew(model, serial, films, labels, updates=(1, 2, 5), timed=2, resamples=50, clock=lambda: now[0])
    with torch.no_grad():
        started = torch.stack([serial(x).argmax(2) == y for x, y in zip(films, labels, strict=True)], 1).double()
        for row, updates in zip(found.rows, (1, 2, 5), strict=True):
            stream = model.stream(x for x in films for _ in range(updates))
            right = (torch.stack([*stream])[updates - 1 :: updates].argmax(2) == labels).double()
            assert row.accuracy == pytest.approx(float(right.mean()))
            assert row.seconds == pytest.approx(updates)
            steps = updates, {1: 2, 2: 5, 5: 9}[updates]
            for gain, step in zip((row.equal_updates, row.equal_time), steps, strict=True):
                assert gain.step == step
                assert gain.accuracy == pytest.approx(float(started[step - 1].mean()))
                assert gain.gain == pytest.approx(float((right - started[step - 1]).mean()))
                assert gain.low <= gain.gain <= gain.high
    assert found.anew_seconds == pytest.approx([0.375 * t for t in range(1, 10)])
    assert found.anew_accuracy == pytest.approx(started.mean((1, 2)).tolist())
    found.write(tmp_path / "watch.json", dataset="noise")
    stored = json.loads((tmp_path / "watch.json").read_text())
    assert (stored["dataset"], stored["films"], stored["frames"]) == ("noise", 4, 3)
    assert stored["rows"][0]["equal_time"]["step"] == 2


def test_no_step_in_time(networks, monkeypatch) -> None:
    """A network that starts anew has no answer if its first step takes longer than an update."""
    monkeypatch.setattr(anew, "_times", lambda *_: ({1: 0.5}, [0.6, 0.7]))
    row = compare_with_anew(*networks, torch.rand(1, 2, 3, 8, 8), torch.zeros(1, 2).long(), (1,)).rows[0]
    assert row.equal_updates.step == 1
    assert row.equal_time == Gain(0, None, None, None, None)


@pytest.mark.parametrize(
    ("films", "labels", "message"),
    [
        ((2, 1, 3, 8, 8), (2, 1), r"at least 2 films, got \[2, 1, 3, 8, 8\]"),
        ((2, 2, 3, 8, 8), (2, 3), r"labels must be one for each frame, \[2, 2\], got \[2, 3\]"),
    ],
)
def test_wrong_films(networks, films, labels, message) -> None:
    with pytest.raises(ValueError, match=message):
        compare_with_anew(*networks, torch.rand(films), torch.zeros(labels).long())


def test_networks_that_do_not_fit(networks) -> None:
    films, labels = torch.rand(1, 2, 3, 8, 8), torch.zeros(1, 2).long()
    with pytest.raises(ValueError, match=r"both networks need the same classes, got \(3,\) and \(4,\)"):
        compare_with_anew(networks[0], create_model("serial_resnet18", 4, width=4), films, labels)
    with pytest.raises(ValueError, match="SerialResNet cannot take new frames for ever"):
        compare_with_anew(networks[1], networks[0], films, labels)
