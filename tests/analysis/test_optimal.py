"""Comparison with OPT on hand-made exits and on the published numbers of Hu et al. 2017 (Tables 2, 3 and 6)."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from anytime.analysis.curves import error, error_at_cost
from anytime.analysis.optimal import Exits, cross_entropy, opt_plus, relative_increase
from anytime.analysis.statistics import Comparison, compare, sign_test

# n,c, method, and the errors at 1/4, 1/2, 3/4 and 1 of the cost on SVHN, CIFAR-10 and CIFAR-100 (Table 6)
TABLE_6 = """
25,16  OPT  3.00 1.82 1.82 1.68  12.63  6.79 5.70 5.80  47.36 33.46 27.31 25.51
25,16  ANN  5.98 2.79 2.06 1.87  22.13  8.46 6.66 6.28  64.03 38.17 29.00 25.30
25,16  AANN 5.10 2.34 2.02 1.92  21.48  8.12 6.66 6.18  66.08 36.71 28.32 25.46
25,32  OPT  2.31 1.66 1.70 1.77   8.24  5.42 5.00 5.17  36.28 25.93 22.66 22.93
25,32  ANN  3.70 2.11 1.81 1.77  14.44  8.05 6.77 5.33  51.59 31.16 25.81 22.96
25,32  AANN 3.55 1.94 1.84 1.71  13.73  6.31 4.93 4.65  48.72 28.05 23.46 22.00
17,16  OPT  2.83 1.82 1.83 1.81  13.12  7.42 5.98 5.71  49.73 33.78 28.54 26.66
17,16  ANN  5.23 2.64 2.07 1.98  26.56 10.62 7.61 6.12  70.80 39.83 32.20 26.59
17,16  AANN 5.32 2.89 2.01 1.87  24.50  9.20 6.71 6.23  67.85 42.36 30.58 26.74
17,32  OPT  2.55 1.76 1.81 1.71   9.47  5.63 5.11 4.73  37.57 27.03 23.93 22.80
17,32  ANN  4.56 2.61 2.04 1.84  18.04  7.23 5.98 5.33  47.53 32.03 27.70 23.92
17,32  AANN 3.80 2.32 1.89 1.80  14.43  6.77 5.34 5.00  53.33 31.17 24.00 22.29
13,16  OPT  3.61 2.01 1.97 1.84  14.15  8.33 6.40 6.17  51.16 35.05 29.99 27.04
13,16  ANN  6.42 2.88 2.48 1.92  25.11 11.76 7.86 6.30  69.97 41.99 31.98 26.94
13,16  AANN 5.72 3.15 2.16 2.01  25.38 10.11 7.55 6.40  67.84 44.35 31.41 26.84
13,32  OPT  2.85 1.86 1.68 1.67   9.75  6.27 5.23 4.96  38.65 28.11 24.01 23.29
13,32  ANN  4.28 2.75 2.06 1.82  15.47  7.92 6.23 5.40  50.62 34.82 26.56 23.60
13,32  AANN 4.05 2.43 1.93 1.77  15.77  7.01 5.57 5.37  53.95 31.61 25.19 23.03
13,64  OPT  2.37 1.72 1.71 1.76   7.59  5.28 4.58 4.71  31.80 23.55 21.94 21.13
13,64  ANN  3.28 2.06 1.79 1.71  12.33  6.68 6.03 5.12  42.84 27.47 23.14 20.95
13,64  AANN 3.28 2.19 1.67 1.61  11.43  6.19 5.09 4.78  41.07 25.94 21.98 20.58
 9,16  OPT  4.09 2.27 2.09 1.85  15.95  9.35 7.35 6.13  53.16 36.55 31.35 28.15
 9,16  ANN  6.66 3.42 2.40 1.94  27.90 11.36 7.73 6.70  70.05 45.69 33.24 28.08
 9,16  AANN 6.96 3.44 2.34 2.04  27.45 11.95 8.08 7.24  69.79 46.35 33.65 28.35
 9,32  OPT  3.22 1.92 1.87 1.71  11.36  6.76 5.78 5.44  40.09 29.62 25.47 23.63
 9,32  ANN  4.43 2.89 1.96 1.72  17.02  8.40 6.24 5.73  58.55 34.40 27.61 24.05
 9,32  AANN 4.28 2.65 1.99 1.83  18.30  8.20 6.15 5.45  54.20 33.86 26.14 23.48
 9,64  OPT  2.38 1.84 1.84 1.81   8.76  5.51 5.00 5.41  33.23 24.64 22.25 21.84
 9,64  ANN  3.80 2.33 2.00 1.80  13.35  7.02 6.10 4.97  43.02 30.58 26.18 22.58
 9,64  AANN 3.61 2.04 1.68 1.67  11.44  6.89 5.16 5.04  43.06 27.15 22.50 21.11
 9,128 OPT  2.38 1.92 1.79 1.70   7.06  5.32 4.84 5.33  27.71 22.17 21.14 22.07
 9,128 ANN  3.11 2.05 1.76 1.73   9.10  5.50 4.77 4.53  34.97 26.14 23.74 20.25
 9,128 AANN 3.11 2.30 1.76 1.73   9.97  5.53 4.59 4.41  34.18 24.55 21.70 20.45
