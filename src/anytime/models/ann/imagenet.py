"""ANN for large images: bottleneck ResNets and DenseNets with exits, as in the published code (Hu et al., 2017, AAAI 2019)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anytime.models.ann.chain import AnytimeChain, GradientFlow
from anytime.models.common.layers import check_depth
from anytime.registry import variant


def _stem(in_channels: int, width: int) -> nn.Sequential:
    """Conv7x7 of stride 2, batch norm, relu, max-pool 3x3 of stride 2: a quarter of the resolution."""
    return nn.Sequential(
        nn.Conv2d(in_channels, width, 7, 2, 3, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2, 1),
    )


def _norm_relu(channels: int) -> list[nn.Module]:
    return [nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]


def _check(blocks: Sequence[int], width: int) -> None:
    if not blocks or min(blocks) < 1:
        raise ValueError(f"blocks must be at least 1 unit in every stage, got {tuple(blocks)}")
    check_depth("blocks", blocks)
    if width < 1:
        raise ValueError(f"width must be at least 1, got {width!r}")


class Bottleneck(nn.Module):
    """shortcut(h) + f(h), f = bn-relu-conv1x1, bn-relu-conv3x3 (with the stride), bn-relu-conv1x1, bn.

    The shortcut is the identity if shapes agree, otherwise conv1x1 with the stride, bn.
    """

    def __init__(self, channels: int, inner: int, stride: int) -> None:
        super().__init__()
        outer = 4 * inner
        self.branch = nn.Sequential(
            *_norm_relu(channels),
            nn.Conv2d(channels, inner, 1, bias=False),
            *_norm_relu(inner),
            nn.Conv2d(inner, inner, 3, stride, 1, bias=False),
            *_norm_relu(inner),
            nn.Conv2d(inner, outer, 1, bias=False),
            nn.BatchNorm2d(outer),
        )
        self.shortcut: nn.Module = nn.Identity()
        if channels != outer or stride > 1:
            self.shortcut = nn.Sequential(nn.Conv2d(channels, outer, 1, stride, bias=False), nn.BatchNorm2d(outer))

    def forward(self, h: Tensor) -> Tensor:
        return self.branch(h).add_(self.shortcut(h))


class ANNResNet(AnytimeChain):
    """A bottleneck ResNet with an exit after every s-th unit counted from the last.

    The convolutions are those of ResNet-50, 101 and 152 (stride in the 3x3 convolution), in pre-activation order with batch
    norm at the end of each unit. The inner channels double from stage to stage; a unit's output has four times as many.
    Exits: relu, global average pooling, linear.

    Args:
        num_classes: K of the logits, or the sizes of several label levels.
        in_channels: Channels of the images.
        blocks: Units per stage, (3, 4, 6, 3) for 50 layers.
        width: Inner channels of the first stage.
        period: Units per exit (s).
        regime: "joint", "no_grad" or "midfeat".

    Raises:
        ValueError: Blocks, width or period below 1, a period above the number of units, an unknown regime.
    """

    def __init__(
        self,
        num_classes: int | tuple[int, ...] = 1000,
        in_channels: int = 3,
        blocks: tuple[int, ...] = (3, 4, 6, 3),
        width: int = 64,
        period: int = 2,
        regime: GradientFlow = "joint",
    ) -> None:
        _check(blocks, width)
        inner = [width * 2**stage for stage, count in enumerate(blocks) for _ in range(count)]
        channels = [4 * w for w in inner]

        def units() -> Iterator[nn.Module]:
            for (before, after), w in zip(pairwise([width, *channels]), inner, strict=True):
                yield Bottleneck(before, w, 2 if after == 2 * before else 1)

        super().__init__(num_classes, in_channels, partial(_stem, in_channels, width), units(), channels, period, regime)


class DenseUnit(nn.Module):
    """[h, f(h)], concatenated channels; f = bn-relu-conv1x1 to 4g channels, bn-relu-conv3x3 to g channels."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            *_norm_relu(channels),
            nn.Conv2d(channels, 4 * growth, 1, bias=False),
            *_norm_relu(4 * growth),
            nn.Conv2d(4 * growth, growth, 3, 1, 1, bias=False),
        )

    def forward(self, h: Tensor) -> Tensor:
        return torch.cat([h, self.branch(h)], 1)


