import math
from dataclasses import replace

import pytest
import torch

from anytime.analysis import monotonicity


def test_overthinking_by_hand(trace):
    found = monotonicity.overthinking(trace)
    assert found == monotonicity.Overthinking(destructive=0.25, wasteful=0.5, oracle_accuracy=1.0, oracle_macs=40.0)


def test_overthinking_of_one_step_and_of_no_right_answer(trace):
    wrong = replace(trace, labels=torch.tensor([2, 2, 1, 2]))
    assert math.isnan(monotonicity.overthinking(wrong).oracle_macs)
    one = replace(trace, logits=trace.logits[:1], macs=trace.macs[:1], contract_macs=None, seconds=None, meta={})
    assert monotonicity.overthinking(one) == monotonicity.Overthinking(0.0, 0.0, 0.5, 10.0)
    assert len(monotonicity.answer_changes(one)) == 0
    assert monotonicity.largest_drop(one) == 0


def test_answer_changes_by_hand(trace):
    assert monotonicity.answer_changes(trace).tolist() == [0.5, 0.25]


def test_largest_drop_counts_from_the_best_earlier_step(trace):
    assert monotonicity.largest_drop(trace) == 0
    backwards = replace(trace, logits=trace.logits.flip(0))
    assert monotonicity.largest_drop(backwards) == pytest.approx(0.25)


def test_true_class_drops_by_hand(trace):
    """The probabilities of the true class: 0.5 0.8 0.9, 0.3 0.7 0.8, 0.25 0.3 0.6, 0.7 0.3 0.2."""
    torch.testing.assert_close(monotonicity.true_class_drops(trace), torch.tensor([0, 0, 0, 0.5]).double())
    assert monotonicity.monotonicity_violations(trace, [0.1, 0.49, 0.51]).tolist() == [0.25, 0.25, 0]
    backwards = replace(trace, logits=trace.logits.flip(0))
    drops = monotonicity.true_class_drops(backwards)
    torch.testing.assert_close(drops, torch.tensor([0.4, 0.5, 0.35, 0]).double(), atol=1e-6, rtol=0)


def test_a_combiner_removes_violations(trace):
    probabilities = trace.logits.softmax(2)[:1].expand(3, 4, 3)  # never changes
    assert monotonicity.monotonicity_violations(trace, probabilities=probabilities).tolist() == [0] * 5
    torch.testing.assert_close(
        monotonicity.true_class_drops(trace, trace.logits.softmax(2)), monotonicity.true_class_drops(trace)
    )


def test_regret_by_hand(trace):
    """The first right answers come at steps 1 2 3 1, at 10 40 100 10 MACs."""
    assert monotonicity.regret(trace, torch.tensor([0, 1, 2, 0])) == monotonicity.Regret(0.0, 0.0, 0.0, 0.0)
    assert monotonicity.regret(trace, torch.tensor([2, 2, 2, 2])) == monotonicity.Regret(0.25, 60.0, 0.0, 0.75)
    assert monotonicity.regret(trace, torch.tensor([0, 0, 0, 0])) == monotonicity.Regret(0.5, -30.0, 0.5, 0.0)
    assert monotonicity.regret(trace, torch.tensor([2, 2, 2, 2]), "contract").cost == pytest.approx(32.5)


def test_regret_of_a_combiner_and_of_no_right_answer(trace):
    first = trace.logits.softmax(2)[:1].expand(3, 4, 3)  # right, wrong, wrong, right at every step
    found = monotonicity.regret(trace, torch.tensor([1, 1, 1, 1]), probabilities=first)
    assert found == monotonicity.Regret(accuracy=0.0, cost=30.0, early=0.0, late=1.0)


def test_regret_rejects_wrong_steps(trace):
    for wrong in ([0, 1, 2], [0, 1, 2, 3], [-1, 0, 0, 0]):
        with pytest.raises(ValueError, match=r"steps must be \[4\] in 0..2, got"):
            monotonicity.regret(trace, torch.tensor(wrong))


def test_label_levels_raise(levels):
    with pytest.raises(ValueError, match="label levels"):
        monotonicity.true_class_drops(levels)
    with pytest.raises(ValueError, match="label levels"):
        monotonicity.regret(levels, torch.zeros(4, dtype=torch.int64))
