"""Numbers over several seeds: speed-accuracy curves, and standard errors without what a seed does to all networks alike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy
import torch
from torch import Tensor

from anytime.analysis.curves import threshold_curve
from anytime.trace import Trace

THRESHOLDS = (*torch.linspace(0, 1, 100, dtype=torch.float64).tolist(), math.inf)
"""The 100 thresholds of Iuzzolino et al. 2021, and one that never stops before the last step."""


@dataclass(frozen=True)
class SpeedAccuracy:
    """Mean stop time and cost, and accuracy at the stop, per threshold, float64 `[M]`.

    Attributes:
        time: In time steps.
        macs: Interruptible MACs per sample.
        seconds: Of a stream, where the traces hold seconds.
        accuracy: Share of right answers.
    """

    time: Tensor
    macs: Tensor
    seconds: Tensor | None
    accuracy: Tensor

    def at(self, times: Sequence[float]) -> list[float]:
        """Accuracy at mean stop times, linear between thresholds as a line in a figure; nan outside."""
        return numpy.interp(times, self.time, self.accuracy, left=math.nan, right=math.nan).tolist()


def speed_accuracy(trace: Trace, first: int = 1, thresholds: Sequence[float] = THRESHOLDS) -> SpeedAccuracy:
    """Each sample stops at its first step with max softmax >= threshold, at the last step otherwise.

    Args:
        trace: The answers of one network.
        first: Time of the first answer; the next one comes a time step later.
        thresholds: Rising.

    Source: Iuzzolino et al. 2021, section 4.2.
    """
    curve = threshold_curve(trace, thresholds)
    times = torch.arange(first, first + trace.num_steps, dtype=torch.float64)
    return SpeedAccuracy(curve.shares @ times, curve.macs, curve.seconds, curve.accuracy)


def mean_curve(curves: Sequence[SpeedAccuracy]) -> SpeedAccuracy:
    """The mean over seeds, at equal thresholds; of seconds where all have them."""

    def mean(values: Sequence[Tensor]) -> Tensor:
        return torch.stack(list(values)).mean(0)

    seconds = [curve.seconds for curve in curves if curve.seconds is not None]
    return SpeedAccuracy(
        time=mean([curve.time for curve in curves]),
        macs=mean([curve.macs for curve in curves]),
        seconds=mean(seconds) if len(seconds) == len(curves) else None,
        accuracy=mean([curve.accuracy for curve in curves]),
    )


def standard_error(values: Sequence[Sequence[float]]) -> list[float]:
    """SEM_c = sd_s(x_sc - mean_c'(x_sc') + mean(x)) / sqrt(S): each seed's own level is removed (Masson and Loftus 2003).

    A seed that is good for all conditions alike says nothing of their differences. sd divides by S - 1; the published code of
    Iuzzolino et al. 2021 divides by S.

    Args:
        values: x `[S, C]` of S seeds under the same C conditions.

    Returns:
        `[C]`; nan for a single seed.
    """
    x = torch.tensor(values, dtype=torch.float64)
    if x.ndim != 2 or not x.numel():
        raise ValueError(f"values must be [seeds, conditions], got {list(x.shape)}")
    if len(x) < 2:
        return [math.nan] * x.shape[1]
    x = x - x.mean(1, keepdim=True) + x.mean()
    return (x.std(0) / math.sqrt(len(x))).tolist()


def difference(left: Sequence[float], right: Sequence[float]) -> tuple[float, float]:
    """Mean over seeds of left - right, and its standard error; nan for a single seed."""
    if len(left) != len(right) or not left:
        raise ValueError(f"a difference needs the same seeds on both sides, got {len(left)} and {len(right)} values")
    d = torch.tensor(left, dtype=torch.float64) - torch.tensor(right, dtype=torch.float64)
    return float(d.mean()), float(d.std() / math.sqrt(len(d))) if len(d) > 1 else math.nan
