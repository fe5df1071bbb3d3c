"""AdaLoss against its specified numbers and against running means computed by hand."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from anytime.objectives import AdaLoss, Weighted
from anytime.training.config import find, parse

LABELS = torch.zeros(1, dtype=torch.int64)


def given_losses(logits: Tensor, target: Tensor) -> Tensor:
    """The loss is the answer itself."""
    return logits[:, 0, 0]


def weights_of(objective: Any, losses: Tensor) -> Tensor:
    """dL/dl, the weights in this call."""
    answers = losses[:, None, None].clone().requires_grad_()
    objective(answers, LABELS).backward()
    assert answers.grad is not None
    return answers.grad[:, 0, 0]


@pytest.mark.parametrize(("extra", "expected"), [(0.0, (0.3025, 0.535, 1.0)), (1.0, (0.18625, 0.3025, 1.0))])
def test_constant_losses(extra: float, expected: tuple[float, ...]) -> None:
    objective = AdaLoss(gamma=0.07, final_extra=extra, update_every=100, loss=given_losses)
    losses = torch.tensor([2.0, 1.0, 0.5], dtype=torch.float64)
    for _ in range(100):
        assert weights_of(objective, losses).tolist() == [1, 1, 1], "every weight is 1 until the first update"
    for _ in range(100):
        assert weights_of(objective, losses).tolist() == pytest.approx(expected, abs=1e-7)


def test_running_average_by_hand() -> None:
    objective = AdaLoss(gamma=0.1, momentum=0.8, update_every=3, final_extra=0.5, loss=given_losses)
    generator = torch.Generator().manual_seed(0)
    m, w = None, torch.ones(4, dtype=torch.float64)
    for step in range(1, 13):
        losses = torch.rand(4, generator=generator, dtype=torch.float64) + 0.1
        torch.testing.assert_close(weights_of(objective, losses), w, rtol=0, atol=1e-12)
        m = losses if m is None else 0.8 * m + 0.2 * losses
        if step % 3 == 0:
            w = 1 / m + 1e-8
            w = w / w.max()
            w[3] += 0.5
            w = 0.9 * w / w.max() + 0.1


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=8), st.floats(0, 1), st.floats(0, 2))
def test_weights_lie_between_gamma_and_one(losses: list[float], gamma: float, extra: float) -> None:
    objective = AdaLoss(gamma=gamma, final_extra=extra, update_every=1, loss=given_losses)
    objective(torch.tensor(losses)[:, None, None], LABELS)
    assert objective.weights is not None
    assert objective.weights.max().item() == pytest.approx(1)
    assert objective.weights.min().item() >= gamma - 1e-6


@pytest.mark.parametrize(("how", "scale"), [("none", 1.0), ("sum", 7.0), ("last", 4.0)])
def test_normalization_scales_only_the_loss(how: Any, scale: float) -> None:
    objective = AdaLoss(normalize=how, loss=given_losses).eval()
    objective.weights = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
    expected = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64) / scale
    torch.testing.assert_close(weights_of(objective, torch.tensor([0.5, 0.25, 1.0], dtype=torch.float64)), expected)
    assert objective.weights.tolist() == [1, 2, 4]


def test_evaluation_uses_weights_and_changes_nothing() -> None:
    objective = AdaLoss(update_every=1, loss=given_losses)
    weights_of(objective, torch.tensor([2.0, 1.0]))
    objective.eval()
    state = objective.get_extra_state()
    weights = weights_of(objective, torch.tensor([5.0, 1.0]))
    assert weights.tolist() == pytest.approx([0.535, 1])
    assert objective.get_extra_state() == state
    assert AdaLoss(loss=given_losses).eval()(torch.ones(3, 1, 1), LABELS) == 3


@pytest.mark.parametrize("stop", [0, 1, 5, 6])
def test_resumed_training_is_the_same(stop: int) -> None:
    whole, first, second = (AdaLoss(update_every=3, loss=given_losses) for _ in range(3))
    losses = [torch.rand(4, generator=torch.Generator().manual_seed(step)) for step in range(12)]
    expected = [weights_of(whole, each) for each in losses]
    for each in losses[:stop]:
        weights_of(first, each)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second.load_state_dict(torch.load(file, weights_only=True))
    for each, weights in zip(losses[stop:], expected[stop:], strict=True):
        assert torch.equal(weights_of(second, each), weights)


def test_cross_entropy_by_default() -> None:
    torch.manual_seed(0)
    logits, target = torch.randn(3, 4, 5, dtype=torch.float64), torch.arange(4)
    for smoothing in (0.0, 0.1):
        expected = Weighted("constant", smoothing)(logits, target)
        assert torch.equal(AdaLoss(label_smoothing=smoothing)(logits, target), expected)


def test_gradient_is_that_of_the_sum_of_log_losses() -> None:
    """Up to one factor, with the weights of this batch (momentum 0, gamma 0)."""
    objective = AdaLoss(gamma=0, momentum=0, update_every=1, loss=given_losses)
    losses = torch.tensor([2.0, 1.0, 0.25], dtype=torch.float64)
    weights_of(objective, losses)
    x = losses.clone().requires_grad_()
    x.log().sum().backward()
    torch.testing.assert_close(weights_of(objective, losses), x.grad / x.grad.max(), rtol=0, atol=1e-7)


def test_on_the_command_line() -> None:
    flags = ["--model", "anytimenet", "--data", "digits", "--objective", "AdaLoss", "--objective.final_extra", "1"]
    config = parse([*flags, "--objective.loss", "anytime.objectives.step_losses"])["objective"]
    objective: Any = find("objective", config["class_path"])(**config["init_args"])
    assert type(objective) is AdaLoss
    assert objective.final_extra == 1.0
    assert parse([*flags[:4], "--objective", "ada_loss"])["objective"]["class_path"] == config["class_path"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"gamma": 1.1}, r"gamma must lie in \[0, 1\], got 1.1"),
        ({"momentum": 1.0}, r"momentum must lie in \[0, 1\), got 1.0"),
        ({"final_extra": -1.0}, r"final_extra must lie in \[0, inf\), got -1.0"),
        ({"normalize": "all"}, "normalize must be 'none', 'sum' or 'last', got 'all'"),
        ({"update_every": 0}, "update_every must be at least 1 step, got 0"),
        ({"label_smoothing": 1.0}, r"label_smoothing must lie in \[0, 1\), got 1.0"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AdaLoss(**arguments)


def test_another_number_of_answers() -> None:
    objective = AdaLoss(loss=given_losses)
    objective(torch.ones(3, 1, 1), LABELS)
    with pytest.raises(ValueError, match="this objective has learned from 3 answers, got 2"):
        objective(torch.ones(2, 1, 1), LABELS)
