"""What comes in: images are checked and copied, so no later change to them changes an answer."""

from __future__ import annotations

import math
from operator import index
from typing import Any

import torch
from torch import Tensor

from anytime.model import AnytimeModel
from anytime.runtime.forks import leave_lost_pool
from anytime.runtime.profile import Profile
from anytime.support.tensors import described, unusual_layout
from anytime.support.units import deadline_seconds, real_number

OVERSHOOT = 0.05  # how far interpolation may take a pixel beyond [0, 1]


def admit(x: Tensor, model: AnytimeModel, profile: Profile | None) -> Tensor:
    """A copy of the images `[B, C, H, W]` or `[C, H, W]` in [0, 1], in the memory layout of the warm-up, all of them checked.

    Pixels at most 0.05 beyond [0, 1] are clamped.

    Raises:
        ValueError: Wrong shape, pixels that are NaN, infinite or further beyond [0, 1], a size that the profile does not know,
            or more steps than it has.
        TypeError: Not a dense floating-point tensor, or another precision or device than the model's.
    """
    leave_lost_pool()
    if isinstance(x, Tensor) and (layout := unusual_layout(x)) not in (None, "meta"):
        raise TypeError(f"images must be one dense tensor, got a {layout} tensor")
    if isinstance(x, Tensor) and x.ndim == 3 and x.shape[0] == model.in_channels and x.is_floating_point():
        x = x[None]  # else the error repeats the shape as given
    model.check_input(x)
    reference = next(model.parameters())
    if x.device != reference.device:
        raise TypeError(f"the images are on {x.device}, the model on {reference.device}")
    if x.dtype != reference.dtype:
        raise TypeError(f"the images are {x.dtype}, the model {reference.dtype}; convert them: x.to({reference.dtype})")
    if profile is not None:
        if model.num_steps > (known_steps := len(profile.macs)):
            raise ValueError(
                f"the model now has num_steps={model.num_steps}, but its profile only {known_steps}: measure it again, "
                "anytime.profile(model, example), and make a new Predictor"
            )
        profile.at(len(x))
        if tuple(x.shape[1:]) != tuple(profile.input_size):
            given, known = ("x".join(map(str, size)) for size in (x.shape[1:], profile.input_size))
            raise ValueError(f"the images are {given}, the profile is of {known}; resize them, or profile that size")
    with torch.inference_mode():
        copy = x.detach().as_subclass(Tensor).clone(memory_format=torch.contiguous_format)
        low, high = torch.stack(copy.aminmax()).tolist()
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ValueError(f"the images hold NaN or infinite pixels: {described(x)}")
        if low < 0 or high > 1:
            slack = OVERSHOOT * (1 + torch.finfo(x.dtype).eps)
            if low < -slack or high > 1 + slack:
                raise ValueError(
                    f"images must lie in [0, 1], got {described(x)}; model.prepare(frame) takes uint8 frames as they are"
                )
            copy.clamp_(0, 1)
    return copy


def admit_like(x: Any, first: Tensor) -> Tensor | None:
    """`admit` for images of the form of others that were admitted: a copy, or None if `admit` has to look at them.

    It is called in inference mode.
    """
    if type(x) is not Tensor or x.layout is not torch.strided:
        return None
    if x.ndim == 3 and len(first) == 1:
        x = x[None]
    if x.shape != first.shape or x.dtype != first.dtype or x.device != first.device:
        return None
    copy = x.clone(memory_format=torch.contiguous_format)
    low, high = copy.aminmax()
    return copy if low.item() >= 0 and high.item() <= 1 else None  # NaN is neither


def budget_seconds(start: float, deadline: Any, until: Any) -> float | None:
    """Seconds from the start to a deadline, or to an absolute time; 0 or below if it has passed, None if there is none.

    Raises:
        ValueError: Both are given, or one is NaN or text without a unit.
        TypeError: One is a bool or of another type.
    """
    if until is None:
        return deadline_seconds(deadline)
    if deadline is not None:
        raise ValueError(f"give deadline or until, not both: got {deadline!r} and {until!r}")
    return deadline_seconds(real_number(until, "until must be a time of the clock in seconds") - start)


def whole_depth(depth: Any) -> int:
    """A number of steps in flight.

    Raises:
        ValueError: It is below 1, or a bool.
        TypeError: It is no whole number.
    """
    try:
        steps = 0 if isinstance(depth, bool) else index(depth)
    except TypeError:
        raise TypeError(f"depth must be at least 1 step, got {depth!r}") from None
    if steps < 1:
        raise ValueError(f"depth must be at least 1 step, got {depth!r}")
    return steps
