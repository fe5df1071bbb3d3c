"""Centrality, rank correlations with latency, the difference of dependent correlations, and held-out measures."""

import math
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
import torch

from anytime.analysis import typicality as typical
from anytime.analysis.latency import Selection
from anytime.trace import Trace


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def with_features(trace: Trace) -> Trace:
    features = [random(4, width, seed=width).float() for width in (2, 3, 5)]
    weights = [random(3, width, seed=10 + width).float() for width in (2, 3, 5)]
    return replace(trace, features=features, class_weights=weights, labels=torch.tensor([0, 1, -1, 2]))


def test_centrality_by_definition(trace):
    trace = with_features(trace)
    for step, index in ((1, 0), (3, 2), (-1, 2)):
        found = typical.centrality(trace, step).tolist()
        for n, label in enumerate([0, 1, None, 2]):
            if label is None:
                assert math.isnan(found[n])
                continue
            f, w = trace.features[index][n].numpy().astype(float), trace.class_weights[index][label].numpy().astype(float)
            assert found[n] == pytest.approx(f @ w / np.sqrt((f @ f) * (w @ w)))


def test_centrality_needs_features(trace, levels):
    with pytest.raises(ValueError, match=r"no features and no class weights: record them .*features=True"):
        typical.centrality(trace)
    with pytest.raises(ValueError, match="has no features: record them"):
        typical.centrality(replace(with_features(trace), features=None))
    with pytest.raises(ValueError, match=r"step must lie in 1..3, or be -1 for the last, got 4"):
        typical.centrality(with_features(trace), 4)
    with pytest.raises(ValueError, match=r"trace.level\(0\)"):
        typical.centrality(levels)


def test_spearman_leaves_unknown_pairs_out():
    x, y = random(60), random(60, seed=1)
    y = x + y
    x[7], y[8] = math.nan, math.nan
    found = typical.spearman(x, y, resamples=200)
    kept = [n for n in range(60) if n not in (7, 8)]
    wanted = scipy.stats.spearmanr(x[kept], y[kept])
    assert (found.rho, found.p_value) == pytest.approx((wanted.statistic, wanted.pvalue))
    assert found.samples == 58
    assert found.low < found.rho < found.high
    assert 0.1 < found.high - found.low < 0.5  # 4 / sqrt(58) times about (1 - rho^2)


def test_typicality_reports_ties_and_exclusion():
    measure = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5, 0.95, 0.4])
    measured = Selection(
        0.8,
        torch.tensor([1, 2, 2, 3, 4, 4, 4]),
        torch.tensor([True, True, True, True, True, False, False]),
        torch.zeros(7, dtype=torch.int64),
    )
    found = typical.typicality(measure, measured, resamples=50)
    assert found.never == pytest.approx(2 / 7)
    assert found.tied.rho == pytest.approx(scipy.stats.spearmanr(measure, -measured.steps).statistic)
    assert found.reached.rho == pytest.approx(scipy.stats.spearmanr(measure[:5], -measured.steps[:5]).statistic)
    assert (found.tied.samples, found.reached.samples) == (7, 5)
    with pytest.raises(ValueError, match="values of the same samples, got 6 and 7"):
        typical.typicality(measure[:6], measured)


def test_samples_that_select_a_class_may_be_too_few_or_too_equal():
    measure = random(8)
    for reached, steps, samples in ((3, [1, 2, 3, 4, 4, 4, 4, 4], 3), (5, [1, 1, 1, 1, 1, 4, 4, 4], 5)):
        there = torch.arange(8) < reached
        measured = Selection(0.8, torch.tensor(steps), there, torch.where(there, 0, -1))
        found = typical.typicality(measure, measured, resamples=10)
        assert found.tied.rho == pytest.approx(scipy.stats.spearmanr(measure, -measured.steps).statistic)
        assert found.reached.samples == samples
        assert all(map(math.isnan, (found.reached.rho, found.reached.low, found.reached.high, found.reached.p_value)))


def test_perfect_correlations_of_few_samples_are_no_proof():
    """2 of 4! orders of 4 values have |rho| = 1; Fisher's z of such a correlation is infinite."""
    for count in (4, 5, 6, 7):
        x = torch.arange(count, dtype=torch.float64)
        swapped = torch.cat([x[:-2], x[-2:].flip(0)])
        assert math.isnan(typical.difference((x, 2 * x), (x, swapped), resamples=5).p_value)
        assert math.isnan(typical.difference((x, swapped), (x, -x), resamples=5).p_value)
        assert typical.difference((x, x), (swapped, 3 * swapped), resamples=5).p_value == 1
        for y in (x, -x):
            assert typical.spearman(x, y, resamples=5).p_value == pytest.approx(2 / math.factorial(count))
    tied = torch.tensor([0.0, 0, 1, 1, 1])
    assert typical.spearman(tied, tied, resamples=5).p_value == pytest.approx(2 / 10)


