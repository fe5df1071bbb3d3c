"""The best answer by a deadline, on a clock that only the steps advance."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anytime.runtime.predictor import Predictor
from anytime.stopping import Confidence

X = torch.full((1, 3, 2, 2), 0.5)
TICKS = st.integers(1, 40).map(lambda ticks: ticks / 1024)  # sums of these are exact, and so is every comparison
SECONDS = st.lists(TICKS, min_size=1, max_size=6)
COMMON = settings(max_examples=60, deadline=None)


@given(SECONDS, st.integers(1, 200).map(lambda ticks: ticks / 1024), TICKS | st.just(0.0))
@COMMON
def test_deepest_step_that_fits_and_none_that_does_not(timed_case: Callable, seconds, deadline, guard) -> None:
    clock, model, profile = timed_case(seconds)
    answer = Predictor(model, profile, guard=guard, clock=clock)(X, deadline)
    spent, deepest = 0.0, 0
    for duration in seconds:
        if spent + duration + guard > deadline:
            break
        spent, deepest = spent + duration, deepest + 1
    assert [step for step, _ in model.started] == list(range(1, deepest + 1))
    assert answer.step == (deepest or -1)
    assert not answer.missed
    assert answer.reason == ("complete" if deepest == len(seconds) else "deadline")


@given(SECONDS)
@COMMON
def test_without_deadline_all_steps_run(timed_case: Callable, seconds) -> None:
    clock, model, profile = timed_case(seconds)
    answer = Predictor(model, profile, clock=clock)(X)
    assert (answer.step, answer.reason, answer.deadline) == (len(seconds), "complete", None)
    assert answer.elapsed == pytest.approx(sum(seconds))
    assert answer.macs.tolist() == [10 * len(seconds)]


def test_without_profile_a_step_starts_while_time_is_left(timed_case: Callable) -> None:
    clock, model, _ = timed_case([0.01, 0.01, 0.01])
    answer = Predictor(model, clock=clock)(X, 0.015)
    assert (answer.step, answer.missed, answer.reason) == (2, True, "deadline")


def test_no_time_for_any_step_gives_the_prior(timed_case: Callable) -> None:
    clock, model, profile = timed_case([0.01, 0.01])
    prior = torch.tensor([0.6, 0.1, 0.1, 0.1, 0.1])
    answer = Predictor(model, profile, prior=prior, clock=clock)(X, 0.005)
    assert (answer.step, answer.reason, model.started) == (-1, "deadline", [])
    assert torch.equal(answer.probabilities, prior[None])
    assert not answer.missed


def test_until_is_an_absolute_time(timed_case: Callable) -> None:
    clock, model, profile = timed_case([0.01, 0.01, 0.01])
    predictor = Predictor(model, profile, clock=clock)
    assert predictor(X, until=clock.now + 0.025).step == 2
    with pytest.raises(ValueError, match=r"give deadline or until, not both: got 0\.1 and 200\.0"):
        predictor(X, 0.1, until=200.0)


def test_contract_runs_only_the_deepest_answer_that_fits(timed_case: Callable) -> None:
    clock, model, profile = timed_case([0.01, 0.01, 0.01], contract=[0.01, 0.012, 0.03])
    predictor = Predictor(model, profile, clock=clock)
    answer = predictor(X, 0.025, contract=True)
    assert (answer.step, answer.reason) == (2, "deadline")
    assert predictor(X, 0.005, contract=True).step == -1
    assert predictor(X, contract=True).reason == "complete"
    with pytest.raises(ValueError, match="contract=True plans by a profile"):
        Predictor(model, clock=clock)(X, 0.1, contract=True)


def test_a_machine_slower_than_its_profile_is_noticed(timed_case: Callable) -> None:
    clock, model, profile = timed_case([0.01] * 4, factor=0.25)
    predictor = Predictor(model, profile, clock=clock)
    assert predictor(X, 0.035).missed
    for _ in range(20):
        predictor(X)
    answer = predictor(X, 0.035)
    assert (answer.step, answer.missed) == (3, False)


def test_one_stalled_step_spoils_nothing(timed_case: Callable) -> None:
    clock, model, profile = timed_case([0.01])
    predictor = Predictor(model, profile, clock=clock)
    model.seconds[0] = 1.0
    assert predictor(X, 0.011).missed
    model.seconds[0] = 0.01
    for _ in range(5):
        answer = predictor(X, 0.011)
        assert (answer.step, answer.missed) == (1, False)


def test_contract_answers_follow_the_machine_and_forget_a_slow_spell(timed_case: Callable) -> None:
    clock, model, profile = timed_case([0.01, 0.01], contract=[0.01, 0.02])
    predictor = Predictor(model, profile, clock=clock)
    model.seconds = [0.03, 0.03]
    for _ in range(60):
        answer = predictor(X, 0.065, contract=True)
    assert (answer.step, answer.missed) == (2, False)
    assert predictor(X, 0.025, contract=True).step == -1
    model.seconds = [0.01, 0.01]
    steps = [predictor(X, 0.025, contract=True).step for _ in range(80)]
    assert (steps[0], steps[-1]) == (-1, 2)


def test_rare_slow_steps_do_not_count_as_a_slower_machine(timed_case: Callable) -> None:
    clock, model, profile = timed_case([0.01])
    predictor = Predictor(model, profile, clock=clock)
    for request in range(400):
        model.seconds[0] = 0.03 if request % 20 == 0 else 0.01
        assert predictor(X, 0.0105).step == 1


def test_stream_stops_at_the_deadline_even_if_the_caller_dawdles(timed_case: Callable) -> None:
    clock, model, profile = timed_case([0.01] * 4)
    answers = []
    for answer in Predictor(model, profile, clock=clock).stream(X, 0.035):
        answers.append((answer.step, answer.reason))
        clock.now += 0.012
    assert answers == [(1, ""), (2, "deadline")] or answers == [(1, ""), (2, "")]


def test_no_step_is_started_that_cannot_finish_after_the_caller_dawdled(timed_case: Callable) -> None:
    clock, model, profile = timed_case([0.01] * 4)
    answers = []
    for answer in Predictor(model, profile, clock=clock).stream(X, 0.05):  # at 10 and 32 ms; a third would come at 54
        answers.append((answer.step, answer.missed))
        clock.now += 0.012
    assert answers == [(1, False), (2, False)]
    assert [step for step, _ in model.started] == [1, 2]


def test_samples_leave_one_by_one_and_keep_their_places(timed_case: Callable) -> None:
    clock, model, profile = timed_case([0.01] * 4)
    x = torch.tensor([0.1, 1.0, 0.5])[:, None, None, None].expand(3, 3, 2, 2)
    predictor = Predictor(model, profile, stop=Confidence(0.9), clock=clock)
    answer = predictor(x)
    alone = [predictor(row[None]) for row in x]
    assert answer.steps.tolist() == [one.step for one in alone]
    assert answer.macs.tolist() == [10 * one.step for one in alone]
    torch.testing.assert_close(answer.probabilities, torch.cat([one.probabilities for one in alone]))
    assert [size for _, size in model.started[: answer.step]] == [3, 2, 1, 1][: answer.step]
    assert answer.steps.tolist()[1] < answer.steps.tolist()[0]


def test_all_stopped_ends_the_run(timed_case: Callable) -> None:
    clock, model, profile = timed_case([0.01] * 4)
    answer = Predictor(model, profile, stop=Confidence(0.0), clock=clock)(X)
    assert (answer.step, answer.reason) == (1, "stopped")


def test_bad_images_are_refused_up_front(timed_case: Callable) -> None:
    clock, model, profile = timed_case([0.01])
    predictor = Predictor(model, profile, clock=clock)
    with pytest.raises(ValueError, match="NaN"):
        predictor(X * math.nan)
    with pytest.raises(ValueError, match=r"images must be \[B, 3, H, W\]"):
        predictor(X[:, :1])
    with pytest.raises(TypeError, match="floating-point"):
        predictor(X.long())
    with pytest.raises(ValueError, match="the profile knows batches up to 8, got 9"):
        predictor(X.expand(9, -1, -1, -1))
    assert model.started == []
    assert predictor(X).step == 1


def test_bad_settings(timed_case: Callable) -> None:
    _, model, profile = timed_case([0.01])
    _, other, _ = timed_case([0.01, 0.02])
    with pytest.raises(ValueError, match="profile is of another model"):
        Predictor(other, profile)
    with pytest.raises(ValueError, match="quantile must be one of p50"):
        Predictor(model, profile, quantile="p95")
    for quantile in ("p95", 0.99, ["p50"], None):
        with pytest.raises(ValueError, match="quantile must be one of p50"):
            Predictor(model, quantile=quantile)
    with pytest.raises(ValueError, match="guard must be at least 0"):
        Predictor(model, profile, guard=-1)
    with pytest.raises(ValueError, match="prior must be 5 probabilities"):
        Predictor(model, profile, prior=torch.ones(5))


def test_a_slow_spell_is_forgotten_even_if_no_step_could_run(timed_case: Callable) -> None:
    clock, model, profile = timed_case([0.01])
    predictor = Predictor(model, profile, clock=clock)
    model.seconds[0] = 0.05
    for _ in range(40):
        predictor(X)
    model.seconds[0] = 0.01
    steps = [predictor(X, 0.02).step for _ in range(60)]
    assert steps[0] == -1
    assert steps[-1] == 1
