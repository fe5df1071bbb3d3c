"""Heads that answer from a backbone's features: one class per kind, "auto" chooses by the shape of the features.

Every head is built as `Head(shape, num_classes)`, where the shape excludes the batch: an image (C, H, W), tokens (N, C) or a
vector (C,). It maps features of shape `[B, *shape]` to logits `[B, K]`. A custom class, named by import path, works alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anytime.model import eval_mode
from anytime.support.names import import_subclass, nearest

Shape = tuple[int, ...]
GRID_WEIGHTS = 2**18  # most weights of one head: reading more takes as long as a layer when a single image is answered


def _require(shape: Shape, kinds: Sequence[int], head: str, wanted: str) -> None:
    if len(shape) not in kinds:
        raise ValueError(f"a {head} head reads {wanted}, but the features have the shape {shape} (without the batch)")


class LinearHead(nn.Module):
    """logits = W mean(h) + b, the mean over all positions of an image `[B, C, H, W]` or tokens `[B, N, C]`; `[B, C]` as is."""

    def __init__(self, shape: Shape, num_classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(shape[-1] if len(shape) == 2 else shape[0], num_classes)

    def forward(self, h: Tensor) -> Tensor:
        return self.linear(h.mean((2, 3)) if h.ndim == 4 else h.mean(1) if h.ndim == 3 else h)


class MixedHead(nn.Module):
    """logits = W p + b, p = a max(h) + (1 - a) mean(h) over the cells of a g x g grid of images `[B, C, H, W]`, a learned.

    g is 4, or 2 or 1 where 4 x 4 cells would need more than 2^18 weights. If the cells are single pixels, nothing is mixed.
    The paper pools with kernels of size // 4, which is the same if 4 divides the size; here the grid is the same for all
    image sizes. a starts at 1/2 (in the paper's code, it is drawn uniformly from [0, 1]).

    Source: Kaya, Hong, Dumitras, ICML 2019 (shallow-deep networks), section 4.
    """

    most_weights: float = GRID_WEIGHTS

    def __init__(self, shape: Shape, num_classes: int) -> None:
        super().__init__()
        _require(shape, (3,), "mixed", "images (C, H, W)")
        channels, height, width = shape
        side = next(side for side in (4, 2, 1) if side == 1 or side**2 * channels * num_classes <= self.most_weights)
        self.grid = (min(side, height), min(side, width))
        self.mix = nn.Parameter(torch.full((1,), 0.5)) if self.grid != (height, width) else None
        self.linear = nn.Linear(channels * self.grid[0] * self.grid[1], num_classes)

    def forward(self, h: Tensor) -> Tensor:
        pooled = F.adaptive_avg_pool2d(h, self.grid)
        if self.mix is not None:
            pooled = torch.lerp(pooled, F.adaptive_max_pool2d(h, self.grid), self.mix.to(pooled))  # autocast mixes dtypes
        return self.linear(pooled.flatten(1))


class ConvHead(nn.Module):
    """logits = W mean(g(g(h))) + b with g = relu(bn(conv3x3, stride 2)) to `width` channels: stronger, but the most expensive.

    Source: Huang et al., ICLR 2018 (MSDNet), appendix A; their 2 x 2 pooling and linear layer are a global mean here.
    """

    def __init__(self, shape: Shape, num_classes: int, width: int = 128) -> None:
        super().__init__()
        _require(shape, (3,), "conv", "images (C, H, W)")
        layers: list[nn.Module] = []
        for channels in (shape[0], width):
            layers += [nn.Conv2d(channels, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        self.linear = nn.Linear(width, num_classes)

    def forward(self, h: Tensor) -> Tensor:
        return self.linear(self.layers(h).mean((2, 3)))


class TokenHead(nn.Module):
    """logits = W mean(norm(h)) + b, layer norm over the channels of each token `[B, N, C]`, the mean over all tokens.

    The pixels of an image `[B, C, H, W]` also count as tokens.
    """

    def __init__(self, shape: Shape, num_classes: int) -> None:
        super().__init__()
        _require(shape, (2, 3), "token", "tokens (N, C) or images (C, H, W)")
        channels = shape[1] if len(shape) == 2 else shape[0]
        self.norm = nn.LayerNorm(channels)
        self.linear = nn.Linear(channels, num_classes)

    def forward(self, h: Tensor) -> Tensor:
        tokens = h.flatten(2).transpose(1, 2) if h.ndim == 4 else h
        return self.linear(self.norm(tokens).mean(1))


class ClassTokenHead(nn.Module):
    """logits = W norm(h_0) + b, h_0 the first of the tokens `[B, N, C]`: the class token of ViT and DeiT."""

    def __init__(self, shape: Shape, num_classes: int) -> None:
        super().__init__()
        _require(shape, (2,), "class_token", "tokens (N, C)")
        self.norm = nn.LayerNorm(shape[1])
        self.linear = nn.Linear(shape[1], num_classes)

    def forward(self, h: Tensor) -> Tensor:
        return self.linear(self.norm(h[:, 0]))


HEADS: dict[str, type[nn.Module]] = {
    "linear": LinearHead,
    "mixed": MixedHead,
    "conv": ConvHead,
    "token": TokenHead,
    "class_token": ClassTokenHead,
}
Head = str | Callable[[Shape, int], nn.Module]


def build_head(head: Head, shape: Shape, num_classes: int, channels_last: bool = False) -> nn.Module:
    """Builds a head for features of the given shape.

    Args:
        head: A name of `HEADS`, the import path of a custom class, a class or function; or "auto": mixed for images, token
            for tokens and for the channels-last images of Swin-like transformers, linear for vectors.
        shape: Shape of the features that the head receives, without the batch: (C, H, W), (N, C) or (C,).
        num_classes: K of the logits.
        channels_last: Whether the backbone stores these images as (H, W, C); only "auto" uses it.

    Raises:
        ValueError: Unknown name, or a head that cannot read features of this shape or does not return K logits.
    """
    if isinstance(head, str):
        name = ("token" if channels_last else ("linear", "token", "mixed")[len(shape) - 1]) if head == "auto" else head
        if "." not in name and name not in HEADS:
            raise ValueError(f"unknown head {head!r}{nearest(head, ['auto', *HEADS])}")
        build: Callable[[Shape, int], nn.Module] = HEADS[name] if name in HEADS else import_subclass(name, nn.Module, "head")
    else:
        name, build = getattr(head, "__name__", type(head).__name__), head
    if build in HEADS.values():
        return build(shape, num_classes)
    try:
        built = build(shape, num_classes)
        with torch.no_grad(), eval_mode(built):
            found = tuple(built(torch.zeros(2, *shape)).shape)
    except (TypeError, RuntimeError, AttributeError) as error:
        raise ValueError(
            f"head {name!r} must be built as Head(shape, num_classes) and map [B, *shape] to logits [B, K]; "
            f"for shape {shape} and {num_classes} classes it fails: {' '.join(str(error).split())}"
        ) from error
    if found != (2, num_classes):
        raise ValueError(f"head {name!r} must return logits [2, {num_classes}] for two features of {shape}, got {[*found]}")
    return built