def test_equal_correlations_of_the_same_variables_do_not_differ():
    for seed in range(8):
        x, noise = random(4 + seed, seed=seed), random(4 + seed, seed=seed + 100)
        y = x + noise
        for other in ((y, x), (-x, -y), (2 * x, y.exp())):
            assert typical.difference((x, y), other, resamples=1).p_value > 0.99


def test_bad_correlations():
    with pytest.raises(ValueError, match="at least 4 samples with known values, got 3"):
        typical.spearman(torch.arange(3), torch.arange(3))
    with pytest.raises(ValueError, match="values that differ, and all 5 are 1"):
        typical.spearman(torch.ones(5), torch.arange(5))
    with pytest.raises(ValueError, match="got 5 and 4"):
        typical.spearman(torch.arange(5), torch.arange(4))
    with pytest.raises(ValueError, match="resamples must be a whole number of at least 1, got 0"):
        typical.spearman(torch.arange(5), torch.arange(5), resamples=0)


def test_lists_and_arrays_are_measures_like_tensors():
    one, two = [1.0, 2, 3, 4, 5], [1.0, 2, 3, 5, 4]
    found = typical.spearman(torch.tensor(one), torch.tensor(two), resamples=9)
    assert found.rho == pytest.approx(0.9)
    assert typical.spearman(one, np.array(two), resamples=9) == found
    with pytest.raises(ValueError, match="the values of a correlation must be an array of numbers, got list"):
        typical.spearman(one, list("abcde"))
    measured = Selection(0.5, torch.tensor([1, 2, 3, 4, 5]), torch.ones(5, dtype=torch.bool), torch.zeros(5))
    of_tensor = typical.typicality(torch.tensor(one), measured, resamples=9)
    assert typical.typicality(np.array(one), measured, resamples=9) == of_tensor
    pair = (torch.tensor(one), torch.tensor(two))
    assert typical.difference((one, two), (two, one), resamples=9) == typical.difference(pair, pair[::-1], resamples=9)
    assert typical.cross_validated(lambda _, rows: {"x": rows.tolist()}, [0, 1] * 4, k=2)["x"].tolist() == [*range(8)]
    assert typical.estimated_cscores(lambda _, rows: [True] * len(rows), [0, 1] * 8).tolist() == [1.0] * 16


def test_covariance_of_overlapping_correlations():
    """With a shared variable it is the known formula for overlapping correlations."""
    jk, jm, km = 0.5, 0.3, 0.4
    r = [[1, jk, 1, jm], [jk, 1, jk, km], [1, jk, 1, jm], [jm, km, jm, 1]]
    wanted = km * (1 - jk**2 - jm**2) - jk * jm * (1 - jk**2 - jm**2 - km**2) / 2
    assert typical._covariance(r) == pytest.approx(wanted / ((1 - jk**2) * (1 - jm**2)))


@pytest.mark.parametrize("shared", [True, False])
def test_spread_of_dependent_correlations(shared):
    """The predicted standard error of z_jk - z_hm is that of simulated samples."""
    mixing = np.array([[1, 0, 0, 0], [0.6, 1, 0, 0], [0.7, 0.2, 1, 0], [0.4, 0.5, 0.3, 1]])
    if shared:
        mixing[2] = mixing[0]
    covariance = mixing @ mixing.T
    scale = np.sqrt(np.diag(covariance))
    r = covariance / np.outer(scale, scale)
    data = np.random.default_rng(0).standard_normal((4000, 100, 4)) @ mixing.T
    data -= data.mean(1, keepdims=True)
    data /= np.sqrt((data**2).sum(1, keepdims=True))
    z = np.arctanh((data[..., 0] * data[..., 1]).sum(1)) - np.arctanh((data[..., 2] * data[..., 3]).sum(1))
    predicted = np.sqrt((2 - 2 * typical._covariance(r.tolist())) / (100 - 3))
    assert z.std() == pytest.approx(predicted, rel=0.05)


