"""Learning-rate schedules: pure functions of progress in [0, 1] that scale the optimizer's own learning rate."""

from __future__ import annotations

import math
from collections.abc import Sequence


class Schedule:
    """`schedule(progress) -> factor` of the learning rate, progress from 0 (start) to 1 (end of training)."""

    def __call__(self, progress: float) -> float:
        raise NotImplementedError


class Constant(Schedule):
    """factor = 1."""

    def __call__(self, progress: float) -> float:
        return 1.0


class Cosine(Schedule):
    """factor = (1 + cos(pi p)) / 2 after a linear warm-up from 0.

    Args:
        warmup: Share of the training spent on the warm-up, in [0, 1).
    """

    def __init__(self, warmup: float = 0.0) -> None:
        if not 0 <= warmup < 1:
            raise ValueError(f"warmup must lie in [0, 1), got {warmup!r}")
        self.warmup = warmup

    def __call__(self, progress: float) -> float:
        if progress < self.warmup:
            return progress / self.warmup
        return 0.5 * (1 + math.cos(math.pi * (progress - self.warmup) / (1 - self.warmup)))


class OneCycle(Schedule):
    """Linear from `start` up to 1 at `peak`, then linear down to 0 (Smith and Topin 2018, without the momentum cycle).

    Args:
        peak: Share of the training at which the rate is highest, in (0, 1).
        start: Factor at the beginning, in [0, 1].
    """

    def __init__(self, peak: float = 0.25, start: float = 0.1) -> None:
        if not 0 < peak < 1 or not 0 <= start <= 1:
            raise ValueError(f"peak must lie in (0, 1) and start in [0, 1], got peak={peak!r}, start={start!r}")
        self.peak, self.start = peak, start

    def __call__(self, progress: float) -> float:
        if progress < self.peak:
            return self.start + (1 - self.start) * progress / self.peak
        return max(0.0, (1 - progress) / (1 - self.peak))


class MultiStep(Schedule):
    """factor = gamma^(number of milestones passed).

    Args:
        milestones: Shares of the training, increasing, each in (0, 1); 1/2 and 3/4 are Kim 2020's epochs 100 and 150 of 200.
        gamma: Factor at each milestone, in [0, 1].
    """

    def __init__(self, milestones: Sequence[float] = (0.5, 0.75), gamma: float = 0.1) -> None:
        if list(milestones) != sorted(set(milestones)) or not all(0 < m < 1 for m in milestones):
            raise ValueError(f"milestones must increase within (0, 1), got {milestones!r}")
        if isinstance(gamma, bool) or not isinstance(gamma, int | float) or not 0 <= gamma <= 1:
            raise ValueError(f"gamma must lie in [0, 1], got {gamma!r}")
        self.milestones, self.gamma = tuple(milestones), gamma

    def __call__(self, progress: float) -> float:
        return self.gamma ** sum(progress >= m for m in self.milestones)
