"""Out-of-distribution scores, their quality, and the detector on the course of the answers."""

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from anytime.analysis import ood
from anytime.trace import Trace


def course(samples: int, known: bool, steps: int = 4, classes: int = 5, seed: int = 0) -> Trace:
    """Both kinds end at the same confidence, but the known images reach it earlier."""
    generator = torch.Generator().manual_seed(seed + 100 * known)
    label = torch.randint(classes, (samples,), generator=generator)
    rise = torch.linspace(0.2, 1, steps) ** (0.5 if known else 2)
    evidence = 4 * rise[:, None, None] * torch.nn.functional.one_hot(label, classes)
    return Trace(
        logits=evidence + torch.randn(steps, samples, classes, generator=generator),
        labels=label if known else torch.full((samples,), -1),
        macs=torch.arange(1, steps + 1),
        contract_macs=None,
        seconds=None,
        class_names=tuple(map(str, range(classes))),
    )


def test_scores_by_definition(trace):
    z = trace.logits.double().numpy()
    p = np.exp(z) / np.exp(z).sum(2, keepdims=True)
    wanted = {"max_softmax": p.max(2), "energy": np.log(np.exp(z).sum(2)), "entropy": (p * np.log(p)).sum(2)}
    assert wanted.keys() == ood.SCORES.keys()
    for name, values in wanted.items():
        assert ood.score(trace, name).tolist() == pytest.approx(values[-1].tolist())
        assert ood.score(trace, name, "trace").tolist() == pytest.approx(values.mean(0).tolist())
        assert ood.score(trace, name, "trace", first=2).tolist() == pytest.approx(values[1:].mean(0).tolist())


def by_definition(known: list[float], unknown: list[float], tpr: float) -> tuple[float, float]:
    wins = np.mean([(k > u) + (k == u) / 2 for k in known for u in unknown])
    rates = [
        np.mean([u >= threshold for u in unknown])
        for threshold in [*known, *unknown]
        if np.mean([k >= threshold for k in known]) >= tpr
    ]
    return float(wins), float(min(rates))


@pytest.mark.parametrize("seed", range(4))
def test_detection_by_definition(seed):
    random = np.random.default_rng(seed)
    known, unknown = random.normal(1, 3, 40).round(seed % 2), random.normal(-1, 3, 30).round(seed % 2)  # with and without ties
    found = ood.detection(torch.from_numpy(known), torch.from_numpy(unknown))
    assert (found.auroc, found.fpr95) == pytest.approx(by_definition(known.tolist(), unknown.tolist(), 0.95), abs=1e-6)
    labels = [1] * 40 + [0] * 30
    assert found.auroc == pytest.approx(roc_auc_score(labels, [*known, *unknown]), abs=1e-6)
    assert (found.known, found.unknown) == (40, 30)
    assert ood.detection(known, unknown.tolist()) == found


def test_scores_near_one_another_are_told_apart():
    """Logits beyond 20 would become equal in float32 after a sigmoid, and so would probabilities near 1."""
    found = ood.detection(torch.arange(100.0, 140), torch.arange(60.0, 100))
    assert (found.auroc, found.fpr95) == (1, 0)
    close = 1 - torch.arange(40, dtype=torch.float64) * 1e-12
    assert ood.detection(close[:20], close[20:]).auroc == 1
    assert ood.detection(torch.ones(5), torch.ones(5)).auroc == 0.5


def test_the_trace_tells_what_the_last_step_does_not():
    train, test = ([course(300, known, seed=seed) for known in (True, False)] for seed in (0, 1))
    last, whole = (ood.detection(*(ood.score(t, "max_softmax", form) for t in test)).auroc for form in ood.FORMS)
    assert whole > 0.75 > 0.6 > last
    quality = {}
    for form in ood.FORMS:
        detector = ood.fit_detector(*train, "posterior", form, hidden=16, epochs=40, lr=0.01)
        quality[form] = ood.detection(*(detector(trace) for trace in test)).auroc
    assert quality["trace"] > 0.85
    assert quality["last"] < 0.6
    assert detector.mean.shape == (20,)


