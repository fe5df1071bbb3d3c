"""Additive answers: each step adds to the logits of those before (BoostNet)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from anytime.model import State


def check_shrink(shrink: float) -> None:
    """Refuses a factor outside (0, 1]."""
    if not 0 < shrink <= 1:
        raise ValueError(f"shrink must lie in (0, 1], got {shrink!r}")


def add_to(total: Tensor | None, output: Tensor, shrink: float, training: bool) -> Tensor:
    """F_t = shrink F_{t-1} + f_t `[B, K]`; in training F_{t-1} gets no gradient."""
    if total is None:
        return output
    return output + shrink * (total.detach() if training else total)


def added_up(outputs: Tensor, shrink: float, training: bool) -> Tensor:
    """All F_t `[T, B, K]` from all f_t."""
    answers: list[Tensor] = []
    for output in outputs:
        answers.append(add_to(answers[-1] if answers else None, output, shrink, training))
    return torch.stack(answers)


class BoostedState(NamedTuple):
    """`inner` is the state of the model inside, `total` the answer so far `[B, K]`; None before the first step."""

    inner: State
    total: Tensor | None
