"""Shallow-deep networks: internal classifiers on four networks for small images (Kaya, Hong, Dumitras, ICML 2019)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anytime.models.common.grid import Grid, nominal_size
from anytime.models.common.heads import LinearHead, MixedHead, Shape
from anytime.models.common.layers import check_depth, he_init, require_counts
from anytime.models.common.stages import Stages, check_exits
from anytime.registry import register_model


class Part(NamedTuple):
    """A unit or stem of a network, the channels of its output, and the factor by which it reduces height and width."""

    module: nn.Module
    channels: int
    stride: int = 1


class InternalClassifier(MixedHead):
    """The paper's head: logits = W p + b, p = a max(h) + (1 - a) mean(h) over the cells of a 4 x 4 grid, a drawn from U(0, 1).

    The kernels of the paper, size // 4, give this grid for all its maps. Maps of at most 4 x 4 pixels are read as they are
    and have no a; the published code gives those of 4 x 4 one that changes nothing. Unlike its base, it keeps the grid for any
    number of classes.
    """

    most_weights = math.inf

    def __init__(self, shape: Shape, num_classes: int) -> None:
        super().__init__(shape, num_classes)
        if self.mix is not None:
            nn.init.uniform_(self.mix)

    def views(self, h: Tensor) -> Tensor:
        """What is read of a map: its means over the cells, `[B, 1, C, g, g]`, or these and its maxima, `[B, 2, C, g, g]`."""
        means = F.adaptive_avg_pool2d(h, self.grid)
        return means[:, None] if self.mix is None else torch.stack([means, F.adaptive_max_pool2d(h, self.grid)], 1)

    def read(self, views: Tensor) -> Tensor:
        """The logits `[B, K]` from `views`."""
        pooled = views[:, 0]
        if self.mix is not None:
            pooled = torch.lerp(pooled, views[:, 1], self.mix.to(pooled))
        return self.linear(pooled.flatten(1))


class ShallowDeep(Stages):
    """A network with internal classifiers (ICs) after some of its units: logits_t = IC_t(h_{e_t}), logits_T the network's own.

    Two ways of training: *SDN training*, everything from scratch with `SDNRamp`; *IC-only training*, the regime `HeadsOnly`
    on a trained network, whose own classifier stays as it is, like all of the network. Only the pooled features of its images
    are then kept in memory. To leave at the first answer that is confident enough, or else with the most confident of all:
    `Confidence(q)` with the combiner `Caching()`.

    Args:
        num_classes: K of the logits, or the sizes of several label levels.
        in_channels: Channels of the images.
        size: (height, width) of the images that the ICs and the classifier are built for; others are pooled to their grids.
        stem: From images to the first unit's input.
        units: The L units.
        exits: The units that an IC follows.
        classifier: Builds the network's own classifier from (shape, K).

    Raises:
        ValueError: The exits do not rise within 1..L - 1.

    Source: Kaya, Hong, Dumitras, ICML 2019, section 4, and its published code.
    """

    def __init__(
        self,
        num_classes: int | Sequence[int],
        in_channels: int,
        size: tuple[int, int],
        stem: Part,
        units: Sequence[Part],
        exits: Sequence[int],
        classifier: Callable[[Shape, int], nn.Module],
    ) -> None:
        super().__init__(num_classes, in_channels, stem.module, (unit.module for unit in units), exits)
        height, width = size
        shapes = []
        for _, channels, stride in (stem, *units):
            height, width = math.ceil(height / stride), math.ceil(width / stride)
            shapes.append((channels, height, width))
        self.heads = nn.ModuleList(InternalClassifier(shapes[unit], self.num_classes) for unit in exits)
        self.heads.append(classifier(shapes[-1], self.num_classes))
        self.keeps_features = len(exits) > 0
        self.head_names = tuple(f"heads.{t}" for t in range(len(exits))) or None

    def trunk_features(self, x: Tensor) -> list[Tensor]:
        """The pooled maps that the ICs read, the batch in dimension 0, and the network's own logits `[B, K]`."""
        state, features = self.initial_state(x), []
        for head in self.heads[:-1]:
            state = self.advance(state)
            features.append(head.views(state.features))  # type: ignore[operator]
        return [*features, self.read(self.advance(state))]

    def head_answers(self, features: Sequence[Tensor]) -> Tensor:
        """All answers `[T, B, K]` from `trunk_features`."""
        *views, last = features
        return torch.stack([*(head.read(view) for head, view in zip(self.heads[:-1], views, strict=True)), last])  # type: ignore[operator]


