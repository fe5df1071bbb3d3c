import itertools
import math

import pytest
import torch

from anytime.analysis.curves import accuracy
from anytime.combine import Last
from anytime.stopping import ConfidenceBands, measure, value_of_computation
from anytime.stopping.value import solve


def random_problem(seed, sizes=(3, 2, 3, 2)):
    generator = torch.Generator().manual_seed(seed)
    right = [torch.rand(size, generator=generator, dtype=torch.float64) for size in sizes]
    moves = [torch.rand(a, b, generator=generator, dtype=torch.float64).softmax(1) for a, b in itertools.pairwise(sizes)]
    return right, moves, (torch.rand(len(sizes) - 1, generator=generator) * 0.2).tolist()


def expected_utility(right, moves, prices, policy):
    """Mean over the bins of the first step, forwards: nothing in common with dynamic programming backwards."""
    mass, total = torch.full_like(right[0], 1 / len(right[0])), 0.0
    spent = 0.0
    for step, stop in enumerate(policy):
        total += float((mass * stop * (right[step] - spent)).sum())
        mass = (mass * ~stop) @ moves[step]
        spent += prices[step]
    return total + float((mass * (right[-1] - spent)).sum())


@pytest.mark.parametrize("seed", range(5))
def test_dynamic_programming_finds_the_best_of_all_policies(seed):
    right, moves, prices = random_problem(seed)
    sizes = [len(values) for values in right[:-1]]
    best = -math.inf
    for flags in itertools.product([False, True], repeat=sum(sizes)):
        policy = torch.tensor(flags).split(sizes)
        best = max(best, expected_utility(right, moves, prices, policy))
    stops, values = solve(right, moves, prices)
    assert float(values[0].mean()) == pytest.approx(best)
    assert expected_utility(right, moves, prices, stops[:-1]) == pytest.approx(best)


@pytest.mark.parametrize("seed", range(5))
def test_values_of_the_myopic_rule_are_its_expected_utility(seed):
    right, moves, prices = random_problem(seed)
    stops, values = solve(right, moves, prices, myopic=True)
    assert float(values[0].mean()) == pytest.approx(expected_utility(right, moves, prices, stops[:-1]))
    for step, stop in enumerate(stops[:-1]):
        assert torch.equal(stop, right[step] >= moves[step] @ right[step + 1] - prices[step])
    assert float(values[0].mean()) <= float(solve(right, moves, prices)[1][0].mean()) + 1e-12


def test_the_myopic_rule_does_not_see_two_steps_ahead():
    right = [torch.tensor([p], dtype=torch.float64) for p in (0.5, 0.5, 1.0)]
    moves = [torch.ones(1, 1, dtype=torch.float64)] * 2
    assert [bool(stop) for stop in solve(right, moves, [0.1, 0.1])[0]] == [False, False, True]
    assert [bool(stop) for stop in solve(right, moves, [0.1, 0.1], myopic=True)[0]] == [True, False, True]


def test_the_chosen_bands_have_the_highest_utility(make_trace):
    """With two steps the model of the trace is exact: no other bands do better on it."""
    trace, price = make_trace(200, steps=2, seed=4), 5e-4
    outcome = value_of_computation(trace, price, bins=4)
    confidence = Last()(trace.logits)[0].amax(1).sort().values
    edges = [0.0, *confidence[[50, 100, 150]].tolist(), math.inf]
    bands = list(itertools.pairwise(edges))
    every = [
        measure(ConfidenceBands([[b for b, stop in zip(bands, flags, strict=True) if stop], []]), trace)
        for flags in itertools.product([False, True], repeat=4)
    ]
    assert outcome.accuracy - price * outcome.macs == pytest.approx(max(o.accuracy - price * o.macs for o in every))


def test_price_moves_the_cost(make_trace):
    trace = make_trace(500)
    outcomes = [value_of_computation(trace, price) for price in (0, 1e-5, 3e-4, 1)]
    costs = [outcome.macs for outcome in outcomes]
    assert costs == sorted(costs, reverse=True)
    assert costs[-1] == 100  # nothing is worth it
    assert outcomes[0].accuracy >= float(accuracy(trace)[-1]) - 0.02
    assert value_of_computation(trace, 30, "seconds").rule == value_of_computation(trace, 3e-4).rule


def test_hopeless_samples_also_stop(from_probabilities):
    """Unsure answers that stay wrong are not worth a step; a further step improves the middling ones."""
    low, middle, high, improved = [0.4, 0.3, 0.3], [0.6, 0.3, 0.1], [0.9, 0.05, 0.05], [0.05, 0.9, 0.05]
    trace = from_probabilities(
        [[low] * 10 + [middle] * 10 + [high] * 10, [low] * 10 + [improved] * 10 + [high] * 10],
        labels=[2] * 10 + [1] * 10 + [0] * 10,
        macs=[1, 2],
    )
    outcome = value_of_computation(trace, 0.1, bins=3)
    assert outcome.shares == pytest.approx((2 / 3, 1 / 3))
    ((_, upper), (lower, infinity)), last = outcome.rule.bands
    assert (upper, lower, infinity) == (pytest.approx(0.6), pytest.approx(0.9), math.inf)
    assert last == ((0.0, math.inf),)


def test_equal_confidences_and_few_samples(from_probabilities, make_trace):
    same = from_probabilities([[[0.7, 0.3]] * 5, [[0.2, 0.8]] * 5], labels=[1] * 5, macs=[1, 2])
    assert value_of_computation(same, 0.1).shares == (0, 1)
    assert value_of_computation(make_trace(3), 1e-4, bins=50).rule.num_steps == 5
    assert value_of_computation(make_trace(9, steps=1), 1).shares == (1,)


def test_clear_errors(make_trace):
    trace = make_trace(10)
    for wrong in (-1, math.nan, math.inf):
        with pytest.raises(ValueError, match="price must be finite and at least zero"):
            value_of_computation(trace, wrong)
    with pytest.raises(ValueError, match="bins must be at least 1"):
        value_of_computation(trace, 1, bins=0)
