"""What a training step computes: the hooks of a regime, what it sees of the training, and joint training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import lightning as L
from torch import Tensor

from anytime.data import ImageData
from anytime.model import AnytimeModel
from anytime.objectives.weighted import Objective, StepObjective, step_losses


class TrainingModule(Protocol):
    """What a regime sees of the Lightning module; calling it on images computes answers by the regime's `forward`."""

    model: AnytimeModel
    objective: Objective

    @property
    def global_step(self) -> int: ...

    @property
    def current_epoch(self) -> int: ...

    @property
    def steps_per_epoch(self) -> int: ...

    @property
    def trainer(self) -> L.Trainer: ...

    def to_memory_format(self, images: Tensor) -> Tensor: ...

    def __call__(self, images: Any, **arguments: Any) -> Tensor: ...


class Regime:
    """How a model is trained, whatever the model and the objective. This base is joint training.

    To define a custom regime, subclass `Regime`, override the hooks you need and refer to it by import path. If it is also an
    `nn.Module`, checkpoints include its parameters. Randomness and counters must depend only on `module.global_step`, so that
    training can resume at any step.

    Attributes:
        partial: Whether some steps leave trained parameters without a gradient; distributed training must know this.
    """

    partial = False

    def check(self, model: AnytimeModel, epochs: int) -> None:
        """Raises ValueError if the regime cannot train this model in this number of epochs."""

    def check_objective(self, objective: Objective) -> None:
        """Raises ValueError if the regime cannot train with this objective."""

    def prepare(self, model: AnytimeModel) -> None:
        """Freezes untrained parts; called once, before the optimizer is created."""

    def phases(self, epochs: int) -> Sequence[int]:
        """Epochs of each phase of the training, `epochs` together; each runs through the schedule."""
        return [epochs]

    def objective_epochs(self, epochs: int) -> int:
        """Epochs, of `epochs` in all, in which `loss` calls the objective; see `Objective.set_length`."""
        return epochs

    def forward(self, model: AnytimeModel) -> Callable[..., Tensor]:
        """The function that computes answers in training; `torch.compile` compiles it."""
        return model

    def data(self, module: TrainingModule, data: ImageData) -> L.LightningDataModule:
        """The source of the batches."""
        return data

    def before_step(self, module: TrainingModule) -> None:
        """Called before each training step."""

    def loss(self, module: TrainingModule, images: Any, target: Tensor) -> Tensor:
        """The loss of one batch; `module(images)` gives all answers, `module(images, step=t)` only one."""
        return module.objective(module(images), target)

    def release(self, model: AnytimeModel) -> None:
        """Undoes `prepare`; called after the training."""


class Joint(Regime):
    """All answers together: loss = objective(all answers), with gradients to all parameters."""


def answer_loss(objective: Objective, logits: Tensor, target: Tensor) -> Tensor:
    """The loss of one answer `[B, K]` by itself: the step loss of a `StepObjective`, else cross-entropy."""
    losses = objective.losses if isinstance(objective, StepObjective) else step_losses
    return losses(logits[None], target)[0]
