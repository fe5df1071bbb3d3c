"""Confusion of a shallow-deep network by hand."""

from __future__ import annotations

import pytest
import torch

from anytime.analysis.confusion import Confusion, disagreement, separation
from anytime.trace import Trace


def trace(*probabilities: list[list[float]]) -> Trace:
    logits = torch.tensor(probabilities).log()
    return Trace.from_logits(logits, torch.zeros(logits.shape[1], dtype=torch.long), macs=range(1, len(logits) + 1))


def test_disagreement_is_the_sum_of_distances_to_the_last_answer() -> None:
    given = trace([[0.9, 0.1], [0.5, 0.5]], [[0.2, 0.8], [0.5, 0.5]], [[0.6, 0.4], [0.5, 0.5]])
    assert disagreement(given).tolist() == pytest.approx([0.6 + 0.8, 0.0], abs=1e-6)


def test_scores_are_standardised_by_another_trace() -> None:
    training = trace([[0.9, 0.1], [0.5, 0.5]], [[0.5, 0.5], [0.5, 0.5]])  # d = 0.8 and 0
    scale = Confusion.of(training)
    assert (scale.mean, scale.std) == pytest.approx((0.4, 0.4), abs=1e-6)
    assert scale(training).tolist() == pytest.approx([1.0, -1.0], abs=1e-5)
    assert scale(trace([[0.7, 0.3]], [[0.3, 0.7]])).tolist() == pytest.approx([1.0], abs=1e-5)


def test_one_answer_has_no_confusion() -> None:
    with pytest.raises(ValueError, match=r"std must be above 0, got 0\.0"):
        Confusion.of(trace([[0.9, 0.1], [0.5, 0.5]]))


def test_separation_takes_lists() -> None:
    assert separation([1.0, 2.0, 3.0], [False, False, True]) == 1


def test_separation_counts_pairs() -> None:
    scores, wrong = torch.tensor([0.0, 1.0, 1.0, 2.0]), torch.tensor([False, False, True, True])
    assert separation(scores, wrong) == (1 + 0.5 + 1 + 1) / 4
    with pytest.raises(ValueError, match="got 4 right and 0 wrong"):
        separation(scores, torch.zeros(4, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"wrong must be a bool for each score \[N\], got torch.int64 \[4\] for scores \[4\]"):
        separation(scores, wrong.long())  # would pick samples by number
    with pytest.raises(ValueError, match=r"got torch.bool \[3\] for scores \[4\]"):
        separation(scores, wrong[:3])
    with pytest.raises(ValueError, match="1 of 4 scores are NaN"):
        separation(torch.tensor([0.0, 1.0, torch.nan, 2.0]), wrong)
