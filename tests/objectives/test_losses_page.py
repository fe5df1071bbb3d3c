"""What docs/losses.md says works: its first command trains, its code about deadlines runs, and no scheme diverges."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

import pytest

from anytime.cli import main
from anytime.objectives.weighting import SCHEMES

PAGE = (Path(__file__).parents[2] / "docs" / "losses.md").read_text(encoding="utf-8")
WEIGHTS = [f"Weighted --objective.weights {scheme}" for scheme in (*SCHEMES, "exponential:2", "exponential:0.5")]
SIEVE = "Weighted --objective.weights sieve"
OTHERS = ["AANN", "Milestone", "EXP3", "RWM", "AVGL", "AdaLoss", "SDNRamp", "SelfDistillation"]


def last_metrics(run: Path) -> dict[str, float]:
    """The last value of each metric."""
    with (run / "metrics/metrics.csv").open(newline="") as file:
        return {key: float(value) for row in csv.DictReader(file) for key, value in row.items() if value}


def train(flags: str, run: Path) -> dict[str, float]:
    assert main(["train", *flags.split(), "--progress", "false", "--accelerator", "cpu", "--run", str(run)]) == 0
    return last_metrics(run)


def test_the_first_command_trains(tmp_path: Path) -> None:
    command = re.search(r"^\$ anytime train (.*) --run runs/sieve$", PAGE, re.MULTILINE)
    assert command
    assert PAGE.index("```") == command.start() - len("```console\n"), "the page opens with it"
    learned = train(f"{command[1]} --model.width 8 --data.limit 512 --data.batch_size 32 --epochs 3", tmp_path / "run")
    assert learned["val/accuracy"] > 0.6


def test_the_code_about_deadlines_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = [code for code in re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL) if "deadlines" in code]
    names: dict[str, Any] = {}
    exec(compile(code, "losses.md", "exec"), names)
    weights = [float(weight) for weight in capsys.readouterr().out.strip("[]\n").split(",")]
    assert len(weights) == 9
    assert sum(weights) == pytest.approx(1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("objective", "units"), [*((name, 3) for name in [*WEIGHTS, *OTHERS]), *((SIEVE, n) for n in (1, 2, 5, 9))]
)
def test_no_scheme_diverges(objective: str, units: int, tmp_path: Path) -> None:
    """With the defaults of the command on digits: the best answer learns."""
    flags = f"--model ann --model.units {units} --model.width 8 --data digits"
    learned = train(f"{flags} --objective {objective}", tmp_path / "run")
    assert max(learned[f"val/accuracy_{t}"] for t in range(1, 3 * units + 1)) > 0.5
