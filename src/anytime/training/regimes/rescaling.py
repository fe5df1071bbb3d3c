"""Gradient equilibrium."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from anytime.model import AnytimeModel, State, map_state
from anytime.training.regimes.base import Regime
from anytime.training.regimes.freezing import find_heads


class GradientRescaling(Regime):
    """Gradient equilibrium: step t's parameters learn from the mean, not the sum, of the losses of answers t to T.

    The gradient through the answer of step t is scaled by 1 / (T - t + 1), the one through the state after it by
    (T - t) / (T - t + 1). So loss j >= t reaches step t with the factor 1 / (T - t + 1), and the gradient does not grow with
    the number of answers that follow. The heads' own gradients are not scaled. Answers do not change; they are computed step
    by step, even if the model has a faster schedule.

    Raises:
        ValueError: No heads are found.

    Source: Li et al., ICCV 2019 (improved techniques for training adaptive deep networks). Its published code rescales only
    the one of several maps in the state that the heads read; here the whole state is rescaled.
    """

    def check(self, model: AnytimeModel, epochs: int) -> None:
        find_heads(model)

    def forward(self, model: AnytimeModel) -> Callable[..., Tensor]:
        names = [f"{head}.{name}" for head, module in find_heads(model).items() for name, _ in module.named_parameters()]
        return functools.partial(rescaled_answers, OneStep(model), names)


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.factor, None


def scale_gradient(x: Tensor, factor: float) -> Tensor:
    """x; its gradient is `factor` times as large."""
    return _ScaleGradient.apply(x, factor) if x.requires_grad and factor != 1 else x


class OneStep(nn.Module):
    """A model whose forward is one step, for `functional_call`."""

    def __init__(self, model: AnytimeModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, state: State) -> tuple[Tensor, State]:
        return self.model.step(state)


def rescaled_answers(step: OneStep, head_parameters: Sequence[str], images: Tensor) -> Tensor:
    """All answers `[T, B, K]`, with the gradients of `GradientRescaling`; the heads' parameters by name in the model."""
    model, answers = step.model, []
    state = model.initial_state(images)
    for left in range(model.num_steps, 0, -1):  # T - t + 1, this answer included
        own = {f"model.{name}": scale_gradient(model.get_parameter(name), left) for name in head_parameters}
        logits, state = functional_call(step, own, (state,))
        answers.append(scale_gradient(logits, 1 / left))
        state = map_state(functools.partial(scale_gradient, factor=(left - 1) / left), state)
    return torch.stack(answers)
