import re
from pathlib import Path

import pytest

from anytime import load
from anytime.cli import main
from anytime.stopping import Confidence, Fitted, save_rule


@pytest.fixture(autouse=True)
def in_tmp(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ANYTIME_DATA", str(tmp_path / "data"))  # holds no engine of a live page


def test_demo(capsys):
    assert main(["demo", "--epochs", "1"]) == 0
    out = capsys.readouterr().out
    flags = re.match(r"1\. training: anytime train (.*)\n", out)[1].split()
    steps = re.findall(r"^ +([1-7]) +[\d.]+ [kM] +[\d.]+% +[\d.]+% +0\.\d+ +0\.\d+ +[\d.]+$", out, re.MULTILINE)
    assert steps == list("1234567")
    assert "p(correct class)" in out
    answers = re.findall(r"deadline +[\d.]+ ms: step ([1-7])/7 after +[\d.]+ ms: \d \(\d+%\)", out)
    assert len(answers) >= 9
    assert re.findall(r"^   image \d+, a \d:$", out, re.MULTILINE)
    page = "  anytime export runs/demo --html runs/demo/live.html --download   # a page on which it answers live\n"
    assert f"next:\n{page}  anytime evaluate runs/demo\n" in out
    run = Path("runs/demo")
    assert {path.name for path in (run / "figures").iterdir()} >= {"steps.png", "speed_accuracy.png"}
    report = (run / "report.html").read_text()
    assert "Answers that grow" in report
    assert not re.search(r"(?:src|href)=[\"'](?!data:|#)", report)

    model = load(run)
    save_rule(model, "half", Fitted(Confidence(0.5)))
    model.save(run)
    for name in ("profile.json", "notes.txt"):
        (run / name).write_text("mine")
    kept = ["run.json", "model.safetensors", "config.json", "profile.json", "notes.txt"]
    before = {name: (run / name).read_bytes() for name in kept}
    assert main(["demo", "--epochs", "1"]) == 0  # a second demo uses the model of the first
    assert "an earlier demo has done that in runs/demo" in capsys.readouterr().out
    assert {name: (run / name).read_bytes() for name in kept} == before
    assert main(["demo", "--epochs", "2"]) == 2  # a demo of another length
    assert "runs/demo exists; give another --run" in capsys.readouterr().err
    assert main(["train", *flags, "--model.width", "4", "--progress", "false", "--run", "runs/mine"]) == 0
    assert main(["demo", "--run", "runs/mine"]) == 2  # any other run is not
    assert "runs/mine exists" in capsys.readouterr().err
