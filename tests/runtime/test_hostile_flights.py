"""Flights of unknown origin: `anytime replay` ends in one sentence, never in a traceback or after hours."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from anytime.cli import main
from anytime.runtime.replay import read_flights


def flight_file(path: Path, answer: str, lines: int = 1, **facts: Any) -> Path:
    """A flight of three steps with an answer, as the recorder writes it where nothing else is said."""
    known = {"kind": "anytime flight", "format": 2, "flight": "a", "guard": 0.0, "interrupt": "step", "stop": None}
    known |= {"macs": [1, 2, 3], "plan": [[0.1, 0.1]] * 3, **facts}
    path.write_text("\n".join([json.dumps(known), *[answer] * lines]) + "\n")
    return path


def answered(**changes: Any) -> str:
    """The line of an answer, with changes."""
    seen = [[0.9, 0.1, 0.3, 1]] * 2
    known = {"flight": "a", "at": 1.0, "deadline": 0.5, "step": 2, "reason": "deadline", "elapsed": 0.2, "missed": False}
    return json.dumps(known | {"seconds": [0.1, 0.1], "seen": seen} | changes)


WITHOUT = {"macs": None, "plan": None}
HOSTILE_LINES: list[tuple[dict, dict]] = [
    ({"step": math.inf}, {}),
    ({"step": 10**300}, {}),
    ({"step": 4}, {}),
    ({"step": -2}, {}),
    ({"elapsed": 10**400}, {}),
    ({"elapsed": math.nan}, {}),
    ({"deadline": math.nan}, {}),
    ({"seen": [[10**400, 0.1, 0.1, 1]] * 2}, {}),
    ({"seen": [[0.9, 0.1, 0.1, math.inf]] * 2}, {}),
    ({"seconds": [1e300, 0.1]}, {}),
    ({"seconds": [0.1] * 4, "seen": [None] * 4}, {}),
    ({"seconds": [0.0] * 1001, "seen": [None] * 1001}, WITHOUT),
    ({}, {"plan": [[0.1, 0.1]]}),
    ({}, {"macs": [1]}),
    ({}, {"macs": [1, 2, 10**400]}),
    ({}, {"macs": None, "plan": [[0.1, 0.1]] * 1001}),
    ({}, {"plan": [[1e300, 0.1]] * 3}),
    ({}, {"guard": 10**400}),
]


@pytest.mark.parametrize(("changes", "facts"), HOSTILE_LINES, ids=str)
def test_hostile_flights_are_one_sentence(changes: dict, facts: dict, tmp_path: Path, capsys: Any) -> None:
    file = flight_file(tmp_path / "flight.jsonl", answered(**changes), **facts)
    lost = 2 if facts not in ({}, WITHOUT) else 1
    assert read_flights(file) == ([], lost)
    assert main(["replay", str(file)]) == 1
    assert (
        f"holds no answers yet; {lost} lines are damaged, of another version, or belong to no flight"
        in capsys.readouterr().err
    )


def nested(depth: int) -> dict:
    rule: dict = {"kind": "never"}
    for level in range(depth):
        rule = {"kind": ("any", "all")[level % 2], "rules": [rule]}
    return rule


@pytest.mark.parametrize(
    ("stop", "code", "words"),
    [
        ({"kind": "confidence", "threshold": [0.9]}, 1, "the flight has 3 steps, but the rule 'confidence' only 1"),
        ({"kind": "confidence_bands", "bands": [[]]}, 1, "the flight has 3 steps, but the rule 'confidence_bands' only 1"),
        ({"kind": "confidence"}, 1, "the threshold of 'confidence' was never fitted"),
        ({"kind": "confidence", "threshold": [[0.9]]}, 2, "the flight's rule cannot be used"),
        (nested(300), 2, "the flight's rule cannot be used (maximum recursion depth"),
        (5, 2, "the flight's rule cannot be used"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_hostile_rules_of_a_flight_are_one_sentence(stop: Any, code: int, words: str, tmp_path: Path, capsys: Any) -> None:
    file = flight_file(tmp_path / "flight.jsonl", answered(), stop=stop)
    assert main(["replay", str(file)]) == code
    error = capsys.readouterr().err
    assert (words in error, error.count("\n")) == (True, 1)
    assert main(["replay", str(file), "--stop", "never"]) == 0


def test_a_replay_does_not_take_hours(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anytime.runtime.replay._MOST_WORK", 1000)
    facts: dict = {"macs": [1] * 10, "plan": [[0.1, 0.1]] * 10}
    assert main(["replay", str(flight_file(tmp_path / "flight.jsonl", answered(), 100, **facts))]) == 0
    for lines, stop in ((101, None), (26, {"kind": "any", "rules": [{"kind": "never"}] * 4})):
        assert main(["replay", str(flight_file(tmp_path / "flight.jsonl", answered(), lines, **facts, stop=stop))]) == 1
        assert "its answers, steps and rules ask for 1,0" in capsys.readouterr().err


def test_a_profile_of_other_steps_is_one_sentence(timed_case: Callable, capsys: Any, tmp_path: Path) -> None:
    timed_case([10.0] * 4)[2].save(tmp_path / "profile.json")
    long = answered(seconds=[0.1] * 5, seen=[None] * 5)
    file = flight_file(tmp_path / "long.jsonl", long, **WITHOUT)
    assert main(["replay", str(file), "--profile", str(tmp_path / "profile.json")]) == 1
    assert "the flight has 5 steps, but the plan only 4" in capsys.readouterr().err
    file = flight_file(tmp_path / "two.jsonl", answered(), **WITHOUT, steps=2)
    assert main(["replay", str(file), "--profile", str(tmp_path / "profile.json")]) == 2
    assert "is a profile of 4 steps, the flight has 2" in capsys.readouterr().err
