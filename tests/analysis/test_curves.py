import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from anytime.analysis import curves
from anytime.trace import Trace


def random_trace(seed: int, steps: int, samples: int, classes: int) -> Trace:
    generator = torch.Generator().manual_seed(seed)
    return Trace(
        logits=3 * torch.randn(steps, samples, classes, generator=generator),
        labels=torch.randint(classes, (samples,), generator=generator),
        macs=torch.randint(1, 50, (steps,), generator=generator).cumsum(0),
        contract_macs=None,
        seconds=None,
        class_names=tuple(map(str, range(classes))),
    )


traces = st.builds(random_trace, st.integers(0, 999), st.integers(1, 5), st.integers(1, 40), st.integers(1, 6))


def close(values: torch.Tensor, wanted: list[float]) -> bool:
    return torch.allclose(values, torch.tensor(wanted, dtype=torch.float64), atol=1e-6)


def test_per_step_metrics(trace):
    assert close(curves.accuracy(trace), [0.5, 0.5, 0.75])
    assert close(curves.error(trace), [0.5, 0.5, 0.25])
    assert close(curves.confidence(trace), [0.55, 0.65, 0.75])
    assert close(curves.true_class_probability(trace), [0.4375, 0.525, 0.625])
    assert curves.average_error(trace) == pytest.approx(1.25 / 3)
    assert curves.timeliness(trace) == pytest.approx(1.75 / 3)


def test_error_at_cost_is_that_of_the_last_affordable_step(trace):
    assert curves.error_at_cost(trace) == [0.5, 0.5, 0.5, 0.25]
    assert curves.error_at_cost(trace, (0.1, 0.4, 0.999)) == [0.5, 0.5, 0.5]
    assert math.isnan(curves.error_at_cost(trace, (0.099,))[0])
    assert curves.error_at_cost(trace, (1 / 2, 3 / 4), "contract") == [0.5, 0.5]
    assert math.isnan(curves.error_at_cost(trace, (1 / 8,), "contract")[0])
    assert curves.error_at_cost(trace, (0.25, 0.75, 1), "seconds") == [0.5, 0.5, 0.25]


def test_unknown_or_missing_cost(trace, levels):
    with pytest.raises(ValueError, match="unknown cost 'flops'"):
        curves.error_at_cost(trace, cost="flops")
    with pytest.raises(ValueError, match="holds no 'seconds' cost"):
        curves.error_at_cost(levels.level(0), cost="seconds")


def test_threshold_curve_by_hand(trace):
    curve = curves.threshold_curve(trace, [0.65, 0.0, 2.0])
    assert curve.thresholds.tolist() == [0.0, 0.65, 2.0]
    assert close(curve.shares, [[1, 0, 0], [0.25, 0.5, 0.25], [0, 0, 1]])
    assert close(curve.macs, [10, 47.5, 100])
    assert close(curve.seconds, [0.001, 0.00275, 0.004])
    assert close(curve.accuracy, [0.5, 1.0, 0.75])
    assert curve.cheapest(0.75) == 1
    assert curve.cheapest(1.1) is None
    assert curve.area() == pytest.approx((37.5 * 0.75 + 52.5 * 0.875) / 90)


def test_threshold_curve_needs_thresholds(trace):
    with pytest.raises(ValueError, match="empty"):
        curves.threshold_curve(trace, [])
    with pytest.raises(ValueError, match="at least 2, the ends of the curve; got 1"):
        curves.threshold_curve(trace, num=1)


def test_default_thresholds_spend_in_even_steps():
    trace = random_trace(1, 6, 4000, 10)
    macs = curves.threshold_curve(trace, num=51).macs
    even = torch.linspace(float(trace.macs[0]), float(trace.macs[-1]), 51, dtype=torch.float64)
    assert (macs - even).abs().max() < 0.002 * trace.macs[-1]


def test_single_step_has_one_point():
    curve = curves.threshold_curve(random_trace(0, 1, 5, 3))
    assert curve.shares.tolist() == [[1.0], [1.0]]
    assert curve.area() == float(curve.accuracy[0])


@given(traces, st.lists(st.floats(0, 1.1), min_size=1, max_size=8) | st.none())
def test_threshold_curve_properties(trace, thresholds):
    curve = curves.threshold_curve(trace, thresholds)
    assert bool((curve.thresholds.diff() >= 0).all() | (trace.num_steps == 1))
    assert bool((curve.macs.diff() >= 0).all())
    assert torch.allclose(curve.shares.sum(1), torch.ones(len(curve.shares), dtype=torch.float64))
    assert trace.macs[0] <= curve.macs[0]
    assert curve.macs[-1] <= trace.macs[-1]
    if thresholds is None:
        accuracy = curves.accuracy(trace)
        assert (curve.macs[0], curve.macs[-1]) == (trace.macs[0], trace.macs[-1])
        assert (curve.accuracy[0], curve.accuracy[-1]) == (accuracy[0], accuracy[-1])


@given(traces)
def test_error_and_timeliness_are_complements(trace):
    assert curves.average_error(trace) + curves.timeliness(trace) == pytest.approx(1)
    assert torch.allclose(curves.error(trace) + curves.accuracy(trace), torch.ones(trace.num_steps).double())
    assert bool((curves.true_probability(trace) <= curves.max_probability(trace) + 1e-12).all())
    assert curves.error_at_cost(trace, (1.0,)) == [float(curves.error(trace)[-1])]


def test_several_label_levels_need_a_choice(levels):
    with pytest.raises(ValueError, match=r"2 label levels of \(3, 2\) classes; pick one: trace.level\(0\)"):
        curves.accuracy(levels)
    assert close(curves.accuracy(levels.level(0)), [0.5, 0.5, 0.75])
    assert close(curves.accuracy(levels.level(1)), [0.75, 0.75, 0.75])