@pytest.mark.parametrize("inputs", ood.INPUTS)
def test_detectors_read_all_representations(inputs):
    known, unknown = course(60, True), course(60, False)
    width = 1 if inputs in ("max_softmax", "entropy") else 5
    assert ood.detector_inputs(known, inputs, "last").shape == (60, width)
    assert ood.detector_inputs(known, inputs, "trace", first=2).shape == (60, 3 * width)
    assert torch.equal(ood.detector_inputs(known, inputs)[:, -width:], ood.detector_inputs(known, inputs, "last"))
    found = ood.fit_detector(known, unknown, inputs, hidden=8, epochs=30, held_out=0.2)
    again = ood.fit_detector(known, unknown, inputs, hidden=8, epochs=30, held_out=0.2)
    assert torch.equal(found(known), again(known))
    assert found(known).mean() > found(unknown).mean()


def test_few_samples_of_one_side_count_as_much_as_many_of_the_other():
    known, unknown = course(40, True), course(800, False)
    found = ood.fit_detector(known, unknown, "max_softmax", hidden=16, epochs=40, lr=0.01)
    assert (found(course(200, True, seed=5)) > 0).float().mean() > 0.65
    assert (found(course(200, False, seed=5)) < 0).float().mean() > 0.65


def test_bad_input(trace, levels):
    one = course(5, True, steps=1)
    with pytest.raises(ValueError, match="the trace form from step 1 needs at least 2 steps, and this trace has 1"):
        ood.score(one, "energy", "trace")
    assert len(ood.score(one, "energy")) == 5
    with pytest.raises(ValueError, match="unknown score 'energi'; did you mean 'energy'"):
        ood.score(trace, "energi")
    with pytest.raises(ValueError, match="unknown form 'final'"):
        ood.score(trace, "energy", "final")
    with pytest.raises(ValueError, match="unknown inputs 'logit'; did you mean 'logits'"):
        ood.detector_inputs(trace, "logit")
    with pytest.raises(ValueError, match=r"trace.level\(0\)"):
        ood.score(levels)
    with pytest.raises(ValueError, match=r"got \[0\] and \[3\]"):
        ood.detection(torch.zeros(0), torch.zeros(3))
    with pytest.raises(ValueError, match="1 of 4 scores are NaN or infinite"):
        ood.detection(torch.tensor([0.0, torch.nan]), torch.zeros(2))
    with pytest.raises(ValueError, match="same steps and classes, got 4 and 5, 3 and 3"):
        ood.fit_detector(course(20, True), trace)
    detector = ood.fit_detector(course(30, True), course(30, False), hidden=4, epochs=12)
    with pytest.raises(ValueError, match="fitted to 4 steps and 5 classes, the trace has 3 and 3"):
        detector(trace)
    for name in ("hidden", "epochs"):
        for number in (0, -1, 2.5, True):
            with pytest.raises(ValueError, match=f"{name} must be a whole number of at least 1, got {number}"):
                ood.fit_detector(course(20, True), course(20, False), **{name: number})
    for lr in (0.0, torch.nan, torch.inf):
        with pytest.raises(ValueError, match=f"lr must be finite and above 0, got {lr}"):
            ood.fit_detector(course(20, True), course(20, False), lr=lr)
    excluding = course(30, True)
    excluding.logits[1, 4, 0] = -torch.inf
    with pytest.raises(ValueError, match="finite numbers, but of 1 of 30 samples 'logits' are not"):
        ood.fit_detector(excluding, course(30, False))
    assert ood.detector_inputs(excluding, "posterior").isfinite().all()
    with pytest.raises(ValueError, match="1 of 30 samples 'logits' are not"):
        ood.Detector(torch.nn.Linear(20, 1), "logits", "trace", 1, 4, 5, torch.zeros(20), torch.ones(20), 1)(excluding)
    with pytest.raises(ValueError, match=r"loss was never finite in 3 epochs; lr=1e\+30 is too large"):
        ood.fit_detector(course(30, True), course(30, False), lr=1e30, epochs=3)
    with pytest.raises(ValueError, match=r"3 and 3 samples are too few to hold out 0\.1 of each"):
        ood.fit_detector(course(3, True), course(3, False))
