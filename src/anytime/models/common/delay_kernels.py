"""Delay kernels: how the output of a delayed branch arrives over time."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

LONGEST = 1_000  # weights of a delay line: statistics grow with them
Kernels = Literal["instant", "osd", "ews"] | Sequence[float]
DelayLine = tuple[Tensor, ...]  # a branch's earlier outputs still in transit, the latest first; or their running average


@dataclass(frozen=True)
class Taps:
    """out[t] = sum_s weights[s] r[t - s], r = 0 before t = 0: a tapped delay line of finite length.

    `(1,)` is no delay, `(0, 1)` the one-step delay (OSD) of Iuzzolino et al. 2021, section 2.

    Attributes:
        weights: One per time step of delay; the last is not 0.
    """

    weights: tuple[float, ...]

    @property
    def lag(self) -> int:
        """Time steps before anything arrives."""
        return next(s for s, weight in enumerate(self.weights) if weight)

    @property
    def memory(self) -> float:
        """Time steps until the output of a constant input is constant."""
        return len(self.weights) - 1

    def after(self, steps: int) -> Taps:
        """The kernel for a branch that is evaluated `steps` time steps late: the first `steps` weights dropped."""
        return Taps(self.weights[steps:])

    def arrive(self, r: Tensor, line: DelayLine) -> tuple[Tensor, DelayLine]:
        """What arrives when the branch outputs `r`, and the line afterwards."""
        values = (r, *line)[: len(self.weights)]
        parts = [v if w == 1 else w * v for w, v in zip(self.weights, values, strict=False) if w]
        return sum(parts[1:], parts[0]), values[: len(self.weights) - 1]


@dataclass(frozen=True)
class Smoothing:
    """q[t] = alpha q[t - 1] + (1 - alpha) r[t], q = 0 before t = 0: exponentially weighted smoothing (EWS).

    Attributes:
        alpha: Weight of the previous output, in (0, 1); 0 would be no delay.
    """

    alpha: float
    lag = 0
    memory = math.inf

    def after(self, steps: int) -> Smoothing:
        """The kernel itself: it has no lag."""
        assert steps == 0
        return self

    def arrive(self, r: Tensor, line: DelayLine) -> tuple[Tensor, DelayLine]:
        """What arrives when the branch outputs `r`, and the line afterwards."""
        q = r.lerp(line[0], self.alpha) if line else (1 - self.alpha) * r
        return q, (q,)


Kernel = Taps | Smoothing


def make_kernel(kernel: Kernels, alpha: float = 0.9) -> Kernel:
    """Builds a delay kernel from a name or from weights.

    Args:
        kernel: `"instant"` (no delay), `"osd"` (one-step delay), `"ews"` (exponentially weighted smoothing) or the weights of
            a tapped delay line, the first for no delay.
        alpha: For EWS, the share of the running average that stays, in [0, 1); 0 is no delay.

    Raises:
        ValueError: Unknown name, alpha out of range, weights that are empty, not finite, all 0 or more than 1,000.

    Source: Iuzzolino, Mozer, Bengio, NeurIPS 2021, section 2.
    """
    if not isinstance(alpha, int | float) or not 0 <= alpha < 1:
        raise ValueError(f"alpha must lie in [0, 1), got {alpha!r}")
    if isinstance(kernel, str):
        named: dict[str, Kernel] = {
            "instant": Taps((1.0,)),
            "osd": Taps((0.0, 1.0)),
            "ews": Smoothing(alpha) if alpha else Taps((1.0,)),
        }
        if kernel not in named:
            raise ValueError(f"kernel must be 'instant', 'osd', 'ews' or a list of weights, got {kernel!r}")
        return named[kernel]
    weights: list[Any] = list(kernel) if isinstance(kernel, list | tuple) else []
    if not weights or not all(isinstance(w, int | float) and math.isfinite(w) for w in weights) or not any(weights):
        raise ValueError(
            "kernel must be 'instant', 'osd', 'ews' or a list of weights, which must be finite numbers and not all 0, "
            f"got {kernel!r}"
        )
    if len(weights) > LONGEST:
        raise ValueError(f"kernel must have at most {LONGEST:,} weights, got {len(weights):,}")
    if abs(sum(weights) - 1) > 1e-6:
        warnings.warn(
            f"the weights of the kernel sum to {sum(weights):g}, not to 1: the answers do not settle at those of the "
            f"undelayed network, got {kernel!r}",
            stacklevel=3,
        )
    while not weights[-1]:
        weights.pop()
    return Taps(tuple(float(weight) for weight in weights))
