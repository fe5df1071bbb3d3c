"""Two networks on the same images: against scipy's bootstrap, and McNemar's test by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import binom, bootstrap

from anytime.analysis.paired import paired
from anytime.trace import Trace


def answering(right: list[list[int]], macs: list[int], **meta: object) -> Trace:
    """A trace of two classes; `right[t][i]` says whether answer t to sample i is right, all labels are 0."""
    hit = torch.tensor(right).float()
    return Trace(
        logits=torch.stack([hit, 1 - hit], 2),
        labels=torch.zeros(hit.shape[1], dtype=torch.int64),
        macs=torch.tensor(macs),
        contract_macs=None,
        seconds=None,
        class_names=("a", "b"),
        meta=dict(meta),
    )


@pytest.fixture
def traces() -> tuple[Trace, Trace]:
    random = np.random.default_rng(0)
    one = [(random.random(400) < share).astype(int).tolist() for share in (0.5, 0.8)]
    other = [(random.random(400) < share).astype(int).tolist() for share in (0.6, 0.7)]
    return answering(one, [10, 30]), answering(other, [20, 40])


def test_interval_and_p_value(traces: tuple[Trace, Trace]) -> None:
    one, other = traces
    found = paired(one, other, 40)
    first, second = ((trace.logits[1, :, 0] > 0.5).numpy() for trace in traces)
    d = first.astype(int) - second.astype(int)
    assert found.steps == (2, 2)
    assert found.accuracies == pytest.approx((first.mean(), second.mean()))
    assert found.difference == pytest.approx(d.mean())
    wanted = bootstrap((d,), np.mean, n_resamples=10_000, method="percentile", rng=np.random.default_rng(1))
    assert (found.low, found.high) == pytest.approx(wanted.confidence_interval, abs=0.004)
    b, n = int((d == 1).sum()), int((d != 0).sum())
    tail = 2 * min(binom.cdf(b, n, 0.5), binom.sf(b - 1, n, 0.5))
    assert found.p_value == pytest.approx(min(1.0, tail))
    reverse = paired(other, one, 40)
    assert reverse.difference == pytest.approx(-found.difference)
    assert reverse.p_value == found.p_value


def test_each_answers_with_its_last_step_within_the_budget(traces: tuple[Trace, Trace]) -> None:
    one, other = traces
    assert paired(one, other, 20).steps == (1, 1)
    assert paired(one, other, 30).steps == (2, 1)
    with pytest.raises(ValueError, match="a network has no answer within 15: the first costs 20"):
        paired(one, other, 15)


def test_equal_networks(traces: tuple[Trace, Trace]) -> None:
    found = paired(traces[0], traces[0], 30)
    assert (found.difference, found.low, found.high, found.p_value) == (0, 0, 0, 1)


def test_groups_are_drawn_whole() -> None:
    """Of 10 tracks of 40 equal frames, 6 are right: the interval is that of 10 tracks, not of 400 frames."""
    groups = [track for track in range(10) for _ in range(40)]
    one = answering([[int(track < 6) for track in groups]], [10], groups=groups)
    other = answering([[0] * 400], [10])
    found = paired(one, other, 10)
    assert found.p_value is None
    assert found.low == pytest.approx(binom.ppf(0.025, 10, 0.6) / 10)
    assert found.high == pytest.approx(binom.ppf(0.975, 10, 0.6) / 10)
    named = replace(one, meta={"groups": [f"track {track}" for track in groups]})
    assert paired(named, other, 10) == found
    frames = paired(replace(one, meta={}), other, 10)
    assert frames.high - frames.low < 0.1


def test_groups_of_either_trace_count() -> None:
    one, other = answering([[1, 0, 1, 1]], [10], groups=[0, 0, 1, 1]), answering([[0, 0, 1, 0]], [10])
    found, reverse = paired(one, other, 10), paired(other, one, 10)
    assert found.p_value is reverse.p_value is None
    assert (found.low, found.high) == (-reverse.high, -reverse.low)
    with pytest.raises(ValueError, match="the groups of the two traces differ"):
        paired(one, replace(other, meta={"groups": [0, 1, 1, 1]}), 10)
    with pytest.raises(ValueError, match="needs at least 2 groups, got 1"):
        paired(replace(one, meta={"groups": [5] * 4}), other, 10)


@pytest.mark.parametrize("fact", ["dataset", "part", "level"])
def test_traces_of_other_images_are_not_paired(traces: tuple[Trace, Trace], fact: str) -> None:
    one, other = (replace(trace, meta={fact: value}) for trace, value in zip(traces, ("A", "B"), strict=True))
    with pytest.raises(ValueError, match=f"the same samples, but the {fact} is 'A' and 'B'"):
        paired(one, other, 40)
    renamed = replace(traces[1], class_names=("a", "c"))
    with pytest.raises(ValueError, match="the same classes, but they differ: 'b' and 'c'"):
        paired(traces[0], renamed, 40)


@pytest.mark.parametrize("budget", ["20", None, float("nan"), 0, True])
def test_budgets_are_numbers(traces: tuple[Trace, Trace], budget: object) -> None:
    with pytest.raises(ValueError, match="budget must be a number of MACs above 0, got "):
        paired(*traces, budget)  # type: ignore[arg-type]


def test_other_samples(traces: tuple[Trace, Trace]) -> None:
    with pytest.raises(ValueError, match="a paired test needs the same samples, got 400 and 2"):
        paired(traces[0], answering([[0, 1]], [10]), 40)
    moved = replace(traces[1], labels=1 - traces[1].labels)
    with pytest.raises(ValueError, match="the labels of the two traces differ"):
        paired(traces[0], moved, 40)
