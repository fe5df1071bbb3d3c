import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anytime.analysis.curves import accuracy, threshold_curve
from anytime.combine import Caching, Product
from anytime.stopping import (
    RATIOS,
    Confidence,
    Never,
    best_threshold,
    best_thresholds,
    budgeted,
    budgeted_curve,
    exit_shares,
    measure,
    ratio_for,
    search,
    share_thresholds,
)


def test_measure_by_hand(from_probabilities):
    trace = from_probabilities(
        [[[0.6, 0.4], [0.9, 0.1]], [[0.3, 0.7], [0.8, 0.2]]], labels=[1, 1], macs=[10, 30]
    )  # confidences .6 .9, wrong wrong; then .7 .8, right wrong
    outcome = measure(Confidence(0.8), trace)
    assert outcome.accuracy == 0.5
    assert outcome.macs == 20
    assert outcome.seconds is None
    assert outcome.shares == (0.5, 0.5)


def test_measure_agrees_with_the_threshold_curve(make_trace):
    trace = make_trace(300)
    curve = threshold_curve(trace, [0.3, 0.5, 0.8])
    for i, threshold in enumerate((0.3, 0.5, 0.8)):
        outcome = measure(Confidence(threshold), trace)
        assert outcome.accuracy == pytest.approx(float(curve.accuracy[i]))
        assert outcome.macs == pytest.approx(float(curve.macs[i]))
        assert outcome.seconds == pytest.approx(float(curve.seconds[i]))


def test_every_threshold_of_a_curve_has_the_same_outcome_as_its_rule(make_trace):
    """The thresholds are confidences of the trace, where float32 and float64 differ in a quarter of the points."""
    trace = make_trace(200, steps=4)
    trace = replace(trace, logits=trace.logits * 3)
    curve = threshold_curve(trace)
    for threshold, shares, right in zip(curve.thresholds.tolist(), curve.shares, curve.accuracy, strict=True):
        outcome = measure(Confidence(threshold), trace)
        assert outcome.shares == tuple(shares.tolist())
        assert outcome.accuracy == float(right)


def test_measure_of_a_combiner(make_trace):
    trace = make_trace(300)
    expected = (Product()(trace.logits)[-1].argmax(1) == trace.labels).double().mean()
    assert measure(Never(), trace, Product()).accuracy == pytest.approx(float(expected))


def test_exit_shares_are_the_papers():
    q = 0.3
    paper = [q * (1 - q) ** k for k in range(5)]
    assert exit_shares(1 - q, 5) == pytest.approx([value / sum(paper) for value in paper])
    assert exit_shares(1, 4) == (0.25, 0.25, 0.25, 0.25)
    assert exit_shares(2, 3) == pytest.approx([1 / 7, 2 / 7, 4 / 7])
    assert sum(exit_shares(1e300, 50)) == pytest.approx(1)
    assert sum(exit_shares(1e-300, 50)) == pytest.approx(1)
    for wrong in (0, -1, math.nan, math.inf):
        with pytest.raises(ValueError, match="ratio must be finite"):
            exit_shares(wrong, 3)


@given(st.floats(1, 5))
def test_ratio_for_a_budget_uses_it_up(budget):
    spent = [1, 2, 3, 5]
    ratio = ratio_for(spent, budget)
    expected = sum(share * cost for share, cost in zip(exit_shares(ratio, 4), spent, strict=True))
    assert expected <= budget
    assert expected == pytest.approx(min(budget, 5), abs=1e-5)


def published(confidence, shares):
    """MSDNet's procedure as a loop over the samples, written from its description."""
    steps, samples = confidence.shape
    gone = [False] * samples
    thresholds = []
    for step in range(steps - 1):
        wanted, count, threshold = math.floor(samples * shares[step] + 1e-9), 0, math.inf
        for n in confidence[step].argsort(descending=True).tolist():
            if wanted and not gone[n]:
                count += 1
                if count == wanted:
                    threshold = float(confidence[step, n])
                    break
        thresholds.append(threshold)
        gone = [left or float(value) >= threshold for left, value in zip(gone, confidence[step], strict=True)]
    return (*thresholds, 0.0)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**31), st.sampled_from(RATIOS), st.booleans())
def test_share_thresholds_are_the_published_ones(seed, ratio, ties):
    confidence = torch.rand(5, 37, generator=torch.Generator().manual_seed(seed))
    confidence = (confidence * 8).round() / 8 if ties else confidence
    shares = exit_shares(ratio, 5)
    assert share_thresholds(confidence, shares, published_floor=True) == published(confidence, shares)


