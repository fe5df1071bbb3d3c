"""Losses of each answer for outputs other than classes: `Weighted(loss=squared_error)`, and so for every `StepObjective`."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from anytime.objectives.weighted import require_classes

ABSENT = -1  # the class of pixels that do not count


def squared_error(outputs: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of each answer, `[T]`, from outputs `[T, B, ...]` and values `[B, ...]`.

    Raises:
        ValueError: The target does not have the shape of an answer.

    Example:
        >>> import torch
        >>> from anytime.objectives import squared_error
        >>> squared_error(torch.zeros(3, 4, 1), torch.ones(4, 1))
        tensor([1., 1., 1.])
    """
    if target.shape != outputs.shape[1:]:
        raise ValueError(f"the target must be {list(outputs.shape[1:])}, like an answer, got {list(target.shape)}")
    return (outputs - target).square().flatten(1).mean(1)


def pixel_cross_entropy(outputs: Tensor, target: Tensor) -> Tensor:
    """Mean cross-entropy over the pixels of each answer, `[T]`, from logits `[T, B, K, ...]` and classes `[B, ...]`.

    Pixels of class -1 do not count.

    Raises:
        ValueError: The target is not one class 0..K-1, or -1, for each pixel, or there are fewer than 2 classes. The range is
            checked only on the CPU: elsewhere reading the values would wait for the device.
    """
    if outputs.ndim < 4 or target.shape != (outputs.shape[1], *outputs.shape[3:]) or target.is_floating_point():
        wanted = [outputs.shape[1], *outputs.shape[3:]]
        raise ValueError(
            f"the target must be whole numbers {wanted}, a class for each pixel, got {target.dtype} {list(target.shape)}"
        )
    require_classes(classes := outputs.shape[2])
    if target.device.type == "cpu" and target.numel():
        low, high = (int(value) for value in target.aminmax())
        if low < ABSENT or high >= classes:
            wrong = high if high >= classes else low
            raise ValueError(
                f"the target must be classes 0..{classes - 1}, or {ABSENT} for pixels that do not count, got {wrong}: "
                f"target.long().masked_fill(target == {wrong}, {ABSENT}) leaves these pixels out"
            )
    steps = len(outputs)
    repeated = target.long().expand(steps, *target.shape).flatten(0, 1)
    each = F.cross_entropy(outputs.flatten(0, 1), repeated, reduction="none", ignore_index=ABSENT)
    return each.view(steps, -1).sum(1) / (target != ABSENT).sum().clamp(min=1)
