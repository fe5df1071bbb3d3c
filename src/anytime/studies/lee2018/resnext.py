"""The ResNeXt whose shallow sub-networks Lee and Shin (2018) compare with thin ones: a backbone for `attach` and its heads."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anytime.models.slicing.iresnext import IResNeXt
from anytime.models.slicing.sliced import classifier


class Backbone(nn.Module):
    """Only the full sub-network of an I-ResNeXt, images to logits, as a plain sequence of blocks that can be cut.

    The arguments are those of `IResNeXt`.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 3,
        blocks: Sequence[int] = (3, 3, 3),
        width: int = 64,
        cardinality: int = 8,
        bottleneck: int = 4,
    ) -> None:
        super().__init__()
        plain = IResNeXt(num_classes, in_channels, tuple(blocks), width, 1, cardinality, bottleneck).subnetwork(1)
        self.stem, self.blocks, self.head = plain.stem, plain.blocks, plain.head
        self.widening = plain.widening

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        for index, block in enumerate(self.blocks):
            if index in self.widening:
                h = F.avg_pool2d(h, 2, ceil_mode=True)
                h = torch.cat([h, torch.zeros_like(h)], 1)
            h = block(h)
        return self.head(h)


class Classifier(nn.Module):
    """The paper's classifier (BN, ReLU, global average pooling, linear) as a head for `attach`.

    Args:
        shape: (C, H, W) of the features.
        num_classes: K of the logits.
    """

    def __init__(self, shape: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        self.layers = classifier(shape[0], num_classes)

    def forward(self, h: Tensor) -> Tensor:
        """`[B, C, H, W]` to logits `[B, K]`."""
        return self.layers(h)
