"""Transfers from a device: steps start ahead, and the newest answer that has arrived counts when time is up."""

from collections.abc import Callable

import pytest
import torch

import anytime
from anytime.runtime import Predictor
from anytime.runtime.transfer import Arrival, send

X = torch.full((1, 3, 2, 2), 0.5)


class Device:
    """A queue parallel to the host: step t takes `seconds[t - 1]`, and launching it takes no time of the clock."""

    def __init__(self, clock, seconds) -> None:
        self.clock, self.seconds, self.free, self.sent = clock, iter(seconds), clock(), 0
        self.most_in_flight = self.received = 0

    def send(self, value):
        self.free = max(self.free, self.clock()) + next(self.seconds)
        self.sent += 1
        self.most_in_flight = max(self.most_in_flight, self.sent - self.received)
        return InFlight(self, value, self.free)


class InFlight:
    def __init__(self, device: Device, value, there: float) -> None:
        self.device, self.value, self.there = device, value, there

    def wait(self, clock, until) -> bool:
        arrived = until is None or self.there <= until
        clock.now = max(clock.now, self.there if arrived else until)
        self.device.received += arrived
        return arrived


def on_device(timed_case: Callable, seconds: list[float], depth: int, profiled: list[float] | None = None):
    clock, model, profile = timed_case(profiled or seconds)
    model.seconds = [0.0] * len(seconds)
    predictor, device = Predictor(model, profile, clock=clock), Device(clock, seconds)
    predictor._depth, predictor._send = depth, device.send
    return predictor, device, model


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_answers_come_in_order_with_depth_steps_in_flight(timed_case: Callable, depth: int) -> None:
    predictor, device, _ = on_device(timed_case, [0.01] * 4, depth)
    answers = list(predictor.stream(X))
    assert [(answer.step, answer.reason) for answer in answers] == [(1, ""), (2, ""), (3, ""), (4, "complete")]
    assert [answer.elapsed for answer in answers] == pytest.approx([0.01, 0.02, 0.03, 0.04])
    assert [answer.macs.tolist() for answer in answers] == [[10], [20], [30], [40]]
    assert device.most_in_flight == depth


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_no_step_is_started_that_cannot_finish_after_those_in_flight(timed_case: Callable, depth: int) -> None:
    predictor, device, _ = on_device(timed_case, [0.01] * 4, depth)
    answer = predictor(X, 0.035)
    assert (answer.step, answer.reason, device.sent) == (3, "deadline", 3)


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_a_step_that_is_late_leaves_the_newest_answer_in_time(timed_case: Callable, depth: int) -> None:
    """On the CPU this would be a miss; with a device the previous answer is there."""
    predictor, _, _ = on_device(timed_case, [0.01, 0.01, 0.09, 0.01], depth, profiled=[0.01] * 4)
    start = predictor.clock()
    answer = predictor(X, 0.045)
    assert (answer.step, answer.reason, answer.missed) == (2, "deadline", False)
    assert predictor.clock() - start == pytest.approx(0.045)
    assert torch.equal(answer.label, torch.tensor([1]))


def test_without_an_arrival_in_time_the_answer_is_the_prior(timed_case: Callable) -> None:
    predictor, _, _ = on_device(timed_case, [0.09, 0.01], 2, profiled=[0.01, 0.01])
    answer = predictor(X, 0.045)
    assert (answer.step, answer.reason) == (-1, "deadline")
    for _ in range(12):
        predictor._send = Device(predictor.clock, [0.09, 0.01]).send
        answer = predictor(X, 0.045)
    assert predictor._plan.drift.slowdown > 1  # although no answer ever arrived


class Event:
    """Done after some queries."""

    def __init__(self, queries: int) -> None:
        self.queries = queries

    def query(self) -> bool:
        self.queries -= 1
        return self.queries < 0

    def synchronize(self) -> None:
        self.queries = 0


def test_pinned_answers_are_polled_until_the_deadline() -> None:
    ticks = iter(range(100))
    assert Arrival(X, Event(3)).wait(lambda: next(ticks), 50)
    assert next(ticks) == 3
    assert not Arrival(X, Event(100)).wait(lambda: next(ticks), 10)
    event = Event(100)
    assert Arrival(X, event).wait(lambda: 0.0, None)
    assert event.queries == 0


def test_on_the_cpu_an_answer_arrives_at_once() -> None:
    arrival = send(X)
    assert isinstance(arrival, Arrival)
    assert arrival.event is None
    assert arrival.value is X
    assert arrival.wait(lambda: 0.0, -1.0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("depth", [1, 3])
def test_on_cuda_answers_are_those_of_the_model(depth: int) -> None:
    torch.manual_seed(0)
    model = anytime.create_model("anytimenet", blocks=(2, 2, 2), scheme=(1, 1), width=4).eval().cuda()
    x = torch.rand(3, 3, 8, 8, device="cuda")
    with torch.inference_mode():
        expected = model(x).softmax(2).cpu()
    predictor = Predictor(model, anytime.profile(model, x, batch_sizes=(3,), repeats=5), depth=depth)
    for answer, want in zip(predictor.stream(x), expected, strict=True):
        assert answer.probabilities.is_pinned()
        torch.testing.assert_close(answer.probabilities, want, rtol=1e-3, atol=1e-4)
    with predictor.session(x) as session:
        assert session.wait(60).step == model.num_steps
    assert predictor(x, contract=True).reason == "complete"
