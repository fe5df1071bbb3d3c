"""Weights of the papers' schemes, number by number."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anytime.objectives import weighting
from anytime.objectives.weighting import exponential, find_scheme, half_end, linear, normalized, one_hot, sdn_ramp, sieve

SIEVE_15 = [2, 1, 3, 1, 2, 1, 4, 1, 2, 1, 3, 1, 2, 1, 25]
SIEVE_27 = [2, 1, 4, 1, 2, 1, 3, 1, 2, 1, 5, 1, 2, 1, 3, 1, 2, 1, 4, 1, 2, 1, 3, 1, 2, 1, 49]


def test_sieve_is_the_papers() -> None:
    assert sieve(15) == SIEVE_15
    assert sieve(27) == SIEVE_27
    assert sieve(1) == [1]
    assert sieve(2) == [1, 1]


@given(st.integers(2, 300))
def test_sieve_by_its_definition(n: int) -> None:
    *early, last = sieve(n)
    assert last == sum(early), "the last answer has half of all weight"
    for t, weight in enumerate(early, 1):
        power = int(weight) - 1
        assert (n - t) % 2**power == 0
        assert (n - t) // 2**power % 2 == 1


@given(st.integers(2, 119))
def test_sieve_matches_the_published_code(n: int) -> None:
    """1 for every answer, 1 more for every second, fourth, ... from the end; then the last is their sum."""
    built = [sum((n - 1 - i) % 2**k == 0 for k in range(n) if 2**k < n) for i in range(n)]
    built[-1] = sum(built[:-1])
    assert sieve(n) == built


@given(st.integers(2, 60))
def test_other_schemes(n: int) -> None:
    assert linear(n)[0] == 0.25
    assert linear(n)[-1] == 1
    steps = {round(after - before, 12) for before, after in pairwise(linear(n))}
    assert steps == {round(0.75 / (n - 1), 12)}
    assert half_end(n)[-1] == 1
    assert math.isclose(sum(half_end(n)), 2)
    assert len(set(half_end(n)[:-1])) == 1


@given(st.integers(1, 60), st.floats(0.2, 5))
def test_exponential(n: int, base: float) -> None:
    weights = exponential(n, base)
    assert max(weights) == 1
    assert all(math.isclose(after / before, base) for before, after in pairwise(weights))


def test_small_numbers_of_answers() -> None:
    assert linear(1) == half_end(1) == sieve(1) == exponential(1, 3) == one_hot(1, 1) == sdn_ramp(1, 1, 1) == [1]
    assert exponential(4, 2) == [1 / 8, 1 / 4, 1 / 2, 1]
    assert exponential(4, 0.5) == [1, 1 / 2, 1 / 4, 1 / 8]
    assert one_hot(4, 2) == [0, 1, 0, 0]
    assert exponential(75, 2)[0] == 2.0**-74


def test_sdn_ramp_is_the_papers() -> None:
    assert sdn_ramp(7, 1, 100) == pytest.approx([0.0115, 0.013, 0.0145, 0.016, 0.0175, 0.019, 1])
    assert sdn_ramp(7, 50, 100) == pytest.approx([0.085, 0.16, 0.235, 0.31, 0.385, 0.46, 1])
    assert sdn_ramp(7, 100, 100) == [0.15, 0.3, 0.45, 0.6, 0.75, 0.9, 1]
    assert sdn_ramp(7, 94, 100)[0] == 0.151 - 0.001, "0.01 + 0.141 is above the largest"
    assert sdn_ramp(6, 100, 100) == [0.15, 0.3, 0.45, 0.6, 0.75, 1], "five classifiers on MobileNet"
    assert sdn_ramp(3, 1, 2, (0.2, 1.0)) == [0.11, 0.51, 1]
    assert sdn_ramp(10, 100, 100) == pytest.approx([*(t / 10 for t in range(1, 10)), 1]), "more than the paper's 6"


def test_normalized() -> None:
    assert normalized([1, 2, 5], "none") == [1, 2, 5]
    assert normalized([1, 2, 5], "sum") == [1 / 8, 2 / 8, 5 / 8]
    assert normalized([1, 2, 5], "last") == [1 / 5, 2 / 5, 1]
    assert sum(normalized(sieve(15), "last")) == 2


def test_names() -> None:
    assert list(weighting.SCHEMES)[:3] == ["constant", "final_only", "inverse_square"]
    for name, scheme in weighting.SCHEMES.items():
        assert find_scheme(name) is scheme
    assert find_scheme("exponential:0.5")(3) == [1, 0.5, 0.25]
    assert find_scheme("exponential:2")(3) == [0.25, 0.5, 1]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sieve(0), "number of answers must be at least 1, got 0"),
        (lambda: exponential(0, 2), "number of answers must be at least 1, got 0"),
        (lambda: exponential(3, 0), r"base must lie in \(0, inf\), got 0"),
        (lambda: exponential(3, math.nan), r"base must lie in \(0, inf\), got nan"),
        (lambda: one_hot(3, 4), r"exit must lie in 1\.\.3, got 4"),
        (lambda: one_hot(3, 0), r"exit must lie in 1\.\.3, got 0"),
        (lambda: sdn_ramp(8, 1, 100, [0.15]), r"largest needs 7 values, one for each answer before the last, got \[0.15"),
        (lambda: sdn_ramp(3, 1, 100, [0.1]), r"largest needs 2 values, .*, got \[0.1\]"),
        (lambda: sdn_ramp(2, 1, 100, [-0.1]), r"largest must be at least 0 and finite, got \[-0.1\]"),
        (lambda: sdn_ramp(2, 3, 2), "epoch must lie in 0..epochs and epochs must be at least 1, got 3 of 2"),
        (lambda: normalized([1, 0], "last"), r"normalize='last' needs a last weight above 0, got \[1.0, 0.0\]"),
        (lambda: normalized([1, math.nan], "sum"), r"weights must be at least 0 and not all 0, got \[1.0, nan\]"),
        (lambda: find_scheme("seive"), r"unknown weights 'seive'; did you mean 'sieve'\?"),
        (lambda: find_scheme("sieve:2"), "unknown weights 'sieve:2'; did you mean 'sieve'"),
        (lambda: find_scheme("exponential"), "weights are exponential:BASE with a number above 0, .*, got 'exponential'"),
        (lambda: find_scheme("exponential:-1"), "exponential:BASE with a number above 0.*, got 'exponential:-1'"),
        (lambda: find_scheme("exponential:e"), "exponential:BASE with a number above 0.*, got 'exponential:e'"),
        (lambda: find_scheme("qqq"), "unknown weights 'qqq'; valid: constant, .*, sieve, exponential:BASE"),
    ],
)
def test_wrong_arguments(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
