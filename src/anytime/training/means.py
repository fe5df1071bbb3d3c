"""Means over the samples of all processes, and over the steps of a training."""

from __future__ import annotations

from collections.abc import Callable

import torch
from lightning.pytorch.strategies import Strategy
from torch import Tensor


class SampleMeans:
    """Means of several values over samples, however unevenly batches and processes divide them.

    mean = sum over processes of (sum over batches of mean * samples) / sum over processes of samples.

    Args:
        values: Number of values.
        device: Device of the values.
    """

    def __init__(self, values: int, device: torch.device) -> None:
        self._sums = torch.zeros(values + 1, device=device)

    def add(self, means: Tensor, samples: int) -> None:
        """Adds the means `[values]` of a batch of `samples`."""
        self._sums[:-1] += means.detach().to(self._sums) * samples
        self._sums[-1] += samples

    def over_processes(self, strategy: Strategy) -> Tensor:
        """The means `[values]`, the same in every process; each process must call this."""
        sums = strategy.reduce(self._sums.clone(), reduce_op="sum")
        assert isinstance(sums, Tensor)
        return sums[:-1] / sums[-1]


def moving_average(decay: float) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The rule a <- d a + (1 - d) w of a moving average of weights, d = min(decay, (1 + n) / (10 + n)).

    n is the number of weights in the average so far: the first ones, far from trained, are soon forgotten. Tensors of integers
    (counters, indices) are not averaged but taken from w.
    """

    def averaged(average: Tensor, weight: Tensor, count: Tensor) -> Tensor:
        if not weight.is_floating_point():
            return weight
        n = int(count)
        return torch.lerp(weight, average, min(decay, (1 + n) / (10 + n)))

    return averaged
