"""Layers that several families share, and how their convolutions are initialised."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from torch import Tensor, nn
from torch.nn import functional as F

MOST_LAYERS = 10_000  # of a network; numbers beyond, from a damaged or hostile file, would exhaust memory before any layer


def check_depth(name: str, counts: Sequence[int]) -> None:
    """Raises ValueError if the counts of layers or blocks, an argument called `name`, add up to more than 10,000."""
    if sum(counts) > MOST_LAYERS:
        raise ValueError(f"{name} must add up to at most {MOST_LAYERS:,}, got {sum(counts):,}")


def require_whole(**numbers: Any) -> None:
    """Raises ValueError unless each argument is a whole number."""
    for name, number in numbers.items():
        if isinstance(number, bool) or not isinstance(number, int | np.integer):
            raise ValueError(f"{name} must be a whole number, got {number!r}")


def require_counts(**numbers: Any) -> None:
    """Raises ValueError unless each argument is a whole number of at least 1."""
    require_whole(**numbers)
    for name, number in numbers.items():
        if number < 1:
            raise ValueError(f"{name} must be at least 1, got {number!r}")


def add_shortcut(out: Tensor, x: Tensor, centred: bool = False) -> Tensor:
    """out + x, in place in `out`, by a shortcut without parameters.

    Where `out` has more channels, x is average-pooled (2x2, stride 2) and padded with zero channels: at the end or, if
    `centred`, half in front and half behind. The zeros are never made: the pooled x is added to its channels of `out`.
    """
    channels = x.shape[1]
    if out.shape[1] == channels:
        return out.add_(x)
    front = (out.shape[1] - channels) // 2 if centred else 0
    out[:, front : front + channels] += F.avg_pool2d(x, 2, ceil_mode=True)
    return out


def pooled(h: Tensor) -> Tensor:
    """Global average pooling, `[B, C, H, W]` to `[B, C]`.

    A sum, divided afterwards, so that the gradient of the pixels stays a view of `[B, C]`. The gradient of a mean is a large
    tensor in another memory format; with it the backward of a preceding ReLU took 5 to 10 times as long (measured with
    channels_last on a CPU).
    """
    return h.sum((2, 3)) / (h.shape[2] * h.shape[3])


def he_init(network: nn.Module, mode: Literal["fan_in", "fan_out"] = "fan_out") -> None:
    """Draws the weights of all 2-d convolutions from He's normal distribution for ReLU, in the order of the modules."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode=mode, nonlinearity="relu")