@pytest.mark.parametrize("ratio", RATIOS[::6])
def test_budgeted_shares_are_as_intended(make_trace, ratio):
    trace = make_trace(1000)
    outcome = budgeted(trace, ratio)
    wanted = exit_shares(ratio, 5)
    left = list(itertools.accumulate(outcome.shares[:-1]))
    for share, want in zip(left, itertools.accumulate(wanted[:-1]), strict=True):
        assert want - 1e-12 <= share < want + 1e-3
    assert outcome.rule.num_steps == 5


@pytest.mark.parametrize("budget", [110, 180, 290, 420])
@pytest.mark.parametrize("samples", [7, 50, 333])
def test_budgeted_keeps_the_budget_on_its_own_trace(make_trace, samples, budget):
    for seed in range(4):
        trace = make_trace(samples, seed=seed)
        outcome = budgeted(trace, ratio_for(trace.macs, budget))
        assert budget - 4 * 100 / samples < outcome.macs <= budget + 1e-9, "short by less than a sample at each exit"


def test_the_published_floor_overspends(make_trace):
    """floor(50 π_t) leave at each of 5 exits: the samples that rounding leaves over run all steps."""
    trace = make_trace(50)
    ratio = ratio_for(trace.macs, 180)
    published = budgeted(trace, ratio, published_floor=True)
    wanted = [math.floor(50 * share + 1e-9) / 50 for share in exit_shares(ratio, 5)[:-1]]
    assert published.shares[:-1] == pytest.approx(wanted)
    assert published.macs == pytest.approx(500 - sum(w * (500 - c) for w, c in zip(wanted, (100, 200, 300, 400), strict=True)))
    assert published.macs > 180 * 1.02
    assert budgeted_curve(trace, (ratio,), published_floor=True) == [published]


def test_budgeted_curve_is_measured_on_the_other_trace(make_trace):
    trace, test = make_trace(500), make_trace(500, seed=1)
    curve = budgeted_curve(trace, (0.5, 1.0, 1.5), Caching(), test)
    assert [point.rule for point in curve] == [budgeted(trace, ratio, Caching()).rule for ratio in (0.5, 1.0, 1.5)]
    assert curve[0] == measure(curve[0].rule, test, Caching())
    costs = [point.macs for point in budgeted_curve(trace)]
    assert len(costs) == len(RATIOS)
    assert costs == sorted(costs)


@pytest.mark.parametrize("budget", [100, 130, 200, 290, 400, 500, 1000])
def test_budgets_are_kept_and_a_threshold_per_step_is_as_good_as_one(make_trace, budget):
    trace = make_trace(400, seed=3)
    one, steps = best_threshold(trace, budget), best_thresholds(trace, budget)
    assert one.macs <= budget + 1e-6
    assert steps.macs <= budget + 1e-6
    assert steps.accuracy >= one.accuracy
    shares = budgeted(trace, ratio_for(trace.macs, budget))
    assert shares.macs <= budget + 1e-6
    assert steps.accuracy >= shares.accuracy


def test_best_threshold_beats_every_other(make_trace):
    trace = make_trace(250, steps=4)
    outcome = best_threshold(trace, 250)
    every = [measure(Confidence(t), trace) for t in [*trace.logits.softmax(2).amax(2).flatten().tolist(), math.inf]]
    assert outcome.accuracy == max(point.accuracy for point in every if point.macs <= 250)


def optimum(trace, budget):
    """(accuracy, -cost) of the best thresholds, by brute force over all of them."""
    grids = [[math.inf, *step.unique().tolist()] for step in trace.logits[:-1].softmax(2).amax(2)]
    outcomes = (measure(Confidence([*thresholds, 0]), trace) for thresholds in itertools.product(*grids))
    return max((point.accuracy, -point.macs) for point in outcomes if point.macs <= budget + 1e-6)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**31), st.sampled_from([(2, 12), (3, 6), (4, 4)]), st.floats(0, 1), st.booleans())
def test_best_thresholds_are_the_optimum_by_brute_force(make_trace, seed, size, share, ties):
    steps, samples = size
    trace = make_trace(samples, steps, seed=seed)
    trace = replace(trace, logits=trace.logits.round() if ties else trace.logits)
    budget = 100 + share * 100 * (steps - 1)
    outcome = best_thresholds(trace, budget)
    assert (outcome.accuracy, -outcome.macs) == pytest.approx(optimum(trace, budget))


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 2**31), st.integers(3, 6), st.floats(0, 1))
def test_best_thresholds_are_never_worse_than_the_other_choices(make_trace, seed, steps, share):
    trace = make_trace(40, steps, seed=seed)
    budget = 100 + share * 100 * (steps - 1)
    best = best_thresholds(trace, budget)
    assert best.macs <= budget + 1e-6
    for other in (best_threshold(trace, budget), budgeted(trace, ratio_for(trace.macs, budget))):
        assert other.macs <= budget + 1e-6
        assert (best.accuracy, -best.macs) >= (other.accuracy, -other.macs - 1e-6)