class DenseTransition(nn.Module):
    """Halves the channels (bn-relu-conv1x1) and the resolution (average pooling)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.squeeze = nn.Sequential(*_norm_relu(channels), nn.Conv2d(channels, channels // 2, 1, bias=False))

    def forward(self, h: Tensor) -> Tensor:
        return F.avg_pool2d(self.squeeze(h), 2, ceil_mode=True)


class ANNDenseNet(AnytimeChain):
    """A DenseNet-BC with an exit after every s-th unit counted from the last.

    The stem has 2g channels, a unit adds g (`growth`), a transition halves channels and resolution. Exits: batch norm, relu,
    global average pooling, linear, on all features so far.

    Args:
        num_classes: K of the logits, or the sizes of several label levels.
        in_channels: Channels of the images.
        blocks: Units per stage, (6, 12, 32, 32) for 169 layers.
        growth: Channels that a unit adds.
        period: Units per exit (s).
        regime: "joint", "no_grad" or "midfeat".

    Raises:
        ValueError: Blocks, growth or period below 1, a period above the number of units, an unknown regime.
    """

    def __init__(
        self,
        num_classes: int | tuple[int, ...] = 1000,
        in_channels: int = 3,
        blocks: tuple[int, ...] = (6, 12, 32, 32),
        growth: int = 32,
        period: int = 14,
        regime: GradientFlow = "joint",
    ) -> None:
        if growth < 1:
            raise ValueError(f"growth must be at least 1, got {growth!r}")
        _check(blocks, growth)
        channels = [2 * growth]  # of the stem and of each unit's output
        for stage, count in enumerate(blocks):
            for unit in range(count):
                channels.append((channels[-1] // 2 if stage and not unit else channels[-1]) + growth)

        def units() -> Iterator[nn.Module]:
            for before, after in pairwise(channels):
                unit = DenseUnit(after - growth, growth)
                yield unit if before == after - growth else nn.Sequential(DenseTransition(before), unit)

        stem = partial(_stem, in_channels, 2 * growth)
        super().__init__(num_classes, in_channels, stem, units(), channels[1:], period, regime, head_norm=True)


ann_resnet50 = variant(
    ANNResNet,
    "ann_resnet50",
    "ResNet-50 of Hu et al. 2017 with 8 exits, after every second of its 16 units.",
    fixed={"blocks": (3, 4, 6, 3)},
    period=2,
)
ann_resnet101 = variant(
    ANNResNet,
    "ann_resnet101",
    "ResNet-101 of Hu et al. 2017 with 11 exits, after every third of its 33 units.",
    fixed={"blocks": (3, 4, 23, 3)},
    period=3,
)
ann_resnet152 = variant(
    ANNResNet,
    "ann_resnet152",
    "ResNet-152 of Hu et al. 2017 with 10 exits, after every fifth of its 50 units.",
    fixed={"blocks": (3, 8, 36, 3)},
    period=5,
)
ann_densenet169 = variant(
    ANNDenseNet,
    "ann_densenet169",
    "DenseNet-169 of Hu et al. 2017 with 6 exits, after units 12, 26, 40, 54, 68 and 82.",
    fixed={"blocks": (6, 12, 32, 32)},
    period=14,
)
ann_densenet201 = variant(
    ANNDenseNet,
    "ann_densenet201",
    "DenseNet-201 of Hu et al. 2017 with 6 exits, after units 13, 30, 47, 64, 81 and 98.",
    fixed={"blocks": (6, 12, 48, 32)},
    period=17,
)
