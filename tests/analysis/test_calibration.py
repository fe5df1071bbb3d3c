import math
from dataclasses import replace

import pytest
import torch
from scipy.stats import pearsonr
from torchmetrics.functional.classification import multiclass_calibration_error

from anytime.analysis import calibration


def test_reliability_by_hand(trace):
    found = calibration.reliability(trace, bins=3)
    assert found.counts[0].tolist() == [0, 3, 1]
    assert math.isnan(found.accuracy[0, 0])
    assert found.accuracy[0, 1:].tolist() == pytest.approx([1 / 3, 1])
    assert found.confidence[0, 1:].tolist() == pytest.approx([0.5, 0.7])
    assert float(found.ece[0]) == pytest.approx(0.75 / 6 + 0.25 * 0.3)
    assert torch.equal(calibration.ece(trace, bins=3), found.ece)


def test_ece_agrees_with_torchmetrics(trace):
    generator = torch.Generator().manual_seed(0)
    logits, labels = 2 * torch.randn(3, 500, 4, generator=generator), torch.randint(4, (500,), generator=generator)
    large = replace(trace, logits=logits, labels=labels, class_names=tuple("abcd"))
    other = [float(multiclass_calibration_error(step.softmax(1), labels, 4, n_bins=15)) for step in logits]
    assert calibration.ece(large).tolist() == pytest.approx(other, abs=1e-5)


def test_certain_answers_fall_into_the_last_bin(trace):
    certain = replace(trace, logits=200 * torch.nn.functional.one_hot(trace.labels, 3).float().expand(3, 4, 3))
    found = calibration.reliability(certain)
    assert found.counts[:, -1].tolist() == [4, 4, 4]
    assert found.ece.tolist() == pytest.approx([0, 0, 0])


def test_bins_must_exist(trace):
    with pytest.raises(ValueError, match="at least 1, got 0"):
        calibration.ece(trace, bins=0)


def test_per_class_by_hand(trace):
    found = calibration.per_class(trace)
    assert found.confidence[0].tolist() == pytest.approx([0.6, 0.3, 0.25])
    assert found.accuracy[2].tolist() == [0.5, 1, 1]
    wanted = [pearsonr(c, a).statistic for c, a in zip(found.confidence, found.accuracy, strict=True)]
    assert found.pearson.tolist() == pytest.approx(wanted)
    certain = calibration.per_class(trace, "max")
    assert certain.confidence[1].tolist() == pytest.approx([0.7, 0.7, 0.5])
    with pytest.raises(ValueError, match="unknown confidence 'entropy'"):
        calibration.per_class(trace, "entropy")


def test_absent_classes_are_left_out(trace):
    found = calibration.per_class(replace(trace, labels=torch.tensor([0, 1, 1, 0])))
    assert bool(found.confidence[:, 2].isnan().all())
    assert found.pearson.tolist() == pytest.approx([1, math.nan, math.nan], nan_ok=True)


def test_pearson_is_nan_without_variation(trace):
    one = calibration.per_class(replace(trace, labels=torch.zeros(4, dtype=torch.int64)))
    assert bool(one.pearson.isnan().all())
    right = replace(trace, logits=torch.nn.functional.one_hot(trace.labels, 3).float().expand(3, 4, 3))
    assert bool(calibration.per_class(right).pearson.isnan().all())
    line = torch.tensor([[0.1, 0.2, 0.3]], dtype=torch.float64)
    assert calibration.pearson(line, 1 - line).tolist() == pytest.approx([-1])
