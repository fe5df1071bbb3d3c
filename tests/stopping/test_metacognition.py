"""The rule that predicts whether an answer is already the final one."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from anytime.model import select_samples
from anytime.reporting import plots
from anytime.stopping import FinalAnswer, Rule, measure, metacognition, metacognition_curve
from anytime.trace import Trace


def course(samples: int, seed: int = 0) -> Trace:
    """Answers become final at a step that only the first logit tells; the confidence says nothing. Half of them are wrong."""
    generator = torch.Generator().manual_seed(seed)
    settles = torch.randint(1, 5, (samples,), generator=generator)  # steps 1..4 of 5
    final = torch.randint(1, 4, (samples,), generator=generator)
    wrong = torch.rand(samples, generator=generator) < 0.5
    steps = torch.arange(1, 6)[:, None]
    label = torch.where(steps >= settles, final, final % 3 + 1)
    logits = 5.0 * nn.functional.one_hot(label, 4)
    logits[..., 0] = torch.where(steps >= settles, 1.0, -1.0) + 0.3 * torch.randn(5, samples, generator=generator)
    macs = torch.arange(1, 6) * 100
    return Trace(logits, torch.where(wrong, 0, final), macs, None, None, ("a", "b", "c", "d"))


def test_it_learns_when_the_answer_is_final():
    fitted = metacognition(course(800), units=8, epochs=40, lr=0.03).rule
    test = course(400, seed=1)
    probabilities = test.logits.softmax(2)
    stops = fitted.stops(test, probabilities)
    first_final = (probabilities.argmax(2) == probabilities[-1].argmax(1)).int().argmax(0)
    assert (stops == first_final).float().mean() > 0.9
    outcome = measure(fitted, test)
    assert outcome.accuracy == pytest.approx(float((test.logits[-1].argmax(1) == test.labels).double().mean()), abs=0.03)
    assert outcome.macs < 320  # of 500; the least that keeps the final answer is 250
    late = metacognition_curve(fitted, test, [0.0, 0.5, 1.0])
    assert [o.macs for o in late] == sorted(o.macs for o in late)
    assert (late[0].macs, late[1], late[2].macs) == (100, outcome, 500)
    reached = {"metacognition": [(o.macs, o.accuracy) for o in late]}
    lines = {line.get_label(): line for line in plots.speed_accuracy(test, reached).axes[0].get_lines()}
    assert list(lines["metacognition"].get_xdata()) == [o.macs for o in late]


def test_it_is_the_network_that_was_trained():
    """Step by step, and after samples have left the batch, the rule gives what torch's GRU gives for the whole course."""
    test = course(30)
    rule = metacognition(test, units=3, epochs=1, threshold=0.4).rule
    gru, head = nn.GRU(4, 3), nn.Linear(3, 1)
    for parameter, values in zip([*gru.parameters(), *head.parameters()], rule.weights, strict=True):
        parameter.data = torch.tensor(values)
    probabilities = test.logits.softmax(2)
    wanted = head(gru(probabilities.log() / 4)[0])[..., 0].sigmoid() > 0.4
    state, kept = rule.start(5), torch.arange(30)
    for t in range(4):
        flags, state = rule.update(state, t + 1, probabilities[t, kept], 0, 0)
        assert torch.equal(flags, wanted[t, kept])
        keep = torch.arange(len(kept)) % 3 != 0
        state, kept = select_samples(state, keep), kept[keep]


def test_it_is_saved_and_repeatable():
    trace = course(40)
    before = torch.get_rng_state()
    rules = [metacognition(trace, epochs=1, units=2, threshold=0.7).rule for _ in range(2)]
    assert rules[0] == rules[1]
    assert torch.equal(before, torch.get_rng_state())
    assert Rule.from_dict(json.loads(json.dumps(rules[0].to_dict()))) == rules[0]
    with torch.inference_mode():
        assert metacognition(trace, epochs=1, units=2, threshold=0.7).rule == rules[0]


def test_bad_input():
    trace = course(20)
    rule = metacognition(trace, epochs=1, units=2).rule
    with pytest.raises(ValueError, match="no earlier step to stop at"):
        metacognition(replace(trace, outputs=trace.logits[:1], macs=trace.macs[:1]))
    with pytest.raises(ValueError, match=r"threshold must lie in \[0, 1\], got 2"):
        replace(rule, threshold=2)
    with pytest.raises(ValueError, match="fitted to 4 classes, the answer has 3"):
        rule.update(None, 1, torch.rand(2, 3), 0, 0)
    with pytest.raises(ValueError, match="fitted to 5 steps, the model has 4"):
        rule.start(4)
    with pytest.raises(ValueError, match="weights must have the shapes"):
        FinalAnswer(3, [[[1.0]]])
