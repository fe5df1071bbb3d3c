"""What curve and weights say of both rules, against a predictor, on a clock that only waiting advances."""

from __future__ import annotations

import math
import random
import threading
from collections.abc import Callable
from dataclasses import replace
from itertools import accumulate
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from anytime.objectives.weighting import from_deadlines
from anytime.runtime import Predictor, Profile
from anytime.runtime.deadline_curve import deadline_curve
from anytime.runtime.engines.base import Cancelled
from anytime.runtime.engines.pytorch import EagerSteps
from anytime.runtime.profile import BatchProfile, Latency
from anytime.trace import Trace

X = torch.full((1, 3, 2, 2), 0.5)


class Time:
    """Seconds that pass only while the caller and the thread of a call both wait."""

    def __init__(self) -> None:
        self.now = 100.0
        self.changed = threading.Condition()
        self.waiting: dict[int, tuple[Event | None, float]] = {}

    def __call__(self) -> float:
        return self.now

    def wait(self, event: Event | None, seconds: float) -> bool:
        """Whether the event came within these seconds."""
        me = threading.get_ident()
        with self.changed:
            end = self.now + seconds
            self.waiting[me] = event, end
            while self.now < end and not (event is not None and event.there):
                if len(self.waiting) == 2:
                    self.now = min(until for _, until in self.waiting.values())
                    self.end_waits(lambda _, until: until <= self.now)
                else:
                    assert self.changed.wait(10), "nobody else waits"
            self.waiting.pop(me, None)
            return event is not None and event.there

    def end_waits(self, over: Callable[[Event | None, float], bool]) -> None:
        """Wakes those whose wait is over; from now on they count as not waiting."""
        self.waiting = {who: wait for who, wait in self.waiting.items() if not over(*wait)}
        self.changed.notify_all()


class Event:
    """Of `threading`, in this time."""

    def __init__(self, time: Time) -> None:
        self.time, self.there = time, False

    def set(self) -> None:
        with self.time.changed:
            self.there = True
            self.time.end_waits(lambda event, _: event is self)

    def is_set(self) -> bool:
        return self.there

    def wait(self, seconds: float | None = None) -> bool:
        return self.time.wait(self, math.inf if seconds is None else seconds)


@pytest.fixture
def either_rule(timed_case: Callable, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Predictor, Profile]]:
    """Makes a predictor whose steps take their medians, and its profile, for seconds (p50, p99) of each step."""
    time = Time()
    for module in ("session", "interrupts"):
        monkeypatch.setattr(f"anytime.runtime.{module}.threading", SimpleNamespace(Event=lambda: Event(time)))

    class Cancellable(EagerSteps):
        cancels = True
        medians: list[float]

        def call(self) -> Event:
            return Event(time)

        def cancel(self, call: Any) -> None:
            if call is not None:
                call.set()

        def step(self, step: int, state: Any, size: int, call: Any = None) -> tuple[Any, Any]:
            if call is None:
                time.now += self.medians[step - 1]
            elif call.is_set() or time.wait(call, self.medians[step - 1]):
                raise Cancelled
            return super().step(step, state, size)

    monkeypatch.setattr(Predictor, "_make_run", lambda self: Cancellable(self.model))

    def make(seconds: list[tuple[float, float]], rule: str, guard: float) -> tuple[Predictor, Profile]:
        _, model, profile = timed_case([0.0] * len(seconds))
        Cancellable.medians = [median for median, _ in seconds]
        steps = tuple(Latency(100, median, median, tail, tail, tail) for median, tail in seconds)
        reached = tuple(Latency(100, *[median] * 5) for median in accumulate(Cancellable.medians))
        profile = replace(profile, batches={1: BatchProfile(steps, reached, reached)}, interrupt="operator")
        return Predictor(model, profile, guard=guard, interrupt=rule, clock=time), profile

    return make


def trace_of(macs: tuple[int, ...]) -> Trace:
    """Answer t is right for the first t of T images."""
    right = torch.tensor([[image < step for image in range(len(macs))] for step in range(1, len(macs) + 1)])
    labels = torch.zeros(len(macs), dtype=torch.int64)
    return Trace(
        torch.nn.functional.one_hot((~right).long(), 2).float(), labels, torch.tensor(macs), None, None, ("ant", "bee")
    )


@pytest.mark.parametrize("rule", ["step", "operator"])
@pytest.mark.parametrize("way", ["call", "stream"])
def test_curve_and_weights_are_those_of_the_predictor(either_rule, rule: str, way: str) -> None:
    draw = random.Random(0)
    for _ in range(12):
        medians = [draw.randint(1, 16) / 8 for _ in range(draw.randint(1, 5))]
        seconds = [(median, median + draw.randint(0, 24) / 8) for median in medians]  # tails longer than several steps
        predictor, profile = either_rule(seconds, rule, guard := draw.choice([0.0, 0.25]))
        deadlines: list[Any] = [draw.randint(0, 128) / 8 + 1 / 16 for _ in range(15)]  # never exactly when a step ends
        deadlines += [None, -1.0]
        steps = []
        for deadline in deadlines:
            answer = predictor(X, deadline) if way == "call" else [*predictor.stream(X, deadline)][-1]
            steps.append(max(answer.step, 0))
        curve = deadline_curve(trace_of(profile.macs), profile, guard=guard, interrupt=rule)
        assert curve.steps(deadlines).tolist() == steps
        assert curve.accuracy(deadlines).tolist() == pytest.approx([step / len(medians) for step in steps])
        if not guard:
            with pytest.warns(UserWarning, match="are before the first answer"):
                weights = from_deadlines(profile, deadlines, interrupt=rule)
            served = [step for step in steps if step]
            assert weights == [served.count(step) / len(served) for step in range(1, len(medians) + 1)]


def test_hard_deadlines_are_met_by_deeper_answers(either_rule) -> None:
    """Steps of 1 second that sometimes take 3: the first needs 3 by the cautious rule, and 1 and the guard by the other."""
    _, profile = either_rule([(1.0, 3.0), (1.0, 3.0)], "step", 0.0)
    trace = trace_of(profile.macs)
    for interrupt in ("step", None):
        assert deadline_curve(trace, profile, interrupt=interrupt).deadlines.tolist() == [3, 4]
    assert deadline_curve(trace, profile, interrupt="operator").deadlines.tolist() == [1.0002, 2.0002]
    assert deadline_curve(trace, profile, guard="500ms", interrupt="operator").deadlines.tolist() == [1.5, 2.5]
    assert deadline_curve(trace, replace(profile, interrupt="step")).deadlines.tolist() == [3, 4]


def test_wrong_words(either_rule) -> None:
    _, profile = either_rule([(1.0, 3.0)], "step", 0.0)
    with pytest.raises(ValueError, match="interrupt must be 'operator' or 'step', got 'hard'"):
        profile.shortest_deadlines(interrupt="hard")
    with pytest.raises(ValueError, match="interrupt='operator' needs an engine that can cancel a step, which torch cannot"):
        replace(profile, interrupt="step").shortest_deadlines(interrupt="operator")
    with pytest.raises(ValueError, match="quantile must be one of p50"):
        profile.shortest_deadlines(quantile="p95")
