"""Standard errors over seeds, lower bounds of gains and corrected p-values, computed by hand."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from anytime.analysis.statistics import difference, gain_at_least, holm, reductions, standard_error


def test_standard_error_without_differences_between_seeds():
    # seed means 2, 5, 8, grand mean 5; without them: (4, 6), (5, 5), (3, 7), each with variance 1, times C / (C - 1) = 2
    assert standard_error([[1, 3], [5, 5], [6, 10]]) == pytest.approx([math.sqrt(2 / 3), math.sqrt(2 / 3)], rel=1e-12)
    assert standard_error([[1], [2], [3]]) == pytest.approx([math.sqrt(1 / 3)], rel=1e-12), "one condition has no levels"
    assert standard_error([[1, 3], [11, 13], [6, 8]]) == [0, 0]
    assert all(map(math.isnan, standard_error([[1, 3]])))
    with pytest.raises(ValueError, match=r"values must be \[seeds, conditions\], got \[0\]"):
        standard_error([])


@given(st.lists(st.tuples(*[st.floats(0, 1)] * 3), min_size=2, max_size=5), st.lists(st.floats(-1, 1), min_size=5, max_size=5))
def test_standard_error_ignores_what_a_seed_does_to_all_networks(values, shifts):
    shifted = [[x + shift for x in row] for row, shift in zip(values, shifts, strict=False)]
    assert standard_error(shifted) == pytest.approx(standard_error(values), abs=1e-12)


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=6))
def test_the_standard_error_of_the_difference_of_two_conditions_is_the_root_of_two_times_theirs(values):
    _, error = difference(*zip(*values, strict=True))
    assert standard_error(values) == pytest.approx([error / math.sqrt(2)] * 2, abs=1e-12)


def test_the_standard_error_of_independent_conditions_is_theirs():
    """Without seed effects the correction makes the estimate unbiased: 4,000 experiments of 3 seeds and 4 conditions."""
    x = torch.randn(4000, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    squares = torch.tensor([standard_error(values) for values in x.tolist()]).square()
    assert float(squares.mean()) == pytest.approx(1 / 3, rel=0.02)


def test_a_gain_has_a_lower_bound_by_student():
    assert gain_at_least([0.5, 0.7, 0.9], [0.4, 0.4, 0.4]) == pytest.approx(0.3 - 2.919986 * 0.2 / math.sqrt(3), abs=1e-6)
    assert gain_at_least([0.5, 0.5], [0.4, 0.4]) == pytest.approx(0.1)
    assert math.isnan(gain_at_least([0.5], [0.25]))


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])  # the example of many textbooks
    assert holm([0.5, 0.9]) == [1, 1]
    assert holm([]) == []


def test_difference():
    gain, error = difference([0.5, 0.7, 0.9], [0.4, 0.4, 0.4])
    assert gain == pytest.approx(0.3, rel=1e-12)
    assert error == pytest.approx(0.2 / math.sqrt(3), rel=1e-12)
    gain, error = difference([0.5], [0.25])
    assert gain == 0.25
    assert math.isnan(error)
    with pytest.raises(ValueError, match="same seeds on both sides, got 2 and 1"):
        difference([0.1, 0.2], [0.1])


def test_reductions():
    assert reductions([0.1, 0.3, 0.0], [0.4, 0.2, 0.5]) == pytest.approx([0.75, -0.5, 1])
    nothing, without_reference = reductions([0, 0.1], [0, 0])
    assert math.isnan(nothing)
    assert without_reference == -math.inf
