"""Every metric that needs labels is that of the samples that have one."""

import warnings
from dataclasses import asdict, is_dataclass

import pytest
import torch

from anytime.analysis import calibration, curves, monotonicity, optimal, slicing, speed_accuracy, taxonomy
from anytime.analysis.summary import comparison, summary
from anytime.combine import Caching, fit_temperatures
from anytime.stopping import Confidence, best_threshold, best_thresholds, budgeted, certified, conformal, learned_stop, measure
from anytime.stopping.fitting import Goal, fit_rule
from anytime.stopping.guarantee import mean_loss
from anytime.stopping.value import value_of_computation
from anytime.trace import Trace

STEPS, SAMPLES, CLASSES = 3, 60, 4
GENERATOR = torch.Generator().manual_seed(0)
LOGITS = 2 * torch.randn(STEPS, SAMPLES, CLASSES, generator=GENERATOR)
LABELS = torch.where(torch.rand(SAMPLES, generator=GENERATOR) < 0.3, -1, LOGITS[-1].argmax(1)).roll(1).clone()
LABELS[:20] = LOGITS[1, :20].argmax(1)
LABELS[5] = -1
MACS = torch.tensor([10, 30, 70])
META = {"groups": [index // 2 for index in range(SAMPLES)]}
TRACE = Trace(LOGITS, LABELS, MACS, MACS, MACS.double() / 1e3, tuple("abcd"), meta=META)
THERE = LABELS >= 0
KNOWN = TRACE.select(THERE)

METRICS = {
    "accuracy": curves.accuracy,
    "error": curves.error,
    "correct": curves.correct,
    "true_class_probability": curves.true_class_probability,
    "error_at_cost": curves.error_at_cost,
    "threshold_curve": curves.threshold_curve,
    "speed_accuracy": speed_accuracy.speed_accuracy,
    "reliability": calibration.reliability,
    "per_class": calibration.per_class,
    "largest_drop": monotonicity.largest_drop,
    "overthinking": monotonicity.overthinking,
    "true_class_drops": monotonicity.true_class_drops,
    "cross_entropy": optimal.cross_entropy,
    "cost_at_error": lambda trace: slicing.cost_at_error(trace, torch.tensor([0.4])),
    "level_accuracies": taxonomy.level_accuracies,
    "compliance": lambda trace: taxonomy.compliance(trace, [0, 0, 1, 1]),
    "temperatures": lambda trace: fit_temperatures(trace).temperatures,
    "measure": lambda trace: measure(Confidence(0.6), trace, Caching()),
    "best_threshold": lambda trace: best_threshold(trace, 40.0),
    "best_thresholds": lambda trace: best_thresholds(trace, 40.0),
    "budgeted": lambda trace: budgeted(trace, 1.0),
    "value_of_computation": lambda trace: value_of_computation(trace, 1e-3),
    "learned_stop": lambda trace: learned_stop(trace, 1e-3, epochs=1),
    "certified": lambda trace: certified(trace, 0.5),
    "conformal": lambda trace: conformal(trace, 0.5),
    "mean_loss": lambda trace: mean_loss(trace, Confidence(0.5)),
    "fit_rule": lambda trace: fit_rule(trace, trace, "temperature", Goal("confidence", max_loss=0.5)),
    "summary": lambda trace: {key: value for key, value in summary(trace).items() if key != "meta"},
    "comparison": lambda trace: comparison({"a": trace}),
}


def plain(value):
    """Without tensors, so that values can be compared."""
    if is_dataclass(value) and not isinstance(value, type):
        return {"kind": type(value).__name__, **plain(asdict(value))}
    if isinstance(value, torch.Tensor):
        return value.nan_to_num(nan=-7.0).tolist() if value.is_floating_point() else value.tolist()
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items()}
    return [plain(part) for part in value] if isinstance(value, (list, tuple)) else value


@pytest.mark.parametrize("name", METRICS)
def test_samples_without_a_label_do_not_count(name):
    wanted = plain(METRICS[name](KNOWN))
    missing = int((~THERE).sum())
    with pytest.warns(UserWarning, match=f"{missing} of {SAMPLES} samples have no label among the 4 classes and are left out"):
        found = plain(METRICS[name](TRACE))
    assert found == wanted


def test_what_is_given_by_sample_is_chosen_with_it():
    probabilities, steps = LOGITS.softmax(2), torch.arange(SAMPLES) % STEPS
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        drops = monotonicity.true_class_drops(TRACE, probabilities)
        regret = [monotonicity.regret(TRACE, steps, probabilities=p) for p in (None, probabilities)]
    assert torch.equal(drops, monotonicity.true_class_drops(KNOWN, probabilities[:, THERE]))
    assert regret == [monotonicity.regret(KNOWN, steps[THERE], probabilities=p) for p in (None, probabilities[:, THERE])]


def test_what_needs_no_labels_counts_all_samples():
    nobody = Trace(LOGITS, torch.full((SAMPLES,), -1), MACS, None, None, tuple("abcd"))
    assert curves.confidence(nobody).equal(curves.confidence(TRACE))
    assert monotonicity.answer_changes(nobody).equal(monotonicity.answer_changes(TRACE))
    with pytest.raises(ValueError, match="none of the 60 samples of this trace has a label among its 4 classes"):
        curves.accuracy(nobody)
