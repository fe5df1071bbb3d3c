"""Objectives map logits `[T, B, K]` and labels to a scalar loss and know nothing of architectures; here: fixed weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anytime.objectives.weighting import Normalization, check_interval, find_scheme, normalized, sdn_ramp
from anytime.support.names import import_object, nearest
from anytime.support.text import quoted

StepLoss = Callable[[Tensor, Tensor], Tensor]  # (logits [T, B, ...], target) -> [T]
LOSSES = ("step_losses", "squared_error", "pixel_cross_entropy")  # functions of this package that are a `loss`
TINY = 1e-12  # keeps quotients of losses finite


def full_precision(x: Tensor) -> Tensor:
    """Converts half precision, which autocast produces, to float32; leaves float32 and float64 unchanged."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def check_labels(target: Tensor, batch: int, classes: int) -> None:
    """Raises ValueError unless the labels are whole numbers `[B]` in 0..K-1.

    The range is checked only on the CPU: elsewhere reading the values would wait for the device.
    """
    if target.shape != (batch,):
        raise ValueError(f"labels must be [{batch}], one per image, got {list(target.shape)}; choose one level of labels")
    if target.is_floating_point():
        raise ValueError(f"labels must be whole numbers (torch.int64), got {target.dtype}")
    if target.device.type == "cpu" and len(target) and not 0 <= int(target.min()) <= int(target.max()) < classes:
        raise ValueError(f"labels must lie in 0..{classes - 1}, got {int(target.min())}..{int(target.max())}")


def require_classes(classes: int, levels: int = 1) -> None:
    """Raises ValueError if no label level has two classes: the softmax is then 1, and no weight gets a gradient."""
    if classes <= levels:
        raise ValueError(
            "cross-entropy needs logits of at least 2 classes, got 1, whose loss is always 0; values need loss=squared_error"
        )


