"""ANN: residual networks with an exit after every s-th unit (Hu, Dey, Bagnell, Hebert: Anytime Neural Networks, 2017)."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from anytime.models.ann.chain import AnytimeChain, GradientFlow
from anytime.models.common.layers import add_shortcut, check_depth
from anytime.registry import variant


class Unit(nn.Module):
    """h + bn(conv3x3(relu(bn(conv3x3(bn(h)))))) (Han, Kim, Kim 2017); `first_relu` adds a relu after the first bn.

    If there are more output than input channels, the first convolution has stride 2, and the shortcut is average-pooled and
    padded with zero channels, half of them in front and half behind.
    """

    def __init__(self, channels: int, out_channels: int, first_relu: bool) -> None:
        super().__init__()
        stride = 1 if channels == out_channels else 2
        self.first_relu = first_relu
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, out_channels, 3, stride, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(out_channels)

    def forward(self, h: Tensor) -> Tensor:
        out = self.norm1(h)
        if self.first_relu:
            out = F.relu_(out)
        out = F.relu_(self.norm2(self.conv1(out)))
        return add_shortcut(self.norm3(self.conv2(out)), h, centred=True)


class ANN(AnytimeChain):
    """A residual network of three stages of n units, with an exit after every s-th unit counted from the last, L = 3n.

    Conv3x3 to c channels, then n units of width c, 2c and 4c; every unit costs the same. Exits: relu, global average pooling,
    linear. n = 9, c = 32 and s = 1 is one of the paper's 13 models.

    Where the paper and its published code differ, the paper is the default. Between stages the paper has a 3x3 convolution of
    stride 2 (`transition="conv"`, 6n + 3 convolutions); in the code the first unit has the stride (`"unit"`, 6n + 1). The
    units of the paper and of the code of 2017 are those of Han et al. (2017), without a first relu; the later code has
    `first_relu=True`.

    Args:
        num_classes: K of the logits, or the sizes of several label levels.
        in_channels: Channels of the images.
        units: Units in each of the three stages (n).
        width: Channels of the first stage (c), doubled from stage to stage.
        period: Units per exit (s), counted from the last, which always has one.
        transition: "conv", a 3x3 convolution of stride 2 between stages (paper), or "unit", a striding first unit (code).
        first_relu: A relu after the first batch norm of each unit (later code); the paper's units have none.
        regime: "joint" (all exits train all), "no_grad" (no gradient through an exit's features), "midfeat" (frozen trunk).

    Raises:
        ValueError: n, c or s below 1, s above 3n, an unknown transition or regime.

    Source: Hu, Dey, Bagnell, Hebert, 2017, sections 3.1, 4.1 and B.
    """

    def __init__(
        self,
        num_classes: int | tuple[int, ...] = 10,
        in_channels: int = 3,
        units: int = 9,
        width: int = 32,
        period: int = 1,
        transition: Literal["conv", "unit"] = "conv",
        first_relu: bool = False,
        regime: GradientFlow = "joint",
    ) -> None:
        if units < 1:
            raise ValueError(f"units must be at least 1 per stage, got {units!r}")
        check_depth("units of the three stages", [3 * units])
        if width < 1:
            raise ValueError(f"width must be at least 1, got {width!r}")
        if transition not in ("conv", "unit"):
            raise ValueError(f"transition must be 'conv' or 'unit', got {transition!r}")
        channels = [width * 2**stage for stage in range(3) for _ in range(units)]
        chain: list[nn.Module] = []
        for before, after in pairwise([width, *channels]):
            if before < after and transition == "conv":
                stride = nn.Conv2d(before, after, 3, 2, 1, bias=False)
                chain.append(nn.Sequential(stride, Unit(after, after, first_relu)))
            else:
                chain.append(Unit(before, after, first_relu))
        stem = partial(nn.Conv2d, in_channels, width, 3, 1, 1, bias=False)
        super().__init__(num_classes, in_channels, stem, chain, channels, period, regime, smallest=4)


ann = variant(ANN, "ann", "ANN of Hu et al. 2017: a residual network for small images that answers after every unit.")
