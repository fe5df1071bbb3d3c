"""The cascaded vision transformer: attention and MLPs arrive late (Iuzzolino, Mozer, Bengio, NeurIPS 2021)."""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from anytime.models.common.layers import check_depth, require_counts
from anytime.models.loop_vit import positions
from anytime.models.surgery.delays.model import DelayedNetwork
from anytime.registry import variant


class WholePatches(nn.Module):
    """Pads images at the bottom and on the right to whole patches."""

    def __init__(self, patch: int) -> None:
        super().__init__()
        self.patch = patch

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x, (0, -x.shape[3] % self.patch, 0, -x.shape[2] % self.patch))


class Placed(nn.Module):
    """Embedded patches `[B, D, H, W]` as tokens `[B, N, D]`, with the sines and cosines of their rows and columns added."""

    def forward(self, e: Tensor) -> Tensor:
        return e.flatten(2).transpose(1, 2) + positions(e.shape[2], e.shape[3], e.shape[1], e.device).to(e.dtype)


class Attention(nn.Module):
    """Attention of the normalised tokens `[B, N, D]` to themselves."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(width), nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, h: Tensor) -> Tensor:
        z = self.norm(h)
        return self.attention(z, z, z, need_weights=False)[0]


class CascadedLayer(nn.Module):
    """h + attention(h), then h + mlp(h), each with its own norm."""

    def __init__(self, width: int, heads: int, expansion: int) -> None:
        super().__init__()
        hidden = expansion * width
        self.attention = Attention(width, heads)
        self.mlp = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, h: Tensor) -> Tensor:
        h = h + self.attention(h)
        return h + self.mlp(h)


class VisionTransformer(nn.Module):
    """Patches, layers, norm, mean over the tokens, linear map. `CascadedViT` documents the arguments."""

    def __init__(
        self, num_classes: int, in_channels: int, layers: int, width: int, heads: int, patch: int, expansion: int
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(WholePatches(patch), nn.Conv2d(in_channels, width, patch, patch), Placed())
        self.layers = nn.Sequential(*(CascadedLayer(width, heads, expansion) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.layers(self.stem(x))).mean(1))


class CascadedViT(DelayedNetwork):
    """A vision transformer whose attention and MLPs arrive late: z[t, k+1] = z[t, k] + D(f_k(z[., k]))[t], k = 1..2 L.

    f_k are in turn the attention and the MLP of the L layers, each with its layer norm; the embedded patches z[t, 1] and the
    head are not delayed, so the answer at t = 0 has seen the image. Under a one-step delay the answer at t = 2 L is that of
    the transformer itself: 2 L + 1 answers. Branch k sees k distinct inputs, so all answers take L (2 L + 1) evaluations of
    branches instead of 2 L (2 L + 1). There is no batch norm, so nothing depends on the time but the state.

    Args:
        num_classes: K of the logits, or the sizes of several label levels.
        in_channels: Channels of the images.
        layers: L.
        width: D, a multiple of 4 and of `heads`.
        heads: Heads of the attention.
        patch: Height and width of a patch; images are padded with `mean` to whole patches.
        expansion: Hidden channels of each MLP, in multiples of D.
        kernel: "osd" (one-step delay), "ews" (smoothing), "instant" (no delay), or the weights of a tapped delay line.
        alpha: Weight of the previous output under smoothing, in [0, 1).
        num_steps: T; default: until the answer has settled (with smoothing 70).

    Raises:
        ValueError: A number is below 1, or the width is no multiple of 4 and of `heads`.

    Source: the paper names transformers among the networks with skip connections that can be cascaded, and shows none; the
    transformer is that of Dosovitskiy et al. 2021 with a mean over the tokens (Beyer, Zhai, Kolesnikov 2022).
    """

    head_names = ("network.head",)

    def __init__(
        self,
        num_classes: int | tuple[int, ...] = 10,
        in_channels: int = 3,
        layers: int = 6,
        width: int = 192,
        heads: int = 3,
        patch: int = 4,
        expansion: int = 4,
        kernel: Literal["osd", "ews", "instant"] | tuple[float, ...] = "osd",
        alpha: float = 0.9,
        num_steps: int | None = None,
    ) -> None:
        require_counts(layers=layers, width=width, heads=heads, patch=patch, expansion=expansion)
        if width % math.lcm(4, heads):
            raise ValueError(f"width must be a multiple of 4 and of heads={heads}, got {width!r}")
        check_depth("layers", [layers])
        classes = num_classes if isinstance(num_classes, int) else sum(num_classes)
        network = VisionTransformer(classes, in_channels, layers, width, heads, patch, expansion)
        branches = [f"layers.{k}.{part}" for k in range(layers) for part in ("attention", "mlp")]
        super().__init__(network, branches, kernel, alpha, num_steps, num_classes, in_channels, leaves=("stem.0", "stem.2"))


cascaded_vit = variant(
    CascadedViT,
    "cascaded_vit",
    "Cascaded vision transformer (after Iuzzolino et al. 2021): 6 layers, 13 answers at t = 0..12.",
)
