"""The flight recorder, and what is decided once more from what it wrote."""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import pickle
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from anytime.cli import main
from anytime.commands import replay as command
from anytime.runtime import Predictor
from anytime.runtime import recorder as module
from anytime.runtime.recorder import FlightRecorder
from anytime.runtime.replay import ReplaySettings, read_flights, replay
from anytime.stopping import Confidence, Entropy, MacBudget, Margin, Patience, SelectionLatency

X = torch.full((1, 3, 2, 2), 0.5)
DEADLINES = [None, 0, 5.0, 10.0, 15.0, 25.0, 31.0, 35.0, 60.0]


@pytest.fixture
def recorded(timed_case: Callable, tmp_path: Path) -> Callable[..., Any]:
    """Makes (predictor, its answers to `DEADLINES`, the file) of a model of four steps of 10 s, which advance its clock."""

    def make(name: str = "flight.jsonl", **arguments: Any) -> Any:
        clock, model, profile = timed_case([10.0] * 4)
        predictor = Predictor(model, profile, clock=clock, record=tmp_path / name, **arguments)
        answers = [predictor(X, deadline) for deadline in DEADLINES]
        predictor.recorder.flush()
        return predictor, answers, tmp_path / name

    return make


def test_a_line_for_each_answer(recorded: Callable) -> None:
    _, answers, file = recorded(stop=Confidence(0.99))
    head, *lines = map(json.loads, file.read_text().splitlines())
    assert (head["kind"], head["format"], head["stop"]) == ("anytime flight", 2, Confidence(0.99).to_dict())
    assert (head["macs"], head["interrupt"], head["plan"]) == ([10, 20, 30, 40], "step", [[10.0, 10.0]] * 4)
    for line, answer in zip(lines, answers, strict=True):
        assert [line[key] for key in ("deadline", "step", "missed")] == [answer.deadline, answer.step, answer.missed]
        assert (line["reason"], line["elapsed"]) == (answer.reason, pytest.approx(answer.elapsed))
        assert line["seconds"] == [10.0] * max(answer.step, 0)
        assert {line["flight"]} == {head["flight"]}
        if answer.step > 0:
            two = answer.probabilities[0].topk(2).values.tolist()
            entropy = float(torch.special.entr(answer.probabilities).sum())
            assert line["seen"][-1] == pytest.approx([*two, entropy, int(answer.label)], abs=1e-5)


RULES = [
    None,
    Confidence(0.9),
    Confidence([0.99, 0.9, 0.5, 0.5]),
    Margin(0.95),
    Entropy(0.3),
    Patience(2),
    SelectionLatency(0.5, 2),
    MacBudget(25),
    Confidence(0.5) & MacBudget(25) | Patience(3),
]


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_a_replay_decides_as_the_flight_did(recorded: Callable, rule: Any) -> None:
    """The rule is given to a replay of a flight without rule, which had seen all steps; deadlines cut both the same way."""
    _, answers, with_rule = recorded(stop=rule)
    recorded("all.jsonl")
    (own,), (plain,) = read_flights(with_rule)[0], read_flights(with_rule.with_name("all.jsonl"))[0]
    expected = [(answer.step, answer.reason, answer.missed) for answer in answers]
    for flight in (own, plain):
        settings = ReplaySettings.of(flight)
        settings = ReplaySettings(settings.interrupt, settings.guard, rule, settings.plan, settings.macs)
        decided = replay(flight, settings)
        assert [each and (each.step, each.reason, each.missed) for each in decided] == expected


def test_a_flight_with_an_endless_guard_can_be_replayed(recorded: Callable) -> None:
    _, answers, file = recorded(guard=float("inf"))
    (flight,), lost = read_flights(file)
    assert lost == 0
    assert {answer.step for answer in answers[1:]} == {-1}
    assert [each and each.step for each in replay(flight, ReplaySettings.of(flight))] == [answer.step for answer in answers]


