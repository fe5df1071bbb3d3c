"""Additive answers, F_t = f_t + shrink F_{t-1}: each step corrects the sum of the earlier ones (BoostNet).

Source: Yu, Li, Hua, Shi, AAAI 2023 (boosted dynamic neural networks).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from anytime.model import State


class BoostedState(NamedTuple):
    """`inner` is the state of the model inside, `total` the latest answer F_t `[B, K]`, None before the first step."""

    inner: State
    total: Tensor | None


def check_shrink(shrink: float) -> None:
    """Raises ValueError unless 0 < shrink <= 1."""
    if isinstance(shrink, bool) or not isinstance(shrink, int | float) or not 0 < shrink <= 1:
        raise ValueError(f"shrink must lie in (0, 1], got {shrink!r}")


def add_to(total: Tensor | None, output: Tensor, shrink: float, training: bool) -> Tensor:
    """F_t from `total` = F_{t-1} and `output` = f_t, all `[B, K]`; in training F_{t-1} gets no gradient."""
    if total is None:
        return output
    return output + shrink * (total.detach() if training else total)


def added_up(outputs: Tensor, shrink: float, training: bool) -> Tensor:
    """All F_t from all f_t, `[T, B, K]`."""
    answers: list[Tensor] = []
    for output in outputs:
        answers.append(add_to(answers[-1] if answers else None, output, shrink, training))
    return torch.stack(answers)
