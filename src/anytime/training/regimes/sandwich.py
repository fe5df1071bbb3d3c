"""The sandwich rule of slimmable networks."""

from __future__ import annotations

import random

from torch import Tensor
from torch.nn import functional as F

from anytime.model import AnytimeModel
from anytime.objectives.weighted import StepObjective
from anytime.training.regimes.base import Regime, TrainingModule, answer_loss


class Sandwich(Regime):
    """In each step the largest sub-network learns from the labels, the smallest and some random ones learn from the largest.

    L = CE(logits_T, target) + sum_k CE(logits_k, softmax(logits_T) without gradient), k = 1 and `samples` of 2..T - 1 without
    repetition, a function of the seed and the step. With several label levels, CE is the sum over levels, weighted by the
    objective's `level_weights`. Each answer is computed by itself, `model(x, step=k)`: for models whose
    sub-networks share weights but not features (`iresnext`) this is cheaper than all T of them. The loss of the largest is
    the objective's loss of one answer.

    Args:
        samples: Random sub-networks per step, besides the smallest and the largest.
        seed: Seed of their choice.

    Raises:
        ValueError: The model has fewer than two answers, or fewer than `samples` between the first and the last.

    Source: Yu, Huang, ICCV 2019 (universally slimmable networks), with 2 samples.
    """

    partial = True

    def __init__(self, samples: int = 2, seed: int = 0) -> None:
        if samples < 0:
            raise ValueError(f"samples must be at least 0, got {samples!r}")
        self.samples, self.seed = samples, seed

    def check(self, model: AnytimeModel, epochs: int) -> None:
        between = model.num_steps - 2
        if between < 0:
            raise ValueError(f"Sandwich needs a model of at least 2 answers, got {model.num_steps}")
        if self.samples > between:
            raise ValueError(f"samples must be at most {between} for a model of {model.num_steps} answers, got {self.samples}")

    def chosen(self, number: int, steps: int) -> list[int]:
        """The sub-networks that learn from the largest in training step `number`, rising; the first is 1."""
        between = range(2, steps)
        return [1, *sorted(random.Random(f"{self.seed} {number}").sample(between, self.samples))]

    def loss(self, module: TrainingModule, images: Tensor, target: Tensor) -> Tensor:
        largest = module.model.num_steps
        logits = module(images, step=largest)
        loss = answer_loss(module.objective, logits, target)
        levels = module.model.levels
        teacher = [level.softmax(1) for level in logits.detach().split(levels, 1)]
        given = module.objective.level_weights if isinstance(module.objective, StepObjective) else None
        weights = given or [1.0] * len(levels)
        for step in self.chosen(module.global_step, largest):
            student = module(images, step=step).split(levels, 1)
            loss = loss + sum(v * F.cross_entropy(z, p) for v, z, p in zip(weights, student, teacher, strict=True))
        return loss