def test_a_flight_knows_its_steps_without_profile_and_macs(timed_case: Callable, tmp_path: Path) -> None:
    clock, model, _ = timed_case([10.0] * 4)
    predictor = Predictor(model, stop=Confidence(0.0), clock=clock, record=tmp_path / "flight.jsonl")
    assert [predictor(X).reason for _ in range(3)] == ["stopped"] * 3
    predictor.recorder.flush()
    (flight,), lost = read_flights(tmp_path / "flight.jsonl")
    assert (lost, flight.facts["steps"]) == (0, 4)
    decided = replay(flight, ReplaySettings.of(flight))
    assert [each and (each.step, each.reason) for each in decided] == [(1, "stopped")] * 3


def test_hard_deadlines_engines_and_what_is_unknown(recorded: Callable) -> None:
    _, _, file = recorded(stop=Confidence(0.8))  # after step 1
    (flight,), lost = read_flights(file)
    assert lost == 0
    known = ReplaySettings.of(flight)
    hard = replay(flight, ReplaySettings("operator", 0.2, None, [(20.0, 10.0)] * 4, known.macs))
    # under the deadline of 10 the answer goes out at 9.8, before the first step ends
    assert [each and each.step for each in hard] == [4, -1, -1, -1, 1, 2, 3, 3, 4]
    slow = replay(flight, ReplaySettings("step", 0.0, None, [(20.0, 20.0)] * 4, known.macs, [2.0] * 4))
    assert [each and each.step for each in slow] == [4, -1, -1, -1, -1, 1, 1, 1, 3]
    bold = replay(flight, ReplaySettings("step", 0.0, Patience(2), known.plan, known.macs))
    assert [each is None for each in bold] == [True, False, False, False, False, True, True, True, True]


def test_a_flight_without_a_profile_is_planned_by_one_that_is_given(recorded: Callable, tmp_path: Path) -> None:
    predictor, _, file = recorded()
    predictor.profile.save(tmp_path / "profile.json")
    head, *lines = file.read_text().splitlines()
    changed = json.loads(head) | {"interrupt": "operator", "plan": None}
    file.write_text("\n".join([json.dumps(changed), *lines]) + "\n")
    (flight,), _ = read_flights(file)
    options = argparse.Namespace(stop=None, profile=tmp_path / "profile.json", engine=None, quantile="p99", interrupt=None)
    options.guard = None
    settings = command._changed(options, flight)
    assert (settings.interrupt, settings.plan) == ("operator", [(10.0, 10.0)] * 4)
    options.interrupt = "step"
    assert command._changed(options, flight).interrupt == "step"


