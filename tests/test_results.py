"""Every published number names a command that can be run now: it parses, and it makes the runs that it reads."""

from __future__ import annotations

import argparse
import json
import re
import runpy
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest

from anytime.cli import main
from anytime.commands import study, train
from anytime.commands.parser import Parser
from anytime.studies import TrainingRun

ROOT = Path(__file__).parents[1]
PRETRAINED = re.compile(r"(anytimenet(_baseline)?|fast|cascaded_(td|ce))_cifar10")


class Parsed(Exception):
    """The command has understood its arguments."""


@pytest.fixture
def made_runs(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Commands end where their work would begin; the run directories that they would make are in the set."""
    made: set[str] = set()

    def trained(config: Any, run: Path, overwrite: bool) -> NoReturn:
        made.add(str(run))
        raise Parsed

    def studied(runs: list[TrainingRun], folder: Path, executor: None) -> NoReturn:
        made.update(str(folder / run.name) for run in runs)
        raise Parsed

    def read(parser: Parser, run: str) -> NoReturn:
        assert run in made or PRETRAINED.fullmatch(run), f"nothing makes {run}"
        raise Parsed

    monkeypatch.setattr(train, "start_training", trained)
    monkeypatch.setattr(study, "run_all", studied)
    monkeypatch.setattr(Parser, "check_model", read)
    monkeypatch.chdir(ROOT)
    return made


@pytest.fixture
def benchmark_main(monkeypatch: pytest.MonkeyPatch, made_runs: set[str]) -> Callable[[list[str]], None]:
    """Runs a benchmark until it has parsed its arguments."""
    parse = argparse.ArgumentParser.parse_args

    def parsed(parser: argparse.ArgumentParser) -> NoReturn:
        parse(parser)
        raise Parsed

    def run(words: list[str]) -> None:
        for word in words:
            assert not word.startswith("runs/") or word.partition(":")[0] in made_runs, f"nothing makes {word}"
        with monkeypatch.context() as patch:
            patch.setattr(argparse.ArgumentParser, "parse_args", parsed)
            patch.setattr(sys, "argv", words)
            patch.syspath_prepend(str(ROOT / "benchmarks"))
            patch.delitem(sys.modules, "harness", raising=False)
            runpy.run_path(str(ROOT / words[0]), run_name="__main__")

    return run


def check(command: str, benchmark: Callable[[list[str]], None]) -> None:
    """Raises an error or ends the process if a part of a command does not parse."""
    for part in command.split(" && "):
        program, *words = shlex.split(re.sub(r"^OMP_NUM_THREADS=\d+ ", "", part))
        with pytest.raises(Parsed):
            {"anytime": main, "python": benchmark}[program](words)


@pytest.mark.parametrize("file", sorted(ROOT.glob("results/*/*.json")), ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_results_name_a_command_that_runs(file: Path, benchmark_main: Callable[[list[str]], None]) -> None:
    command = json.loads(file.read_text(encoding="utf-8"))["command"]
    if "examples/real_backbone.py" in command:  # the only one that needs optional packages to parse its arguments
        pytest.importorskip("timm")
        pytest.importorskip("onnxruntime")
    check(command, benchmark_main)


@pytest.mark.parametrize(
    "command",
    [
        "anytime study hu2017 --table 99",
        "anytime study hu2017 --table 1 --epoch 3",
        "anytime train --config recipes/anytimenet_cifar10.yaml (with other flags)",
        "anytime train --config recipes/anytimenet_cifar10.yaml --model.witdh 3",
        "anytime evaluate runs/nobody_made_it",
        "python benchmarks/ann.py --repeat_s 3",
        "python benchmarks/deadlines.py --network runs/nobody_made_it",
    ],
)
def test_other_commands_are_found(command: str, benchmark_main: Callable[[list[str]], None]) -> None:
    with pytest.raises((pytest.fail.Exception, AssertionError, SystemExit)):
        check(command, benchmark_main)
