"""Replays of flights that are written down: what a hard deadline made of each step."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from anytime.runtime import Predictor
from anytime.runtime.replay import Flight, Recorded, ReplaySettings, read_flights, replay
from anytime.stopping import AnyOf, Confidence, ConfidenceBands, Margin, Rule, SelectionLatency


def test_a_step_that_ended_although_it_was_cancelled_counts_in_a_replay() -> None:
    facts = {"model": "mine", "interrupt": "operator", "guard": 0.0, "stop": None, "macs": [1, 2, 3], "plan": None}
    seen = (0.6, 0.2, 0.9, 1)
    cancelled = Recorded(1, 0.0051, False, "deadline", 0.01, (0.002,), (seen,), 0.005)
    # the reserve is 5 ms then; the second step ended 2.5 ms before the deadline, so the third was not started
    ended = Recorded(2, 0.0075, False, "deadline", 0.01, (0.002, 0.005), (seen, seen), None)
    flight = Flight(facts, [cancelled, ended])
    first, second = replay(flight, ReplaySettings.of(flight))
    assert first is not None
    assert second is not None
    assert (first.step, second.step, second.reason, second.missed) == (1, 2, "deadline", False)
    assert second.elapsed == pytest.approx(0.0075)


@pytest.mark.parametrize("mode", ["step", "operator"])
def test_a_step_that_would_have_been_cancelled_does_not_count_in_a_replay(mode: str) -> None:
    """Step 2 takes 1 to 2 ms, and nothing cancelled it before the deadline in flight: mode "step", or it fitted as planned."""
    hard = mode == "operator"
    macs, plan, reason = ([1, 2, 3], [(0.001, 0.001)] * 3, "deadline") if hard else ([1, 2], None, "complete")
    facts = {"interrupt": mode, "guard": 0.0, "stop": None, "macs": macs, "plan": plan}
    deadlines = [0.00205, 0.00215, 0.00225]  # a step that is risked is cancelled 0.2 ms earlier
    times, seen = (0.001, 0.001), ((0.6, 0.2, 0.9, 1),) * 2
    flight = Flight(facts, [Recorded(2, 0.002, False, reason, deadline, times, seen, None) for deadline in deadlines])
    same = replay(flight, ReplaySettings.of(flight))
    assert [each and each.step for each in same] == [2, 2, 2]
    longer = [(0.001, 0.001), (0.0015, 0.001), (0.001, 0.001)] if hard else None
    risked = replay(flight, ReplaySettings("operator", 0.0, None, longer, macs))
    assert [each and each.step for each in risked] == [1, 1, 2]


def test_an_answer_that_reached_the_caller_late_is_late_in_a_replay() -> None:
    """The caller of `anytime-edge` is woken: its last step ended in time, or it would not count."""
    facts = {"interrupt": "operator", "guard": 0.0, "stop": None, "macs": [1, 2], "plan": [(0.004, 0.004), (0.0055, 0.0055)]}
    seen = ((0.6, 0.2, 0.9, 1),) * 2
    flight = Flight(facts, [Recorded(2, 0.0101, True, "complete", 0.010, (0.004, 0.0059), seen, 0.0)])
    (again,) = replay(flight, ReplaySettings.of(flight))
    assert again is not None
    assert (again.step, again.elapsed, again.missed, again.reason) == (2, pytest.approx(0.0101), True, "complete")


def test_the_time_of_a_step_that_was_cancelled_is_no_lead() -> None:
    """Unknown is what the second call took besides its steps: not so much that its second step could not have started."""
    facts = {"interrupt": "operator", "guard": 0.0, "stop": None, "macs": [1, 2], "plan": None}
    slow = Recorded(1, 0.019, False, "stopped", 0.02, (0.010,), (None,), 0.0)
    cancelled = Recorded(1, 0.0206, True, "deadline", 0.02, (0.015,), (None,), 0.001)
    flight = Flight(facts, [slow, cancelled])
    again = replay(flight, ReplaySettings.of(flight))[1]
    assert again is not None
    assert (again.step, again.missed, again.elapsed) == (1, True, pytest.approx(0.0206))


def test_what_the_way_to_the_caller_took_is_replayed() -> None:
    """The guard is 0.5: an answer goes out 0.2 after the deadline minus that, one 0.7 after it: late, so 1 is kept then."""
    facts = {"interrupt": "operator", "guard": 0.5, "stop": None, "plan": None, "macs": [1, 2]}
    on_time = Recorded(1, 2.7, False, "deadline", 3.0, (1.0,), (None,), 0.5)
    late = Recorded(1, 3.2, True, "deadline", 3.0, (1.0,), (None,), 0.5)
    earlier = Recorded(1, 2.7, False, "deadline", 3.0, (1.0,), (None,), 1.0)
    flight = Flight(facts, [on_time, late, earlier])
    for each, old in zip(replay(flight, ReplaySettings.of(flight)), flight.answers, strict=True):
        assert each is not None
        assert (each.step, each.elapsed, each.missed, each.reason) == (1, pytest.approx(old.elapsed), old.missed, "deadline")


def test_contract_answers_and_those_to_several_images_are_not_decided_again(timed_case: Callable, tmp_path: Path) -> None:
    """A flight has the plan of single images; only what one saw is in it."""
    clock, model, profile = timed_case([10.0] * 4)
    predictor = Predictor(model, profile, clock=clock, record=tmp_path / "flight.jsonl")
    one = torch.full((1, 3, 2, 2), 0.5)
    answers = [predictor(one, 25.0, contract=True), predictor(one, 25.0), predictor(one.expand(2, -1, -1, -1), None)]
    predictor.recorder.close()
    lines = [json.loads(line) for line in (tmp_path / "flight.jsonl").read_text().splitlines()[1:]]
    assert [(line.get("contract"), line.get("images")) for line in lines] == [(True, None), (None, None), (None, 2)]
    (flight,), _ = read_flights(tmp_path / "flight.jsonl")
    made = replay(flight, ReplaySettings.of(flight))
    assert [each and each.step for each in made] == [None, answers[1].step, None]


def test_what_was_not_decided_again_changes_nothing(timed_case: Callable) -> None:
    facts = {"interrupt": "step", "guard": 0.0, "stop": None, "macs": [1, 2], "plan": [(1.0, 1.0)] * 2}
    one = Recorded(1, 1.0, False, "deadline", 1.5, (1.0,), (None,), None)
    two = Recorded(2, 90.0, False, "complete", None, (45.0, 45.0), (None, None), None, apart=True)
    flight = Flight(facts, [two, one, two, one])
    alone = Flight(facts, [one, one])
    assert replay(flight, ReplaySettings.of(flight))[1::2] == replay(alone, ReplaySettings.of(alone))


@pytest.mark.parametrize("seconds", [0.1234567891, 1.000049, 123.45649])
def test_the_seconds_of_steps_are_exact_enough(seconds: float, timed_case: Callable, tmp_path: Path) -> None:
    """A call that ends a millionth of its time before the deadline is not late in a replay."""
    clock, model, profile = timed_case([seconds, seconds])
    predictor = Predictor(model, profile, clock=clock, record=tmp_path / "flight.jsonl")
    answer = predictor(torch.full((1, 3, 2, 2), 0.5), 2.000002 * seconds)
    predictor.recorder.close()
    (flight,), _ = read_flights(tmp_path / "flight.jsonl")
    (made,) = replay(flight, ReplaySettings.of(flight))
    assert made is not None
    assert (made.step, made.missed) == (answer.step, answer.missed) == (2, False)


SURE = 0.99999881  # the next smaller number in single precision is 0.99999875


@pytest.mark.parametrize(
    "rule",
    [
        *(Confidence(SURE), Margin(SURE), AnyOf((Confidence(SURE), Confidence(1.0)))),
        *(ConfidenceBands([[(SURE, 1.0)], []]), SelectionLatency(0.99999875, 1)),
    ],
    ids=lambda rule: rule.kind,
)
@pytest.mark.parametrize("p", [0.9999987, 0.99999875, SURE, 0.99999887, 0.9, 0.89999998])
def test_thresholds_are_compared_in_single_precision(rule: Rule, p: float, timed_case: Callable, tmp_path: Path) -> None:
    """As in flight: probabilities are in that precision, and a fitted threshold is one of them."""
    seen = torch.tensor([[p, 0.0, 0.0, 0.0, 0.0]])
    with_nine = Confidence(0.9) if p < 0.95 else rule
    stops = bool(with_nine.update(with_nine.start(2), 1, seen, 0.0, 0.0)[0])
    clock, model, profile = timed_case([1.0, 1.0])
    predictor = Predictor(model, profile, clock=clock, record=tmp_path / "flight.jsonl")
    answer = predictor(torch.full((1, 3, 2, 2), 0.5))
    predictor.recorder.note(answer, [(1.0, seen), (1.0, seen)])
    predictor.recorder.close()
    (flight,), _ = read_flights(tmp_path / "flight.jsonl")
    made = replay(flight, ReplaySettings("step", 0.0, with_nine, flight.facts["plan"]))[-1]
    assert made is not None
    assert made.reason == ("stopped" if stops else "complete")
