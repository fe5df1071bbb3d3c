"""Losses over all answers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from anytime.objectives import Weighted, step_losses, weighting


def example(steps: int, batch: int = 4, classes: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(steps)
    return torch.randn(steps, batch, classes, dtype=torch.float64), torch.randint(classes, (batch,))


def test_inverse_square_is_the_papers() -> None:
    weights = weighting.inverse_square(7)
    assert weights == [1 / 49, 1 / 36, 1 / 25, 1 / 16, 1 / 9, 1 / 4, 1]
    assert round(sum(weights), 4) == 1.5118
    shares = [round(100 * weight / sum(weights), 2) for weight in weights]
    assert shares == [1.35, 1.84, 2.65, 4.13, 7.35, 16.54, 66.15]


@given(st.integers(1, 50))
def test_schemes(n: int) -> None:
    assert weighting.constant(n) == [1] * n
    assert weighting.final_only(n) == [0] * (n - 1) + [1]
    weights = weighting.inverse_square(n)
    assert weights == sorted(weights)
    assert weights[-1] == 1
    assert all(len(scheme(n)) == n for scheme in weighting.SCHEMES.values())


@pytest.mark.parametrize("scheme", weighting.SCHEMES.values())
def test_schemes_need_an_answer(scheme: Any) -> None:
    with pytest.raises(ValueError, match="number of answers must be at least 1, got 0"):
        scheme(0)


def test_step_losses() -> None:
    logits, target = example(3)
    expected = torch.stack([F.cross_entropy(answer, target) for answer in logits])
    torch.testing.assert_close(step_losses(logits, target), expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(step_losses(logits.transpose(0, 1).contiguous().transpose(0, 1), target), expected)
    smooth = torch.stack([F.cross_entropy(answer, target, label_smoothing=0.2) for answer in logits])
    torch.testing.assert_close(step_losses(logits, target, 0.2), smooth, rtol=1e-12, atol=0)


@pytest.mark.parametrize("weights", ["inverse_square", "constant", "final_only", (0.5, 0.0, 2.0), [1, 2, 3]])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_weighted_equals_a_loop(weights: Any, label_smoothing: float) -> None:
    logits, target = example(3)
    numbers = weighting.SCHEMES[weights](3) if isinstance(weights, str) else weights
    expected = 0.0
    for t in range(3):
        for sample, label in zip(logits[t], target, strict=True):
            log_p = [value.item() - math.log(sum(math.exp(v) for v in sample.tolist())) for value in sample]
            cross_entropy = -(1 - label_smoothing) * log_p[label] - label_smoothing * sum(log_p) / len(log_p)
            expected += numbers[t] * cross_entropy / len(target)
    assert Weighted(weights, label_smoothing)(logits, target).item() == pytest.approx(expected, rel=1e-12)


def test_default_is_the_papers_loss() -> None:
    logits, target = example(7)
    expected = sum(F.cross_entropy(logits[j - 1], target) / (7 - j + 1) ** 2 for j in range(1, 8))
    torch.testing.assert_close(Weighted()(logits, target), expected, rtol=1e-12, atol=0)


def test_gradient_of_an_answer_is_proportional_to_its_weight() -> None:
    logits, target = example(1)
    same = logits.expand(3, -1, -1).clone().requires_grad_()
    Weighted([1.0, 2.0, 0.0])(same, target).backward()
    assert same.grad is not None
    torch.testing.assert_close(same.grad[1], 2 * same.grad[0])
    assert not same.grad[2].any()


def test_nothing_to_learn_and_nothing_to_save() -> None:
    assert not Weighted().state_dict()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weights": "inverse_sqare"}, r"unknown weights 'inverse_sqare'; did you mean 'inverse_square'\?"),
        ({"weights": "zzz"}, "unknown weights 'zzz'; valid: constant, final_only, inverse_square"),
        ({"weights": [1.0, -0.5]}, r"weights must be at least 0 and not all 0, got \[1.0, -0.5\]"),
        ({"weights": [0.0, 0.0]}, "not all 0"),
        ({"weights": []}, r"not all 0, got \[\]"),
        ({"label_smoothing": 1.0}, r"label_smoothing must lie in \[0, 1\), got 1.0"),
        ({"label_smoothing": -0.1}, r"label_smoothing must lie in \[0, 1\), got -0.1"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Weighted(**arguments)


def test_wrong_number_of_weights() -> None:
    with pytest.raises(ValueError, match=r"2 weights for 3 answers: \[1.0, 2.0\]"):
        Weighted([1.0, 2.0])(*example(3))
