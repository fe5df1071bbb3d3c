"""The parts of MSDNet: a layer at one scale, the stem, a head."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

HeadKind = Literal["conv", "linear"]
MSDNetLayout = Literal["cifar", "imagenet"]


def conv_norm_relu(channels: int, width: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """relu(norm(conv)), with padding that keeps the size, divided by the stride and rounded up."""
    conv = nn.Conv2d(channels, width, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(width), nn.ReLU(inplace=True))


class ScaleLayer(nn.Module):
    """squeeze([h, down(f), normal(h)]): the next map of one scale, from its map h and the map f of the next finer scale.

    down and normal are conv1x1 to at most `factor` times their channels, then conv3x3, of stride 2 in down. Each makes half of
    the new channels. At the finest scale there is no down, and normal makes all of them. squeeze is a conv1x1 where a finer
    scale has just been dropped, otherwise the identity. Every convolution is followed by batch norm and relu.

    Args:
        channels: The channels of h.
        growth: New channels.
        factor: The bottleneck's factor at this scale.
        finer: Channels of f and factor of its scale; None at the finest scale.
        squeezed: Channels of the result, if it is squeezed.
    """

    def __init__(
        self, channels: int, growth: int, factor: int, finer: tuple[int, int] | None, squeezed: int | None = None
    ) -> None:
        super().__init__()
        part = growth if finer is None else growth // 2
        self.down = None if finer is None else self._branch(finer[0], part, finer[1], 2)
        self.normal = self._branch(channels, part, factor, 1)
        self.squeeze = nn.Identity() if squeezed is None else conv_norm_relu(channels + growth, squeezed, 1)

    @staticmethod
    def _branch(channels: int, width: int, factor: int, stride: int) -> nn.Sequential:
        inner = min(channels, factor * width)
        return nn.Sequential(conv_norm_relu(channels, inner, 1), conv_norm_relu(inner, width, 3, stride))

    def forward(self, h: Tensor, f: Tensor | None) -> Tensor:
        """`h` is `[B, C, H, W]`, `f` is `[B, C', 2H, 2W]` and is not read at the finest scale."""
        down = [] if self.down is None else [self.down(f)]
        return self.squeeze(torch.cat([h, *down, self.normal(h)], 1))


def build_stem(in_channels: int, widths: Sequence[int], layout: MSDNetLayout) -> nn.ModuleList:
    """One part for each scale, in a row."""
    if layout == "cifar":
        first = conv_norm_relu(in_channels, widths[0])
    else:
        first = nn.Sequential(*conv_norm_relu(in_channels, widths[0], 7, 2), nn.MaxPool2d(3, 2, 1))
    return nn.ModuleList([first, *(conv_norm_relu(a, b, 3, 2) for a, b in pairwise(widths))])


def build_head(channels: int, num_classes: int, kind: HeadKind, width: int) -> nn.Sequential:
    """From the coarsest map `[B, C, H, W]` to logits `[B, K]`."""
    convs = [conv_norm_relu(channels, width, 3, 2), conv_norm_relu(width, width, 3, 2)] if kind == "conv" else []
    linear = nn.Linear(width if convs else channels, num_classes)
    nn.init.zeros_(linear.bias)
    return nn.Sequential(*convs, nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear)
