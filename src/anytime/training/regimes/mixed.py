"""First the backbone, then all answers together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from anytime.model import AnytimeModel
from anytime.training.regimes.base import Regime, answer_loss

if TYPE_CHECKING:
    from anytime.training.module import AnytimeModule


class Mixed(Regime):
    """First the backbone, by the last answer alone at its contract cost; then all answers together.

    Each phase runs through the whole schedule, the second with a new optimizer state; objectives that count or learn start
    with it. The loss of the first is that of the objective for one answer (cross-entropy, if it has none).

    Args:
        backbone_epochs: Epochs of the first phase; the rest of the training is the second.

    Raises:
        ValueError: No epochs for one of the phases.

    Source: Kubaty et al. 2024 (Joint or disjoint: mixing training regimes for early-exit models).
    """

    partial = True

    def __init__(self, backbone_epochs: int) -> None:
        if backbone_epochs < 1:
            raise ValueError(f"backbone_epochs must be at least 1, got {backbone_epochs!r}")
        self.backbone_epochs = backbone_epochs

    def check(self, model: AnytimeModel, epochs: int) -> None:
        if self.backbone_epochs >= epochs:
            raise ValueError(f"backbone_epochs must be below epochs={epochs}, got {self.backbone_epochs}")

    def phases(self, epochs: int) -> Sequence[int]:
        return [self.backbone_epochs, epochs - self.backbone_epochs]

    def before_step(self, module: AnytimeModule) -> None:
        if module.global_step == self.backbone_epochs * module.trainer.num_training_batches:
            for optimizer in module.trainer.optimizers:
                optimizer.state.clear()

    def loss(self, module: AnytimeModule, images: Tensor, target: Tensor) -> Tensor:
        if module.current_epoch >= self.backbone_epochs:
            return super().loss(module, images, target)
        return answer_loss(module.objective, module(images, step=module.model.num_steps), target)