def test_difference():
    x, noise = random(150), random(4, 150, seed=1)
    y, z = x + noise[0] / 2, x + 3 * noise[1]
    found = typical.difference((x, y), (x, z), resamples=200)
    rho = [scipy.stats.spearmanr(x, v).statistic for v in (y, z)]
    assert found.difference == pytest.approx(rho[0] - rho[1])
    assert 0 < found.low < found.difference < found.high
    assert found.p_value < 1e-6
    assert typical.difference((x, y), (x, y), resamples=10).p_value == 1
    alike = typical.difference((x, x + noise[2]), (x, x + noise[3]), resamples=200)
    assert alike.low < 0 < alike.high
    assert alike.p_value > 0.05
    swapped = typical.difference((x, z), (x, y), resamples=200)
    assert swapped.difference == pytest.approx(-found.difference)
    assert swapped.p_value == pytest.approx(found.p_value)


def test_cross_validated():
    labels = torch.arange(23) % 3
    calls = []

    def measure(train, held_out):
        calls.append((train, held_out))
        assert not set(train.tolist()) & set(held_out.tolist())
        return {"index": held_out * 2, "trained on": torch.full((len(held_out),), len(train) * 1.0)}

    found = typical.cross_validated(measure, labels, k=4)
    assert found["index"].tolist() == [2 * n for n in range(23)]
    assert len(calls) == 4
    assert all(len(train) + len(held_out) == 23 for train, held_out in calls)
    assert {values.dtype for values in found.values()} == {torch.float64}
    first = torch.tensor([], dtype=torch.int64)

    def changing(train, held_out):
        """Whole numbers in the first fold, halves in the others."""
        nonlocal first
        first = first if len(first) else held_out
        return {"x": held_out if held_out is first else held_out + 0.5}

    halves = typical.cross_validated(changing, labels, k=4)["x"] - torch.arange(23)
    assert halves.unique().tolist() == [0.0, 0.5]
    with pytest.raises(ValueError, match="x must be of the 6 held-out samples"):
        typical.cross_validated(lambda train, held_out: {"x": train}, labels, k=4)
    with pytest.raises(ValueError, match=r"must lie in 2..23, the number of samples, got 1"):
        typical.cross_validated(measure, labels, k=1)


@pytest.mark.parametrize(
    ("names", "message"),
    [(("b", "a"), "fold 2 lacks 'b'"), (("a", "b"), "fold 2 adds 'b'")],
)
def test_every_fold_gives_every_measure(names, message):
    """A measure that a fold lacked stayed 0 for its samples."""
    calls = []

    def measure(train, held_out):
        calls.append(held_out)
        given = {"a": held_out, "b": held_out}
        return given if names[len(calls) - 1] == "b" else {"a": held_out}

    with pytest.raises(ValueError, match=message):
        typical.cross_validated(measure, torch.arange(20) % 2, k=4)


def test_parts_of_cscores_differ_by_seed_and_hold_out_every_image():
    labels, groups = torch.arange(200) % 5, torch.arange(200) // 10 * 5 + torch.arange(200) % 5

    def parts(seed, groups=None):
        held = []
        typical.estimated_cscores(lambda _, out: (held.append(out), out % 2 == 0)[1], labels, seed=seed, groups=groups)
        return held  # without a warning: with the shares and repeats of the default every image is held out

    assert [len(out) for out in parts(0)] == [150] * 4 + [100] * 4 + [50] * 4
    every = [tuple(out.tolist()) for seed in range(3) for out in parts(seed)]
    assert len(set(every)) == len(every)
    for out in parts(0):
        assert torch.bincount(labels[out]).unique().numel() == 1
    for out in parts(1, groups):
        assert all(set((groups == g).nonzero()[:, 0].tolist()) <= set(out.tolist()) for g in groups[out].unique())


def test_estimated_cscores():
    labels = torch.arange(40) % 4
    hard = torch.arange(40) % 5 == 0

    def is_right(train, held_out):
        return ~hard[held_out] if len(train) > 15 else torch.zeros(len(held_out), dtype=torch.bool)

    found = typical.estimated_cscores(is_right, labels, shares=(0.25, 0.5, 0.75), repeats=20)
    assert found[hard].unique().tolist() == [0.0]
    assert found[~hard].tolist() == pytest.approx([2 / 3] * 32)
    with pytest.warns(UserWarning, match=r"20 of 40 images have no C-score \(nan\)"):
        once = typical.estimated_cscores(is_right, labels, shares=(0.5,), repeats=1)
    assert int(once.isnan().sum()) == 20
    with pytest.raises(ValueError, match=r"shares must lie in \(0, 1\)"):
        typical.estimated_cscores(is_right, labels, shares=(1.0,))
