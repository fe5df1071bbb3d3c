"""The scheduler under a virtual clock: what it promises for any traffic, and what it gains on a recorded model."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anytime.server import simulation
from anytime.server.scheduler import POLICIES, SURE, Batch, Costs, Limits, Load, Request, Turn, decide
from anytime.server.simulation import FutureCall, poisson, simulate, summary
from anytime.server.traffic import Traffic

RECORDED = json.loads((Path(__file__).parent / "recorded.json").read_text(encoding="utf-8"))
COSTS = Costs(*({int(size): row for size, row in RECORDED[key].items()} for key in ("jumps", "steps")))
FULL = COSTS.run(0, COSTS.num_steps, 1)
LOAD = Load(math.inf, [0.3] * (COSTS.num_steps - 1))


def served(policy: str, load: float, multiples: Sequence[float], requests: int) -> dict[str, float]:
    """The packaged model under `load` full answers in the time of one, with seconds that vary by a few per cent."""
    calls = poisson(requests, load / FULL, [FULL * multiple for multiple in multiples], len(RECORDED["right"][0]))
    source, planned = random.Random(1), Costs(COSTS.jumps, COSTS.steps, 1.1)

    def seconds(batch: Batch) -> float:
        return COSTS.run(batch.first, batch.last, len(batch.keys)) * (1 + 0.04 * abs(source.gauss(0, 1)))

    outcomes = simulate(calls, RECORDED["confidence"], planned, seconds, Limits(16, 0.05 * FULL), policy)
    right = [o.step > 0 and bool(RECORDED["right"][o.step - 1][c.image]) for o, c in zip(outcomes, calls, strict=True)]
    return summary(outcomes, right)


@pytest.mark.parametrize("load", [0.5, 1.0, 2.0, 4.0])
def test_with_equal_deadlines_everyone_is_answered(load: float) -> None:
    assert served("greedy", load, [4.0], 800)["in_time"] >= 0.999


def test_overload_costs_depth_and_no_answers() -> None:
    greedy, edf, slackfit, full = (served(policy, 4.0, [4.0], 1500) for policy in ("greedy", "edf", "slackfit", "full"))
    assert greedy["accuracy"] >= edf["accuracy"] + 0.05
    assert greedy["accuracy"] >= slackfit["accuracy"] - 0.005
    assert greedy["accuracy"] >= 1.2 * full["accuracy"]
    assert greedy["accuracy"] >= 0.8


def test_mixed_deadlines_are_where_slack_pays() -> None:
    greedy, slackfit = (served(policy, 4.0, [1.5, 4.0, 12.0], 1500) for policy in ("greedy", "slackfit"))
    assert greedy["accuracy"] >= slackfit["accuracy"] + 0.04
    assert greedy["in_time"] >= slackfit["in_time"]


def test_a_simulation_is_deterministic() -> None:
    assert served("greedy", 4.0, [4.0], 200) == served("greedy", 4.0, [4.0], 200)


def test_without_load_every_answer_is_the_last_one() -> None:
    calls = [FutureCall(float(n), 4 * FULL, n) for n in range(20)]
    unsure = [[0.5] * 20] * COSTS.num_steps
    outcomes = simulate(calls, unsure, COSTS, lambda b: COSTS.run(b.first, b.last, len(b.keys)), Limits(margin=0.0))
    assert {(outcome.step, outcome.reason) for outcome in outcomes} == {(COSTS.num_steps, "complete")}


@st.composite
def _cases(draw: Any) -> tuple[Costs, list[FutureCall], list[list[float]], Limits, str, list[float]]:
    steps, sizes = draw(st.integers(1, 4)), [1, 2, 5]
    number = st.floats(0.01, 2.0)
    step = {size: [draw(number) * size**0.5 for _ in range(steps)] for size in sizes}
    jump = {size: [sum(row[: t + 1]) * draw(st.floats(0.3, 1.0)) for t in range(steps)] for size, row in step.items()}
    times = sorted(draw(st.lists(st.floats(0, 10), min_size=1, max_size=12)))
    calls = [FutureCall(at, draw(st.floats(-0.5, 8)), n) for n, at in enumerate(times)]
    confidence = [[draw(st.floats(0.1, 1.0)) for _ in calls] for _ in range(steps)]
    limits = Limits(draw(st.integers(1, 6)), draw(st.sampled_from([0.0, 0.1])))
    return Costs(jump, step), calls, confidence, limits, draw(st.sampled_from([*POLICIES])), draw(st.lists(number, min_size=3))


@settings(max_examples=60)
@given(case=_cases())
def test_what_holds_for_any_traffic(case: tuple[Costs, list[FutureCall], list[list[float]], Limits, str, list[float]]) -> None:
    costs, calls, confidence, limits, policy, factors = case
    finished = dict.fromkeys(range(len(calls)), 0)
    log: list[Turn] = []

    def checked(live: Sequence[Request], costs: Costs, load: Load, limits: Limits, now: float, policy: str) -> Turn:
        before = {request.key: (request.step, request.deadline) for request in live}
        made = decide(live, costs, load, limits, now, policy)
        batch = made.batch.keys if made.batch else ()
        assert made.answered or batch, "something happens"
        assert made.answered.keys() | {*batch} <= before.keys()
        assert not made.answered.keys() & {*batch}
        assert len({*batch}) == len(batch) <= limits.max_batch
        if made.batch:
            assert {before[key][0] for key in batch} == {made.batch.first}, "no batch mixes steps"
            assert made.batch.first < made.batch.last <= costs.num_steps
        for key, (step, deadline) in before.items():
            assert step == finished[key], "the best finished answer"
            assert deadline == calls[key].arrival + calls[key].deadline, "deadlines count from the arrival"
        log.append(made)
        finished.update(dict.fromkeys(batch, made.batch.last if made.batch else 0))
        return made

    def seconds(batch: Batch) -> float:
        return costs.run(batch.first, batch.last, len(batch.keys)) * factors[len(log) % len(factors)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(simulation, "decide", checked)
        outcomes = simulate(calls, confidence, costs, seconds, limits, policy)
    assert len(outcomes) == len(calls), "no request is lost"
    for outcome, call in zip(outcomes, calls, strict=True):
        assert outcome.in_time == (outcome.step > 0 and call.arrival + outcome.seconds <= call.arrival + call.deadline)
        assert outcome.seconds >= 0 or call.deadline < 0


def answers(live: Sequence[Request], now: float = 0.0, limits: Limits | None = None) -> tuple[Mapping[int, str], Batch | None]:
    made = decide(live, COSTS, LOAD, limits or Limits(margin=0.0), now)
    return made.answered, made.batch


def test_a_deadline_below_the_first_step_is_answered_at_once() -> None:
    first = COSTS.run(0, 1, 1)
    assert answers([Request(1, 0.0, 0.9 * first)]) == ({1: "deadline"}, None)
    assert answers([Request(1, 0.0, 1.1 * first)]) == ({}, Batch((1,), 0, 1))
    assert answers([Request(1, 0.0, 1.1 * first)], limits=Limits(margin=first)) == ({1: "deadline"}, None)


def test_nothing_to_gain_is_answered_early() -> None:
    assert answers([Request(1, 0.0, 9.0, 2, 0.9995)]) == ({1: SURE}, None)
    assert answers([Request(1, 0.0, 9.0, 2, 0.5, stopped=True)]) == ({1: "stopped"}, None)
    assert answers([Request(1, 0.0, 9.0, COSTS.num_steps, 0.5)]) == ({1: "complete"}, None)


def test_slack_goes_to_the_least_sure() -> None:
    live = [Request(key, 0.0, 9.0, 1, confidence) for key, confidence in enumerate([0.9, 0.2, 0.99])]
    made = decide(live, COSTS, LOAD, Limits(1), 0.0)
    assert made.batch == Batch((1,), 1, 2)


def test_who_could_not_go_further_after_a_batch_is_answered_before_it() -> None:
    seconds = COSTS.run(1, 2, 1) + 0.5 * COSTS.run(2, 3, 1)
    live = [Request(1, 0.0, 9.0, 1, 0.1), Request(2, 0.0, seconds, 2, 0.99)]
    made = decide(live, COSTS, LOAD, Limits(margin=0.0), 0.0)
    assert made.batch == Batch((1,), 1, 2)
    assert made.answered == {2: "deadline"}


def test_first_answers_wait_for_company_only_while_they_have_time() -> None:
    begun = Request(1, 0.0, 9.0, 1, 0.1)
    patient, urgent = Request(2, 0.0, 9.0), Request(2, 0.0, 1.05 * COSTS.run(0, 1, 1))
    assert decide([begun, patient], COSTS, LOAD, Limits(), 0.0).batch == Batch((1,), 1, 2)
    urgent_batch = decide([begun, urgent], COSTS, LOAD, Limits(margin=0.0), 0.0).batch
    assert urgent_batch is not None
    assert urgent_batch.keys == (2,)


def test_costs_between_and_beyond_measured_sizes() -> None:
    costs = Costs({1: [1.0, 2.0], 3: [2.0, 4.0]}, {1: [1.0, 1.5], 3: [2.0, 3.0]}, 2.0)
    assert costs.run(0, 2, 2) == 6.0
    assert costs.run(0, 1, 6) == 8.0
    assert costs.run(1, 2, 1) == 3.0


def test_traffic_learns_from_steps_and_not_from_jumps() -> None:
    traffic = Traffic(3)
    for key, at in ((1, 0.0), (2, 0.5)):
        traffic.arrive(Request(key, at, at + 1))
    assert traffic.load().interval == 0.5
    several = Traffic(3)
    for key in range(3):
        several.arrive(Request(key, 1.0, 2.0))
    assert several.load().interval == math.inf, "images of one request say nothing about the time to the next"
    traffic.finish(Batch((1, 2), 0, 1), [0.5, 0.1])
    assert traffic.load().removed == pytest.approx([0.3, 0.3])
    for _ in range(200):
        traffic.live[1].step, traffic.live[1].confidence = 1, 0.0
        traffic.finish(Batch((1, 7), 1, 2), [0.9, 0.9])  # 7 has left
    assert traffic.load().removed[0] == pytest.approx(0.9, abs=0.02)
    assert traffic.leave(2).step == 1


def test_an_unknown_policy_is_named() -> None:
    with pytest.raises(ValueError, match=r"policy must be one of greedy, edf, slackfit, full, got 'greddy'.*greedy"):
        decide([], COSTS, LOAD, Limits(), 0.0, "greddy")
