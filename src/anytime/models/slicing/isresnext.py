"""IS-ResNeXt: a block-triangular ResNeXt that streams its K thin sub-networks, each reusing the whole previous one.

One set of weights, two schedules of the same sums. `forward` runs every layer once for all groups, with the triangular 1x1
convolution as a dense one with zeros above the diagonal: 2K/(K+1) times the multiply-adds of that layer, but one large call
instead of K. `step`, `stream` and `answer` run only the blocks on and below the diagonal.

Measured (`benchmarks/slicing.py`, K = 6, W = 96, C = 18, L = 15, 2 cores of an Intel Xeon with AMX, float32): at batch 64 a
stream takes 0.99 times as long as the full network and a third (1/3.0) of the K sub-networks from scratch; a training step
takes 1.06 times as long as one of the dense network of the same widths. At batch 1 a stream takes 2.11 times as long as the
full network, 1.76 if compiled. There, with 3 blocks, each of these made it less than 10 % faster: 1x1 convolutions as matrix
products over a channels-first cache, the same with the 3x3 in channels-last, and caches written in place. The grouped 3x3
convolutions take a third of the time, at a cost per call that hardly depends on their size.

Source: Lee, Shin: Anytime Neural Prediction via Slicing Networks Vertically, 2018, section 3.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anytime.models.slicing.sliced import ResNeXtBlock, SliceBatchNorm2d, SliceConv2d, SlicedModel, SliceLayout, plain_conv
from anytime.registry import variant


class TriangularConv(nn.Module):
    """1x1 convolution without bias, block-triangular in K groups: a_g = sum_{j <= g} W_{g,j} h_j.

    `weight` holds only the blocks on and below the diagonal, as rows of `width` numbers: one row for each group g, each of its
    output channels and each j <= g. The weights of one group are thus contiguous, a matrix of g * `width` columns without a
    copy, and the dense matrix has these rows at their places among zeros.

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
        """The weights of output group g = 1..K: a view `[unit, g * width, 1, 1]`."""
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
        """A copy of the first `groups` groups."""
        return Staircase([self.rows(g) for g in range(1, groups + 1)])


class Staircase(nn.Module):
    """The triangular convolution made of torch's own layers: convolution g reads the first g groups of the input."""

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
        """Groups first + 1..last of y from those of x, and relu(BN(x)) of groups 1..last; `cache` holds it for 1..first."""
        h = F.relu_(self.norm1(x, first))
        if cache is not None:
            h = torch.cat([cache, h], 1)
        out = self.conv1(h, first, last, dense)
        out = self.conv2(F.relu_(self.norm2(out, first)), first * self.unit, last * self.unit)
        out = self.conv3(F.relu_(self.norm3(out, first)), first * self.width, last * self.width)
        return out.add_(x), h

    def plain(self, k: int) -> ResNeXtBlock:
        """A copy of the block of sub-network k."""
        width, unit = k * self.width, k * self.unit
        norms = self.norm1.plain(0, width), self.norm2.plain(0, unit), self.norm3.plain(0, unit)
        return ResNeXtBlock(norms, (self.conv1.plain(k), self.conv2.plain(unit), self.conv3.plain(width)))


class ISResNeXtState(NamedTuple):
    """`caches` hold groups 1..step of the first convolution's input in each block, then of the last features.

    They are empty before the first step.
    """

    step: int
    images: Tensor
    caches: tuple[Tensor, ...]


class ISResNeXt(SlicedModel):
    """IS-ResNeXt: sub-network k is the first k of K groups of every layer, and step k computes only the k-th group.

    Trunk and bottleneck are cut into K groups of W/K and D/K channels. For branch i of a block, in group g = ceil(i K / C):
    a_i = conv1x1(relu(BN([x_1; ...; x_g]))), b_i = conv3x3(relu(BN(a_i))); y_g = conv1x1(relu(BN([b_i of group g]))) + x_g.
    So group g of any layer depends only on groups 1..g. Batch norm works by channel, hence all sub-networks share it without
    approximation; the classifiers read [x_1; ...; x_k] and are independent, including their batch norm.

    A new scale doubles each group by its own zero channels, [x_g; 0]; zeros at the end would shift the groups' borders.

    Args:
        num_classes: K of the logits, or the sizes of several label levels.
        in_channels: Channels of the images.
        blocks: Blocks at each scale.
        width: Channels of the trunk at the first scale.
        steps: Number of sub-networks; divides `width` and `cardinality`.
        cardinality: Branches of a block.
        bottleneck: Width of a branch at the first scale.
        layout: "cifar" (3x3 stem) or "imagenet" (7x7 stem of stride 2 and max-pooling).

    Raises:
        ValueError: An argument out of range, or K does not divide both W and C.

    Source: Lee, Shin 2018, section 3.2 and appendix B.
    """

    grouped = True

    def __init__(
        self,
        num_classes: int | tuple[int, ...] = 10,
        in_channels: int = 3,
        blocks: tuple[int, ...] = (5, 5, 5),
        width: int = 96,
        steps: int = 6,
        cardinality: int = 18,
        bottleneck: int = 4,
        layout: SliceLayout = "cifar",
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
        """Runs groups state.step + 1..last of every layer; without `keep`, only the last features are cached."""
        first, unit = state.step, self.width // self.num_steps
        caches: list[Tensor] = []
        h = self.stem(state.images, first * unit, last * unit)
        for index, block in enumerate(self.blocks):
            h = self._enter(index, h, last - first)
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
        """Only the answer of sub-network `step`, layer by layer for all of its groups."""
        return self._classify(self._groups(self.initial_state(x), step, keep=False).caches[-1], step)

    def forward(self, x: Tensor, step: int | None = None) -> Tensor:
        """All answers `[T, B, K]` in one pass, or with `step` = 1..T only that answer, `[B, K]`, at its contract cost."""
        if step is not None:
            return super().forward(x, step)
        features = self._groups(self.initial_state(x), self.num_steps, dense=True, keep=False).caches[-1]
        return torch.stack([self._classify(features, k) for k in range(1, self.num_steps + 1)])


isresnext = variant(
    ISResNeXt,
    "isresnext",
    "IS-ResNeXt of Lee et al. 2018 for CIFAR: 6 sub-networks of 47 layers (L = 15), 13.0 to 122.1 M MACs, 0.852 M parameters.",
)
isresnext_imagenet = variant(
    ISResNeXt,
    "isresnext_imagenet",
    "IS-ResNeXt of Lee et al. 2018 for ImageNet (224x224 pixels): 5 sub-networks of 62 layers (L = 20), 210 to 1531 M MACs."
    "\n\nA branch has width 4 at the first scale.",
    fixed={"bottleneck": 4, "layout": "imagenet"},
    blocks=(5, 5, 5, 5),
    width=160,
    steps=5,
    cardinality=30,
)
isresnext_cub = variant(
    ISResNeXt,
    "isresnext_cub",
    "IS-ResNeXt of Lee et al. 2018 for CUB-200 (224x224 pixels): 6 sub-networks of 50 layers (L = 16), 179 to 1655 M MACs."
    "\n\nA branch has width 4 at the first scale.",
    fixed={"bottleneck": 4, "layout": "imagenet"},
    blocks=(4, 4, 4, 4),
    width=192,
    steps=6,
    cardinality=36,
)
