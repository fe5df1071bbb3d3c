from dataclasses import replace

import pytest
import torch

from anytime.combine import Caching
from anytime.stopping import CANDIDATES, Confidence, Never, budgeted_curve, certified, conformal, measure
from anytime.trace import Trace


def loss(trace, rule):
    """E[max(0, correct_T - correct_stopped)], sample by sample."""
    probabilities = trace.logits.softmax(2)
    steps = rule.stops(trace, probabilities)
    right = (probabilities.argmax(2) == trace.labels).numpy()
    lost = [int(right[-1, n]) - int(right[step, n]) for n, step in enumerate(steps.tolist())]
    return sum(max(0, value) for value in lost) / trace.num_samples


def draw(population, samples, generator):
    index = torch.randint(population.num_samples, (samples,), generator=generator)
    return replace(population, logits=population.logits[:, index], labels=population.labels[index], seconds=None)


LADDER = [Confidence(percent / 100) for percent in range(84, 48, -1)]  # risk crosses 5 % in small steps


@pytest.fixture(scope="module")
def population(make_trace):
    return make_trace(4000, steps=3, seed=11)


@pytest.fixture(scope="module")
def risks(population):
    return {rule: loss(population, rule) for rule in LADDER} | {Never(): 0.0}


def test_the_certificate_holds_as_often_as_promised(population, risks):
    """In 120 draws of calibration samples, the true loss exceeds epsilon in at most a share alpha of them."""
    generator = torch.Generator().manual_seed(0)
    epsilon, alpha, draws = 0.05, 0.2, 120
    traces = [draw(population, 200, generator) for _ in range(draws)]
    losses = torch.tensor([risks[certified(trace, epsilon, alpha, LADDER).rule] for trace in traces])
    noise = 2 * (alpha * (1 - alpha) / draws) ** 0.5
    assert alpha / 4 < float((losses > epsilon).double().mean()) <= alpha + noise  # kept, but not by being overcautious
    assert float(losses.mean()) > epsilon / 2


def test_conformal_risk_is_kept_on_average(population, risks):
    """The mean over draws is below epsilon, although single draws exceed it more often than a certificate allows."""
    generator = torch.Generator().manual_seed(1)
    epsilon, draws = 0.05, 120
    traces = [draw(population, 100, generator) for _ in range(draws)]
    losses = torch.tensor([risks[conformal(trace, epsilon, LADDER).rule] for trace in traces])
    assert 0.6 * epsilon < float(losses.mean()) <= epsilon + 2 * float(losses.std()) / draws**0.5
    assert float((losses > epsilon).double().mean()) > 0.2


def tracks(population, count, generator, declared=True, frames=30):
    """Tracks of equal frames, in any order."""
    index = torch.randint(population.num_samples, (count,), generator=generator).repeat(frames)
    groups = torch.arange(count).repeat(frames)
    names, meta = population.class_names, {"groups": groups.tolist() if declared else None}
    return Trace(population.logits[:, index], population.labels[index], population.macs, None, None, names, meta=meta)


def share_above(choose, population, risks, declared, epsilon=0.1, draws=60):
    generator = torch.Generator().manual_seed(2)
    chosen = [choose(tracks(population, 100, generator, declared), epsilon, candidates=LADDER).rule for _ in range(draws)]
    losses = torch.tensor([risks[rule] for rule in chosen])
    return float((losses > epsilon).double().mean()), float(losses.mean())


@pytest.fixture(scope="module")
def steep(make_trace):
    """A network whose risk crosses 10 % on the ladder."""
    population = make_trace(3000, steps=3, seed=12)
    return population, {rule: loss(population, rule) for rule in LADDER} | {Never(): 0.0}


def test_frames_of_a_track_are_one_sample(steep):
    """A certificate of 90 % over 100 tracks of 30 equal frames: kept with groups, broken when each frame counts."""
    kept, mean = share_above(certified, *steep, declared=True)
    broken, _ = share_above(certified, *steep, declared=False)
    assert kept <= 0.1
    assert mean > 0.02
    assert broken > 0.3
    _, mean = share_above(conformal, *steep, declared=True)
    assert 0.05 < mean <= 0.1


