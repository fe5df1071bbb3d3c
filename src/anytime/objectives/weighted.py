"""Objectives: from logits `[T, B, K]` and labels to one number; they know nothing of architectures."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anytime.objectives.weighting import SCHEMES
from anytime.registry import nearest


def step_losses(logits: Tensor, target: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy of each answer, `[T]`, from logits `[T, B, K]` and labels `[B]` of one level."""
    steps, batch, classes = logits.shape
    if target.shape != (batch,):
        raise ValueError(f"labels must be [{batch}], one per image, got {list(target.shape)}; choose one level of labels")
    each = F.cross_entropy(
        logits.reshape(-1, classes), target.repeat(steps), reduction="none", label_smoothing=label_smoothing
    )
    return each.view(steps, batch).mean(1)


class Objective(nn.Module):
    """`objective(logits [T, B, K], target) -> loss`. A module, so that what it learns is saved in checkpoints."""

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        raise NotImplementedError


class Weighted(Objective):
    """L = sum_t w_t CE(logits_t, target): every answer is trained, with fixed weights (Kim 2020, eq. 3).

    Args:
        weights: Name of a scheme in `anytime.objectives.weighting`, or one weight per answer.
        label_smoothing: Share of the target spread over all classes, in [0, 1).

    Raises:
        ValueError: Unknown scheme, weights that are negative or all zero, or (when called) not one for each answer.
    """

    def __init__(self, weights: str | Sequence[float] = "inverse_square", label_smoothing: float = 0.0) -> None:
        super().__init__()
        if isinstance(weights, str):
            if weights not in SCHEMES:
                raise ValueError(f"unknown weights {weights!r}{nearest(weights, SCHEMES)}")
        elif not weights or min(weights) < 0 or max(weights) == 0:
            raise ValueError(f"weights must be at least 0 and not all 0, got {weights!r}")
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing must lie in [0, 1), got {label_smoothing!r}")
        self.weights, self.label_smoothing = weights, label_smoothing

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        steps = logits.shape[0]
        weights = SCHEMES[self.weights](steps) if isinstance(self.weights, str) else list(self.weights)
        if len(weights) != steps:
            raise ValueError(f"{len(weights)} weights for {steps} answers: {weights}")
        losses = step_losses(logits, target, self.label_smoothing)
        return torch.dot(losses, losses.new_tensor(weights))
