"""Costs at equal error and errors at equal cost on hand-made lines; the norm of each branch."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anytime.analysis.slicing import cost_at_error, error_at_equal_cost, macs_saved, relative_error_saved
from anytime.models.slicing.iresnext import IResNeXt
from anytime.models.slicing.isresnext import ISResNeXt
from anytime.models.slicing.sliced import SlicedModel, branch_l1_norms
from anytime.trace import Trace


def line(points: dict[int, int], contract: list[int] | None = None) -> Trace:
    """A trace of 100 samples: interruptible cost -> number of wrong samples."""
    right = torch.arange(100) >= torch.tensor(list(points.values()))[:, None]
    return Trace(
        logits=torch.stack([right, ~right], 2).float(),
        labels=torch.zeros(100, dtype=torch.int64),
        macs=torch.tensor(list(points)),
        contract_macs=None if contract is None else torch.tensor(contract),
        seconds=None,
        class_names=("right", "wrong"),
    )


def numbers(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_lines_by_hand():
    trace = line({100: 40, 200: 20, 400: 10})
    errors = error_at_equal_cost(trace, numbers(100, 150, 200, 300, 400), "macs")
    assert errors.tolist() == pytest.approx([0.4, 0.3, 0.2, 0.15, 0.1])
    assert error_at_equal_cost(trace, numbers(99, 401), "macs").isnan().all()
    assert cost_at_error(trace, numbers(0.4, 0.3, 0.2, 0.15, 0.1), "macs").tolist() == pytest.approx([100, 150, 200, 300, 400])
    assert cost_at_error(trace, numbers(0.41, 0.09), "macs").isnan().all()


def test_the_papers_measures_by_hand():
    """The reference costs 150 at 30 % errors and 300 at 15 %; it has 40 % errors at cost 100 and 17.5 % at 250."""
    reference = line({100: 40, 200: 20, 400: 10})
    trace = line({50: 50, 100: 30, 250: 15, 500: 5})
    saved, smaller = macs_saved(trace, reference, "macs"), relative_error_saved(trace, reference, "macs")
    torch.testing.assert_close(saved, numbers(math.nan, 1 / 3, 1 / 6, math.nan), equal_nan=True, rtol=0, atol=1e-12)
    expected = numbers(math.nan, 1 - 0.3 / 0.4, 1 - 0.15 / 0.175, math.nan)
    torch.testing.assert_close(smaller, expected, equal_nan=True, rtol=0, atol=1e-12)


def test_contract_cost_is_another_line():
    """The second answer costs 300 interruptible but 200 by contract; by contract the first costs more than the second."""
    trace = line({100: 20, 300: 30, 600: 10}, contract=[300, 200, 400])
    assert cost_at_error(trace, numbers(0.2)).item() == 300
    assert cost_at_error(trace, numbers(0.25)).item() == pytest.approx(250)
    assert cost_at_error(trace, numbers(0.2), "macs").item() == 100
    assert error_at_equal_cost(trace, numbers(200, 250, 350)).tolist() == pytest.approx([0.3, 0.25, 0.15])


def test_a_line_that_rises_again_gives_its_first_cost():
    trace = line({100: 40, 200: 20, 300: 35, 400: 10})
    assert cost_at_error(trace, numbers(0.3, 0.35, 0.2, 0.15), "macs").tolist() == pytest.approx([150, 125, 200, 380])


def test_the_best_answer_counts_at_equal_cost():
    trace = line({100: 40, 200: 20, 300: 10}, contract=[100, 200, 200])
    assert error_at_equal_cost(trace, numbers(200)).item() == pytest.approx(0.1)


def test_missing_and_unknown_costs():
    trace = line({100: 40, 200: 20})
    with pytest.raises(ValueError, match="holds no 'contract' cost"):
        macs_saved(trace, trace)
    with pytest.raises(ValueError, match="unknown cost 'flops'"):
        relative_error_saved(trace, trace, "flops")  # type: ignore[arg-type]


lines = st.lists(st.integers(1, 99), min_size=2, max_size=6, unique=True).map(
    lambda wrong: line({100 * (t + 1): n for t, n in enumerate(sorted(wrong, reverse=True))})
)


@settings(deadline=None, max_examples=50)
@given(lines, st.integers(2, 9))
def test_a_trace_at_a_fraction_of_the_cost(trace, factor):
    """Nothing is saved against itself; with all costs scaled, the same share is saved at every error; the measures agree."""
    assert macs_saved(trace, trace, "macs").tolist() == pytest.approx([0] * trace.num_steps)
    assert relative_error_saved(trace, trace, "macs").tolist() == pytest.approx([0] * trace.num_steps)
    dear = replace(trace, macs=trace.macs * factor)
    assert macs_saved(trace, dear, "macs").tolist() == pytest.approx([1 - 1 / factor] * trace.num_steps)
    assert macs_saved(dear, trace, "macs").tolist() == pytest.approx([1 - factor] * trace.num_steps)
    smaller = relative_error_saved(trace, dear, "macs")
    assert bool((smaller[~smaller.isnan()] > 0).all())


@settings(deadline=None, max_examples=50)
@given(lines, st.floats(0, 1))
def test_error_and_cost_are_inverse(trace, share):
    """On a falling line, the cost at the error at a cost is that cost."""
    cost = trace.macs[0] + share * (trace.macs[-1] - trace.macs[0]).double()
    wrong = error_at_equal_cost(trace, cost[None], "macs")
    found = cost_at_error(trace, wrong, "macs")
    assert found.isnan().item() or found.item() == pytest.approx(cost.item())  # rounding may pass the end of the line


@pytest.mark.parametrize(("kind", "width"), [(IResNeXt, 12), (ISResNeXt, 12)])
def test_branch_norms(kind: type[SlicedModel], width: int) -> None:
    """The norm of a branch is that of its inputs' weights in the last convolution."""
    model = kind(10, 3, blocks=(1, 2), width=width, steps=3, cardinality=6, bottleneck=2)
    norms = branch_l1_norms(model)
    assert norms.shape == (3, 6)
    assert norms.dtype == torch.float64
    for index, block in enumerate(model.blocks):
        weight = block.conv3.weight.detach()
        size = block.conv2.out_channels // 6
        assert norms[index].sum().item() == pytest.approx(weight.double().abs().sum().item())
        for branch in range(6):
            inputs = torch.zeros(1, 6 * size, 1, 1)
            inputs[:, branch * size : (branch + 1) * size] = 1
            with torch.no_grad():
                weight_only = torch.nn.functional.conv2d(inputs, weight.abs(), groups=block.conv3.groups)
            assert norms[index, branch].item() == pytest.approx(weight_only.sum().item(), rel=1e-5)


def test_branch_norms_of_known_weights() -> None:
    model = IResNeXt(10, 3, blocks=(1,), width=4, steps=2, cardinality=2, bottleneck=2)
    with torch.no_grad():
        model.blocks[0].conv3.weight.copy_(torch.tensor([1.0, -2.0, 0.5, 0.0]).view(1, 4, 1, 1).expand(4, 4, 1, 1))
    assert branch_l1_norms(model).tolist() == [[12.0, 2.0]]
