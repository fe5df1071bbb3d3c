import re
from pathlib import Path

import pytest

from anytime.cli import main


@pytest.fixture(autouse=True)
def in_tmp(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


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
    assert "next:\n  anytime evaluate runs/demo\n" in out
    run = Path("runs/demo")
    assert {path.name for path in (run / "figures").iterdir()} >= {"steps.png", "speed_accuracy.png"}
    report = (run / "report.html").read_text()
    assert "Answers that grow" in report
    assert not re.search(r"(?:src|href)=[\"'](?!data:|#)", report)

    before = (run / "run.json").stat().st_mtime_ns
    assert main(["demo", "--epochs", "1"]) == 0  # an earlier demo is replaced
    assert (run / "run.json").stat().st_mtime_ns > before
    capsys.readouterr()
    assert main(["train", *flags, "--model.width", "4", "--progress", "false", "--run", "runs/mine"]) == 0
    assert main(["demo", "--run", "runs/mine"]) == 2  # any other run is not
    assert "runs/mine exists" in capsys.readouterr().err
