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
