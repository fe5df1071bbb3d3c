"""Accuracy under deadlines, from a hand-made trace and profile."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from anytime.combine import Caching
from anytime.runtime import Profile
from anytime.runtime.deadline_curve import DeadlineCurve, deadline_curve
from anytime.runtime.profile import BatchProfile, Latency
from anytime.trace import Trace

LABELS = torch.tensor([0, 1, 2, 0])
PREDICTED = torch.tensor([[0, 0, 0, 0], [0, 1, 0, 1], [0, 1, 2, 1]])  # accuracies 0.5, 0.5, 0.75
MACS = torch.tensor([10, 40, 100])
TRACE = Trace(torch.nn.functional.one_hot(PREDICTED).float(), LABELS, MACS, None, None, ("ant", "bee", "cat"))


def make_profile(steps, reached, macs=(10, 40, 100)) -> Profile:
    """Seconds (p50, p99) of each step, and median seconds until each answer."""
    rows = tuple(Latency(100, p50, p99, p99, p99, p99) for p50, p99 in steps)
    until = tuple(Latency(100, p50, p50, p50, p50, p50) for p50 in reached)
    return Profile("", (3, 2, 2), {}, {1: BatchProfile(rows, until, until)}, macs, macs)


PROFILE = make_profile([(1.0, 2.0), (1.0, 1.5), (1.0, 4.0)], [1.0, 2.0, 3.0])


def test_by_hand():
    curve = deadline_curve(TRACE, PROFILE)
    assert curve.deadlines.tolist() == [2.0, 2.5, 6.0]
    assert curve.steps([1.99, 2.0, 2.49, 2.5, 5.99, 6.0, 100.0]).tolist() == [0, 1, 1, 2, 2, 3, 3]
    assert curve.accuracy([1.0, 2.0, 6.0]).tolist() == [0.0, 0.5, 0.75]
    assert curve.expected([1.0, 2.0, 6.0, 7.0]) == 0.5
    assert curve.area(0.0, 8.0) == pytest.approx((4 * 0.5 + 2 * 0.75) / 8)
    assert curve.area(6.0, 8.0) == 0.75
    assert curve.area(0.5, 1.5) == 0
    assert curve.area(1.5, 6.0, log=True) == pytest.approx(0.5 * torch.tensor(3.0).log() / torch.tensor(4.0).log())


def test_the_prior_may_answer_a_miss():
    """Labels 0 1 2 0: half of them are the prior's class 0."""
    curve = deadline_curve(TRACE, PROFILE, prior=torch.tensor([0.5, 0.3, 0.2]))
    assert curve.accuracy([1.0, 6.0]).tolist() == [0.5, 0.75]


def test_guard_quantile_and_combiner_count():
    assert deadline_curve(TRACE, PROFILE, guard=0.25).deadlines.tolist() == [2.25, 2.75, 6.25]
    assert deadline_curve(TRACE, PROFILE, quantile="p50").deadlines.tolist() == [1.0, 2.0, 3.0]
    right = (Caching()(TRACE.logits).argmax(2) == LABELS).double().mean(1)
    assert torch.equal(deadline_curve(TRACE, PROFILE, combiner=Caching()).accuracies[1:], right)


def test_a_step_is_not_skipped_for_a_faster_one_after_it():
    curve = deadline_curve(TRACE, make_profile([(1.0, 9.0), (1.0, 1.0), (1.0, 1.0)], [1.0, 2.0, 3.0]))
    assert curve.deadlines.tolist() == [9.0, 9.0, 9.0]
    assert curve.steps([8.9, 9.0]).tolist() == [0, 3]


TIMES = st.floats(0.01, 20)


@given(st.lists(TIMES, min_size=1, max_size=5), st.lists(st.floats(0, 1), min_size=6, max_size=6), TIMES, TIMES, st.booleans())
def test_the_area_is_the_mean_over_many_deadlines(deadlines, accuracies, shortest, width, log):
    ordered = torch.tensor(sorted(deadlines), dtype=torch.float64)
    curve = DeadlineCurve(ordered, torch.tensor(accuracies[: len(deadlines) + 1], dtype=torch.float64))
    middles = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    longest = shortest + width
    drawn = shortest * (longest / shortest) ** middles if log else shortest + width * middles
    assert curve.area(shortest, longest, log) == pytest.approx(curve.expected(drawn), abs=1e-3)


def test_clear_errors():
    levels = replace(TRACE, labels=torch.tensor([[0, 0], [1, 0], [1, 0], [0, 0]]), meta={"levels": [2, 1]})
    with pytest.raises(ValueError, match="trace and profile are of different models"):
        deadline_curve(TRACE, replace(PROFILE, macs=(10, 40)))
    with pytest.raises(ValueError, match=r"2 label levels .*pick one: trace.level\(0\)"):
        deadline_curve(levels, PROFILE)
    with pytest.raises(ValueError, match=r"prior must be 3 probabilities that sum to 1, got \[4\]"):
        deadline_curve(TRACE, PROFILE, prior=torch.ones(4) / 4)
    with pytest.raises(ValueError, match="quantile must be one of p50"):
        deadline_curve(TRACE, PROFILE, quantile="p95")
    with pytest.raises(ValueError, match="batches up to 1, got 2"):
        deadline_curve(TRACE, PROFILE, batch_size=2)
    curve = deadline_curve(TRACE, PROFILE)
    with pytest.raises(ValueError, match="deadlines is empty"):
        curve.expected([])
    for wrong in ((1.0, 1.0), (-1.0, 1.0), (0.0, float("inf")), (None, 1.0), ("2ms", "1ms")):
        with pytest.raises(ValueError, match="deadlines must lie in a range"):
            curve.area(*wrong)
    with pytest.raises(ValueError, match="0 < shortest"):
        curve.area(0.0, 1.0, log=True)


def test_a_list_of_deadlines_holds_what_a_predictor_takes():
    curve = deadline_curve(TRACE, PROFILE)
    given = ["1900ms", "2s", None, float("inf"), 2e9, -1, 0, float("-inf"), torch.tensor(2.5), 6]
    assert curve.steps(given).tolist() == [0, 1, 3, 3, 3, 0, 0, 0, 2, 3]
    assert curve.steps(torch.tensor([2.5, float("inf")])).tolist() == [2, 3]
    assert curve.accuracy(torch.tensor([2.0, 6.0]).numpy()).tolist() == [0.5, 0.75]
    for ask in (curve.steps, curve.accuracy, curve.expected):
        for wrong in ([float("nan")], ["5"], torch.tensor([1.0, float("nan")])):
            with pytest.raises(ValueError, match="seconds"):
                ask(wrong)
        with pytest.raises(TypeError, match="deadline must be a number of seconds"):
            ask([True])
