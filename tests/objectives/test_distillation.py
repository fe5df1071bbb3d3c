"""Self-distillation from the last answer or the mean: the formula by hand, gradients, edge cases."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from anytime.objectives import SelfDistillation, Weighted, step_losses

TARGET = torch.tensor([0, 2, 1])


def logits(steps: int = 4) -> Tensor:
    return torch.randn(steps, 3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()


def test_by_hand() -> None:
    """Two classes, tau = 2: teacher (3/4, 1/4) from logits (2 ln 3, 0), student (1/2, 1/2) from (0, 0)."""
    answers = torch.tensor([[[0.0, 0.0]], [[2 * math.log(3), 0.0]]], dtype=torch.float64)
    divergence = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    early = 0.7 * math.log(2) + 0.3 * 4 * divergence
    last = math.log(1 + 1 / 9)
    objective = SelfDistillation(alpha=0.3, temperature=2.0)
    target = torch.tensor([0])
    assert objective.losses(answers, target).tolist() == pytest.approx([early, last], abs=1e-15)
    assert objective(answers, target).item() == pytest.approx(early + last, abs=1e-15)
    weighted = SelfDistillation(alpha=0.3, temperature=2.0, weights=[2.0, 3.0])
    assert weighted(answers, target).item() == pytest.approx(2 * early + 3 * last, abs=1e-14)


@given(st.floats(0.01, 1), st.floats(0.2, 10))
def test_the_gradient_of_an_early_answer(alpha: float, tau: float) -> None:
    """d/dz of (1 - a) CE + a tau^2 KL(p || softmax(z / tau)) is (1 - a) (q - y) + a tau (softmax(z / tau) - p)."""
    z = logits()
    (found,) = torch.autograd.grad(SelfDistillation(alpha, tau)(z, TARGET), z)
    z = z.detach()
    wrong = z.softmax(-1) - torch.nn.functional.one_hot(TARGET, 5)
    soft = (z / tau).softmax(-1)
    expected = (1 - alpha) * wrong + alpha * tau * (soft - soft[-1])
    expected[-1] = wrong[-1]  # the teacher learns only from the labels
    assert torch.allclose(found, expected / 3, atol=1e-12, rtol=0)


@given(st.floats(0.01, 1), st.floats(0.2, 10))
def test_the_mean_as_the_teacher(alpha: float, tau: float) -> None:
    """Every answer learns from the softmax of the mean of all logits, which gets no gradient."""
    z = logits()
    objective = SelfDistillation(alpha, tau, weights=[1.0, 2.0, 3.0, 4.0], teacher="mean")
    (found,) = torch.autograd.grad(objective(z, TARGET), z)
    z = z.detach()
    log_q, log_p = (z.mean(0) / tau).log_softmax(-1), (z / tau).log_softmax(-1)
    divergences = (log_q.exp() * (log_q - log_p)).sum(-1).mean(1)
    expected = (1 - alpha) * step_losses(z, TARGET) + alpha * tau**2 * divergences
    assert torch.allclose(objective.losses(z, TARGET), expected, atol=1e-12, rtol=1e-12)
    wrong = z.softmax(-1) - torch.nn.functional.one_hot(TARGET, 5)
    gradient = (1 - alpha) * wrong + alpha * tau * (log_p.exp() - log_q.exp())
    assert torch.allclose(found, torch.arange(1.0, 5)[:, None, None] * gradient / 3, atol=1e-12, rtol=0)


def test_edges() -> None:
    z = logits()
    single = SelfDistillation(0.7, teacher="mean")
    assert torch.equal(single.losses(z[:1], TARGET), step_losses(z[:1], TARGET))
    assert torch.equal(SelfDistillation(0.0, weights="sieve")(z, TARGET), Weighted("sieve")(z, TARGET))
    assert torch.equal(SelfDistillation(0.7).losses(z[:1], TARGET), step_losses(z[:1], TARGET))  # one answer has no teacher
    alike = z[-1:].expand(4, 3, 5)
    assert torch.allclose(SelfDistillation(1.0).losses(alike, TARGET)[:-1], torch.zeros(3, dtype=torch.float64), atol=1e-15)
    assert SelfDistillation().losses(z.half(), TARGET).dtype == torch.float32


def test_label_levels_are_distributions_of_their_own() -> None:
    """Levels of 3 and 2 classes: the losses are sums over the levels, and a shift of one level's logits changes nothing."""
    z, target = logits().detach(), torch.tensor([[0, 1], [2, 0], [1, 1]])
    objective = SelfDistillation(alpha=0.3, temperature=2.0)
    objective.set_levels((3, 2))
    parts = [SelfDistillation(0.3, 2.0).losses(level, y) for level, y in zip(z.split((3, 2), 2), target.T, strict=True)]
    assert objective.losses(z, target).tolist() == pytest.approx((parts[0] + parts[1]).tolist(), abs=1e-14)
    shifted = z + torch.tensor([5.0, 5, 5, 0, 0])
    assert objective(shifted, target).item() == pytest.approx(objective(z, target).item(), abs=1e-12)
    given = SelfDistillation(alpha=0.3, loss=lambda answers, _: answers.mean((1, 2)))
    given.set_levels((3, 1))
    with pytest.raises(ValueError, match=r"the label levels \(3, 1\) need 4 logits, got 5"):
        given(z, target)


def test_two_label_levels_by_hand() -> None:
    """Teachers (3/4, 1/4) and (1/2, 1/2), a student of (1/2, 1/2) and (1/4, 3/4); alpha = 1."""
    ln3 = math.log(3)
    answers = torch.tensor([[[0.0, 0, 0, ln3]], [[ln3, 0, 0, 0]]], dtype=torch.float64)
    objective = SelfDistillation(alpha=1.0)
    objective.set_levels((2, 2))
    first = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    second = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert objective.losses(answers, torch.tensor([[0, 0]]))[0].item() == pytest.approx(first + second, abs=1e-15)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"alpha": -0.1}, r"alpha must lie in \[0, 1\], got -0.1"),
        ({"alpha": 1.1}, r"alpha must lie in \[0, 1\], got 1.1"),
        ({"temperature": 0}, r"temperature must lie in \(0, inf\), got 0"),
        ({"temperature": math.inf}, r"temperature must lie in \(0, inf\), got inf"),
        ({"weights": "constnt"}, "did you mean 'constant'"),
    ],
)
def test_wrong_arguments(wrong: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SelfDistillation(**wrong)
