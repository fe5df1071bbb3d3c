"""Speed against accuracy: accuracy at the stop over the mean stop time, for many confidence thresholds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any

import numpy
import torch
from torch import Tensor

from anytime.analysis.curves import threshold_curve
from anytime.trace import Trace

__all__ = ["SpeedAccuracy", "mean_curve", "speed_accuracy"]

THRESHOLDS = (*torch.linspace(0, 1, 100, dtype=torch.float64).tolist(), math.inf)
"""The 100 thresholds of Iuzzolino et al. 2021, and one that never stops before the last step."""
GAP = 2.0
"""Mean stop times of neighbouring thresholds that are further apart, in steps, leave a gap in the curve."""


@dataclass(frozen=True)
class SpeedAccuracy:
    """Mean stop time and cost, and accuracy at the stop, per threshold, float64 `[M]`.

    Attributes:
        time: Stop time in time steps.
        macs: Interruptible MACs per sample.
        seconds: Seconds of a stream, if the traces hold them.
        accuracy: Share of right answers.
    """

    time: Tensor
    macs: Tensor
    seconds: Tensor | None
    accuracy: Tensor

    def at(self, times: Sequence[float]) -> list[float]:
        """Accuracy at mean stop times, linear between thresholds like a line in a figure; nan outside.

        An accuracy between two thresholds is that of choosing one of them at random for each sample.
        """
        return numpy.interp(times, self.time, self.accuracy, left=math.nan, right=math.nan).tolist()

    def in_gaps(self, times: Sequence[float], gap: float = GAP) -> list[float]:
        """Those of the times that no threshold comes near: the neighbours' mean stop times are more than `gap` steps apart."""
        spent = self.time.tolist()
        gaps = [(before, after) for before, after in pairwise(spent) if after - before > gap]
        return [time for time in times if any(before < time < after for before, after in gaps)]


def speed_accuracy(trace: Trace, first: int = 1, thresholds: Sequence[float] = THRESHOLDS) -> SpeedAccuracy:
    """Stops as in `threshold_curve`; time in steps instead of MACs (Iuzzolino et al. 2021, section 4.2).

    Args:
        trace: The answers of one network.
        first: Time of the first answer; each further answer takes one time step.
        thresholds: Rising.
    """
    curve = threshold_curve(trace, thresholds)
    times = torch.arange(first, first + trace.num_steps, dtype=torch.float64)
    return SpeedAccuracy(curve.shares @ times, curve.macs, curve.seconds, curve.accuracy)


def mean_curve(curves: Sequence[SpeedAccuracy]) -> SpeedAccuracy:
    """The mean over seeds at equal thresholds; seconds only if all curves have them."""

    def mean(name: str) -> Any:
        values = [getattr(curve, name) for curve in curves]
        return None if any(value is None for value in values) else torch.stack(values).mean(0)

    return SpeedAccuracy(*(mean(field.name) for field in fields(SpeedAccuracy)))
