"""What curve and weights say of both rules, against a predictor, on a clock that only steps advance."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from itertools import accumulate
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
    """Seconds that pass only in steps, and alarms in them."""

    def __init__(self) -> None:
        self.now = 100.0
        self.alarms: dict[Any, tuple[float, Callable[[], None]]] = {}

    def __call__(self) -> float:
        return self.now

    def set(self, owner: Any, seconds: float, function: Callable[[], None]) -> None:
        self.alarms[owner] = self.now + seconds, function

    def take_back(self, owner: Any) -> None:
        self.alarms.pop(owner, None)

    def holds(self, owner: Any) -> bool:
        return owner in self.alarms

    def compute(self, seconds: float) -> None:
        """Raises Cancelled when an alarm comes before the end."""
        end = self.now + seconds
        for at, function in self.alarms.values():
            if at < end:
                self.now = at
                function()
                raise Cancelled
        self.now = end


@pytest.fixture
def either_rule(timed_case: Callable, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Predictor, Profile]]:
    """Makes a predictor whose steps take their medians, and its profile, for seconds (p50, p99) of each step."""
    time = Time()
    monkeypatch.setattr("anytime.runtime.interrupts.ALARMS", time)

    class Cancellable(EagerSteps):
        cancels = True
        medians: list[float]

        def step(self, step: int, state: Any, size: int, call: Any = None) -> tuple[Any, Any]:
            time.compute(self.medians[step - 1])
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
    """Steps of 1 second that sometimes take 3: the first needs 3 by the cautious rule, and 1 by the other, as it is risked."""
    _, profile = either_rule([(1.0, 3.0), (1.0, 3.0)], "step", 0.0)
    trace = trace_of(profile.macs)
    for interrupt in ("step", None):
        assert deadline_curve(trace, profile, interrupt=interrupt).deadlines.tolist() == [3, 4]
    assert deadline_curve(trace, profile, interrupt="operator").deadlines.tolist() == [1, 2.0002]
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
