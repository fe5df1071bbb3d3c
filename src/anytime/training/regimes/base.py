"""What a training step computes: the hooks of a regime, and joint training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import lightning as L
from torch import Tensor

from anytime.data import ImageData
from anytime.model import AnytimeModel
from anytime.objectives.weighted import Objective, StepObjective, step_losses

if TYPE_CHECKING:
    from anytime.training.module import AnytimeModule


class Regime:
    """How a model is trained, whatever the model and the objective. This base is joint training.

    A regime of one's own overrides what it needs and is named by import path. If it is an `nn.Module`, too, what it learns is
    saved in checkpoints. What it draws or counts must be a function of `module.global_step`, so that a training can stop and
    go on anywhere.

    Attributes:
        partial: Whether some steps leave trained parameters without a gradient, which several processes must know.
    """

    partial = False

    def check(self, model: AnytimeModel, epochs: int) -> None:
        """Refuses, with a ValueError, a model or a number of epochs that it cannot train."""

    def prepare(self, model: AnytimeModel) -> None:
        """Freezes what is not trained; called once, before the optimizer is made."""

    def phases(self, epochs: int) -> Sequence[int]:
        """Epochs of each phase of the training, `epochs` together; each runs through the schedule."""
        return [epochs]

    def forward(self, model: AnytimeModel) -> Callable[..., Tensor]:
        """What computes answers in training; `torch.compile` compiles it."""
        return model

    def data(self, module: AnytimeModule, data: ImageData) -> L.LightningDataModule:
        """Where the batches come from."""
        return data

    def before_step(self, module: AnytimeModule) -> None:
        """Called before each training step."""

    def loss(self, module: AnytimeModule, images: Any, target: Tensor) -> Tensor:
        """The loss of one batch; `module(images)` are the answers, `module(images, step=t)` is one of them."""
        return module.objective(module(images), target)

    def release(self, model: AnytimeModel) -> None:
        """Undoes `prepare`; called after the training."""


class Joint(Regime):
    """All answers together: objective(all answers), and gradients go everywhere."""


def answer_loss(objective: Objective, logits: Tensor, target: Tensor) -> Tensor:
    """The loss of one answer `[B, K]` as if it were the only one: of an objective made of step losses, else cross-entropy."""
    losses = objective.losses if isinstance(objective, StepObjective) else step_losses
    return losses(logits[None], target)[0]