def test_groups_by_hand(from_probabilities):
    """5 groups of 2 and one of 10 samples; at 0.7 a group loses one of two: mean losses 1/2, 0, 0, 0, 0, 0."""
    sure, wrong = [0.05, 0.95], [0.8, 0.2]
    trace = from_probabilities([[wrong] + [sure] * 19, [sure] * 20], labels=[1] * 20, macs=[1, 2])
    trace = replace(trace, meta={"groups": [7, 7, 1, 1, 2, 2, 3, 3, 4, 4] + [9] * 10})
    bold = Confidence(0.7)
    assert conformal(trace, 1.5 / 7 + 1e-9, [bold]).rule == bold
    assert conformal(trace, 1.5 / 7 - 1e-9, [bold]).rule == Never()
    # kl(1/12, 1/2) = 0.40631, exp(-6 kl) = 0.08735; e P(Bin(6, 1/2) <= 1) = 0.297
    assert certified(trace, 0.5, 0.0875, [bold]).rule == bold
    assert certified(trace, 0.5, 0.0872, [bold]).rule == Never()
    with pytest.raises(ValueError, match="one group for each of 20 samples, got 2"):
        certified(replace(trace, meta={"groups": [1, 2]}), 0.5)


@pytest.mark.parametrize("choose", [certified, conformal])
def test_a_trace_that_does_not_know_its_groups_is_taken_for_independent_samples_with_a_warning(make_trace, choose):
    trace = make_trace(200, seed=3)
    with pytest.warns(UserWarning, match="does not say which samples belong together") as caught:
        outcome = choose(replace(trace, meta={}), 0.2)
    assert caught[0].filename == __file__
    assert outcome.rule == choose(trace, 0.2).rule


def test_fixed_sequence_by_hand(from_probabilities):
    """Of 40 samples, 2 leave wrong at thresholds up to 0.8: P(Bin(40, 0.1) <= 2) = 0.2228, P(Bin(40, 0.1) <= 0) = 0.0148."""
    sure, wrong = [0.05, 0.95], [0.8, 0.2]
    trace = from_probabilities([[sure] * 38 + [wrong] * 2, [sure] * 40], labels=[1] * 40, macs=[1, 2])
    candidates = [Confidence(0.99), Confidence(0.9), Confidence(0.7), Confidence(0.3)]
    assert certified(trace, 0.1, 0.2, candidates).rule == Confidence(0.9)
    assert certified(trace, 0.1, 0.23, candidates).rule == Confidence(0.3)
    assert certified(trace, 0.1, 0.01, candidates).rule == Never()
    assert conformal(trace, 3 / 41 + 1e-9, candidates).rule == Confidence(0.3)
    assert conformal(trace, 3 / 41 - 1e-9, candidates).rule == Confidence(0.9)
    assert conformal(trace, 1 / 42, candidates).rule == Never()


def test_candidates_are_tested_in_order(from_probabilities):
    """The first failure ends the search, although later candidates would pass."""
    sure, wrong = [0.05, 0.95], [0.8, 0.2]
    trace = from_probabilities([[sure] * 20 + [wrong] * 20, [sure] * 40], labels=[1] * 40, macs=[1, 2])
    assert certified(trace, 0.1, 0.2, [Confidence(0.7), Confidence(0.9)]).rule == Never()
    assert conformal(trace, 0.1, [Confidence(0.7), Confidence(0.9)]).rule == Never()


def test_candidates_may_come_from_another_split(make_trace):
    curve = budgeted_curve(make_trace(500, seed=5), combiner=Caching())
    trace, candidates = make_trace(500, seed=6), [point.rule for point in reversed(curve)]
    outcome = certified(trace, 0.05, candidates=candidates, combiner=Caching())
    assert outcome.rule in candidates
    assert outcome == measure(outcome.rule, trace, Caching())


def test_candidates_go_from_cautious_to_bold():
    thresholds = [rule.threshold for rule in CANDIDATES]
    assert thresholds == sorted(thresholds, reverse=True)
    assert thresholds[0] < 1
    assert len(set(thresholds)) == len(thresholds)


def test_clear_errors(make_trace):
    trace = make_trace(10)
    for wrong in (0, 1, -0.1, float("nan")):
        with pytest.raises(ValueError, match="epsilon must lie between 0 and 1"):
            certified(trace, wrong)
        with pytest.raises(ValueError, match="epsilon must lie between 0 and 1"):
            conformal(trace, wrong)
        with pytest.raises(ValueError, match="alpha must lie between 0 and 1"):
            certified(trace, 0.1, wrong)