def step_losses(logits: Tensor, target: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy of each answer, `[T]`, from logits `[T, B, K]` and labels `[B]` of one level."""
    if logits.ndim != 3:
        raise ValueError(f"logits must be [T, B, K], got {list(logits.shape)}")
    steps, batch, classes = logits.shape
    check_labels(target, batch, classes)
    each = F.cross_entropy(
        logits.reshape(-1, classes), target.long().repeat(steps), reduction="none", label_smoothing=label_smoothing
    )
    return each.view(steps, batch).mean(1)


def level_losses(
    logits: Tensor,
    target: Tensor,
    levels: Sequence[int] | None,
    weights: Sequence[float] | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """sum_d v_d CE(logits_{t,d}, y_d) over label levels d: one loss per answer, `[T]`.

    Args:
        logits: `[T, B, K_1 + ... + K_D]`, the levels side by side.
        target: `[B, D]`, or `[B]` for one level.
        levels: K_1, ..., K_D; None: all logits belong to one level.
        weights: v, default all 1.
        label_smoothing: Share of the target spread over all classes of a level.

    Raises:
        ValueError: Logits or labels do not fit the levels, the sizes of several levels are unknown, or none has two classes.
    """
    require_classes(logits.shape[-1], len(levels or (1,)))
    columns = target[:, None] if target.ndim == 1 else target
    sizes = (logits.shape[-1],) if levels is None and columns.shape[1] == 1 else levels
    if sizes is None:
        raise ValueError(f"labels have {columns.shape[1]} levels: give the class count of each, Hierarchical(levels=...)")
    if len(sizes) == 1 and target.ndim == 1:
        return step_losses(logits, target, label_smoothing)
    if logits.shape[-1] != sum(sizes) or columns.shape[1] != len(sizes):
        wanted = f"{sum(sizes)} logits and {len(sizes)} labels per image"
        raise ValueError(f"levels {tuple(sizes)} need {wanted}, got {logits.shape[-1]} and {columns.shape[1]}")
    total = logits.new_zeros(len(logits))
    for part, label, weight in zip(logits.split(tuple(sizes), -1), columns.T, weights or [1.0] * len(sizes), strict=True):
        total = total + weight * step_losses(part, label, label_smoothing)
    return total


def process_mean(losses: Tensor) -> Tensor:
    """The losses without gradient, averaged over the processes of a distributed training, so that all learn the same."""
    losses = losses.detach().clone()
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(losses)
        losses /= torch.distributed.get_world_size()
    return losses


class Objective(nn.Module):
    """`objective(logits [T, B, K], target) -> loss`. A module, so that checkpoints hold what it learns.

    Objectives learn and count only in train mode; validation, in eval mode, does not change them.

    Attributes:
        probabilities: Optional: `[T]`, of each answer to be amplified in the next training step; the training logs them.
        answer_weights: Optional: `[T]`, of each answer's loss in the next training step, where they change during the
            training, which logs them.
    """

    probabilities: Tensor | None = None
    answer_weights: Tensor | None = None

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        raise NotImplementedError

    def set_levels(self, levels: Sequence[int]) -> None:
        """Called before training with the number of classes of each label level, for objectives that need it."""

    def set_length(self, epochs: int, epoch_steps: int) -> None:
        """Called before training, and again when it resumes, with its length, for objectives that need it.

        Args:
            epochs: Epochs in which the regime calls the objective; the second phase of `Mixed`, for example.
            epoch_steps: Calls in train mode per epoch, one for each batch, however many are accumulated.
        """

    def check(self, steps: int) -> None:
        """Called before training; raises ValueError if a model with this number of answers does not fit."""


class StepObjective(Objective):
    """An objective built from one loss l_t for each answer.

    Args:
        label_smoothing: Share of the target spread over all classes in the cross-entropy, in [0, 1).
        loss: Replaces cross-entropy: a function `(logits [T, B, ...], target) -> [T]`, or its import path.

    Raises:
        ValueError: label_smoothing is out of range or given together with `loss`; the loss cannot be imported or does not
            return one number for each answer.
    """

    level_weights: Sequence[float] | None = None

    def __init__(self, label_smoothing: float = 0.0, loss: str | StepLoss | None = None) -> None:
        super().__init__()
        check_interval("label_smoothing", label_smoothing, "[0, 1)")
        if label_smoothing and loss is not None:
            raise ValueError(f"label_smoothing={label_smoothing!r} belongs to cross-entropy, not to loss={loss!r}")
        if isinstance(loss, str):
            if loss.startswith("anytime.") and loss.rpartition(".")[2] not in LOSSES:
                raise ValueError(f"loss {quoted(loss)} is none of this library{nearest(loss.rpartition('.')[2], LOSSES)}")
            path, loss = loss, import_object(loss, "loss")
            if not callable(loss):
                raise ValueError(f"loss {path!r} is a {type(loss).__name__}, not a function (logits, target) -> [T]")
        self.label_smoothing, self.loss = label_smoothing, loss
        self.levels: tuple[int, ...] | None = None

    def set_levels(self, levels: Sequence[int]) -> None:
        if self.loss is None:
            require_classes(sum(levels), len(levels))
        self.levels = tuple(levels)

    def losses(self, logits: Tensor, target: Tensor) -> Tensor:
        """One loss per answer, `[T]`, in float32 or better; with several label levels, the (weighted) sum of theirs."""
        logits = full_precision(logits)
        if self.loss is None:
            return level_losses(logits, target, self.levels, self.level_weights, self.label_smoothing)
        losses = self.loss(logits, target)
        if losses.shape != logits.shape[:1]:
            raise ValueError(f"loss must return [{len(logits)}], one number for each answer, got {list(losses.shape)}")
        return losses


class Weighted(StepObjective):
    """L = sum_t w_t CE(logits_t, target): every answer is trained, with fixed weights (Kim 2020, eq. 3; Hu 2017, eq. 2).

    Args:
        weights: A scheme of `anytime.objectives.weighting`, such as "sieve" or "exponential:2", or one weight per answer.
        label_smoothing: Share of the target spread over all classes, in [0, 1).
        normalize: Scale of the weights: "none" as they are, "sum" to 1, or "last" weight 1.
        loss: Replaces cross-entropy: a function `(logits [T, B, ...], target) -> [T]`, or its import path.

    Raises:
        ValueError: The scheme is unknown, weights are negative or all zero, or (when called) not one for each answer.
    """

    def __init__(
        self,
        weights: str | Sequence[float] = "inverse_square",
        label_smoothing: float = 0.0,
        normalize: Normalization = "none",
        loss: str | StepLoss | None = None,
    ) -> None:
        super().__init__(label_smoothing, loss)
        self.weights, self.normalize = weights, normalize
        # Errors in names and weights are raised here, not during training.
        normalized(find_scheme(weights)(1) if isinstance(weights, str) else weights, normalize)

    def step_weights(self, losses: Tensor) -> Tensor:
        """The fixed weights `[T]`, with the dtype and device of the losses `[T]`."""
        weights = find_scheme(self.weights)(len(losses)) if isinstance(self.weights, str) else list(self.weights)
        if len(weights) != len(losses):
            raise ValueError(f"{len(weights)} weights for {len(losses)} answers: {weights}")
        return losses.new_tensor(normalized(weights, self.normalize))

    def check(self, steps: int) -> None:
        self.step_weights(torch.zeros(steps))

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        losses = self.losses(logits, target)
        return torch.dot(losses, self.step_weights(losses))


class Optimal(StepObjective):
    """OPT: L = CE(logits_e, target), the network is trained only for answer e, to be as good there as it can be (Hu 2017).

    Args:
        exit: e, the answer to train, from 1.
        label_smoothing: Share of the target spread over all classes, in [0, 1).
        loss: Replaces cross-entropy: a function `(logits [T, B, ...], target) -> [T]`, or its import path.

    Raises:
        ValueError: The exit is below 1 or (when called) above the number of answers.
    """

    def __init__(self, exit: int, label_smoothing: float = 0.0, loss: str | StepLoss | None = None) -> None:
        super().__init__(label_smoothing, loss)
        if exit < 1:
            raise ValueError(f"exit must be at least 1, got {exit!r}")
        self.exit = exit

    def check(self, steps: int) -> None:
        if self.exit > steps:
            raise ValueError(f"exit must lie in 1..{steps}, got {self.exit!r}")

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        self.check(len(logits))
        return self.losses(logits[self.exit - 1 : self.exit], target)[0]


class SDNRamp(StepObjective):
    """L = CE(logits_T) + sum_{t<T} min(tau_t, 0.01 + tau_t epoch / epochs) CE(logits_t): early answers are phased in.

    The epoch, 1 in the first, follows from the number of training steps (calls in train mode). After the last epoch the
    weights stay constant. Source: Kaya, Hong, Dumitras, ICML 2019 (shallow-deep networks), and its published code.

    Args:
        epochs: Epochs of the whole training; default: those of the training, see `set_length`.
        epoch_steps: Batches per epoch, e.g. 391 for 50,000 images in batches of 128; default: those of the training.
        largest: tau of the T - 1 early answers; default 0.15, 0.3, ..., 0.9, or even steps up to 0.9 for more than 6.
        label_smoothing: Share of the target spread over all classes, in [0, 1).
        loss: Replaces cross-entropy: a function `(logits [T, B, ...], target) -> [T]`, or its import path.

    Raises:
        ValueError: Epochs or steps are below 1, or (when called) there is not one tau for each early answer, or epochs and
            steps were neither given nor set.
    """

    def __init__(
        self,
        epochs: int | None = None,
        epoch_steps: int | None = None,
        largest: Sequence[float] | None = None,
        label_smoothing: float = 0.0,
        loss: str | StepLoss | None = None,
    ) -> None:
        super().__init__(label_smoothing, loss)
        if min(1 if epochs is None else epochs, 1 if epoch_steps is None else epoch_steps) < 1:
            raise ValueError(f"epochs and epoch_steps must be at least 1, got {epochs!r} and {epoch_steps!r}")
        self.epochs, self.epoch_steps, self.largest = epochs, epoch_steps, largest
        self._given = epochs, epoch_steps
        self.answer_weights = None
        self.steps = 0

    def get_extra_state(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]

    def check(self, steps: int) -> None:
        sdn_ramp(steps, 1, 1, self.largest)

    def set_length(self, epochs: int, epoch_steps: int) -> None:
        self.epochs, self.epoch_steps = self._given[0] or epochs, self._given[1] or epoch_steps

    def _ramp(self, losses: Tensor) -> Tensor:
        """The weights of the next training step, with the dtype and device of the losses."""
        if self.epochs is None or self.epoch_steps is None:
            raise ValueError("SDNRamp does not know how long the training is: give epochs and epoch_steps, or call set_length")
        epoch = min(1 + self.steps // self.epoch_steps, self.epochs)
        return losses.new_tensor(sdn_ramp(len(losses), epoch, self.epochs, self.largest))

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        losses = self.losses(logits, target)
        loss = torch.dot(losses, self._ramp(losses))
        self.steps += self.training
        self.answer_weights = self._ramp(losses)
        return loss
