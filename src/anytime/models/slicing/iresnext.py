"""I-ResNeXt: one ResNeXt that holds K thin sub-networks of full depth.

Source: Lee, Shin: Anytime Neural Prediction via Slicing Networks Vertically, 2018, section 3.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Literal, NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from anytime.models.slicing.sliced import ResNeXtBlock, SliceBatchNorm2d, SliceConv2d, SlicedModel, SliceLayout, plain_conv
from anytime.registry import variant

BatchNorm = Literal["independent", "shared"]


class IResNeXtBlock(nn.Module):
    """y = x + the sum of branches 1..kC/K of x: the first kD/K channels of the bottleneck, all W channels of the trunk."""

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
        """A copy of the block of sub-network k."""
        stop = k * self.unit
        norms = self.norm1.plain(k - 1, self.width), self.norm2.plain(k - 1, stop), self.norm3.plain(k - 1, stop)
        convs = self.conv1.plain(stop), self.conv2.plain(stop), plain_conv(self.conv3.weight[:, :stop])
        return ResNeXtBlock(norms, convs)


class IResNeXtState(NamedTuple):
    """`x` holds the normalised images before the first step, the output of the stem afterwards."""

    step: int
    x: Tensor


class IResNeXt(SlicedModel):
    """I-ResNeXt: sub-network k is the ResNeXt of branches 1..kC/K; trunk at full width, convolutions shared.

    f_k(x) = g_k(x_k^(L+1)), x_k^(l+1) = x_k^(l) + sum_{i <= kC/K} F(x_k^(l); w_i^(l), u_{i,k}^(l)): the sub-networks share the
    convolutions w but have separate batch norms u (all three of a block), so their features differ everywhere. A step runs its
    whole sub-network and reuses only the stem's output. `forward` is K passes, and one backward through its answers sums K
    gradients.

    The zero channels of a new scale are at the end. `batch_norm="shared"` is the ablation of Fig. 3a (over 70 % error at the
    thinnest sub-network); the branches of its first block run again although their input is unchanged.

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

    Source: Lee, Shin 2018, section 3.1 and appendix B.
    """

    def __init__(
        self,
        num_classes: int | tuple[int, ...] = 10,
        in_channels: int = 3,
        blocks: tuple[int, ...] = (7, 7, 7),
        width: int = 64,
        steps: int = 8,
        cardinality: int = 8,
        bottleneck: int = 4,
        layout: SliceLayout = "cifar",
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
            h = block(self._enter(index, h, 1), step)
        return self.heads[step - 1](h), IResNeXtState(step, stem)


iresnext = variant(
    IResNeXt,
    "iresnext",
    "I-ResNeXt of Lee et al. 2018 for CIFAR: 8 sub-networks of 65 layers (L = 21), 15.9 to 114.6 M MACs, 0.876 M parameters.",
)
iresnext29 = variant(
    IResNeXt,
    "iresnext29",
    "I-ResNeXt of Lee et al. 2018 (ablation study): 8 sub-networks of 29 layers (L = 9), 7.8 to 50.1 million MACs on CIFAR-10."
    "\n\nA branch has width 4 at the first scale.",
    fixed={"bottleneck": 4, "layout": "cifar"},
    blocks=(3, 3, 3),
)
