"""I-ResNeXt: one ResNeXt that holds K thin sub-networks of full depth (Lee, Shin: Anytime Neural Prediction via Slicing
Networks Vertically, 2018), and the parts it shares with `anytime.models.slicing.isresnext`."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from anytime.models.slicing.sliced import (
    BatchNorm,
    Layout,
    ResNeXtBlock,
    SliceBatchNorm2d,
    SliceConv2d,
    SlicedModel,
    plain_conv,
    widen,
)
from anytime.registry import register_model


class IResNeXtBlock(nn.Module):
    """y = x + the sum of branches 1..kC/K of x: the bottleneck has its first kD/K channels, the trunk all of its W."""

    def __init__(self, width: int, steps: int, cardinality: int, bottleneck: int, batch_norm: BatchNorm) -> None:
        super().__init__()
        inner = cardinality * bottleneck
        self.width, self.unit = width, inner // steps

        def norm(lengths: Sequence[int]) -> SliceBatchNorm2d:
            if batch_norm == "shared":
                return SliceBatchNorm2d(max(lengths), [0] * steps)
            return SliceBatchNorm2d(sum(lengths), [0, *accumulate(lengths)][:-1])

        thin = [self.unit * k for k in range(1, steps + 1)]
        self.norm1, self.norm2, self.norm3 = norm([width] * steps), norm(thin), norm(thin)
        self.conv1 = SliceConv2d(width, inner, 1, bias=False)
        self.conv2 = SliceConv2d(inner, inner, 3, padding=1, groups=cardinality, bias=False)
        self.conv3 = nn.Conv2d(inner, width, 1, bias=False)

    def forward(self, x: Tensor, k: int) -> Tensor:
        stop = k * self.unit
        h = self.conv1(F.relu_(self.norm1(x, k - 1)), 0, stop)
        h = self.conv2(F.relu_(self.norm2(h, k - 1)), 0, stop)
        return F.conv2d(F.relu_(self.norm3(h, k - 1)), self.conv3.weight[:, :stop]).add_(x)

    def plain(self, k: int) -> ResNeXtBlock:
        """The block of sub-network k, copied."""
        stop = k * self.unit
        norms = self.norm1.plain(k - 1, self.width), self.norm2.plain(k - 1, stop), self.norm3.plain(k - 1, stop)
        convs = self.conv1.plain(stop), self.conv2.plain(stop), plain_conv(self.conv3.weight[:, :stop])
        return ResNeXtBlock(norms, convs)


class IResNeXtState(NamedTuple):
    """`x`: before the first step the normalised images, then the output of the stem."""

    step: int
    x: Tensor


class IResNeXt(SlicedModel):
    """I-ResNeXt: sub-network k is the ResNeXt of branches 1..kC/K; trunk at full width, convolutions shared.

    f_k(x) = g_k(x_k^(L+1)), x_k^(l+1) = x_k^(l) + sum_{i <= kC/K} F(x_k^(l); w_i^(l), u_{i,k}^(l)): the sub-networks share the
    convolutions w, and have batch norms u of their own. So their features differ everywhere: a step runs all of its
    sub-network, only the stem's output is kept. `forward` is K passes, and one backward through its answers sums K gradients.

    The zero channels of a new scale stand at the end. `batch_norm="shared"` is the ablation of Fig. 3a (over 70 % error at the
    thinnest sub-network); the branches of its first block run again although their input is the same.

    Args:
        num_classes: K of the logits, or the sizes of several label levels.
        in_channels: Channels of the images.
        blocks: Blocks at each scale; the sum is the paper's L.
        width: W, channels of the trunk at the first scale.
        steps: K, number of sub-networks; divides `cardinality`.
        cardinality: C, branches of a block.
        bottleneck: B, width of a branch at the first scale.
        layout: `"cifar"` (3x3 stem) or `"imagenet"` (7x7 stem of stride 2 and 2x2 max-pooling).
        batch_norm: `"independent"` for each sub-network (all three of a block), or `"shared"`.

    Source: Lee, Shin 2018, section 3.1 and appendix B.
    """

    def __init__(
        self,
        num_classes: int | Sequence[int] = 10,
        in_channels: int = 3,
        blocks: Sequence[int] = (7, 7, 7),
        width: int = 64,
        steps: int = 8,
        cardinality: int = 8,
        bottleneck: int = 4,
        layout: Layout = "cifar",
        batch_norm: BatchNorm = "independent",
    ) -> None:
        super().__init__(num_classes, in_channels, blocks, width, steps, cardinality, bottleneck, layout)
        if batch_norm not in ("independent", "shared"):
            raise ValueError(f"batch_norm must be 'independent' or 'shared', got {batch_norm!r}")
        self._build(
            blocks,
            lambda factor: IResNeXtBlock(width * factor, steps, cardinality, bottleneck * factor, batch_norm),
            [self.last_width] * steps,
        )

    def initial_state(self, x: Tensor) -> IResNeXtState:
        self.check_input(x, self.smallest)
        return IResNeXtState(0, self.normalize(x))

    def _advance(self, state: IResNeXtState, step: int) -> tuple[Tensor, IResNeXtState]:
        h = stem = self.stem(state.x) if state.step == 0 else state.x
        for index, block in enumerate(self.blocks):
            h = block(widen(h, 1) if index in self.widening else h, step)
        return self.heads[step - 1](h), IResNeXtState(step, stem)


@register_model
def iresnext(
    num_classes: int | tuple[int, ...] = 10,
    in_channels: int = 3,
    blocks: tuple[int, ...] = (7, 7, 7),
    width: int = 64,
    steps: int = 8,
    cardinality: int = 8,
    bottleneck: int = 4,
    layout: Layout = "cifar",
    batch_norm: BatchNorm = "independent",
) -> IResNeXt:
    """I-ResNeXt for CIFAR: 8 sub-networks of 65 layers (L = 21), 15.9 to 114.6 million MACs, 0.876 million parameters.

    Args:
        num_classes: K of the logits, or the sizes of several label levels.
        in_channels: Channels of the images.
        blocks: Blocks at each scale.
        width: Channels of the trunk at the first scale.
        steps: Number of sub-networks; divides `cardinality`.
        cardinality: Branches of a block.
        bottleneck: Width of a branch at the first scale.
        layout: "cifar" (3x3 stem) or "imagenet" (7x7 stem of stride 2 and max-pooling).
        batch_norm: "independent" for each sub-network, or "shared" (the paper's ablation).
    """
    return IResNeXt(num_classes, in_channels, blocks, width, steps, cardinality, bottleneck, layout, batch_norm)


@register_model
def iresnext29(
    num_classes: int | tuple[int, ...] = 10,
    in_channels: int = 3,
    blocks: tuple[int, ...] = (3, 3, 3),
    width: int = 64,
    steps: int = 8,
    cardinality: int = 8,
    batch_norm: BatchNorm = "independent",
) -> IResNeXt:
    """I-ResNeXt of the paper's ablation study: 8 sub-networks of 29 layers (L = 9), 7.8 to 50.1 million MACs on CIFAR-10.

    Args:
        num_classes: K of the logits, or the sizes of several label levels.
        in_channels: Channels of the images.
        blocks: Blocks at each scale.
        width: Channels of the trunk at the first scale.
        steps: Number of sub-networks; divides `cardinality`.
        cardinality: Branches of a block, of width 4 at the first scale.
        batch_norm: "independent" for each sub-network, or "shared".
    """
    return IResNeXt(num_classes, in_channels, blocks, width, steps, cardinality, batch_norm=batch_norm)
