"""First the backbone, then all answers together."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from anytime.model import AnytimeModel
from anytime.training.regimes.base import Regime, TrainingModule, answer_loss


class Mixed(Regime):
    """First the backbone, by only the last answer at its contract cost; then all answers together.

    Each phase runs through the whole schedule, the second with a new optimizer state; objectives that count or learn start in
    the second. The loss of the first is the objective's loss of one answer (cross-entropy if it has none).

    Args:
        backbone_epochs: Epochs of the first phase; the rest of the training is the second.

    Raises:
        ValueError: One of the phases has no epochs.

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

    def objective_epochs(self, epochs: int) -> int:
        return epochs - self.backbone_epochs

    def before_step(self, module: TrainingModule) -> None:
        if module.global_step == self.backbone_epochs * module.steps_per_epoch:
            for optimizer in module.trainer.optimizers:
                optimizer.state.clear()

    def loss(self, module: TrainingModule, images: Tensor, target: Tensor) -> Tensor:
        if module.current_epoch >= self.backbone_epochs:
            return super().loss(module, images, target)
        return answer_loss(module.objective, module(images, step=module.model.num_steps), target)