def test_the_command(recorded: Callable, capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    predictor, _, file = recorded()
    predictor.profile.save(tmp_path / "profile.json")
    for options in (["--stop", "confidence=0.9"], ["--profile", str(tmp_path / "profile.json")], ["--interrupt", "operator"]):
        assert main(["replay", str(file), *options]) == 0
    assert main(["replay", str(file), "--engine", str(tmp_path / "profile.json"), "--guard", "1ms"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("as recorded") == 4
    assert "1 (11.11%)" in shown  # the deadline that had passed
    for arguments, words in (
        (["--stop", "sure=1"], "unknown rule 'sure'"),
        (["--guard", "soon"], "must be a number of seconds"),
        (["--profile", "a", "--engine", "b"], "not both"),
    ):
        assert main(["replay", str(file), *arguments]) == 2
        assert words in capsys.readouterr().err
    (tmp_path / "other.jsonl").write_text("{}\n")
    assert main(["replay", str(tmp_path / "other.jsonl")]) == 1
    assert "is no flight" in capsys.readouterr().err


def test_damaged_lines_are_counted(recorded: Callable) -> None:
    _, answers, file = recorded()
    lines = file.read_text().splitlines()
    broken = lines[1].replace('"seconds":[', '"seconds":[-1,')
    early = [lines[1].replace('"kept":null', f'"kept":{kept}') for kept in ("-1", "NaN", "1e10")]
    file.write_text(
        "\n".join([*lines, lines[1][:30], "null", "[" * 10_000, broken, lines[1].replace('"flight":"', '"flight":"x'), *early])
    )
    (flight,), lost = read_flights(file)
    assert (len(flight.answers), lost) == (len(answers), 8)


def test_the_older_part_of_a_linked_flight_is_read(recorded: Callable, tmp_path: Path) -> None:
    predictor, _, file = recorded()
    predictor.recorder.close()
    file.rename(tmp_path / "flight.jsonl.1")
    recorded()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/link").symlink_to(file)
    assert [len(flight.answers) for flight in read_flights(tmp_path / "elsewhere/link")[0]] == [len(DEADLINES)] * 2


def test_the_file_stays_bounded_and_others_stay_as_they_are(
    recorded: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_BYTES", 10_000)
    predictor, _, file = recorded()
    for _ in range(300):
        predictor(X, 25.0)
    predictor.recorder.flush()
    sizes = [part.stat().st_size for part in (file, tmp_path / "flight.jsonl.1")]
    assert max(sizes) < 20_000
    (flight,), lost = read_flights(file)
    assert (lost, len(flight.answers) > 50) == (0, True)
    mine = tmp_path / "mine.jsonl"
    mine.write_text('{"name": "ape"}\n')
    with pytest.raises(ValueError, match=r"mine.jsonl exists and is no flight of this library, so nothing is written"):
        FlightRecorder(mine, {})
    assert mine.read_text() == '{"name": "ape"}\n'


def test_a_file_has_one_recorder_at_a_time(recorded: Callable) -> None:
    """Two would lose answers: a rotation takes away the line that describes the other one."""
    first, _, file = recorded()
    link = file.with_name("link.jsonl")
    link.symlink_to(file)
    for name in ("flight.jsonl", "link.jsonl"):
        with pytest.raises(ValueError, match=r"another recorder writes to .*flight.jsonl; close\(\) that one, or give"):
            recorded(name)
    copy = pickle.loads(pickle.dumps(first.recorder))
    copy.note(first(X, 5.0), [])
    with pytest.warns(UserWarning, match="1 answers were not recorded: another recorder writes to"):
        copy.flush()
    first.recorder.close()  # with the answer to the copy's call
    copy.note(first(X, 5.0), [])
    copy.flush()
    copy.close()
    assert sorted(path.name for path in file.parent.iterdir()) == ["flight.jsonl", "link.jsonl"]
    recorded()
    flights, lost = read_flights(file)
    assert ([len(flight.answers) for flight in flights], lost) == ([len(DEADLINES) + 1, 1, len(DEADLINES)], 0)


def test_a_recorder_that_is_deleted_writes_what_waits_and_frees_its_file(recorded: Callable) -> None:
    predictor, _, file = recorded()
    predictor(X, 25.0)
    del predictor
    gc.collect()
    assert len(read_flights(file)[0][0].answers) == len(DEADLINES) + 1
    recorded()


def test_a_lock_that_a_killed_process_left_is_taken_over(recorded: Callable, tmp_path: Path) -> None:
    (tmp_path / ".flight.jsonl.lock").touch()
    predictor, _, _ = recorded()
    predictor.recorder.close()
    assert [path.name for path in tmp_path.iterdir()] == ["flight.jsonl"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_records_once_the_file_is_free(recorded: Callable) -> None:
    """Its warning says what is lost until then, and the lock does not outlive the first process."""
    predictor, _, file = recorded()
    predictor(X, 25.0)  # waits
    there, here = os.pipe()
    child = os.fork()
    if child == 0:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            predictor(X, 5.0)
            predictor.recorder.flush()
        os.write(here, str(caught[0].message).encode())
        os._exit(0)
    assert os.read(there, 1000).startswith(b"1 answers were not recorded: another recorder writes to")
    os.waitpid(child, 0)
    waits, goes = os.pipe()
    child = os.fork()
    if child == 0:
        os.read(waits, 1)
        predictor(X, 5.0)
        predictor.recorder.flush()
        os._exit(0)
    predictor.recorder.close()
    os.write(goes, b".")
    os.waitpid(child, 0)
    flights, _ = read_flights(file)
    assert [len(flight.answers) for flight in flights] == [len(DEADLINES) + 1, 1]


def test_a_page_that_cannot_be_written_costs_no_later_one(recorded: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """The description of the predictor comes with the first page that is written; half a page does not stay."""
    predictor, _, file = recorded()
    predictor.recorder.close()
    before = file.read_bytes()
    with resource_limit(len(before) + 700), pytest.warns(UserWarning, match="9 answers were not recorded: .*too large"):
        recorded()[0].recorder.close()
    assert file.read_bytes() == before
    fresh = file.with_name("fresh.jsonl")
    with resource_limit(700), pytest.warns(UserWarning, match="9 answers were not recorded: .*too large"):
        predictor, answers, _ = recorded("fresh.jsonl")
    for answer in answers:
        predictor.recorder.note(answer, [])
    predictor.recorder.flush()
    (flight,), lost = read_flights(fresh)
    assert (len(flight.answers), lost) == (len(DEADLINES), 0)
    fresh.unlink()  # by somebody who tidies up
    predictor(X, 25.0)
    predictor.recorder.flush()
    assert len(read_flights(fresh)[0][0].answers) == 1


@contextmanager
def resource_limit(size: int) -> Iterator[None]:
    """No file grows beyond `size` bytes, as on a full disk."""
    resource = pytest.importorskip("resource")
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_deadline_of_minus_infinity_is_recorded(recorded: Callable) -> None:
    predictor, _, file = recorded()
    predictor(X, -math.inf)
    predictor.recorder.flush()
    (flight,), lost = read_flights(file)
    assert (flight.answers[-1].deadline, flight.answers[-1].missed, lost) == (-1e9, True, 0)


def test_half_a_line_does_not_take_the_next_run_with_it(recorded: Callable) -> None:
    predictor, _, file = recorded()
    predictor.recorder.close()
    file.write_bytes(file.read_bytes()[:-50])  # as a kill leaves it
    recorded()
    flights, lost = read_flights(file)
    assert ([len(flight.answers) for flight in flights], lost) == ([len(DEADLINES) - 1, len(DEADLINES)], 1)


def test_answers_that_arrive_while_a_page_is_written_are_kept(recorded: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor, answers, file = recorded()
    late, write = [predictor.recorder._waiting], predictor.recorder._write

    def slow(lines: list[str]) -> None:
        late[0].append((0.0, answers[-1], [], None))  # by a thread that had got hold of the list
        write(lines)

    monkeypatch.setattr(predictor.recorder, "_write", slow)
    predictor(X, 25.0)
    predictor.recorder.flush()
    monkeypatch.undo()
    predictor.recorder.flush()
    assert len(read_flights(file)[0][0].answers) == len(DEADLINES) + 2


def test_a_file_that_cannot_be_written_costs_no_answer(recorded: Callable) -> None:
    predictor, _, file = recorded()
    file.unlink()
    file.mkdir()
    predictor(X, 25.0)
    with pytest.warns(UserWarning, match="1 answers were not recorded"):
        predictor.recorder.flush()


def test_an_answer_costs_little(recorded: Callable) -> None:
    """At most 20 microseconds were asked for; 11 were measured with seven steps of ten classes. Twice that is a fault."""
    predictor, answers, _ = recorded()
    log = [(1e-3, torch.rand(1, 10).softmax(1)) for _ in range(7)]

    def microseconds() -> float:
        start = time.process_time()
        for _ in range(320):
            predictor.recorder.note(answers[-1], log)
        return (time.process_time() - start) / 320 * 1e6

    assert min(microseconds() for _ in range(5)) < 40
