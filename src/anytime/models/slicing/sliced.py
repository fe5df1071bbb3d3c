"""The parts that I-ResNeXt and IS-ResNeXt share: layers that can run on a slice of their channels, and their base class."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anytime.model import AnytimeModel, State
from anytime.models.common.batch_norm import PartedBatchNorm
from anytime.models.common.layers import check_depth, he_init
from anytime.models.common.steps import require_step_left

SliceLayout = Literal["cifar", "imagenet"]


def slice_rows(tensor: Tensor, start: int, stop: int) -> Tensor:
    """`tensor[start:stop]`, or the tensor itself if that is all of it, so that training the full network makes no views."""
    return tensor if stop - start == len(tensor) else tensor[start:stop]


def plain_conv(weight: Tensor, groups: int = 1, stride: int = 1, padding: int = 0) -> nn.Conv2d:
    """A convolution without bias with a copy of `weight`."""
    out, inputs, kernel = weight.shape[0], weight.shape[1] * groups, weight.shape[2]
    conv = nn.Conv2d(inputs, out, kernel, stride, padding, groups=groups, bias=False, device="meta")
    conv.weight = nn.Parameter(weight.detach().clone())
    return conv


class SliceBatchNorm2d(PartedBatchNorm):
    """Batch norm with one range of channels per use; the ranges may overlap.

    Use k: y_c = weight_{s + c} * (x_c - mu_c) / sqrt(var_c + 1e-5) + bias_{s + c}, s = starts[k], for all channels c of x; mu
    and var are those of the batch in training, and the running statistics of channel s + c in evaluation.

    Args:
        channels: Total channels of all uses.
        starts: First channel of each use.
    """

    def __init__(self, channels: int, starts: Sequence[int]) -> None:
        super().__init__(channels, (channels,), channels)
        self.starts = tuple(starts)

    def _slices(self, use: int, channels: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Mean, variance, weight and bias of the first `channels` channels of one use."""
        mean, var = self._slice_of((self.running_mean, self.running_var), use, channels)
        weight, bias = self._slice_of((self.weight, self.bias), use, channels)
        return mean, var, weight, bias

    def _slice_of(self, tensors: Sequence[Tensor], use: int, channels: int) -> list[Tensor]:
        start = self.starts[use]
        return [slice_rows(tensor, start, start + channels) for tensor in tensors]

    def forward(self, input: Tensor, use: int = 0) -> Tensor:
        self.check_values(input)
        if self.uses_batch and (self.momentum is None or not self.updates):
            if self.updates:
                self._average(input, use)
            weight, bias = self._slice_of((self.weight, self.bias), use, input.shape[1])
            return F.batch_norm(input, None, None, weight, bias, True, 0.0, self.eps)
        mean, var, weight, bias = self._slices(use, input.shape[1])
        return F.batch_norm(input, mean, var, weight, bias, self.training, self.momentum or 0.0, self.eps)

    @torch.no_grad()
    def _average(self, x: Tensor, use: int) -> None:
        """Adds a batch to the running statistics as plain means; channels that several uses share have seen more batches."""
        mean, var, _, _ = self._slices(use, x.shape[1])
        count = slice_rows(self.num_batches_tracked, self.starts[use], self.starts[use] + x.shape[1])
        count += 1
        var_now, mean_now = torch.var_mean(x.to(mean), (0, 2, 3))
        for running, now in ((mean, mean_now), (var, var_now)):
            running.data.lerp_(now, count.to(running).reciprocal())

    def plain(self, use: int, channels: int) -> nn.BatchNorm2d:
        """A copy of the first `channels` channels of one use."""
        mean, var, weight, bias = (tensor.detach().clone() for tensor in self._slices(use, channels))
        norm = nn.BatchNorm2d(channels, device="meta")
        norm.running_mean, norm.running_var, norm.num_batches_tracked = mean, var, torch.tensor(0, device=mean.device)
        norm.weight, norm.bias = nn.Parameter(weight), nn.Parameter(bias)
        return norm


