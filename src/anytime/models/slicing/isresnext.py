"""IS-ResNeXt: a block-triangular ResNeXt that streams its K thin sub-networks, each reusing all of the one before (Lee, Shin:
Anytime Neural Prediction via Slicing Networks Vertically, 2018, section 3.2).

One set of weights, two schedules of the same sums. `forward` runs every layer once for all groups, the triangular 1x1
convolution as a dense one with zeros above the diagonal: 2K/(K+1) times the multiply-adds of that layer, but one large call in
place of K. `step`, `stream` and `answer` run the blocks on and below the diagonal alone.

Measured (`benchmarks/slicing.py`, K = 6, W = 96, C = 18, L = 15, 2 cores of an Intel Xeon with AMX, float32): at batch 64 a
stream takes 0.99 times the full network and 3.0 times less than the K from scratch, a training step 1.06 times the dense
network of the same widths. At batch 1, 2.11 times the full network, compiled 1.76. There, with 3 blocks, each of these made
the stream less than 10 % faster: 1x1 convolutions as matrix products over a channels-first cache, the same with the 3x3 in
channels-last, caches written in place. A third of the time are the grouped 3x3 convolutions, at a cost per call that hardly
depends on their size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anytime.models.slicing.sliced import Layout, ResNeXtBlock, SliceBatchNorm2d, SliceConv2d, SlicedModel, plain_conv, widen
from anytime.registry import register_model


class TriangularConv(nn.Module):
    """1x1 convolution without bias, block-triangular in K groups: a_g = sum_{j <= g} W_{g,j} h_j.

    `weight` holds only the blocks on and below the diagonal, as rows of `width` numbers: for each group g, each of its output
    channels and each j <= g one row. So the weights of one group lie together, a matrix of g * `width` columns without a copy,
    and the dense matrix is these rows at their places among zeros.

    Args:
        width: Channels of one input group.
        unit: Channels of one output group.
        groups: K.
    """

    def __init__(self, width: int, unit: int, groups: int) -> None:
        super().__init__()
        self.width, self.unit, self.groups = width, unit, groups
        places = [(g * unit + row) * groups + j for g in range(groups) for row in range(unit) for j in range(g + 1)]
        self.weight = nn.Parameter(torch.empty(len(places), width))
        self.places: Tensor
        self.register_buffer("places", torch.tensor(places), persistent=False)
        for g in range(1, groups + 1):
            nn.init.kaiming_normal_(self.rows(g).detach(), mode="fan_in", nonlinearity="relu")

    def rows(self, g: int) -> Tensor:
        """The weights of output group g = 1..K, a view `[unit, g * width, 1, 1]`."""
        start = self.unit * g * (g - 1) // 2
        return self.weight[start : start + self.unit * g].view(self.unit, g * self.width, 1, 1)

    def dense(self) -> Tensor:
        """All weights with zeros above the diagonal, `[K * unit, K * width, 1, 1]`."""
        zeros = self.weight.new_zeros(self.groups * self.unit * self.groups, self.width)
        return zeros.index_copy(0, self.places, self.weight).view(self.groups * self.unit, self.groups * self.width, 1, 1)

    def forward(self, h: Tensor, first: int, last: int, dense: bool) -> Tensor:
        """Output groups first + 1..last from input groups 1..last; `dense` needs all of them."""
        if dense:
            return F.conv2d(h, self.dense())
        parts = [F.conv2d(h[:, : g * self.width], self.rows(g)) for g in range(first + 1, last + 1)]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def plain(self, groups: int) -> Staircase:
        """The first `groups` groups, copied."""
        return Staircase([self.rows(g) for g in range(1, groups + 1)])


class Staircase(nn.Module):
    """The triangular convolution made of torch's own: convolution g reads the first g groups of the input."""

    def __init__(self, weights: Sequence[Tensor]) -> None:
        super().__init__()
        self.convs = nn.ModuleList(plain_conv(weight) for weight in weights)

    def forward(self, h: Tensor) -> Tensor:
        return torch.cat([conv(h[:, : conv.in_channels]) for conv in self.convs], 1)


