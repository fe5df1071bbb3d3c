"""Speed-accuracy curves and standard errors, computed by hand."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from anytime.analysis.speed_accuracy import THRESHOLDS, mean_curve, speed_accuracy
from anytime.analysis.statistics import difference, gain_at_least, holm, standard_error
from anytime.trace import Trace


@pytest.fixture
def trace() -> Trace:
    """Two samples, two classes, three steps: one is confident and right at once, the other at step 3 and wrong before."""
    right = torch.tensor([[0.9, 0.4], [0.9, 0.3], [0.95, 0.8]])
    return Trace(
        logits=torch.stack([right, 1 - right], dim=2).log(),
        labels=torch.tensor([0, 0]),
        macs=torch.tensor([10, 30, 60]),
        contract_macs=None,
        seconds=torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64),
        class_names=("a", "b"),
    )


def test_thresholds_are_the_papers_and_one_that_never_stops():
    assert len(THRESHOLDS) == 101
    assert THRESHOLDS[0] == 0
    assert THRESHOLDS[99] == 1
    assert THRESHOLDS[100] == math.inf
    steps = {round(b - a, 12) for a, b in itertools.pairwise(THRESHOLDS[:100])}
    assert steps == {round(1 / 99, 12)}


@pytest.mark.parametrize("first", [0, 1])
def test_each_sample_stops_at_its_first_confident_step(trace, first):
    # largest probabilities: 0.9, 0.9, 0.95 and 0.6, 0.7, 0.8; the second is wrong at steps 1 and 2
    curve = speed_accuracy(trace, first, [0.0, 0.65, 0.75, 0.85, 0.92, math.inf])
    steps = torch.tensor([(0, 0), (0, 1), (0, 2), (0, 2), (2, 2), (2, 2)], dtype=torch.float64)
    assert curve.time.tolist() == (first + steps.mean(1)).tolist()
    assert curve.accuracy.tolist() == [0.5, 0.5, 1, 1, 1, 1]
    assert curve.macs.tolist() == [10, 20, 35, 35, 60, 60]
    assert curve.seconds.tolist() == [1, 1.5, 2, 2, 3, 3]


def test_a_confidence_that_equals_the_threshold_stops(trace):
    confident = trace.logits[0, 0].softmax(0).amax()  # in float32, as rules compare it
    assert speed_accuracy(trace, 1, [float(confident)]).time.tolist() == [2]  # one sample at 1, the other never: at 3
    assert speed_accuracy(trace, 1, [float(confident.nextafter(torch.ones(())))]).time.tolist() == [3]


def test_accuracy_at_a_mean_stop_time_lies_on_the_line_between_thresholds(trace):
    curve = speed_accuracy(trace, 1, [0.0, 0.65, 0.75, 0.92])  # times 1, 1.5, 2, 3; accuracies 0.5, 0.5, 1, 1
    assert curve.at([1, 1.25, 1.75, 2, 3]) == [0.5, 0.5, 0.75, 1, 1]
    assert all(map(math.isnan, curve.at([0.99, 3.01])))
    assert curve.in_gaps([1, 1.25, 2, 2.5, 3], gap=0.9) == [2.5]
    assert curve.in_gaps([1, 2, 3]) == []


def test_the_mean_over_seeds_is_taken_at_equal_thresholds(trace):
    late = Trace(trace.logits.flip(1) - 1, trace.labels, 3 * trace.macs, None, None, trace.class_names)
    late.logits[:, 0] = 0  # never confident: a tie, which counts as right
    curves = [speed_accuracy(t, 1, [0.0, 0.75]) for t in (trace, late)]
    mean = mean_curve(curves)
    assert mean.time.tolist() == [1, (2 + 2) / 2]
    assert mean.macs.tolist() == [(10 + 30) / 2, (35 + 105) / 2]
    assert mean.accuracy.tolist() == [(0.5 + 1) / 2, 1]
    assert mean.seconds is None
    assert mean_curve(curves[:1]).seconds.tolist() == [1, 2]


def test_standard_error_without_differences_between_seeds():
    # seed means 2, 5, 8, grand mean 5; without them: (4, 6), (5, 5), (3, 7), each with variance 1, times C / (C - 1) = 2
    assert standard_error([[1, 3], [5, 5], [6, 10]]) == pytest.approx([math.sqrt(2 / 3), math.sqrt(2 / 3)], rel=1e-12)
    assert standard_error([[1], [2], [3]]) == pytest.approx([math.sqrt(1 / 3)], rel=1e-12), "one condition has no levels"
    assert standard_error([[1, 3], [11, 13], [6, 8]]) == [0, 0]
    assert all(map(math.isnan, standard_error([[1, 3]])))
    with pytest.raises(ValueError, match=r"values must be \[seeds, conditions\], got \[0\]"):
        standard_error([])


@given(st.lists(st.tuples(*[st.floats(0, 1)] * 3), min_size=2, max_size=5), st.lists(st.floats(-1, 1), min_size=5, max_size=5))
def test_standard_error_ignores_what_a_seed_does_to_all_networks(values, shifts):
    shifted = [[x + shift for x in row] for row, shift in zip(values, shifts, strict=False)]
    assert standard_error(shifted) == pytest.approx(standard_error(values), abs=1e-12)


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=6))
def test_the_standard_error_of_the_difference_of_two_conditions_is_the_root_of_two_times_theirs(values):
    _, error = difference(*zip(*values, strict=True))
    assert standard_error(values) == pytest.approx([error / math.sqrt(2)] * 2, abs=1e-12)


def test_the_standard_error_of_independent_conditions_is_theirs():
    """Without seed effects the correction makes the estimate unbiased: 4,000 experiments of 3 seeds and 4 conditions."""
    x = torch.randn(4000, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    squares = torch.tensor([standard_error(values) for values in x.tolist()]).square()
    assert float(squares.mean()) == pytest.approx(1 / 3, rel=0.02)


def test_a_gain_has_a_lower_bound_by_student():
    assert gain_at_least([0.5, 0.7, 0.9], [0.4, 0.4, 0.4]) == pytest.approx(0.3 - 2.919986 * 0.2 / math.sqrt(3), abs=1e-6)
    assert gain_at_least([0.5, 0.5], [0.4, 0.4]) == pytest.approx(0.1)
    assert math.isnan(gain_at_least([0.5], [0.25]))


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])  # the example of many textbooks
    assert holm([0.5, 0.9]) == [1, 1]
    assert holm([]) == []


def test_difference():
    gain, error = difference([0.5, 0.7, 0.9], [0.4, 0.4, 0.4])
    assert gain == pytest.approx(0.3, rel=1e-12)
    assert error == pytest.approx(0.2 / math.sqrt(3), rel=1e-12)
    gain, error = difference([0.5], [0.25])
    assert gain == 0.25
    assert math.isnan(error)
    with pytest.raises(ValueError, match="same seeds on both sides, got 2 and 1"):
        difference([0.1, 0.2], [0.1])
