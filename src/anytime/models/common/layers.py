"""Layers that several families share."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def add_shortcut(out: Tensor, x: Tensor) -> Tensor:
    """out + x, in place in `out`, by a shortcut without parameters.

    Where `out` has more channels, x is average-pooled (2x2, stride 2) and padded with zero channels at the end; these are
    never made: the pooled x is added to the first channels of `out`.
    """
    if out.shape[1] == x.shape[1]:
        return out.add_(x)
    out[:, : x.shape[1]] += F.avg_pool2d(x, 2, ceil_mode=True)
    return out


def pooled(h: Tensor) -> Tensor:
    """Global average pooling, `[B, C, H, W]` to `[B, C]`.

    A sum that is divided after it: so the gradient of the pixels stays a view of `[B, C]`. That of a mean is a large tensor in
    another memory format, with which the backward of a ReLU before it was measured to take 5 to 10 times as long
    (channels_last on a CPU).
    """
    return h.sum((2, 3)) / (h.shape[2] * h.shape[3])