class ISResNeXtBlock(nn.Module):
    """y_g = x_g + W3_g relu(BN(b_g)), b_g = 3x3 of a_g, a_g = sum_{j <= g} W1_{g,j} relu(BN(x_j)), for groups g = 1..K."""

    def __init__(self, width: int, steps: int, cardinality: int, bottleneck: int) -> None:
        super().__init__()
        inner = cardinality * bottleneck
        self.width, self.unit = width // steps, inner // steps
        self.norm1 = SliceBatchNorm2d(width, range(0, width, self.width))
        self.norm2 = SliceBatchNorm2d(inner, range(0, inner, self.unit))
        self.norm3 = SliceBatchNorm2d(inner, range(0, inner, self.unit))
        self.conv1 = TriangularConv(self.width, self.unit, steps)
        self.conv2 = SliceConv2d(inner, inner, 3, padding=1, groups=cardinality, bias=False)
        self.conv3 = SliceConv2d(inner, width, 1, groups=steps, bias=False)

    def forward(self, x: Tensor, first: int, last: int, cache: Tensor | None, dense: bool) -> tuple[Tensor, Tensor]:
        """Groups first + 1..last of y from those of x; and relu(BN(x)) of groups 1..last, where `cache` holds 1..first."""
        h = F.relu_(self.norm1(x, first))
        if cache is not None:
            h = torch.cat([cache, h], 1)
        out = self.conv1(h, first, last, dense)
        out = self.conv2(F.relu_(self.norm2(out, first)), first * self.unit, last * self.unit)
        out = self.conv3(F.relu_(self.norm3(out, first)), first * self.width, last * self.width)
        return out.add_(x), h

    def plain(self, k: int) -> ResNeXtBlock:
        """The block of sub-network k, copied."""
        width, unit = k * self.width, k * self.unit
        norms = self.norm1.plain(0, width), self.norm2.plain(0, unit), self.norm3.plain(0, unit)
        return ResNeXtBlock(norms, (self.conv1.plain(k), self.conv2.plain(unit), self.conv3.plain(width)))


class ISResNeXtState(NamedTuple):
    """`caches`: of groups 1..step, what the first convolution of each block reads, then the last features; before the first
    step nothing."""

    step: int
    images: Tensor
    caches: tuple[Tensor, ...]


class ISResNeXt(SlicedModel):
    """IS-ResNeXt: sub-network k is the first k of K groups of every layer, and step k computes the k-th group alone.

    Trunk and bottleneck are cut into K groups of W/K and D/K channels. For branch i of a block, in group g = ceil(i K / C):
    a_i = conv1x1(relu(BN([x_1; ...; x_g]))), b_i = conv3x3(relu(BN(a_i))); y_g = conv1x1(relu(BN([b_i of group g]))) + x_g.
    So group g of any layer depends on groups 1..g alone. Batch norm works by channel, hence all sub-networks share it without
    approximation; the classifiers read [x_1; ...; x_k] and are independent, their batch norm included.

    A new scale doubles each group by zero channels of its own, [x_g; 0]: at the end they would move the groups' borders.

    Args:
        num_classes: K of the logits, or the sizes of several label levels.
        in_channels: Channels of the images.
        blocks: Blocks at each scale; the sum is the paper's L.
        width: W, channels of the trunk at the first scale.
        steps: K, number of groups and of sub-networks; divides `width` and `cardinality`.
        cardinality: C, branches of a block.
        bottleneck: B, width of a branch at the first scale.
        layout: `"cifar"` (3x3 stem) or `"imagenet"` (7x7 stem of stride 2 and 2x2 max-pooling).

    Raises:
        ValueError: An argument out of range, or K does not divide W and C.

    Source: Lee, Shin 2018, section 3.2 and appendix B.
    """

    grouped = True

    def __init__(
        self,
        num_classes: int | Sequence[int] = 10,
        in_channels: int = 3,
        blocks: Sequence[int] = (5, 5, 5),
        width: int = 96,
        steps: int = 6,
        cardinality: int = 18,
        bottleneck: int = 4,
        layout: Layout = "cifar",
    ) -> None:
        super().__init__(num_classes, in_channels, blocks, width, steps, cardinality, bottleneck, layout)
        if width % steps:
            raise ValueError(f"steps (K) must divide width (W), got steps={steps} and width={width}")
        self.last_unit = self.last_width // steps
        self._build(
            blocks,
            lambda factor: ISResNeXtBlock(width * factor, steps, cardinality, bottleneck * factor),
            [self.last_unit * k for k in range(1, steps + 1)],
        )

    def initial_state(self, x: Tensor) -> ISResNeXtState:
        self.check_input(x, self.smallest)
        return ISResNeXtState(0, self.normalize(x), ())

    def _groups(self, state: ISResNeXtState, last: int, dense: bool = False, keep: bool = True) -> ISResNeXtState:
        """Groups state.step + 1..last of every layer; without `keep` only the last features are kept."""
        first, unit = state.step, self.width // self.num_steps
        caches: list[Tensor] = []
        h = self.stem(state.images, first * unit, last * unit)
        for index, block in enumerate(self.blocks):
            h = widen(h, last - first) if index in self.widening else h
            h, read = block(h, first, last, state.caches[index] if first else None, dense)
            if keep:
                caches.append(read)
        caches.append(torch.cat([state.caches[-1], h], 1) if first else h)
        return ISResNeXtState(last, state.images, tuple(caches))

    def _classify(self, features: Tensor, step: int) -> Tensor:
        return self.heads[step - 1](features[:, : step * self.last_unit])

    def _advance(self, state: ISResNeXtState, step: int) -> tuple[Tensor, ISResNeXtState]:
        state = self._groups(state, step)
        return self._classify(state.caches[-1], step), state

    def answer(self, x: Tensor, step: int) -> Tensor:
        """The answer of sub-network `step` alone, layer by layer for all of its groups."""
        return self._classify(self._groups(self.initial_state(x), step, keep=False).caches[-1], step)

    def forward(self, x: Tensor, step: int | None = None) -> Tensor:
        """All answers `[T, B, K]` in one pass, or with `step` = 1..T that answer alone, `[B, K]`, at its contract cost."""
        if step is not None:
            return super().forward(x, step)
        features = self._groups(self.initial_state(x), self.num_steps, dense=True, keep=False).caches[-1]
        return torch.stack([self._classify(features, k) for k in range(1, self.num_steps + 1)])


