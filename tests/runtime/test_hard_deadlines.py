"""Steps that are cancelled at the deadline: on a clock that only steps advance, and in steps that wait to be cancelled."""

from __future__ import annotations

import copy
import json
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given as each_of
from hypothesis import strategies as st

from anytime.runtime import Predictor, Profile
from anytime.runtime.engines.base import Cancelled, StepMeasurement
from anytime.runtime.engines.pytorch import EagerSteps
from anytime.runtime.interrupts import LEAST_RESERVE, Cancellation, Reserve
from anytime.runtime.profile import BatchProfile, Latency
from anytime.stopping import Confidence

X = torch.full((1, 3, 2, 2), 0.5)
SOON = 0.1  # seconds that steps which take no time need, but not on every machine: no test relies on it


class Cancellable(EagerSteps):
    """Torch's steps, of which some last until they are cancelled."""

    cancels = True
    endless: frozenset[int] = frozenset()
    cancelled: list[int]

    def call(self) -> threading.Event:
        return threading.Event()

    def step(self, step: int, state: Any, size: int, call: Any = None) -> tuple[Any, Any]:
        if call is not None and (call.is_set() or (step in self.endless and call.wait(10))):
            self.cancelled.append(step)
            raise Cancelled(f"step {step} was cancelled")
        return super().step(step, state, size, call)

    def cancel(self, call: Any) -> None:
        if call is not None:
            call.set()

    def measure(self, x: Any, repeats: int) -> list[StepMeasurement]:
        return [StepMeasurement([1e-3] * repeats, 4096)] * self.model.num_steps


