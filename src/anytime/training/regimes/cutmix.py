"""Images with a rectangle of another image in them, and the labels of both."""

from __future__ import annotations

import math
import random
from typing import NamedTuple

from torch import Tensor, nn

from anytime.model import AnytimeModel
from anytime.objectives import Objective
from anytime.objectives.weighting import check_interval
from anytime.training.regimes.base import Regime, TrainingModule


class Box(NamedTuple):
    """Rows and columns of a rectangle, the last ones not included."""

    top: int
    bottom: int
    left: int
    right: int


class CutMix(Regime):
    """Joint training on images in which a rectangle comes from another image of the batch.

    L = m objective(logits, y) + (1 - m) objective(logits, y'), y' the labels of the other images and m the share of an image's
    own pixels. The rectangle has sqrt(1 - l) of the image's height and width, l from Beta(alpha, alpha); its centre is
    uniform over the pixels, and what lies outside of the image is cut off. All images of an optimizer step have the same
    rectangle, a function of the seed and the step. The other image is the one before it in the batch of its process, in which
    the order is random.

    Args:
        probability: Of a step with such images, in (0, 1]; the other steps are joint training.
        alpha: Of the Beta distribution, in [0.01, 1e6]; 1 is uniform.
        seed: Seed of the rectangles.

    Raises:
        ValueError: The probability or alpha is out of range, the model is no classifier, a batch has a single image, or the
            objective has a state of its own: it learns or counts, and would do so twice in a step.

    Source: Yun et al., ICCV 2019 (CutMix), with probability 0.5 and alpha 1 on CIFAR.
    """

    def __init__(self, probability: float = 0.5, alpha: float = 1.0, seed: int = 0) -> None:
        check_interval("probability", probability, "(0, 1]")
        check_interval("alpha", alpha, "[0.01, 1e6]")
        self.probability, self.alpha, self.seed = probability, alpha, seed

    def check(self, model: AnytimeModel, epochs: int) -> None:
        if model.info.task != "classification":
            raise ValueError(f"CutMix mixes labels of classes, but this is a model for {model.info.task}")

    def check_objective(self, objective: Objective) -> None:
        saves = type(objective).get_extra_state is not nn.Module.get_extra_state
        if saves or any(True for _ in objective.buffers(recurse=False)):
            name = type(objective).__name__
            raise ValueError(f"CutMix calls its objective twice in a step, but {name} learns from its calls or counts them")

    def box(self, step: int, height: int, width: int) -> Box | None:
        """The rectangle of an optimizer step in images of this size, or None: this step has unmixed images."""
        choice = random.Random(f"{self.seed} {step}")
        if choice.random() >= self.probability:
            return None
        side = math.sqrt(1 - choice.betavariate(self.alpha, self.alpha))
        tall, wide = int(height * side), int(width * side)
        top, left = choice.randrange(height) - tall // 2, choice.randrange(width) - wide // 2
        return Box(max(top, 0), min(top + tall, height), max(left, 0), min(left + wide, width))

    def loss(self, module: TrainingModule, images: Tensor, target: Tensor) -> Tensor:
        if len(images) < 2:
            raise ValueError("CutMix needs at least 2 images in a batch, got 1")
        height, width = images.shape[2:]
        if (box := self.box(module.global_step, height, width)) is None:
            return super().loss(module, images, target)
        rows, columns = slice(box.top, box.bottom), slice(box.left, box.right)
        mixed = images.clone()
        mixed[..., rows, columns] = images[..., rows, columns].roll(1, 0)
        own = 1 - (box.bottom - box.top) * (box.right - box.left) / (height * width)
        logits = module(mixed)
        return own * module.objective(logits, target) + (1 - own) * module.objective(logits, target.roll(1, 0))