def _conv_norm_relu(channels: int, width: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(channels, width, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(width), nn.ReLU()]


def _check_stages(blocks: int, width: int, stem_stride: int, exits: Sequence[int]) -> None:
    """Raises ValueError for numbers that give no network of three stages, before it is built."""
    require_counts(width=width, blocks=blocks, stem_stride=stem_stride)
    check_depth("blocks of the three stages", [3 * blocks])
    if stem_stride not in (1, 2):
        raise ValueError(f"stem_stride must be 1 or 2, got {stem_stride!r}")
    check_exits(exits, 3 * blocks)


def _stages(blocks: int, width: int) -> list[tuple[int, int]]:
    """Width and stride of each block of three stages, which double the width and halve the resolution."""
    return [(width << stage, 2 if stage and not block else 1) for stage in range(3) for block in range(blocks)]


@register_model
def sdn_resnet56(
    num_classes: int | tuple[int, ...] = 10,
    in_channels: int = 3,
    blocks: int = 9,
    width: int = 16,
    exits: tuple[int, ...] = (4, 8, 12, 16, 20, 24),
    stem_stride: int = 1,
    input_size: int | tuple[int, int, int] | None = None,
) -> ShallowDeep:
    """SDN ResNet-56 of Kaya et al. 2019: three stages of 9 basic blocks with 6 internal classifiers, 126 M MACs.

    Args:
        num_classes: K of the logits, or the sizes of several label levels.
        in_channels: Channels of the images.
        blocks: Blocks of each stage.
        width: Channels of the first stage.
        exits: Blocks, counted from 1, that an internal classifier follows; without any, the plain network.
        stem_stride: Stride of the first convolution: 1, or 2 for Tiny ImageNet.
        input_size: (channels, height, width) of the images, or their side; default 32, in training that of the data.
    """
    _check_stages(blocks, width, stem_stride, exits)
    from torchvision.models.resnet import BasicBlock  # late: imports torchvision

    stem = Part(nn.Sequential(*_conv_norm_relu(in_channels, width, 3, stem_stride)), width, stem_stride)
    units, before = [], width
    for after, stride in _stages(blocks, width):
        change = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))
        units.append(Part(BasicBlock(before, after, stride, change if stride > 1 else None), after, stride))
        before = after
    size = nominal_size(in_channels, input_size, 32)
    model = ShallowDeep(num_classes, in_channels, size, stem, units, exits, LinearHead)
    he_init(model)
    return model


class WideBlock(nn.Module):
    """shortcut(h) + conv3x3(relu(bn(dropout(conv3x3(relu(bn(h))))))), the stride in the second convolution, with biases.

    The shortcut is the identity, or where the shape changes a 1x1 convolution with the stride.
    """

    def __init__(self, channels: int, width: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, width, 3, 1, 1),
            nn.Dropout(dropout),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, stride, 1),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or channels != width:
            self.shortcut = nn.Conv2d(channels, width, 1, stride)

    def forward(self, h: Tensor) -> Tensor:
        return self.branch(h) + self.shortcut(h)


def _normed_head(shape: Shape, num_classes: int) -> nn.Module:
    return nn.Sequential(nn.BatchNorm2d(shape[0]), nn.ReLU(), LinearHead(shape, num_classes))


@register_model
def sdn_wrn32_4(
    num_classes: int | tuple[int, ...] = 10,
    in_channels: int = 3,
    blocks: int = 5,
    width: int = 64,
    dropout: float = 0.3,
    exits: tuple[int, ...] = (3, 5, 7, 9, 11, 13),
    stem_stride: int = 1,
    input_size: int | tuple[int, int, int] | None = None,
) -> ShallowDeep:
    """SDN Wide ResNet-32-4 of Kaya et al. 2019: three stages of 5 wide blocks with 6 internal classifiers, 1.19 G MACs.

    Args:
        num_classes: K of the logits, or the sizes of several label levels.
        in_channels: Channels of the images.
        blocks: Blocks of each stage.
        width: Channels of the first stage.
        dropout: Share of the features between the two convolutions of a block that a training step leaves out.
        exits: Blocks, counted from 1, that an internal classifier follows; without any, the plain network.
        stem_stride: Stride of the first convolution: 1, or 2 for Tiny ImageNet.
        input_size: (channels, height, width) of the images, or their side; default 32, in training that of the data.
    """
    _check_stages(blocks, width, stem_stride, exits)
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must lie in [0, 1), got {dropout!r}")
    stem = Part(nn.Conv2d(in_channels, 16, 3, stem_stride, 1), 16, stem_stride)
    units, before = [], 16
    for after, stride in _stages(blocks, width):
        units.append(Part(WideBlock(before, after, stride, dropout), after, stride))
        before = after
    size = nominal_size(in_channels, input_size, 32)
    model = ShallowDeep(num_classes, in_channels, size, stem, units, exits, _normed_head)
    he_init(model)
    return model


