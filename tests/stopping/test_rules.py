import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anytime.combine import Caching, Last, Mixture, Product
from anytime.model import select_samples
from anytime.stopping import (
    AllOf,
    AnyOf,
    Confidence,
    ConfidenceBands,
    Deadline,
    Entropy,
    MacBudget,
    Margin,
    Never,
    Patience,
    Recurrent,
    Rule,
    SelectionLatency,
    rule,
)

RECURRENT = Recurrent(
    steps=5,
    weights=[
        (torch.arange(30).reshape(6, 5) % 7 - 3.0).tolist(),
        (torch.arange(12).reshape(6, 2) % 5 - 2.0).tolist(),
        [0.1] * 6,
        [-0.1] * 6,
        [[1.0, -1.0]],
        [0.05],
    ],
)
RULES = [
    Never(),
    Confidence(0.6),
    Confidence([0.9, 0.8, 0.7, 0.6, 0]),
    Confidence([math.inf, 0.5, math.inf, 0.6, 0]),
    Margin(0.4),
    Entropy(0.8),
    Entropy([0.2, 0.4, 0.6, 0.8, 1]),
    Patience(1),
    Patience(3),
    SelectionLatency(0.5),
    SelectionLatency(0.3, hold=2),
    MacBudget(300),
    Deadline(0.002),
    ConfidenceBands([[(0, 0.3), (0.9, math.inf)], [], [(0.5, 0.6)], [(0, math.inf)], []]),
    RECURRENT,
    Confidence(0.9) | Patience(2) | MacBudget(450),
    Confidence(0.4) & Patience(2),
    (Confidence(0.9) & Patience(2)) | Deadline(0.004),
]


def stream(rule, combiner, trace):
    """What the runtime does: one step at a time on the samples still in the batch."""
    steps = torch.full((trace.num_samples,), -1)
    answers = torch.empty(trace.num_samples, trace.num_classes)
    alive = torch.arange(trace.num_samples)
    states = combiner.start(trace.num_steps), rule.start(trace.num_steps)
    for step in range(1, trace.num_steps + 1):
        probabilities, combined = combiner.update(states[0], trace.logits[step - 1, alive], step)
        steps[alive], answers[alive] = step - 1, probabilities
        if step == trace.num_steps:
            break
        next_macs, next_seconds = float(trace.macs[step]), float(trace.seconds[step])
        stop, ruling = rule.update(states[1], step, probabilities, next_macs, next_seconds)
        assert stop.dtype == torch.bool
        assert stop.shape == (len(alive),)
        alive, states = alive[~stop], select_samples((combined, ruling), ~stop)
        if not len(alive):
            break
    return steps, answers


@pytest.mark.parametrize("made", RULES, ids=repr)
@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 2**31), combiner=st.sampled_from([Last(), Caching(), Product(), Mixture([1, 2, 3, 4, 5])]))
def test_a_stream_with_compaction_equals_the_trace(made, make_trace, seed, combiner):
    trace = make_trace(12, seed=seed)
    probabilities = combiner(trace.logits)
    expected = made.stops(trace, probabilities)
    steps, answers = stream(made, combiner, trace)
    assert expected.dtype == torch.int64
    assert torch.equal(steps, expected)
    torch.testing.assert_close(answers, probabilities[expected, torch.arange(12)])


@pytest.mark.parametrize("made", RULES, ids=repr)
def test_every_rule_stops_some_samples_early_and_some_late(made, make_trace):
    trace = make_trace(400)
    steps = made.stops(trace, Last()(trace.logits)).unique().tolist()
    alike = {Never(): [4], Patience(1): [0], MacBudget(300): [2], Deadline(0.002): [1]}
    assert steps == alike[made] if made in alike else len(steps) >= 2


@pytest.mark.parametrize("made", RULES, ids=repr)
def test_round_trip_through_json_is_exact(made):
    text = json.dumps(made.to_dict(), allow_nan=False)
    again = Rule.from_dict(json.loads(text))
    assert again == made
    assert type(again) is type(made)


HAND = [
    [[0.5, 0.3, 0.2], [0.6, 0.3, 0.1], [0.4, 0.35, 0.25]],
    [[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.3, 0.4, 0.3]],
    [[0.6, 0.3, 0.1], [0.1, 0.8, 0.1], [0.3, 0.4, 0.3]],
    [[0.9, 0.05, 0.05], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6]],
]


