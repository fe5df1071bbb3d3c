"""AdaLoss: the weight of each answer is the inverse of its recent loss (Hu, Dey, Hebert, Bagnell, AAAI 2019)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from anytime.objectives.weighted import TINY, StepLoss, StepObjective, process_mean
from anytime.objectives.weighting import Normalization, check_interval, normalized


class AdaLoss(StepObjective):
    """L = sum_t w_t l_t with w_t proportional to 1 / m_t, m_t the running mean of l_t: minimises the geometric mean of losses.

    m <- momentum m + (1 - momentum) l in every training step, starting from the first loss. After every `update_every`
    steps, in this order: w = 1 / m + 1e-8; w <- w / max w; w_T <- w_T + final_extra; w <- w / max w; w <- (1 - gamma) w +
    gamma. So each weight lies in [gamma, 1] and the largest is 1. Before the first update all are 1; eval mode does not
    change them. Source: the authors' published code; the gradient is that of sum_t log E l_t.

    Args:
        gamma: Smallest weight, in [0, 1].
        momentum: Momentum of the running mean, in [0, 1).
        final_extra: Added to the weight of the last answer when the largest is 1; at least 0 (1 in the code's scripts).
        update_every: Training steps between updates of the weights, at least 1; 100 in the published code, which so gives
            all answers the weight 1 in a training of fewer steps.
        label_smoothing: Share of the target spread over all classes, in [0, 1).
        loss: Replaces cross-entropy: a function `(logits [T, B, ...], target) -> [T]`, or its import path.
        normalize: Scale of w in the loss: "none" as it is, "sum" to 1, or "last" weight 1.

    Attributes:
        weights: w `[T]`; None before the first call.
        answer_weights: The same at the scale `normalize`.

    Raises:
        ValueError: An argument is out of range, or (when called) the number of answers has changed.
    """

    def __init__(
        self,
        gamma: float = 0.07,
        momentum: float = 0.9,
        final_extra: float = 0.0,
        update_every: int = 1,
        label_smoothing: float = 0.0,
        loss: str | StepLoss | None = None,
        normalize: Normalization = "none",
    ) -> None:
        super().__init__(label_smoothing, loss)
        normalized([1.0], normalize)  # raises ValueError if the scale is unknown
        check_interval("gamma", gamma, "[0, 1]")
        check_interval("momentum", momentum, "[0, 1)")
        check_interval("final_extra", final_extra, "[0, inf)")
        if update_every < 1:
            raise ValueError(f"update_every must be at least 1 step, got {update_every!r}")
        self.gamma, self.momentum, self.final_extra = gamma, momentum, final_extra
        self.update_every, self.normalize = update_every, normalize
        self.steps = 0  # training steps so far
        self.means: Tensor | None = None
        self.weights: Tensor | None = None
        self.answer_weights = None

    def get_extra_state(self) -> dict[str, Any]:
        return {"steps": self.steps, "means": self.means, "weights": self.weights}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.steps, self.means, self.weights = state["steps"], state["means"], state["weights"]

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        losses = self.losses(logits, target)
        weights = torch.ones_like(losses) if self.weights is None else self.weights.to(losses.detach())
        if len(weights) != len(losses):
            raise ValueError(f"this objective has learned from {len(weights)} answers, got {len(losses)}")
        self.weights = weights
        loss = torch.dot(losses, self._scaled(weights))
        if self.training:
            self._learn(process_mean(losses))
        self.answer_weights = self._scaled(self.weights)
        return loss

    def _scaled(self, weights: Tensor) -> Tensor:
        return weights / {"none": torch.ones_like(weights[0]), "sum": weights.sum(), "last": weights[-1]}[self.normalize]

    def _learn(self, losses: Tensor) -> None:
        if self.means is not None:
            losses = self.momentum * self.means.to(losses) + (1 - self.momentum) * losses
        self.means = losses
        self.steps += 1
        if self.steps % self.update_every == 0:
            w = 1 / self.means.clamp(min=TINY) + 1e-8
            w = w / w.max()
            w[-1] += self.final_extra
            self.weights = (1 - self.gamma) * (w / w.max()) + self.gamma
