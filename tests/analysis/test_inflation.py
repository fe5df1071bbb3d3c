"""Proposition 3.1 of Hu et al. 2017: its numbers, its limits, and sequences stopped at random or by an adversary."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anytime.analysis.inflation import best_base, expected_inflation, sequence_inflation, simulate, sup_inflation

BASES = st.floats(1.05, 50)
UNITS = [3, 9, 21, 39, 75]  # n = 1, 3, 7, 13, 25


def powers(base: float, networks: int) -> list[float]:
    return [base**k for k in range(networks)]


def test_expectations_of_the_paper() -> None:
    expected = {1.4: 3.98, 1.5: 3.48, 2: 2.44, 2.5: 2.08, 3: 1.88, 4: 1.67}
    assert {base: round(expected_inflation(base), 2) for base in expected} == expected
    assert round(expected_inflation(2), 3) == 2.443
    assert sup_inflation(2) == 3
    assert (sup_inflation(2, anytime=False), expected_inflation(2, anytime=False)) == (4, 3)


@given(BASES, st.booleans())
def test_formulas(base: float, anytime: bool) -> None:
    sup, mean = sup_inflation(base, anytime), expected_inflation(base, anytime)
    assert sup == pytest.approx(2 + 1 / (base - 1) if anytime else base**2 / (base - 1), rel=1e-12)
    own = 1 + base * math.log(base) / (base - 1) ** 2  # for the share 1 - 1/b of its time in which a network is the deepest
    wanted = (1.5 + 1 / (base - 1)) / base + own * (1 - 1 / base) if anytime else 1 + base / 2 + 1 / (base - 1)
    assert mean == pytest.approx(wanted, rel=1e-12)
    assert mean < sup
    assert sup_inflation(base, True) < sup_inflation(base, False)
    assert expected_inflation(base, True) < expected_inflation(base, False)


@given(BASES, st.floats(1.001, 3))
def test_best_bases(base: float, factor: float) -> None:
    """Anytime members: the larger the better, down to 2 and 1. Plain ones: minima 4 at 2 and 1.5 + sqrt(2) at 1 + sqrt(2)."""
    assert best_base("sup") == best_base("mean") == math.inf
    assert 2 < sup_inflation(base * factor) < sup_inflation(base)
    assert 1 < expected_inflation(base * factor) < expected_inflation(base)
    assert sup_inflation(1e9) == pytest.approx(2)
    assert expected_inflation(1e9) == pytest.approx(1)
    assert best_base("sup", anytime=False) == 2
    assert best_base("mean", anytime=False) == 1 + math.sqrt(2)
    assert sup_inflation(base, anytime=False) >= 4
    assert expected_inflation(best_base("mean", anytime=False), anytime=False) == pytest.approx(1.5 + math.sqrt(2), rel=1e-15)
    assert expected_inflation(base, anytime=False) >= 1.5 + math.sqrt(2) - 1e-12


@settings(deadline=None)
@given(BASES, st.integers(2, 15), st.booleans())
def test_no_finite_sequence_exceeds_the_limits(base: float, networks: int, anytime: bool) -> None:
    sup, mean = sequence_inflation(powers(base, networks), anytime)
    assert sup <= sup_inflation(base, anytime) * (1 + 1e-12)
    assert mean <= expected_inflation(base, anytime) * (1 + 1e-12)
    assert 1 < mean < sup


@given(BASES, st.booleans())
def test_long_sequences_reach_the_limits(base: float, anytime: bool) -> None:
    sup, mean = sequence_inflation(powers(base, math.ceil(math.log(1e9) / math.log(base))), anytime)
    assert sup == pytest.approx(sup_inflation(base, anytime), rel=1e-6)
    assert mean == pytest.approx(expected_inflation(base, anytime), rel=1e-5)


@settings(deadline=None, max_examples=25)
@given(BASES, st.integers(2, 30), st.booleans(), st.integers(0, 99))
def test_simulated_stops_confirm_the_proposition(base: float, networks: int, anytime: bool, seed: int) -> None:
    depths, stops = powers(base, networks), 1000
    sup, mean = simulate(depths, anytime, stops, seed)
    exact = sequence_inflation(depths, anytime)
    assert sup == pytest.approx(exact.sup, rel=1e-9)
    assert sup < sup_inflation(base, anytime) * (1 + 1e-9)
    within = 5 * exact.sup / math.sqrt(12 * stops)  # 5 standard errors of a uniform variable in 0..sup
    assert abs(mean - exact.mean) < within
    assert mean < expected_inflation(base, anytime) + within


def test_a_long_sequence_of_base_2() -> None:
    sup, mean = simulate(powers(2, 30), stops=20_000)
    assert sup == pytest.approx(3, abs=1e-6)
    assert mean == pytest.approx(2.443, abs=0.02)
    sup, mean = simulate(powers(2, 30), anytime=False, stops=20_000)
    assert sup == pytest.approx(4, abs=1e-6)
    assert mean == pytest.approx(3, abs=0.03)


def test_by_hand() -> None:
    """Depths 1 and 2: C = 1; then 1 + z while the first answer stands; then (1 + z) / z."""
    sup, mean = sequence_inflation([1, 2])
    assert sup == 2
    assert mean == pytest.approx((1 + 1.5 + 1 + math.log(2)) / 3, rel=1e-15)
    assert sequence_inflation([1, 2], anytime=False) == (3, 2)  # 1 + z, z uniform in 0..2
    assert sequence_inflation([5]) == (1, 1)


def test_networks_of_the_paper() -> None:
    """Their bases lie around 2; they cost less than 2.443, the limit for base 2."""
    sup, mean = sequence_inflation(UNITS)
    assert sup == pytest.approx(72 / 39 + 1)
    assert mean == pytest.approx(2.1223, abs=5e-5)
    assert simulate(UNITS, stops=20_000).mean == pytest.approx(mean, abs=0.02)


@pytest.mark.parametrize("base", [1, 0.5, -2, math.inf, math.nan])
def test_bad_bases(base: float) -> None:
    for function in (sup_inflation, expected_inflation):
        with pytest.raises(ValueError, match=f"base must be above 1 and finite, got {base}"):
            function(base)


def test_bad_sequences() -> None:
    for depths in ([], [2, 1], [1, 1], [0, 1], [-1, 2], [1, math.inf], [1, math.nan]):
        with pytest.raises(ValueError, match="depths must be at least 1 growing numbers above 0, got"):
            sequence_inflation(depths)
    with pytest.raises(ValueError, match=r"depths must be at least 2 growing numbers above 0, got \[1.0\]"):
        simulate([1], anytime=False)
    with pytest.raises(ValueError, match="stops must be at least 1, got 0"):
        simulate([1, 2], stops=0)
    with pytest.raises(ValueError, match="of must be 'sup' or 'mean', got 'min'"):
        best_base("min")  # type: ignore[arg-type]
