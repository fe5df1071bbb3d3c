"""A looped vision transformer: one block, applied as often as time allows, and one head."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anytime.model import AnytimeModel
from anytime.models.common.heads import TokenHead
from anytime.models.common.layers import check_depth, require_counts
from anytime.models.common.steps import require_step_left
from anytime.registry import variant


def positions(height: int, width: int, channels: int, device: torch.device | None = None) -> Tensor:
    """Sines and cosines of the row and the column of each patch, `[height * width, channels]`.

    A quarter of the channels each: sin(row w), cos(row w), sin(column w), cos(column w), with w from 1 to 1/10,000.

    Source: Beyer, Zhai, Kolesnikov 2022 (better plain ViT baselines for ImageNet-1k).
    """
    rates = 10_000.0 ** -torch.linspace(0, 1, channels // 4, device=device)
    row = (torch.arange(height, device=device)[:, None] * rates).repeat_interleave(width, 0)
    column = (torch.arange(width, device=device)[:, None] * rates).repeat(height, 1)
    return torch.cat([row.sin(), row.cos(), column.sin(), column.cos()], 1)


class Layer(nn.Module):
    """h + attention(norm(h)), then h + mlp(norm(h)): a transformer layer in pre-norm order, `[B, N, C]` to the same."""

    def __init__(self, width: int, heads: int, expansion: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, expansion * width), nn.GELU(), nn.Linear(expansion * width, width))

    def forward(self, h: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(h)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        h = h + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return h + self.mlp(self.norm2(h))


class LoopState(NamedTuple):
    """`image` are the embedded patches `[B, N, C]`, `tokens` what the block made of them (None before the first loop)."""

    step: int
    image: Tensor
    tokens: Tensor | None


class LoopViT(AnytimeModel):
    """z_t = block(z_{t-1} + e), z_0 = 0, logits_t = W mean(norm(z_t)) + b, with the same block, norm and W at every t.

    e are the patches, projected to C channels, plus `positions`. No weight depends on t or on the size of the image, so T can
    be set at any time, `model.num_steps = 16`, and exceed that of the training. More loops are no better by themselves.
    `SelfDistillation` trains the early answers with the last one.

    Args:
        num_classes: K of the logits, or the sizes of several label levels.
        in_channels: Channels of the images.
        num_steps: T, the number of loops.
        patch: Height and width of a patch, 4 for CIFAR and 16 for images of 224 pixels; images are padded with `mean` to whole
            patches.
        width: C, a multiple of 4 and of `heads`.
        layers: Transformer layers in the block.
        heads: Heads of the attention.
        expansion: Hidden channels of each MLP, in multiples of C.

    Raises:
        ValueError: A number is below 1, or the width is no multiple of 4 and of `heads`.

    Source: The shared block is that of Dehghani et al. 2019 (universal transformers), e in every loop that of Yang et al. 2024
    (looped transformers), distillation between loops that of Goyal et al. 2026 (elastic looped transformers).
    """

    def __init__(
        self,
        num_classes: int | tuple[int, ...] = 10,
        in_channels: int = 3,
        num_steps: int = 8,
        patch: int = 4,
        width: int = 192,
        layers: int = 1,
        heads: int = 3,
        expansion: int = 4,
    ) -> None:
        super().__init__(num_classes, in_channels)
        require_counts(patch=patch, width=width, layers=layers, heads=heads, expansion=expansion)
        if width % math.lcm(4, heads):
            raise ValueError(f"width must be a multiple of 4 and of heads={heads}, got {width!r}")
        check_depth("layers", [layers])
        self.num_steps = num_steps
        self.patch, self.width = patch, width
        self.embedding = nn.Conv2d(in_channels, width, patch, patch)
        self.block = nn.Sequential(*(Layer(width, heads, expansion) for _ in range(layers)))
        self.head = TokenHead((0, width), self.num_classes)

    @property
    def num_steps(self) -> int:
        """T, the number of loops of a full run; may be set at any time.

        Raises:
            ValueError: It is no whole number of at least 1.
        """
        return self._num_steps

    @num_steps.setter
    def num_steps(self, number: int) -> None:
        if type(number) is not int or number < 1:
            raise ValueError(f"num_steps must be a whole number of at least 1, got {number!r}")
        check_depth("num_steps", [number])
        self._num_steps = number
        arguments: Any = self.config.get("arguments", {})
        if "num_steps" in arguments:
            arguments["num_steps"] = number  # saved with the weights

    def initial_state(self, x: Tensor) -> LoopState:
        self.check_input(x)
        height, width = x.shape[2:]
        x = F.pad(self.normalize(x), (0, -width % self.patch, 0, -height % self.patch))
        e = self.embedding(x)
        place = positions(e.shape[2], e.shape[3], self.width, e.device).to(e.dtype)
        return LoopState(0, e.flatten(2).transpose(1, 2) + place, None)

    def advance(self, state: LoopState) -> LoopState:
        """The state one loop further, without its answer."""
        require_step_left(state.step, self.num_steps)
        tokens = state.image if state.tokens is None else state.tokens + state.image
        return LoopState(state.step + 1, state.image, self.block(tokens))

    def read(self, state: LoopState) -> Tensor:
        """The answer `[B, K]` of a state after at least one loop."""
        if state.tokens is None:
            raise ValueError("there is no answer before the first step: advance first")
        return self.head(state.tokens)

    def step(self, state: LoopState) -> tuple[Tensor, LoopState]:
        after = self.advance(state)
        return self.read(after), after


loop_vit = variant(
    LoopViT,
    "loop_vit",
    "Looped vision transformer (Dehghani et al. 2019): one block applied T times, which may exceed that of the training.",
)
