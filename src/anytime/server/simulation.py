"""A server under a virtual clock: the scheduler of the real one, with recorded answers and seconds."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from anytime.server.scheduler import DEADLINE, Batch, Costs, Limits, Request, decide
from anytime.server.traffic import Traffic


@dataclass(frozen=True)
class FutureCall:
    """A request to come: when it arrives, its deadline in seconds from then, and the image that it asks about."""

    arrival: float
    deadline: float
    image: int


@dataclass(frozen=True)
class CallOutcome:
    """What came of a call.

    Attributes:
        step: Step of its answer, 0 if there was none.
        seconds: From the arrival to the answer.
        in_time: Whether there was an answer by the deadline.
        reason: Why there was no later one.
    """

    step: int
    seconds: float
    in_time: bool
    reason: str


def poisson(count: int, rate: float, deadlines: Sequence[float], images: int, seed: int = 0) -> list[FutureCall]:
    """Calls at random times, `rate` a second on average, with deadlines (seconds) and images drawn uniformly."""
    source, now, calls = random.Random(seed), 0.0, []
    for _ in range(count):
        now += source.expovariate(rate)
        calls.append(FutureCall(now, source.choice(deadlines), source.randrange(images)))
    return calls


def simulate(
    calls: Sequence[FutureCall],
    confidence: Sequence[Sequence[float]],
    costs: Costs,
    seconds: Callable[[Batch], float],
    limits: Limits | None = None,
    policy: str = "greedy",
) -> list[CallOutcome]:
    """What comes of each call, in their order.

    Args:
        calls: By arrival.
        confidence: That of each image's answer, `[T][images]`.
        costs: What the scheduler believes.
        seconds: What a batch really takes.
        limits: Those of the scheduler.
        policy: That of the scheduler.
    """
    limits, traffic, now, arrived = limits or Limits(), Traffic(costs.num_steps), 0.0, 0
    outcomes: dict[int, CallOutcome] = {}

    def answer(key: int, at: float, reason: str) -> None:
        request = traffic.leave(key)
        in_time = request.step > 0 and at <= request.deadline
        outcomes[key] = CallOutcome(request.step, at - request.arrival, in_time, reason)

    while len(outcomes) < len(calls):
        if not traffic.live:
            now = max(now, calls[arrived].arrival)
        while arrived < len(calls) and calls[arrived].arrival <= now:
            call = calls[arrived]
            traffic.arrive(Request(arrived, call.arrival, call.arrival + call.deadline))
            arrived += 1
        decision = decide([*traffic.live.values()], costs, traffic.load(), limits, now, policy)
        for key, reason in decision.answered.items():
            answer(key, now, reason)
        if decision.batch is None:
            continue
        now += seconds(decision.batch)
        for key in decision.batch.keys:  # while a batch is late, the answer before it goes out, as from the real server
            request = traffic.live[key]
            if request.step and now > request.deadline:
                answer(key, request.deadline - limits.margin / 2, DEADLINE)
        images = [calls[key].image for key in decision.batch.keys]
        traffic.finish(decision.batch, [confidence[decision.batch.last - 1][image] for image in images])
    return [outcomes[key] for key in range(len(calls))]


def summary(outcomes: Sequence[CallOutcome], right: Sequence[bool]) -> dict[str, float]:
    """Shares of all requests that were answered in time and, of all, in time and right; the mean step; seconds to answers."""
    ranked, count = sorted(outcome.seconds for outcome in outcomes), len(outcomes)
    return {
        "in_time": sum(outcome.in_time for outcome in outcomes) / count,
        "accuracy": sum(outcome.in_time and good for outcome, good in zip(outcomes, right, strict=True)) / count,
        "step": sum(outcome.step for outcome in outcomes) / count,
        "seconds_p50": ranked[count // 2],
        "seconds_p99": ranked[math.ceil(0.99 * count) - 1],
    }