@pytest.mark.parametrize(
    ("made", "steps"),
    [
        (Confidence(0.65), [1, 1, 3]),
        (Confidence([0.6, 0.9, 0.4, 0.9]), [2, 0, 2]),
        (Margin(0.45), [1, 1, 3]),
        (Entropy(0.81), [1, 1, 3]),
        (Patience(2), [1, 2, 2]),
        (Patience(3), [2, 3, 3]),
        (SelectionLatency(0.55), [1, 0, 3]),
        (SelectionLatency(0.55, hold=2), [2, 2, 3]),
        (MacBudget(40), [1, 1, 1]),
        (MacBudget(39.5), [0, 0, 0]),
        (ConfidenceBands([[(0, 0.45)], [(0.8, math.inf), (0.3, 0.4)], [], []]), [1, 3, 0]),
        (Confidence(0.65) & Patience(2), [1, 2, 3]),
        (Confidence(0.65) | Patience(2), [1, 1, 2]),
    ],
    ids=repr,
)
def test_rules_by_hand(from_probabilities, made, steps):
    trace = from_probabilities(HAND, [0, 1, 2], [10, 40, 60, 100])
    probabilities = torch.tensor(HAND)
    assert made.stops(trace, probabilities).tolist() == steps


@pytest.mark.parametrize("made", [made for made in RULES if not made.needs], ids=repr)
def test_answers_of_nan_stop_nothing(made):
    state, missing = made.start(5), torch.full((3, 4), math.nan)
    for step in (1, 2, 3, 4):
        stop, state = made.update(state, step, missing, 0, 0)
        assert not stop.any()


def test_patience_counts_from_the_first_answer_after_nan():
    sure = torch.tensor([[0.9, 0.1]])
    state, stops = None, []
    for step, probabilities in enumerate((sure, sure * math.nan, sure, sure), start=1):
        stop, state = Patience(2).update(state, step, probabilities, 0, 0)
        stops.append(bool(stop))
    assert stops == [False, False, False, True]


def test_deadline_never_starts_a_step_that_ends_late(make_trace):
    trace = make_trace(3)  # 1, 2, 3, 4, 5 ms
    probabilities = Last()(trace.logits)
    for seconds, step in ((0.0001, 0), (0.001, 0), (0.0029, 1), (0.003, 2), (1, 4)):
        assert Deadline(seconds).stops(trace, probabilities).unique().tolist() == [step]


def test_selection_latency_by_hand():
    latency, reached = SelectionLatency(0.55).latency(torch.tensor(HAND))
    assert latency.tolist() == [2, 2, 4]
    assert reached.tolist() == [True, True, True]
    latency, reached = SelectionLatency(0.85).latency(torch.tensor(HAND))
    assert latency.tolist() == [4, 4, 4]
    assert reached.tolist() == [True, False, False]


def test_selection_latency_against_its_definition():
    probabilities = torch.rand(6, 50, 3, generator=torch.Generator().manual_seed(0)).log().mul(2).softmax(2)
    latency, reached = SelectionLatency(0.3).latency(probabilities)
    for n in range(50):
        stable = [t for t in range(6) if any(bool((probabilities[t:, n, j] > 0.3).all()) for j in range(3))]
        assert bool(reached[n]) == bool(stable)
        assert int(latency[n]) == (stable[0] + 1 if stable else 6)


def test_combinations_are_flat_and_know_what_they_need():
    both = Confidence(0.9) | Patience(2) | MacBudget(10) | (Deadline(1) & Never())
    assert isinstance(both, AnyOf)
    assert len(both.rules) == 4
    assert both.needs == {"macs", "seconds"}
    assert both.num_steps is None
    assert (Patience(2) & Confidence([0.5, 0.5])).num_steps == 2
    assert isinstance(both.rules[3], AllOf)


def test_thresholds_that_were_never_fitted_are_refused(make_trace):
    trace = make_trace(3)
    for kind in (Confidence, Margin, Entropy):
        with pytest.raises(ValueError, match="was never fitted: give one"):
            kind().stops(trace, trace.logits.softmax(2))
    with pytest.raises(ValueError, match="never fitted"):
        (Patience(2) | Confidence()).start(5)
    assert Rule.from_dict(Confidence().to_dict()) == Confidence()


def test_rules_of_another_network_are_refused(make_trace):
    trace = make_trace(3)
    for made in (Confidence([0.5, 0.5]), ConfidenceBands([[]]), Never() | Confidence([0.5])):
        with pytest.raises(ValueError, match=r"was fitted to \d steps?, the model has 5"):
            made.stops(trace, trace.logits.softmax(2))


@pytest.mark.parametrize("made", RULES, ids=repr)
def test_several_label_levels_need_a_choice(made, make_trace):
    trace = make_trace(6)
    levels = replace(trace, labels=torch.zeros(6, 2, dtype=torch.int64), meta={"levels": [2, 2]})
    with pytest.raises(ValueError, match=r"pick one: trace.level\(0\)"):
        made.stops(levels, levels.logits.softmax(2))
    assert made.stops(levels.level(0), levels.level(0).logits.softmax(2)).shape == (6,)


