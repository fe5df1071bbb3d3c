"""Sessions: computations in the background, read and interrupted from other threads."""

import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import anytime
from anytime.runtime import Predictor, Session

X = torch.full((1, 3, 2, 2), 0.5)


def until_done(session: Session) -> None:
    while not session.done:
        time.sleep(0.001)


class Gate:
    """Lets the steps of a model pass one by one."""

    def __init__(self, model) -> None:
        self.tickets, self.waiting = threading.Semaphore(0), threading.Semaphore(0)
        inner = model.step

        def step(state):
            self.waiting.release()
            assert self.tickets.acquire(timeout=10)
            return inner(state)

        model.step = step

    def until_waiting(self) -> None:
        assert self.waiting.acquire(timeout=10)


@pytest.fixture
def gated(timed_case: Callable):
    clock, model, profile = timed_case([0.01] * 4)
    gate = Gate(model)
    return Predictor(model, profile, clock=clock), gate, model


def test_best_is_readable_at_any_time(gated) -> None:
    predictor, gate, _ = gated
    with predictor.session(X) as session:
        for done in range(4):
            gate.until_waiting()
            assert session.best().step == (done or -1)
            assert not session.done
            gate.tickets.release()
        answer = session.wait(10)
    assert (answer.step, answer.reason) == (4, "complete")
    assert session.best() is answer


@pytest.mark.parametrize("after", range(4))
def test_an_interruption_takes_effect_within_the_step_in_progress(gated, after: int) -> None:
    predictor, gate, model = gated
    with predictor.session(X) as session:
        for _ in range(after):
            gate.until_waiting()
            gate.tickets.release()
        gate.until_waiting()  # step after + 1 has begun
        assert session.interrupt().step == (after or -1)
        gate.tickets.release(5)
        answer = session.wait(10)
    assert answer.step == after + 1
    assert answer.reason == ("complete" if after == 3 else "interrupted")
    assert [step for step, _ in model.started] == list(range(1, after + 2))


def test_wait_returns_the_best_answer_when_time_is_up(gated) -> None:
    predictor, gate, _ = gated
    with predictor.session(X) as session:
        gate.until_waiting()
        assert session.wait(0).step == -1
        gate.tickets.release(5)


def test_leaving_the_block_ends_the_run(gated) -> None:
    predictor, gate, model = gated
    with predictor.session(X) as session:
        gate.until_waiting()
        gate.tickets.release(5)
    assert session.done
    session.close()
    with pytest.raises(ValueError, match="this session is closed"):
        session.wait()
    assert session.best().step >= 1
    assert len(model.started) <= 4


def test_an_exception_reaches_the_caller_and_leaves_the_last_good_answer(timed_case: Callable) -> None:
    clock, model, profile = timed_case([0.01] * 4)
    model.fails_at = 3
    predictor = Predictor(model, profile, clock=clock)
    session = predictor.session(X)
    with pytest.raises(RuntimeError, match="step 3 failed"):
        session.wait(10)
    assert session.best().step == 2
    session.close()
    with pytest.raises(RuntimeError, match="step 3 failed"), predictor.session(X) as unattended:
        until_done(unattended)
    model.fails_at = None
    assert predictor.session(X).wait(10).step == 4


def test_bad_input_is_refused_before_a_session_starts(gated) -> None:
    predictor, _, _ = gated
    with pytest.raises(ValueError, match="images must be"):
        predictor.session(X[0, 0])


@pytest.mark.parametrize("late", [0, -1, -0.02, -math.inf, "-5ms"])
def test_a_wait_whose_time_has_passed_gives_the_best_answer_at_once(gated, late) -> None:
    predictor, gate, _ = gated
    with predictor.session(X) as session:
        assert session.wait(late).step == -1
        gate.tickets.release(5)
        assert session.wait(10).step == 4
        assert session.wait(late).step == 4


def test_eight_sessions_over_one_model_do_not_disturb_each_other() -> None:
    torch.manual_seed(0)
    model = anytime.create_model("anytimenet", width=4, blocks=(2, 2, 2), scheme=(1, 1)).double().eval()
    predictor = Predictor(model, combine="product")
    images = torch.rand(8, 4, 3, 8, 8, dtype=torch.float64)
    expected = [predictor(x).probabilities for x in images]

    def one(x: torch.Tensor) -> torch.Tensor:
        with predictor.session(x) as session:
            while not session.done:
                session.best()
            return session.wait().probabilities

    with ThreadPoolExecutor(8) as threads:
        for _ in range(3):
            for got, want in zip(threads.map(one, images), expected, strict=True):
                torch.testing.assert_close(got, want, rtol=0, atol=1e-6)
