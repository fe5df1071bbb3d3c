"""Layers whose first channels are a layer of their own, and what sliced networks share."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anytime.model import AnytimeModel, State

Layout = Literal["cifar", "imagenet"]
BatchNorm = Literal["independent", "shared"]


def cut(tensor: Tensor, start: int, stop: int) -> Tensor:
    """`tensor[start:stop]`, or the tensor itself where that is all of it: training the full network then makes no views."""
    return tensor if stop - start == len(tensor) else tensor[start:stop]


class SliceBatchNorm2d(nn.Module):
    """Batch norm that holds one stretch of channels per use; uses may overlap.

    Use k: y_c = weight_{s + c} * (x_c - mu_c) / sqrt(var_c + 1e-5) + bias_{s + c}, s = starts[k], for as many channels c as x
    has; mu and var are those of the batch in training, and the running statistics of channel s + c in evaluation.

    Args:
        channels: Channels of all uses together.
        starts: First channel of each use.
    """

    def __init__(self, channels: int, starts: Sequence[int]) -> None:
        super().__init__()
        self.starts = tuple(starts)
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.running_mean: Tensor
        self.running_var: Tensor
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def _stretch(self, use: int, channels: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        start = self.starts[use]
        mean, var, weight, bias = (
            cut(tensor, start, start + channels) for tensor in (self.running_mean, self.running_var, self.weight, self.bias)
        )
        return mean, var, weight, bias

    def forward(self, x: Tensor, use: int) -> Tensor:
        return F.batch_norm(x, *self._stretch(use, x.shape[1]), self.training)

    def plain(self, use: int, channels: int) -> nn.BatchNorm2d:
        """The first `channels` channels of one use, copied."""
        mean, var, weight, bias = (tensor.detach().clone() for tensor in self._stretch(use, channels))
        norm = nn.BatchNorm2d(channels, device="meta")
        norm.running_mean, norm.running_var, norm.num_batches_tracked = mean, var, torch.tensor(0, device=mean.device)
        norm.weight, norm.bias = nn.Parameter(weight), nn.Parameter(bias)
        return norm


class SliceConv2d(nn.Conv2d):
    """A convolution without bias of which the output channels `start..stop - 1` may run alone.

    Of a grouped convolution the input then holds the channels of these groups alone.
    """

    def _groups(self, channels: int) -> int:
        return self.groups * channels // self.out_channels if self.groups > 1 else 1

    def forward(self, input: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        stop = self.out_channels if stop is None else stop
        weight = cut(self.weight, start, stop)
        return F.conv2d(input, weight, None, self.stride, self.padding, 1, self._groups(stop - start))

    def plain(self, channels: int) -> nn.Conv2d:
        """The convolution of the first output channels, copied."""
        return plain_conv(self.weight[:channels], self._groups(channels), self.stride[0], self.kernel_size[0] // 2)


class Stem(SliceConv2d):
    """`"cifar"`: 3x3 convolution. `"imagenet"`: 7x7 convolution of stride 2, then 2x2 max-pooling: 224 to 56 pixels."""

    def __init__(self, in_channels: int, width: int, layout: Layout) -> None:
        kernel, stride = (3, 1) if layout == "cifar" else (7, 2)
        super().__init__(in_channels, width, kernel, stride, kernel // 2, bias=False)
        self.pool = nn.Identity() if layout == "cifar" else nn.MaxPool2d(2, ceil_mode=True)

    def forward(self, input: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        return self.pool(super().forward(input, start, stop))


def widen(x: Tensor, groups: int) -> Tensor:
    """Between two scales: 2x2 average pooling of stride 2, then each of the `groups` groups is doubled by zeros, [x_g; 0]."""
    parts = F.avg_pool2d(x, 2, ceil_mode=True).chunk(groups, 1)
    zeros = torch.zeros_like(parts[0])
    return torch.cat([half for part in parts for half in (part, zeros)], 1)


def classifier(channels: int, classes: int) -> nn.Sequential:
    """BN-ReLU-global average pooling-linear."""
    return nn.Sequential(
        nn.BatchNorm2d(channels), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)
    )


class LevelClassifiers(nn.ModuleList):
    """g_{k,d}: a classifier of its own for each label level; their logits side by side."""

    def forward(self, h: Tensor) -> Tensor:
        return torch.cat([classify(h) for classify in self], 1)


def plain_conv(weight: Tensor, groups: int = 1, stride: int = 1, padding: int = 0) -> nn.Conv2d:
    """A convolution without bias with a copy of `weight`."""
    out, inputs, kernel = weight.shape[0], weight.shape[1] * groups, weight.shape[2]
    conv = nn.Conv2d(inputs, out, kernel, stride, padding, groups=groups, bias=False, device="meta")
    conv.weight = nn.Parameter(weight.detach().clone())
    return conv


class ResNeXtBlock(nn.Module):
    """x + conv3(relu(norm3(conv2(relu(norm2(conv1(relu(norm1(x)))))))))."""

    def __init__(self, norms: Sequence[nn.Module], convs: Sequence[nn.Module]) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = norms
        self.conv1, self.conv2, self.conv3 = convs

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.relu(self.norm1(x)))
        h = self.conv2(F.relu(self.norm2(h)))
        return x + self.conv3(F.relu(self.norm3(h)))


class ResNeXt(nn.Module):
    """A stand-alone network for images `[B, C, H, W]` in [0, 1], to logits `[B, K]`: stem, scales of blocks, classifier.

    Made of torch's own layers alone, so that other tools can fuse, quantise or export it. `SlicedModel.subnetwork` makes it.
    """

    def __init__(self, stem: nn.Module, blocks: Sequence[nn.Module], head: nn.Module, like: SlicedModel, groups: int) -> None:
        super().__init__()
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", like.mean.clone())
        self.register_buffer("std", like.std.clone())
        self.stem, self.blocks, self.head = stem, nn.ModuleList(blocks), head
        self.widening, self.groups = like.widening, groups

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem((x - self.mean[:, None, None]) / self.std[:, None, None])
        for index, block in enumerate(self.blocks):
            h = block(widen(h, self.groups) if index in self.widening else h)
        return self.head(h)


class SlicedModel(AnytimeModel):
    """What I-ResNeXt and IS-ResNeXt share: K nested thin sub-networks of one ResNeXt, each with a classifier of its own.

    Blocks BN-ReLU-1x1, BN-ReLU-3x3 (C groups), BN-ReLU-1x1, plus identity; no block has a stride. Scale s = 0, 1, ... has
    W 2^s channels and C branches of width B 2^s. Depth 3 L + 2 for L blocks. Each sub-network has a classifier for each
    label level.

    Source: Lee, Shin 2018, sections 2.2 and 3, appendix B.
    """

    grouped = False  # whether the trunk is cut into K groups, too

    def __init__(
        self,
        num_classes: int | Sequence[int],
        in_channels: int,
        blocks: Sequence[int],
        width: int,
        steps: int,
        cardinality: int,
        bottleneck: int,
        layout: Layout,
    ) -> None:
        super().__init__(num_classes, in_channels)
        if isinstance(blocks, int):
            raise ValueError(f"blocks must be a list, one number for each scale, got {blocks}")
        if not blocks or min(blocks) < 1:
            raise ValueError(f"blocks must be at least 1 at every scale, got {blocks}")
        for name, n in {"width": width, "steps": steps, "cardinality": cardinality, "bottleneck": bottleneck}.items():
            if not isinstance(n, int) or n < 1:
                raise ValueError(f"{name} must be {'at least 1' if isinstance(n, int) else 'a whole number'}, got {n!r}")
        if cardinality % steps:
            raise ValueError(f"steps (K) must divide cardinality (C), got steps={steps} and cardinality={cardinality}")
        if layout not in ("cifar", "imagenet"):
            raise ValueError(f"layout must be 'cifar' or 'imagenet', got {layout!r}")
        self.num_steps, self.width = steps, width
        self.smallest = 2 ** (len(blocks) - 1) * (1 if layout == "cifar" else 4)  # pixels: one at the last scale
        self.last_width = width * 2 ** (len(blocks) - 1)
        self.widening = frozenset(accumulate(blocks[:-1]))  # the first block of each scale but the first
        self.stem = Stem(in_channels, width, layout)

    def _build(self, blocks: Sequence[int], block: Callable[[int], nn.Module], heads: Sequence[int]) -> None:
        """Makes the blocks, `block(2 ** s)` at scale s, and classifiers of these widths; He's initialisation (fan-in)."""
        self.blocks = nn.ModuleList(block(2**s) for s, n in enumerate(blocks) for _ in range(n))
        levels = [[classifier(channels, classes) for classes in self.levels] for channels in heads]
        self.heads = nn.ModuleList(own[0] if len(own) == 1 else LevelClassifiers(own) for own in levels)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")

    def _advance(self, state: Any, step: int) -> tuple[Tensor, State]:
        """Logits of sub-network `step` > `state.step` and the state after it; the ones between give no answer."""
        raise NotImplementedError

    def _check_step(self, step: int, name: str = "step") -> None:
        if not isinstance(step, int) or not 1 <= step <= self.num_steps:
            raise ValueError(f"{name} must lie in 1..{self.num_steps}, got {step!r}")

    def step(self, state: Any) -> tuple[Tensor, State]:
        if state.step >= self.num_steps:
            raise ValueError(f"all {self.num_steps} steps are done")
        return self._advance(state, state.step + 1)

    def stream(self, x: Tensor, start: int = 1) -> Iterator[Tensor]:
        """The answers `[B, K]` of the sub-networks `start..T`, one by one; the first at its contract cost.

        `start` is the largest sub-network that the budget suffices for in any case: the thinner ones need not answer.
        """
        self._check_step(start, "start")

        def answers(state: State) -> Iterator[Tensor]:
            logits, state = self._advance(state, start)
            yield logits
            for _ in range(start, self.num_steps):
                logits, state = self.step(state)
                yield logits

        return answers(self.initial_state(x))

    def answer(self, x: Tensor, step: int) -> Tensor:
        """The answer of sub-network `step` alone; no other one runs."""
        return self._advance(self.initial_state(x), step)[0]

    def subnetwork(self, step: int) -> ResNeXt:
        """Sub-network `step` as a module of its own, with copied weights, in this model's mode; same logits `[B, K]`."""
        self._check_step(step)
        width, groups = (self.width * step // self.num_steps, step) if self.grouped else (self.width, 1)
        stem = nn.Sequential(self.stem.plain(width), copy.deepcopy(self.stem.pool))
        blocks = [block.plain(step) for block in self.blocks]  # type: ignore[operator]
        return ResNeXt(stem, blocks, copy.deepcopy(self.heads[step - 1]), self, groups).train(self.training)


def branch_l1_norms(model: SlicedModel) -> Tensor:
    """n_{l,i} = sum |w|, w the weights of branch i in the last convolution of block l; float64 `[L, C]`.

    Where sub-networks are trained jointly, branches of low index are in all of them, and their norms are larger.

    Source: Lee, Shin 2018, Fig. 3b.
    """
    rows = []
    for block in model.blocks:
        conv2, conv3 = block.conv2, block.conv3
        assert isinstance(conv2, nn.Conv2d)
        assert isinstance(conv3, nn.Conv2d)
        groups, branches = conv3.groups, conv2.groups
        weight = conv3.weight.detach().double().abs()
        rows.append(weight.reshape(groups, len(weight) // groups, branches // groups, -1).sum((1, 3)).flatten())
    return torch.stack(rows)