def test_missing_seconds_are_refused(make_trace):
    trace = replace(make_trace(3), seconds=None)
    with pytest.raises(ValueError, match="needs seconds, which this trace does not hold"):
        (Patience(2) | Deadline(1)).stops(trace, trace.logits.softmax(2))
    assert Patience(2).stops(trace, trace.logits.softmax(2)).shape == (3,)


def test_clear_errors(make_trace):
    trace = make_trace(3)
    with pytest.raises(ValueError, match=r"must be \[5, 3, 4\], got \[5, 2, 4\]"):
        Never().stops(trace, trace.logits[:, :2])
    for wrong in (-0.1, math.nan, [], [0.5, -1]):
        with pytest.raises(ValueError, match="must be at least 0, one or one per step"):
            Confidence(wrong)
    for wrong in (2, [0.5, 80]):
        with pytest.raises(ValueError, match="are shares of 1, or infinity to never stop; got"):
            Confidence(wrong)
        with pytest.raises(ValueError, match="are shares of 1"):
            Margin(wrong)
    assert Entropy(2).threshold == 2  # nats
    assert Confidence(math.inf).threshold == math.inf
    assert [Patience(two).times for two in (2.0, torch.tensor(2.0), np.float32(2))] == [2, 2, 2]
    for wrong in (0, 1.5, True, math.nan, math.inf, "2"):
        with pytest.raises(ValueError, match="times must be a whole number"):
            Patience(wrong)
        with pytest.raises(ValueError, match="hold must be a whole number"):
            SelectionLatency(hold=wrong)
    with pytest.raises(ValueError, match=r"threshold must lie in \[0, 1\)"):
        SelectionLatency(1.0)
    for wrong in (0, -1, math.nan, math.inf):
        with pytest.raises(ValueError, match="seconds must be finite and above zero"):
            Deadline(wrong)
        with pytest.raises(ValueError, match="macs must be finite and above zero"):
            MacBudget(wrong)
    with pytest.raises(ValueError, match="low < high"):
        ConfidenceBands([[(0.5, 0.5)]])
    with pytest.raises(TypeError, match="can only be combined with stopping rules"):
        Never() | 0.5
    with pytest.raises(ValueError, match="weights must have the shapes"):
        Recurrent(3, [[1.0]])


@pytest.mark.parametrize("kind", [Confidence, Margin, Entropy])
@pytest.mark.parametrize("one", [np.float32, np.float64, np.array, torch.tensor, lambda value: torch.tensor([value])[0]])
def test_thresholds_of_numpy_and_torch(kind, one):
    assert kind(one(0.5)) == kind(0.5)
    for several in (np.array, torch.tensor, lambda values: list(map(np.float32, values))):
        assert kind(several([0.5, 0.25, 0.0])) == kind([0.5, 0.25, 0])
        assert kind(several([0.5])) == kind([0.5])
    json.dumps(kind(one(0.5)).to_dict())
    with pytest.raises(ValueError, match=r"must be at least 0, one or one per step, got -0\.5"):
        kind(one(-0.5))


@pytest.mark.parametrize("kind", [Confidence, Margin, Entropy])
@pytest.mark.parametrize("given", [torch.tensor([0.5]), np.array([0.5]), [0.5]], ids=["torch", "numpy", "list"])
def test_a_list_of_one_threshold_is_for_one_step(kind, given):
    rule = kind(given)
    rule.start(1)
    with pytest.raises(ValueError, match="was fitted to 1 step, the model has 4; a number without a list fits any"):
        rule.start(4)


def test_other_numbers_of_numpy_and_torch():
    for one in (np.float32, torch.tensor):
        rules = [SelectionLatency(one(0.5), np.int64(2)), Deadline(one(0.25)), MacBudget(one(3.0)), Patience(np.int64(2))]
        assert rules == [SelectionLatency(0.5, 2), Deadline(0.25), MacBudget(3.0), Patience(2)]
        assert [Rule.from_dict(json.loads(json.dumps(made.to_dict()))) for made in rules] == rules
    bands = ConfidenceBands(np.array([[[0.0, 0.25]], [[0.5, np.inf]]]))
    assert bands == ConfidenceBands([[(0, 0.25)], [(0.5, math.inf)]])


@pytest.mark.parametrize("made", RULES, ids=repr)
def test_one_class_is_always_sure(made):
    state, one = made.start(5), torch.ones(3, 1)
    for step in (1, 2, 3, 4):
        stop, state = made.update(state, step, one, 0, 0)
        assert stop.shape == (3,)
    assert Margin(1.0).update(None, 1, one, 0, 0)[0].all()


def test_names():
    assert rule("patience", times=2) == Patience(2)
    with pytest.raises(ValueError, match="unknown rule 'confidense'; did you mean 'confidence'"):
        rule("confidense")
    with pytest.raises(ValueError, match="no argument 'tresholds'; did you mean 'threshold'"):
        rule("confidence", tresholds=1)