class SliceConv2d(nn.Conv2d):
    """A convolution without bias that can compute only the output channels `start..stop - 1`.

    The input of a grouped convolution then holds only the channels of these groups.
    """

    def _groups(self, channels: int) -> int:
        return self.groups * channels // self.out_channels if self.groups > 1 else 1

    def forward(self, input: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        stop = self.out_channels if stop is None else stop
        weight = slice_rows(self.weight, start, stop)
        return F.conv2d(input, weight, None, self.stride, self.padding, 1, self._groups(stop - start))

    def plain(self, channels: int) -> nn.Conv2d:
        """A copy of the convolution, with only the first `channels` output channels."""
        return plain_conv(self.weight[:channels], self._groups(channels), self.stride[0], self.kernel_size[0] // 2)


class SliceStem(SliceConv2d):
    """`"cifar"`: 3x3 convolution. `"imagenet"`: 7x7 convolution of stride 2, then 2x2 max-pooling: 224 to 56 pixels."""

    def __init__(self, in_channels: int, width: int, layout: SliceLayout) -> None:
        kernel, stride = (3, 1) if layout == "cifar" else (7, 2)
        super().__init__(in_channels, width, kernel, stride, kernel // 2, bias=False)
        self.pool = nn.Identity() if layout == "cifar" else nn.MaxPool2d(2, ceil_mode=True)

    def forward(self, input: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        return self.pool(super().forward(input, start, stop))


def widen(x: Tensor, groups: int) -> Tensor:
    """Between two scales: 2x2 average pooling of stride 2, then zeros double each of the `groups` groups, [x_g; 0]."""
    parts = F.avg_pool2d(x, 2, ceil_mode=True).chunk(groups, 1)
    zeros = torch.zeros_like(parts[0])
    return torch.cat([half for part in parts for half in (part, zeros)], 1)


def classifier(channels: int, classes: int) -> nn.Sequential:
    """BN-ReLU-global average pooling-linear."""
    return nn.Sequential(
        nn.BatchNorm2d(channels), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)
    )


class LevelClassifiers(nn.ModuleList):
    """g_{k,d}: a separate classifier for each label level; their logits are concatenated."""

    def forward(self, h: Tensor) -> Tensor:
        return torch.cat([classify(h) for classify in self], 1)


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

    It consists only of torch's own layers, so that other tools can fuse, quantise or export it. Built by
    `SlicedModel.subnetwork`.
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
    """Base class of I-ResNeXt and IS-ResNeXt: K nested thin sub-networks of one ResNeXt, each with its own classifier.

    Blocks BN-ReLU-1x1, BN-ReLU-3x3 (C groups), BN-ReLU-1x1, plus identity; no block has a stride. Scale s = 0, 1, ... has
    W 2^s channels and C branches of width B 2^s. Depth 3 L + 2 for L blocks. Each sub-network has one classifier per label
    level. The arguments: L = sum(`blocks`), W = `width`, K = `steps`, C = `cardinality`, B = `bottleneck`.

    Source: Lee, Shin 2018, sections 2.2 and 3, appendix B.
    """

    grouped = False  # whether the trunk is also divided into K groups

    def __init__(
        self,
        num_classes: int | Sequence[int],
        in_channels: int,
        blocks: Sequence[int],
        width: int,
        steps: int,
        cardinality: int,
        bottleneck: int,
        layout: SliceLayout,
    ) -> None:
        super().__init__(num_classes, in_channels)
        if isinstance(blocks, int):
            raise ValueError(f"blocks must be a list, one number for each scale, got {blocks}")
        if not blocks or min(blocks) < 1:
            raise ValueError(f"blocks must be at least 1 at every scale, got {blocks}")
        check_depth("blocks", blocks)
        for name, n in {"width": width, "steps": steps, "cardinality": cardinality, "bottleneck": bottleneck}.items():
            if not isinstance(n, int) or n < 1:
                raise ValueError(f"{name} must be {'at least 1' if isinstance(n, int) else 'a whole number'}, got {n!r}")
        if cardinality % steps:
            raise ValueError(f"steps (K) must divide cardinality (C), got steps={steps} and cardinality={cardinality}")
        if layout not in ("cifar", "imagenet"):
            raise ValueError(f"layout must be 'cifar' or 'imagenet', got {layout!r}")
        self.num_steps, self.width = steps, width
        self.smallest = 2 ** (len(blocks) - 1) * (1 if layout == "cifar" else 4)  # pixels: leaves one at the last scale
        self.last_width = width * 2 ** (len(blocks) - 1)
        self.widening = frozenset(accumulate(blocks[:-1]))  # the first block of each later scale
        self.stem = SliceStem(in_channels, width, layout)

    def _build(self, blocks: Sequence[int], block: Callable[[int], nn.Module], heads: Sequence[int]) -> None:
        """Adds the blocks, `block(2**s)` at scale s, and classifiers of widths `heads`; He's initialisation (fan-in)."""
        self.blocks = nn.ModuleList(block(2**s) for s, n in enumerate(blocks) for _ in range(n))
        by_level = [[classifier(channels, classes) for classes in self.levels] for channels in heads]
        self.heads = nn.ModuleList(levels[0] if len(levels) == 1 else LevelClassifiers(levels) for levels in by_level)
        he_init(self, "fan_in")

    def _enter(self, index: int, h: Tensor, groups: int) -> Tensor:
        """The input of block `index` from the output of the block before: widened if a new scale begins."""
        return widen(h, groups) if index in self.widening else h

    def _advance(self, state: Any, step: int) -> tuple[Tensor, State]:
        """Logits of sub-network `step` > `state.step` and the state after it; those in between give no answer."""
        raise NotImplementedError

    def _check_step(self, step: int, name: str = "step") -> None:
        if not isinstance(step, int) or not 1 <= step <= self.num_steps:
            raise ValueError(f"{name} must lie in 1..{self.num_steps}, got {step!r}")

    def step(self, state: Any) -> tuple[Tensor, State]:
        require_step_left(state.step, self.num_steps)
        return self._advance(state, state.step + 1)

    def stream(self, x: Tensor, start: int = 1) -> Iterator[Tensor]:
        """The answers `[B, K]` of sub-networks `start..T`, one by one; the first at its contract cost.

        Choose `start` as the largest sub-network that even the smallest budget allows: the thinner ones need not answer.
        """
        self._check_step(start, "start")

        def answers(state: State) -> Iterator[Tensor]:
            for step in range(start, self.num_steps + 1):
                logits, state = self._advance(state, step)
                yield logits

        return answers(self.initial_state(x))

    def jump(self, x: Tensor, step: int) -> tuple[Tensor, State]:
        """Runs sub-network `step`, and no other one."""
        self.check_step(step)
        return self._advance(self.initial_state(x), step)

    def subnetwork(self, step: int) -> ResNeXt:
        """Sub-network `step` as a stand-alone module with copied weights, in this model's mode; same logits `[B, K]`."""
        self._check_step(step)
        width, groups = (self.width * step // self.num_steps, step) if self.grouped else (self.width, 1)
        stem = nn.Sequential(self.stem.plain(width), copy.deepcopy(self.stem.pool))
        blocks = [block.plain(step) for block in self.blocks]  # type: ignore[operator]
        return ResNeXt(stem, blocks, copy.deepcopy(self.heads[step - 1]), self, groups).train(self.training)


def branch_l1_norms(model: SlicedModel) -> Tensor:
    """n_{l,i} = sum |w|, w the weights of branch i in the last convolution of block l; float64 `[L, C]`.

    If sub-networks are trained jointly, branches of low index belong to all of them, and their norms are larger.

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