@pytest.fixture
def hard(timed_case: Callable, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Makes (clock, model, predictor) on an engine that can cancel; `endless` steps wait for that, on the true clock."""

    def make(seconds: Any, endless: set[int] = frozenset(), **arguments: Any) -> Any:  # type: ignore[assignment]
        clock, model, profile = timed_case(seconds)
        if endless:  # steps that usually take no time, but a minute at most
            rows = (Latency(100, 0.0, 0.0, 0.0, 0.0, 60.0),) * len(seconds)
            profile = replace(profile, batches=dict.fromkeys(profile.batches, BatchProfile(rows, rows, rows)))
        monkeypatch.setattr(Cancellable, "endless", frozenset(endless))
        monkeypatch.setattr(Cancellable, "cancelled", [], raising=False)
        monkeypatch.setattr(Predictor, "_make_run", lambda self: Cancellable(self.model, self._lazy_exits))
        clocks = {} if endless else {"clock": clock}
        if not endless:  # the clock stands still while an alarm would wait
            silent = SimpleNamespace(set=lambda *_: None, take_back=lambda _: None, holds=lambda _: True)
            monkeypatch.setattr("anytime.runtime.interrupts.ALARMS", silent)
        return clock, model, Predictor(model, profile, **clocks, **{"interrupt": "operator", **arguments})

    return make


def before(endless: int) -> set[int]:
    """The steps that an answer may have if one never ends, whatever the machine does besides."""
    return {-1, *range(1, endless)}


@pytest.mark.parametrize("way", ["call", "stream"])
@pytest.mark.parametrize(
    ("deadline", "step", "started"),
    [(25.0, 2, 2), (29.5, 2, 3), (30.0, 3, 3), (40.0, 3, 3), (44.9, 3, 4), (100.0, 4, 4), (9.0, -1, 0), (9.5, -1, 1)],
)
def test_a_step_starts_if_it_can_end_in_time_and_counts_if_it_did(hard, way, deadline, step, started) -> None:
    _, model, predictor = hard([10.0, 10.0, 10.0, 15.0])
    answer = predictor(X, deadline) if way == "call" else [*predictor.stream(X, deadline)][-1]
    assert answer.step == step
    assert [t for t, _ in model.started] == list(range(1, started + 1))
    assert answer.reason in ({"complete"} if step == 4 else {"deadline"} if way == "call" or step == -1 else {"", "deadline"})


@pytest.mark.parametrize(("interrupt", "started"), [("step", 2), (None, 3)])
def test_by_default_a_step_that_does_not_fit_is_risked(hard, interrupt, started) -> None:
    _, model, predictor = hard([10.0, 10.0, 10.0, 15.0], interrupt=interrupt)
    assert predictor(X, 29.5).step == 2
    assert len(model.started) == started


def test_without_a_profile_a_step_starts_whenever_time_is_left(hard) -> None:
    clock, model, _ = hard([10.0, 10.0, 10.0, 15.0])
    predictor = Predictor(model, clock=clock)
    assert predictor(X, 25.0).step == 2
    assert len(model.started) == 3


@each_of(st.lists(st.booleans(), max_size=400))
def test_few_answers_are_late_because_a_step_was_risked(wanted: list[bool]) -> None:
    """Whatever happens, as long as no step is risked under a deadline (here of 50 ms) that is shorter than the reserve."""
    reserve, late = Reserve(), 0
    for each in wanted:
        missed = each and reserve.seconds < 0.05
        late += missed
        reserve.notice(missed, reserve.seconds)
        assert LEAST_RESERVE <= reserve.seconds <= 0.1
    assert late <= len(wanted) / 1000 + math.log2(reserve.seconds / LEAST_RESERVE) + 1e-9


def test_after_a_late_answer_steps_are_cancelled_earlier(hard) -> None:
    _, model, predictor = hard([10.0] * 4)
    for deadline, started in ((29.0003, 3), (29.0003, 2), (29.0005, 3), (29.0005, 2), (29.5, 3)):
        model.started.clear()
        assert predictor(X, deadline).step == 2
        assert len(model.started) == started, deadline
    assert predictor._reserve.seconds == pytest.approx(8 * 2e-4 * 2 ** (-2 / 1000))
    assert predictor(X, 30.0).step == 3  # a step that fits needs no reserve


def test_what_cannot_spoil_an_answer_changes_no_reserve(hard) -> None:
    _, model, predictor = hard([10.0] * 2)
    for deadline in (9.5, 10.0, 20.0, 100.0, None, 0):  # a first step, steps that fit, and no time at all
        predictor(X, deadline)
    assert len(model.started) == 1 + 1 + 2 + 2 + 2
    assert predictor._reserve.seconds == LEAST_RESERVE


def test_an_alarm_is_set_when_its_time_changes_or_was_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    set_to, held = list[float](), [True]
    alarms = SimpleNamespace(set=lambda _, seconds, __: set_to.append(seconds), holds=lambda _: held[0])
    monkeypatch.setattr("anytime.runtime.interrupts.ALARMS", alarms)
    cancels = Cancellation(None, lambda call: None)
    reserve, least = 0.5, 1.0
    assert cancels.before(True, 5.0, reserve, least, 0)  # at the deadline
    assert cancels.before(True, 4.0, reserve, least, 1)  # as before
    assert cancels.before(False, 2.5, reserve, least, 2)  # earlier, as it is risked
    assert cancels.before(True, 2.0, reserve, least, 3)  # no longer that early
    assert set_to == [5.0, 2.0, 2.0]
    held[0] = False  # in a forked process
    assert cancels.before(True, 1.9, reserve, least, 3)
    assert set_to[3:] == [1.9]
    assert not cancels.before(False, 1.5, reserve, least, 4)
    assert (cancels.kept, cancels.risked) == (None, True)  # only the reserve kept it from being started
    assert not cancels.before(False, 1.0, reserve, least, 4)
    assert (cancels.kept, cancels.risked) == (None, False)


def test_calls_that_are_late_together_double_the_reserve_once() -> None:
    reserve = Reserve()
    for _ in range(16):
        reserve.notice(True, LEAST_RESERVE)
    assert reserve.seconds == 2 * LEAST_RESERVE
    reserve.notice(True, 0.01)  # a guard was kept, and was not enough
    assert reserve.seconds == 0.02
    reserve.notice(True, None)  # no step was started: what made it late was something else
    assert reserve.seconds == 0.02
    reserve.notice(False, None)
    assert reserve.seconds == 0.02 * 2 ** (-1 / 1000)


def test_no_step_starts_after_the_alarm_has_rung() -> None:
    """A step may end although it was cancelled, and all that the engine is given after that is cancelled at once."""
    rang, cancelled = threading.Event(), list[str]()

    def cancel(call: str) -> None:
        cancelled.append(call)
        rang.set()

    cancels = Cancellation("call", cancel)
    try:
        assert cancels.before(False, 1.0, 1.0 - SOON, 0.0, 1)
        assert rang.wait(60)
        assert not cancels.before(True, 0.5, 0.2, 0.0, 2)
        assert cancels.kept is None
    finally:
        cancels.end()
    assert cancelled == ["call"]


def test_a_step_that_fits_is_cancelled_at_the_deadline(hard) -> None:
    _, _, predictor = hard([0.0] * 3, {2})  # the profile says that it takes no time
    start = time.monotonic()
    answer = predictor(X, SOON)
    assert answer.step in before(2)
    assert (answer.missed, answer.reason) == (True, "deadline")
    assert time.monotonic() - start < 8  # the step would have taken 10


def test_a_guard_is_kept_free_and_a_first_step_may_take_the_rest(hard) -> None:
    _, model, predictor = hard([10.0] * 2, guard=1.0)
    for deadline, step, started in ((11.5, 1, 1), (10.5, 1, 1), (10.0, -1, 0), (21.0, 2, 2), (20.9, 2, 2)):
        model.started.clear()
        answer = predictor(X, deadline)
        assert (answer.step, len(model.started)) == (step, started), deadline


def test_a_late_answer_says_when_it_went_out(hard) -> None:
    _, _, predictor = hard([10.0, 10.0])
    late = predictor(X, 19.5)  # step 2 ended after 20 seconds
    assert (late.step, late.elapsed, late.missed, late.reason) == (1, 20.0, True, "deadline")
    in_time = predictor(X, 25.0)
    assert (in_time.step, in_time.elapsed, in_time.missed) == (2, 20.0, False)
    passed = predictor(X, 0)
    assert (passed.step, passed.missed) == (-1, True)


@pytest.mark.parametrize("endless", [1, 3])
def test_the_newest_answer_goes_out_while_a_step_is_cancelled(hard, endless) -> None:
    _, _, predictor = hard([0.0] * 4, {endless})
    answer = predictor(X, SOON)
    assert answer.step in before(endless)
    assert answer.reason == "deadline"
    answers = [a.step for a in predictor.stream(X, SOON)]
    assert answers == [-1] or answers == [1, 2][: len(answers)]
    assert answers[-1] in before(endless)
    Cancellable.endless = frozenset()
    assert predictor(X, 10).step == 4  # every call has its own


def test_samples_that_left_keep_their_answers(hard) -> None:
    _, _, predictor = hard([0.0] * 4, {3}, stop=Confidence([0.9, 1.0, 1.0, 1.0]))
    x = torch.stack([torch.full((3, 2, 2), 1.0), torch.full((3, 2, 2), 0.2)])
    first, second = predictor(x, SOON).steps.tolist()
    assert first in (-1, 1)
    assert second in before(3)


def test_sessions_end_within_the_step(hard) -> None:
    _, _, predictor = hard([0.0] * 4, {3})
    with predictor.session(X) as session:
        while session.best().step < 2:
            time.sleep(1e-3)
        assert session.interrupt().step == 2
        answer = session.wait(10)
    assert (answer.step, answer.reason, {*Cancellable.cancelled}) == (2, "interrupted", {3})
    with predictor.session(X):
        pass  # close() does not wait for ever
    Cancellable.endless = frozenset({1})
    session = predictor.session(X)
    session.close()
    assert (session.best().step, session.best().reason) == (-1, "interrupted")


def test_errors_reach_the_caller(hard) -> None:
    _, model, predictor = hard([0.0] * 2, {2})
    model.fails_at = 1
    with pytest.raises(RuntimeError, match="step 1 failed"):
        predictor(X, 10)
    with pytest.raises(RuntimeError, match="step 1 failed"):
        [*predictor.stream(X, 10)]


def test_a_stream_that_is_left_cancels_nothing(hard) -> None:
    _, _, predictor = hard([0.0] * 3, {3})
    stream = predictor.stream(X, 10)
    assert next(stream).step == 1
    stream.close()
    assert Cancellable.cancelled == []


def test_copies_cancel(hard) -> None:
    _, _, predictor = hard([0.0] * 3, {3})
    assert copy.deepcopy(predictor)(X, SOON).step in before(3)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_cancels_in_threads_of_its_own(hard) -> None:
    _, _, predictor = hard([0.0] * 3, {3})
    assert predictor(X, SOON).step in before(3)
    child = os.fork()
    if child == 0:
        last = [*predictor.stream(X, SOON)][-1]
        os._exit(0 if {predictor(X, SOON).step, last.step} <= before(3) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_can_close_a_session_whose_engine_was_locked(hard, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = threading.Lock()

    def cancel(self: Any, call: Any) -> None:
        with lock:
            call.set()

    _, _, predictor = hard([0.0] * 3, {2})
    monkeypatch.setattr(Cancellable, "cancel", cancel)
    with predictor.session(X) as session:
        lock.acquire()  # as a thread does while OpenVINO starts a step
        child = os.fork()
        if child == 0:
            signal.alarm(60)
            session.close()
            os._exit(0 if session.done else 1)
        lock.release()
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_wrong_words(timed_case: Callable) -> None:
    clock, model, profile = timed_case([0.01])
    with pytest.raises(ValueError, match=r"engine that can cancel a step, which torch cannot: use an export for ONNX"):
        Predictor(model, profile, interrupt="operator")
    for given in ("layer", True, ["step"]):
        with pytest.raises(ValueError, match="interrupt must be 'operator' or 'step', got"):
            Predictor(model, profile, interrupt=given)
    assert Predictor(model, profile, interrupt="step", clock=clock)(X).step == 1


def test_profiles_know_operators_and_memory(timed_case: Callable, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    from anytime.runtime import profile as measure

    _, model, plain = timed_case([0.01] * 2)
    assert (plain.interrupt, plain.batches[1].operators, plain.batches[1].memory) == ("step", (), ())
    monkeypatch.setattr(sys.modules["anytime.runtime.profile"], "engine_of", Cancellable)
    measured = measure(model, (3, 2, 2), repeats=2, warmup=0)
    assert measured.interrupt == "operator"
    assert [row.max for row in measured.batches[1].operators] == [1e-3] * 2
    measured.save(tmp_path / "profile.json")
    assert Profile.load(tmp_path / "profile.json") == measured
    data = json.loads((tmp_path / "profile.json").read_text())
    for change, message in (
        ({"interrupt": "soon"}, "interrupt must be 'operator' or 'step', got 'soon'"),
        ({"batches": {"1": data["batches"]["1"] | {"memory": [-1, 2]}}}, "memory of batch size 1 must be bytes"),
        (
            {"batches": {"1": data["batches"]["1"] | {"operators": [[1, 0, 0, 0, 0, 0]]}}},
            "operators of batch size 1 must have",
        ),
    ):
        (tmp_path / "other.json").write_text(json.dumps(data | change))
        with pytest.raises(ValueError, match=message):
            Profile.load(tmp_path / "other.json")
    for key in ("operators", "memory"):
        del data["batches"]["1"][key]
    del data["interrupt"]
    (tmp_path / "old.json").write_text(json.dumps(data))
    assert Profile.load(tmp_path / "old.json").interrupt == "step"