"""
CELLS: dict[tuple[str, str], list[list[float]]] = {
    (model, method): [list(map(float, numbers[i : i + 4])) for i in (0, 4, 8)]
    for model, method, *numbers in map(str.split, TABLE_6.strip().splitlines())
}
UNITS = {9: (6, 13, 20, 27), 13: (9, 19, 29, 39), 17: (12, 25, 38, 51), 25: (18, 36, 54, 75)}  # the exits at the milestones

ERRORS = st.lists(st.floats(0.01, 1), min_size=1, max_size=8)
EXITS = ERRORS.flatmap(
    lambda errors: st.lists(st.integers(1, 99), min_size=len(errors), max_size=len(errors), unique=True).map(
        lambda costs: Exits(tuple(errors), tuple(sorted(costs)))
    )
)


def test_errors_at_a_share_of_the_cost() -> None:
    exits = Exits((0.5, 0.4, 0.2), (10, 40, 100))
    assert exits.at() == [0.5, 0.4, 0.4, 0.2]
    assert exits.at((0.25, 0.5, 1), total=40) == [0.5, 0.5, 0.4]
    assert exits.at((0.3, 0.1 + 0.2), total=100 / 3) == [0.5, 0.5], "not lost to rounding"
    assert math.isnan(exits.at((0.09,))[0])
    assert exits.errors_at([10, 39.9, 40, 1000]) == [0.5, 0.5, 0.4, 0.2]


def test_exits_of_a_trace(trace) -> None:
    for cost in ("macs", "contract", "seconds"):
        exits = Exits.of(trace, cost)
        assert exits.errors == (0.5, 0.5, 0.25)
        assert exits.at() == pytest.approx(error_at_cost(trace, cost=cost), nan_ok=True)
    assert Exits.of(trace).costs == (10, 40, 100)


def test_a_family_of_networks(trace) -> None:
    """Each trace contributes the exit that its network was trained for, at the cost of computing only that answer."""
    other = replace(trace, labels=torch.tensor([0, 1, 2, 1]))
    assert error(other).tolist() == [0.75, 0.25, 0.0]
    family = Exits.of_family({3: other, 1: trace})
    assert family == Exits((0.5, 0.0), (10, 60))
    assert Exits.of_family({2: other}, "macs") == Exits((0.25,), (40,))
    for exit in (0, 4):
        with pytest.raises(ValueError, match=rf"exits must lie in 1\.\.3, the steps of the trace, got {exit}"):
            Exits.of_family({exit: trace})


@given(EXITS)
def test_step_curve_is_level_until_the_next_answer(exits: Exits) -> None:
    x, y = exits.step_curve()
    assert x == sorted(x)
    assert (x[0], y[0], x[-1], y[-1]) == (exits.costs[0], exits.errors[0], exits.costs[-1], exits.errors[-1])
    for (x1, y1), (x2, y2) in zip(zip(x, y, strict=True), list(zip(x, y, strict=True))[1:], strict=False):
        assert x1 == x2 or y1 == y2, "level, or straight down or up"
        if x1 < x2:
            assert exits.errors_at([x1, (x1 + x2) / 2]) == [y1, y1]


def test_step_curve_of_a_period() -> None:
    assert Exits((0.6, 0.5, 0.3), (2, 5, 8)).step_curve() == ([2, 5, 5, 8, 8], [0.6, 0.6, 0.5, 0.5, 0.3])


@given(st.lists(EXITS, min_size=1, max_size=4), st.integers(1, 120))
def test_opt_plus_is_the_best_that_costs_no_more(networks: list[Exits], budget: int) -> None:
    affordable = [e for n in networks for e, cost in zip(n.errors, n.costs, strict=True) if cost <= budget]
    (found,) = opt_plus(networks).errors_at([budget])
    assert found == min(affordable) if affordable else math.isnan(found)


@pytest.mark.parametrize(("dataset", "row"), [(1, [5.23, 4.73, 4.73]), (2, [23.63, 22.66, 22.66])])
def test_opt_plus_of_the_paper(dataset: int, row: list[float]) -> None:
    """Table 3, c = 32, at 1/2, 3/4 and 1 of n = 25 (at 1/4 it depends on a network whose row is unknown)."""
    networks = [Exits(tuple(CELLS[f"{n},32", "OPT"][dataset]), units) for n, units in UNITS.items()]
    assert opt_plus(networks).at((0.5, 0.75, 1), total=75) == row
    assert opt_plus(networks[:-1]).costs[-1] <= 51


@pytest.mark.parametrize(("method", "mean"), [("ANN", [54.9, 28.7, 13.5, 2.7]), ("AANN", [49.4, 22.7, 5.6, 1.1])])
def test_relative_increase_of_the_paper(method: str, mean: list[float]) -> None:
    """Mean over the 33 known cells of Table 6. (Table 2b: 52.72 28.05 14.36 2.57, 47.77 22.70 7.99 1.66.)"""
    models = sorted({model for model, _ in CELLS})
    increases = [
        relative_increase(errors, optimal)
        for model in models
        for errors, optimal in zip(CELLS[model, method], CELLS[model, "OPT"], strict=True)
    ]
    assert len(increases) == 33
    assert [round(100 * sum(column) / 33, 1) for column in zip(*increases, strict=True)] == mean


def test_relative_increase() -> None:
    assert relative_increase([0.3, 0.1, 0.2], [0.2, 0.2, 0.2]) == pytest.approx([0.5, -0.5, 0])
    assert math.isnan(relative_increase([math.nan], [0.2])[0])
    for optimal in ([0.2], [0.2, 0], [0.2, math.nan]):
        with pytest.raises(ValueError, match="optimal must hold 2 errors above 0, got"):
            relative_increase([0.3, 0.1], optimal)


def test_sign_test() -> None:
    assert round(sign_test(26, 39), 3) == 0.027
    assert round(sign_test(30, 39), 4) == 0.0005
    assert round(sign_test(25, 39), 3) == 0.054
    assert sign_test(0, 39) == 1
    assert sign_test(39, 39) == 0.5**39
    assert sign_test(1, 1) == 0.5


@given(st.integers(1, 60), st.data())
def test_sign_test_is_the_binomial_tail(runs: int, data: st.DataObject) -> None:
    from scipy.stats import binom

    wins = data.draw(st.integers(0, runs))
    p = sign_test(wins, runs)
    assert p == pytest.approx(float(binom.sf(wins - 1, runs, 0.5)), rel=1e-9)
    assert p + sign_test(runs - wins, runs) >= 1, "both tails contain the middle"
    assert p <= math.exp(-2 * runs * max(wins / runs - 0.5, 0) ** 2) * (1 + 1e-12), "Hoeffding's bound, with its n"
    if wins:
        gap = math.comb(runs, wins - 1) / 2**runs  # below float64's resolution near 1, equal values are right
        assert p < sign_test(wins - 1, runs) or (p == 1 and gap < 2**-52)


@pytest.mark.parametrize(("wins", "runs"), [(-1, 3), (4, 3), (0, 0)])
def test_impossible_counts(wins: int, runs: int) -> None:
    with pytest.raises(ValueError, match=rf"wins must lie in 0\.\.runs and runs must be at least 1, got {wins} of {runs}"):
        sign_test(wins, runs)


def test_table_2_counts_a_tie_as_half_a_win() -> None:
    aann = [Comparison(26, 0, 39), Comparison(26, 1, 39), Comparison(30, 0, 39), Comparison(21, 1, 39), Comparison(25, 1, 39)]
    assert [round(100 * row.share, 2) for row in aann] == [66.67, 67.95, 76.92, 55.13, 65.38]
    significant = [row.p_value < 0.05 for row in aann]
    assert significant == [True, True, True, False, False], "the average error of AANN is not significantly better"


def test_compare_counts_paired_runs() -> None:
    found = compare([0.1, 0.2, 0.3, 0.4], [0.2, 0.2, 0.4, 0.3])
    assert found == Comparison(better=2, tied=1, runs=4)
    assert (found.share, found.p_value) == (0.625, 11 / 16)
    for errors, others in (([], []), ([0.1], [0.1, 0.2]), ([math.nan], [0.1]), ([0.1], [math.nan])):
        with pytest.raises(ValueError, match="each run needs two errors, none NaN; got"):
            compare(errors, others)


def test_cross_entropy_by_hand(trace, levels) -> None:
    right = [[0.5, 0.3, 0.25, 0.7], [0.8, 0.7, 0.3, 0.3], [0.9, 0.8, 0.6, 0.2]]  # probabilities of the labels
    wanted = [-sum(map(math.log, row)) / 4 for row in right]
    assert cross_entropy(trace).tolist() == pytest.approx(wanted, rel=1e-6)
    assert cross_entropy(trace).dtype == torch.float64
    sure = replace(trace, logits=trace.logits * 1000)
    assert bool(cross_entropy(sure).isfinite().all()), "no logarithm of zero"
    with pytest.raises(ValueError, match="2 label levels"):
        cross_entropy(levels)


BAD: list[tuple[tuple[float, ...], tuple[float, ...], str]] = [
    ((), (), "got 0 errors and 0 costs"),
    ((0.5,), (1, 2), "got 1 errors and 2 costs"),
    ((0.5, 0.4), (2, 2), r"grow from exit to exit, got \[2.0, 2.0\]"),
    ((0.5,), (0,), "costs must be above 0"),
]


@pytest.mark.parametrize(("errors", "costs", "message"), BAD)
def test_bad_exits(errors: tuple[float, ...], costs: tuple[float, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Exits(errors, costs)


def test_opt_plus_needs_a_network() -> None:
    with pytest.raises(ValueError, match="opt_plus needs at least one network, got none"):
        opt_plus([])