def test_best_thresholds_trade_budget_between_two_exits(from_probabilities):
    """The first sample leaves at once so that the others can afford the last exit; no single threshold can be moved to it."""

    def answers(confidences, right):
        """Of 3 classes; the label is 0."""
        return [
            [c, (1 - c) / 2, (1 - c) / 2] if ok else [(1 - c) / 2, c, (1 - c) / 2]
            for c, ok in zip(confidences, right, strict=True)
        ]

    steps = [((0.8, 0.6, 0.7), (0, 1, 0)), ((0.55, 0.55, 0.95), (1, 0, 0)), ((0.55, 0.9, 0.8), (1, 1, 1))]
    trace = from_probabilities([answers(*step) for step in steps], labels=[0, 0, 0], macs=[1, 2, 4])
    outcome = best_thresholds(trace, 3)
    assert (outcome.accuracy, outcome.macs) == (pytest.approx(2 / 3), 3)
    assert outcome.rule.threshold == (pytest.approx(0.8), math.inf, 0)


def test_best_thresholds_of_a_table_in_several_parts(make_trace, monkeypatch):
    trace = make_trace(100, steps=3)
    whole = best_thresholds(trace, 190)
    monkeypatch.setattr(search, "_CELLS", 300)
    assert best_thresholds(trace, 190) == whole


def test_best_thresholds_use_an_exit_that_one_threshold_cannot(from_probabilities):
    """The first exit is confident and wrong, the second unsure and right: a single threshold takes the first or runs all."""
    wrong, right, last = [0.99, 0.01], [0.4, 0.6], [0.1, 0.9]
    trace = from_probabilities([[wrong] * 10, [right] * 10, [last] * 10], labels=[1] * 10, macs=[1, 2, 10])
    assert best_threshold(trace, 2).accuracy == 0
    outcome = best_thresholds(trace, 2)
    assert (outcome.accuracy, outcome.macs) == (1, 2)


def test_seconds_and_macs_are_both_costs(make_trace):
    trace = make_trace(200)
    assert best_thresholds(trace, 0.003, "seconds").rule == best_thresholds(trace, 300).rule
    with pytest.raises(ValueError, match="no 'seconds' cost"):
        best_threshold(replace(trace, seconds=None), 1, "seconds")


@pytest.mark.parametrize("number", [np.float32, np.float64, torch.tensor])
def test_budgets_and_thresholds_of_numpy_and_torch(make_trace, number):
    trace = make_trace(50)
    assert best_thresholds(trace, number(250.0)) == best_thresholds(trace, 250)
    assert best_threshold(trace, number(250.0)) == best_threshold(trace, 250)
    assert budgeted(trace, ratio_for(trace.macs, number(250.0))) == budgeted(trace, ratio_for(trace.macs, 250))
    assert budgeted(trace, number(0.5)) == budgeted(trace, 0.5)
    curve = threshold_curve(trace, np.array([0.5, 0.25]))
    assert curve.thresholds.tolist() == threshold_curve(trace, torch.tensor([0.25, 0.5])).thresholds.tolist() == [0.25, 0.5]


def test_a_generous_budget_gives_the_best_accuracy_of_all(make_trace):
    trace = make_trace(300)
    assert best_thresholds(trace, 1e9).accuracy >= float(accuracy(trace)[-1])


def test_one_step_is_enough(make_trace):
    trace = make_trace(10, steps=1)
    for outcome in (best_threshold(trace, 100), best_thresholds(trace, 100), budgeted(trace, 0.5)):
        assert outcome.shares == (1.0,)


def test_clear_errors(make_trace):
    trace = make_trace(10)
    for choose in (best_threshold, best_thresholds):
        for wrong in (99, -1, math.nan):
            with pytest.raises(ValueError, match="at least the cost of the first step, 100"):
                choose(trace, wrong)
    with pytest.raises(ValueError, match="at least the cost of the first step"):
        ratio_for([10, 20], 5)
    levels = replace(trace, labels=torch.zeros(10, 2, dtype=torch.int64), meta={"levels": [2, 2]})
    with pytest.raises(ValueError, match=r"pick one: trace.level\(0\)"):
        measure(Never(), levels)
