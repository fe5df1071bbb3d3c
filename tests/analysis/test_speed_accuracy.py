"""Speed-accuracy curves, computed by hand."""

import itertools
import math

import pytest
import torch

from anytime.analysis.speed_accuracy import THRESHOLDS, mean_curve, speed_accuracy
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