@register_model
def isresnext(
    num_classes: int | tuple[int, ...] = 10,
    in_channels: int = 3,
    blocks: tuple[int, ...] = (5, 5, 5),
    width: int = 96,
    steps: int = 6,
    cardinality: int = 18,
    bottleneck: int = 4,
    layout: Layout = "cifar",
) -> ISResNeXt:
    """IS-ResNeXt for CIFAR: 6 sub-networks of 47 layers (L = 15), 13.0 to 122.1 million MACs, 0.852 million parameters.

    Args:
        num_classes: K of the logits, or the sizes of several label levels.
        in_channels: Channels of the images.
        blocks: Blocks at each scale.
        width: Channels of the trunk at the first scale.
        steps: Number of sub-networks; divides `width` and `cardinality`.
        cardinality: Branches of a block.
        bottleneck: Width of a branch at the first scale.
        layout: "cifar" (3x3 stem) or "imagenet" (7x7 stem of stride 2 and max-pooling).
    """
    return ISResNeXt(num_classes, in_channels, blocks, width, steps, cardinality, bottleneck, layout)


@register_model
def isresnext_imagenet(
    num_classes: int | tuple[int, ...] = 10,
    in_channels: int = 3,
    blocks: tuple[int, ...] = (5, 5, 5, 5),
    width: int = 160,
    steps: int = 5,
    cardinality: int = 30,
) -> ISResNeXt:
    """IS-ResNeXt for ImageNet (1000 classes, 224x224 pixels): 5 sub-networks of 62 layers (L = 20), 210 to 1531 million MACs.

    Args:
        num_classes: K of the logits, or the sizes of several label levels.
        in_channels: Channels of the images.
        blocks: Blocks at each scale.
        width: Channels of the trunk at the first scale.
        steps: Number of sub-networks; divides `width` and `cardinality`.
        cardinality: Branches of a block, of width 4 at the first scale.
    """
    return ISResNeXt(num_classes, in_channels, blocks, width, steps, cardinality, layout="imagenet")


@register_model
def isresnext_cub(
    num_classes: int | tuple[int, ...] = 10,
    in_channels: int = 3,
    blocks: tuple[int, ...] = (4, 4, 4, 4),
    width: int = 192,
    steps: int = 6,
    cardinality: int = 36,
) -> ISResNeXt:
    """IS-ResNeXt for CUB-200 (224x224 pixels): 6 sub-networks of 50 layers (L = 16), 179 to 1655 million MACs.

    Args:
        num_classes: K of the logits, or the sizes of several label levels.
        in_channels: Channels of the images.
        blocks: Blocks at each scale.
        width: Channels of the trunk at the first scale.
        steps: Number of sub-networks; divides `width` and `cardinality`.
        cardinality: Branches of a block, of width 4 at the first scale.
    """
    return ISResNeXt(num_classes, in_channels, blocks, width, steps, cardinality, layout="imagenet")