VGG16 = ((1, 1), (1, 2), (2, 1), (2, 2), (4, 1), (4, 1), (4, 2), (8, 1), (8, 1), (8, 2), (8, 1), (8, 1), (8, 2))  # width, pool


def _vgg_head(shape: Shape, num_classes: int) -> nn.Module:
    """logits = W3 g(W2 g(W1 h)), g = dropout(relu), h all positions; at 32 and 64 pixels with the published widths."""
    channels, height, width = shape
    first, second = channels * height * width, channels * max(height, width)
    layers: list[nn.Module] = [Grid(height, width), nn.Linear(first, first), nn.ReLU(), nn.Dropout(0.5)]
    layers += [nn.Linear(first, second), nn.ReLU(), nn.Dropout(0.5), nn.Linear(second, num_classes)]
    return nn.Sequential(*layers)


@register_model
def sdn_vgg16(
    num_classes: int | tuple[int, ...] = 10,
    in_channels: int = 3,
    width: int = 64,
    exits: tuple[int, ...] = (2, 4, 6, 7, 9, 10),
    input_size: int | tuple[int, int, int] | None = None,
) -> ShallowDeep:
    """SDN VGG-16 of Kaya et al. 2019: 13 convolutions with batch norm and 6 internal classifiers, 314 M MACs.

    The published code has no ReLU between its last two hidden layers; here, as in VGG, each has one.

    Args:
        num_classes: K of the logits, or the sizes of several label levels.
        in_channels: Channels of the images.
        width: Channels of the first convolution; the last have eight times as many.
        exits: Convolutions (with their pooling), counted from 1, that an internal classifier follows; without any, the plain
            network.
        input_size: (channels, height, width) of the images, or their side; default 32, in training that of the data.
    """
    require_counts(width=width)
    units, before = [], in_channels
    for factor, pool in VGG16:
        layers: list[nn.Module] = [nn.Conv2d(before, factor * width, 3, 1, 1), nn.BatchNorm2d(factor * width), nn.ReLU()]
        layers += [nn.MaxPool2d(2, ceil_mode=True)] if pool > 1 else []
        units.append(Part(nn.Sequential(*layers), factor * width, pool))
        before = factor * width
    size = nominal_size(in_channels, input_size, 32)
    model = ShallowDeep(num_classes, in_channels, size, Part(nn.Identity(), in_channels), units, exits, _vgg_head)
    he_init(model)
    return model


MOBILENET = ((2, 1), (4, 2), (4, 1), (8, 2), (8, 1), (16, 2), *5 * ((16, 1),), (32, 2), (32, 1))  # width, stride


@register_model
def sdn_mobilenet(
    num_classes: int | tuple[int, ...] = 10,
    in_channels: int = 3,
    width: int = 32,
    exits: tuple[int, ...] = (3, 5, 7, 9, 12),
    input_size: int | tuple[int, int, int] | None = None,
) -> ShallowDeep:
    """SDN MobileNet of Kaya et al. 2019: 13 depthwise separable blocks with 5 internal classifiers, 46 M MACs.

    Args:
        num_classes: K of the logits, or the sizes of several label levels.
        in_channels: Channels of the images.
        width: Channels of the first convolution; the last block has 32 times as many.
        exits: Blocks, counted from 1, that an internal classifier follows; without any, the plain network.
        input_size: (channels, height, width) of the images, or their side; default 32, in training that of the data.
    """
    require_counts(width=width)
    units, before = [], width
    for factor, stride in MOBILENET:
        layers = _conv_norm_relu(before, before, 3, stride, before) + _conv_norm_relu(before, factor * width, 1)
        units.append(Part(nn.Sequential(*layers), factor * width, stride))
        before = factor * width
    stem = Part(nn.Sequential(*_conv_norm_relu(in_channels, width, 3)), width)
    size = nominal_size(in_channels, input_size, 32)
    model = ShallowDeep(num_classes, in_channels, size, stem, units, exits, LinearHead)
    he_init(model)
    for unit in model.units:
        depthwise: Any = unit[0]  # type: ignore[index]
        nn.init.normal_(depthwise.weight, std=math.sqrt(2 / 9))  # each output is a sum over 9 pixels of one channel
    return model
