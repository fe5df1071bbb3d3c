"""What a training step computes, under any objective: all answers together, heads alone, some of them, other gradients."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

import lightning as L
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from anytime.data import ImageData
from anytime.model import AnytimeModel, State, map_state
from anytime.objectives.weighted import Objective, StepObjective, step_losses
from anytime.training.features import CachedFeatures, Precision, Trunk, keeps_features
from anytime.training.heads import find_heads, freeze_trunk, require_frozen

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


class HeadsOnly(Regime):
    """Only the heads learn. The trunk is in eval mode: it keeps its weights and batch-norm statistics, its dropout is off.

    So the features of an image are always the same. Of models with `trunk_features` and `head_answers` (`attach`) they
    are computed once and kept in memory where they fit, as one or several views of each image: view 0 is the image as it is,
    view v > 0 is augmented as in epoch v; epoch e trains on view e mod `views`. Without the cache each epoch has its own
    augmentation, and costs a forward pass of the trunk. Validation images always pass the whole model.

    Args:
        cache: Number format of the features kept: "float16", "bfloat16", "float32"; "auto": float16 if they fit, else none;
            "none".
        views: How many views of each training image are kept.
        memory: GiB that the features may take.

    Raises:
        ValueError: A model without heads or whose heads are not found, features that do not fit (the message says their size)
            or are no finite numbers in this format, a trunk that is put into train mode.
    """

    def __init__(
        self, cache: Literal["auto", "float16", "bfloat16", "float32", "none"] = "auto", views: int = 1, memory: float = 4.0
    ) -> None:
        formats = ("auto", "none", *get_args(Precision))
        if cache not in formats:
            raise ValueError(f"cache must be one of {', '.join(formats)}, got {cache!r}")
        if views < 1:
            raise ValueError(f"views must be at least 1, got {views!r}")
        if not memory > 0:
            raise ValueError(f"memory must be above 0 GiB, got {memory!r}")
        self.cache, self.views, self.memory = cache, views, memory
        self._trunk: list[nn.Module] = []
        self._frozen: list[nn.Parameter] = []

    def check(self, model: AnytimeModel, epochs: int) -> None:
        find_heads(model)
        if self.cache not in ("auto", "none") and not keeps_features(model):
            raise ValueError(
                f"cache={self.cache!r} needs a model with trunk_features and head_answers, which {type(model).__name__} "
                "has not; use cache='none'"
            )

    def prepare(self, model: AnytimeModel) -> None:
        self._trunk, self._frozen = freeze_trunk(model)

    def release(self, model: AnytimeModel) -> None:
        for parameter in self._frozen:
            parameter.requires_grad_(True)
        self._trunk, self._frozen = [], []

    def forward(self, model: AnytimeModel) -> Callable[..., Tensor]:
        return functools.partial(_frozen_answers, model) if keeps_features(model) else model

    def data(self, module: AnytimeModule, data: ImageData) -> L.LightningDataModule:
        trunk = module.model
        if self.cache == "none" or not keeps_features(trunk):
            return data
        assert isinstance(trunk, Trunk)
        precision: Precision = "float16" if self.cache == "auto" else self.cache
        return CachedFeatures(module, trunk, data, precision, self.views, self.memory, required=self.cache != "auto")

    def loss(self, module: AnytimeModule, images: Any, target: Tensor) -> Tensor:
        require_frozen(self._trunk)
        return super().loss(module, images, target)


def _frozen_answers(model: AnytimeModel, inputs: Tensor | Sequence[Tensor]) -> Tensor:
    """All answers `[T, B, K]` from images, or from features that were kept."""
    assert isinstance(model, Trunk)
    if isinstance(inputs, Tensor):
        with torch.no_grad():
            features = model.trunk_features(inputs)
    else:
        features = [h.to(model.mean.dtype) for h in inputs]
    return model.head_answers(features)


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


def answer_loss(objective: Objective, logits: Tensor, target: Tensor) -> Tensor:
    """The loss of one answer `[B, K]` as if it were the only one: of an objective made of step losses, else cross-entropy."""
    losses = objective.losses if isinstance(objective, StepObjective) else step_losses
    return losses(logits[None], target)[0]


class GradientRescaling(Regime):
    """Gradient equilibrium: what step t computes learns from the mean, not the sum, of the losses of answers t to T.

    The gradient through the answer of step t is scaled by 1 / (T - t + 1), the one through the state after it by
    (T - t) / (T - t + 1). So loss j >= t reaches what step t computes with the factor 1 / (T - t + 1), and the gradient does
    not grow with the number of answers that follow. The heads' own parameters get their gradient unscaled. Answers stay as
    they are; they are computed step by step, even where the model has a faster schedule.

    Raises:
        ValueError: The heads are not found.

    Source: Li et al., ICCV 2019 (improved techniques for training adaptive deep networks). In its published code the state is
    several maps, of which only the one that the heads read is rescaled; here it is all of the state.
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
    """A model whose forward is one step, as `functional_call` needs it."""

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


class Sandwich(Regime):
    """In each step the largest sub-network learns from the labels, the smallest and some random ones learn from the largest.

    L = CE(logits_T, target) + sum_k CE(logits_k, softmax(logits_T) without gradient), k = 1 and `samples` of 2..T - 1 without
    repetition, a function of the seed and the step. Each is computed alone, `model(x, step=k)`: for models whose sub-networks
    share weights but not features (`iresnext`) a cheaper way than all T of them. The loss of the largest is that of the
    objective for one answer.

    Args:
        samples: Random sub-networks a step, besides the smallest and the largest.
        seed: Of their choice.

    Raises:
        ValueError: Fewer than two answers, or more samples than there are answers between the first and the last.

    Source: Yu, Huang, ICCV 2019 (universally slimmable networks); there, 2 samples.
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

    def loss(self, module: AnytimeModule, images: Tensor, target: Tensor) -> Tensor:
        largest = module.model.num_steps
        logits = module(images, step=largest)
        loss = answer_loss(module.objective, logits, target)
        teacher = [level.softmax(1) for level in logits.detach().split(module.model.levels, 1)]
        for step in self.chosen(module.global_step, largest):
            student = module(images, step=step).split(module.model.levels, 1)
            loss = loss + sum(F.cross_entropy(z, p) for z, p in zip(student, teacher, strict=True))
        return loss
