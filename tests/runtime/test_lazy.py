"""Lazy exits: a head runs only when its answer is read; everything else is as with eager exits."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import anytime
from anytime import Predictor
from anytime.combine import Temperature
from anytime.runtime.engines.pytorch import CompiledSteps
from anytime.stopping import Confidence

TICKS = st.integers(1, 40).map(lambda ticks: ticks / 1024)  # sums of these are exact, and so is every comparison
SIZE = (3, 16, 16)
X = torch.rand(2, *SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def ann(classes=5):
    torch.manual_seed(0)
    return anytime.create_model("ann", num_classes=classes, units=2, width=4).double().eval()


@pytest.fixture(scope="session")
def halves(timed_case: Callable) -> Callable:
    """A timed case whose model has the two halves of a step, each of half its time; `heads` lists the heads that ran."""

    def make(seconds):
        clock, model, profile = timed_case(seconds)
        model.heads = []

        def advance(state):
            step, mean = state
            model.started.append((step + 1, len(mean)))
            clock.now += seconds[step] * 0.5
            return step + 1, mean

        def read(state):
            step, mean = state
            model.heads.append(step)
            clock.now += seconds[step - 1] * 0.5
            logits = torch.zeros(len(mean), model.num_classes)
            logits[:, (step - 1) % model.num_classes] = 1.0 + 4 * mean * step
            return logits

        model.advance, model.read = advance, read
        return clock, model, profile

    return make


@given(seconds=st.lists(TICKS, min_size=1, max_size=6), deadline=st.integers(1, 200).map(lambda ticks: ticks / 1024))
@settings(max_examples=60, deadline=None)
def test_one_head_runs_and_is_never_late(halves: Callable, seconds, deadline) -> None:
    clock, model, profile = halves(seconds)
    x = torch.full((1, 3, 2, 2), 0.5)
    answer = Predictor(model, profile, lazy_exits=True, clock=clock)(x, deadline)
    spent, deepest = 0.0, 0
    for duration in seconds:
        if spent + duration > deadline:
            break
        spent, deepest = spent + duration / 2, deepest + 1
    assert [step for step, _ in model.started] == list(range(1, deepest + 1))
    assert model.heads == ([deepest] if deepest else [])
    assert answer.step == (deepest or -1)
    assert answer.elapsed == spent + (seconds[deepest - 1] / 2 if deepest else 0)
    assert not answer.missed
    assert answer.reason == ("complete" if deepest == len(seconds) else "deadline")


def test_answers_and_macs_are_those_of_a_single_answer() -> None:
    model = ann()
    measured = anytime.profile(model, SIZE, batch_sizes=(2,), repeats=1, warmup=0)
    predictor = Predictor(model, measured, lazy_exits=True)
    expected = model(X).detach().float().softmax(2)
    answer = predictor(X)
    torch.testing.assert_close(answer.probabilities, expected[-1])
    assert (answer.step, answer.reason) == (model.num_steps, "complete")
    assert answer.macs.tolist() == [measured.contract_macs[-1]] * 2
    assert measured.contract_macs[-1] < measured.macs[-1]
    streamed = [answer.probabilities for answer in predictor.stream(X)]
    torch.testing.assert_close(torch.stack(streamed), expected)
    warm = Predictor(model, combine=Temperature([2.0] * model.num_steps), lazy_exits=True)(X)
    torch.testing.assert_close(warm.probabilities, (model(X).detach()[-1].float() / 2).softmax(1))


def test_levels() -> None:
    model = ann((4, 3))
    levels = Predictor(model, lazy_exits=True)(X).levels
    torch.testing.assert_close(levels, tuple(part.softmax(1) for part in model(X).detach()[-1].float().split((4, 3), 1)))


def test_a_session_runs_a_head_when_its_answer_is_read(halves: Callable) -> None:
    clock, model, profile = halves([0.01] * 4)
    predictor = Predictor(model, profile, lazy_exits=True, clock=clock)
    with predictor.session(torch.full((1, 3, 2, 2), 0.5)) as session:
        last = session.wait(10)
    assert model.heads == [4]
    assert (last.step, last.reason, last.label.item()) == (4, "complete", 3)
    assert session.best() is session.interrupt() is last  # the head does not run again


def test_interrupted_sessions_answer_as_their_model() -> None:
    model = ann()
    predictor, expected = Predictor(model, lazy_exits=True), model(X).detach().float().softmax(2)

    def ask(_: int) -> tuple[int, bool]:
        with predictor.session(X) as session:
            session.wait(0.001)
            session.interrupt()
        answer = session.best()
        if answer.step < 1:
            return answer.step, True
        return answer.step, torch.allclose(answer.probabilities, expected[answer.step - 1])

    with ThreadPoolExecutor(8) as pool:
        for step, right in pool.map(ask, range(32)):
            assert right
            assert step == -1 or 1 <= step <= model.num_steps


def test_compiled_halves(monkeypatch) -> None:
    given: list[str] = []
    monkeypatch.setattr(torch, "compile", lambda function, dynamic: given.append(function.__code__.co_name) or function)
    model = ann()
    steps = CompiledSteps(model, SIZE, (4,), lazy=True)
    assert sorted(given) == sorted(f"{what}_{t}_of_4" for what in ("step", "read") for t in range(1, model.num_steps + 1))
    state = model.initial_state(X)
    nothing, after = steps.step(1, state, 4)
    assert nothing is None
    torch.testing.assert_close(steps.read(1, after, 4), model(X)[0])
    measured = anytime.profile(model, SIZE, batch_sizes=(4,), repeats=1, warmup=0, compile=True)
    answer = Predictor(model, measured, compile=True, lazy_exits=True)(X)  # padded from 2 to 4
    torch.testing.assert_close(answer.probabilities, model(X).detach()[-1].float().softmax(1))


def test_no_step_is_started_that_cannot_finish_after_the_caller_dawdled(halves: Callable) -> None:
    clock, model, profile = halves([0.01] * 4)
    for _ in Predictor(model, profile, lazy_exits=True, clock=clock).stream(torch.full((1, 3, 2, 2), 0.5), 0.05):
        clock.now += 0.012
    assert [step for step, _ in model.started] == [1, 2]


def test_what_needs_every_answer_is_refused() -> None:
    with pytest.raises(ValueError, match=r"model with advance\(state\) and read\(state\).*AnytimeNet has none"):
        Predictor(anytime.create_model("anytimenet", width=4), lazy_exits=True)
    with pytest.raises(ValueError, match=r"leave out the rule Confidence\(threshold=0.9\)"):
        Predictor(ann(), stop=Confidence(0.9), lazy_exits=True)
    with pytest.raises(ValueError, match="combine='last', not 'product'"):
        Predictor(ann(), combine="product", lazy_exits=True)
