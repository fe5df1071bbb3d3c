"""What cascaded and serial residual networks share: stem, blocks, read-outs, and so their weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anytime.model import AnytimeModel
from anytime.models.cascaded.statistics import KEY, Dynamics, convert_state
from anytime.models.common.step_norm import StepBatchNorm2d

Layout = Literal["cifar", "tinyimagenet", "imagenet"]
Heads = Literal["shared", "separate"]
Clock = Literal["asymptotic", "published"]

STAGES = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}


def check_count(name: str, value: Any) -> None:
    """Refuses what is not a whole number of at least 1."""
    if not isinstance(value, int):
        raise ValueError(f"{name} must be a whole number, got {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value!r}")


class Stem(nn.Sequential):
    """Convolution, batch norm, ReLU and (`pool`) 3x3 max-pooling of stride 2."""

    def __init__(self, in_channels: int, width: int, layout: Layout, pool: bool) -> None:
        size, stride, padding = (7, 2, 3) if layout == "imagenet" else (3, 1, 1)
        super().__init__(
            nn.Conv2d(in_channels, width, size, stride, padding, bias=False),
            StepBatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2, 1) if pool else nn.Identity(),
        )
        self.pools = pool

    def forward(self, input: Tensor, steps: int = 1) -> Tensor:
        """Of the images of `steps` time steps, one after the other in the batch: in training each has its own statistics."""
        parts: list[Any] = list(self)
        conv, norm, relu, pool = parts
        return pool(relu(norm.over_time(conv(input), (0,) * steps)))


class Block(nn.Module):
    """A residual branch F (convolutions, batch norms) and its shortcut S (identity, or a 1x1 convolution where shapes change).

    Basic: conv3x3-BN-ReLU-conv3x3-BN. Bottleneck: conv1x1-BN-ReLU-conv3x3-BN-ReLU-conv1x1-BN with four times the channels.
    """

    def __init__(self, inputs: int, width: int, stride: int, rows: int, bottleneck: bool) -> None:
        super().__init__()
        outputs = 4 * width if bottleneck else width
        shapes = [(inputs, width, 1, 1), (width, width, 3, stride), (width, outputs, 1, 1)]
        shapes = shapes if bottleneck else [(inputs, width, 3, stride), (width, width, 3, 1)]
        self.convs: Any = nn.ModuleList(nn.Conv2d(i, o, size, s, size // 2, bias=False) for i, o, size, s in shapes)
        self.norms: Any = nn.ModuleList(StepBatchNorm2d(o, rows) for _, o, _, _ in shapes)
        same = inputs == outputs and stride == 1
        self.projection = None if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def residual(self, z: Tensor, rows: Sequence[int]) -> Tensor:
        """F of n time steps that lie one after the other in the batch, with their rows of statistics."""
        return self._rest(self.convs[0](z), rows, 1)

    def _rest(self, z: Tensor, rows: Sequence[int], copies: int) -> Tensor:
        z = self.norms[0].over_time(z, rows, copies)
        for conv, norm in zip(self.convs[1:], self.norms[1:], strict=True):
            z = norm.over_time(conv(F.relu_(z)), rows, copies)
        return z

    def empty(self, like: Tensor, copies: int) -> Tensor:
        """F(0), the same for all images, `[1, C, H, W]`: what the block gives before its first input has come.

        The first convolution of zeros is left out. In evaluation the rest is constant but for the border, so that a small map
        tells all of a large one.
        """
        first, stride = self.convs[0], self.convs[1].stride[0]
        sides = [(side - 1) // first.stride[0] + 1 for side in like.shape[2:]]
        small = [min(side, 2 * stride + (stride == 1 or side % 2)) for side in sides]
        out = self._rest(like.new_zeros(1, first.out_channels, *(sides if self.training else small)), (0,), copies)
        for dim, side in enumerate(sides, 2):
            last, wanted = out.shape[dim] - 1, (side - 1) // stride + 1
            if wanted > last + 1:
                index = torch.ones(wanted, dtype=torch.int64, device=out.device)
                index[0], index[-1] = 0, last
                out = out.index_select(dim, index)
        channels_last = like.is_contiguous(memory_format=torch.channels_last)  # a sum with another layout would be slow
        return out.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)

    def shortcut(self, z: Tensor) -> Tensor:
        """S of any number of images."""
        return z if self.projection is None else self.projection(z)


class ResidualNet(AnytimeModel):
    """What cascaded and serial networks share: stem, blocks and read-outs, and with them the state dict.

    Args:
        num_classes: K of the logits, or the sizes of several label levels.
        in_channels: Channels of the images.
        depth: 18, 34 (basic blocks) or 50 (bottlenecks).
        num_steps: T.
        rows: Rows of statistics of block k = 1..K.
        dynamics: What these rows are of; kept in the state dict.
        heads: One read-out for all steps, or one for each.
        width: Channels of the first stage.
        layout: Stem for `"cifar"` and `"tinyimagenet"` (3x3) or `"imagenet"` (7x7, stride 2).
        pool: Max-pooling after the stem.
    """

    def __init__(
        self,
        num_classes: int | Sequence[int],
        in_channels: int,
        depth: int,
        num_steps: int,
        rows: Callable[[int], int],
        dynamics: Dynamics,
        heads: Heads,
        width: int,
        layout: Layout,
        pool: bool | None,
    ) -> None:
        super().__init__(num_classes, in_channels)
        for name, value, valid in (
            ("heads", heads, ("shared", "separate")),
            ("layout", layout, ("cifar", "tinyimagenet", "imagenet")),
            ("depth", depth, tuple(STAGES)),
        ):
            if value not in valid:
                raise ValueError(f"{name} must be one of {', '.join(map(repr, valid))}, got {value!r}")
        check_count("width", width)
        if pool not in (None, True, False):
            raise ValueError(f"pool must be True, False or None, got {pool!r}")
        self.num_steps = num_steps
        bottleneck = depth >= 50
        self.stem = Stem(in_channels, width, layout, layout == "imagenet" if pool is None else pool)
        blocks: list[Block] = []
        channels = width
        for stage, count in enumerate(STAGES[depth]):
            for i in range(count):
                stride = 2 if stage and not i else 1
                blocks.append(Block(channels, width * 2**stage, stride, rows(len(blocks) + 1), bottleneck))
                channels = width * 2**stage * (4 if bottleneck else 1)
        self.blocks: Any = nn.ModuleList(blocks)  # of Block, which a ModuleList does not say
        self._top = channels
        answers = num_steps if heads == "separate" else 1
        self.heads: Any = nn.ModuleList(nn.Linear(channels, self.num_classes) for _ in range(answers))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        self.dynamics = dynamics
        self.register_buffer(KEY, dynamics.tensor())
        self.register_load_state_dict_pre_hook(_convert)

    def read(self, features: Tensor, first: int = 0) -> Tensor:
        """Logits `[n, B, K]` of the pooled top features `[n, B, C]` of the steps after the `first` ones."""
        steps = len(features)
        if len(self.heads) == 1:
            return self.heads[0](features)
        if first + steps > len(self.heads):
            raise ValueError(f"{len(self.heads)} separate heads answer {len(self.heads)} times, not {first + steps}")
        heads = list(self.heads)[first : first + steps]
        weights = torch.stack([head.weight for head in heads])
        bias = torch.stack([head.bias for head in heads])
        return features @ weights.mT + bias[:, None]

    def stream(self, x: Tensor | Iterable[Tensor]) -> Iterator[Tensor]:
        """The answers `[B, K]`, one by one: T to an image batch, or one to each frame of an iterable of batches."""
        if isinstance(x, Tensor) and x.ndim != 5:
            return super().stream(x)
        return self._watch(iter(x))

    def _watch(self, frames: Iterator[Tensor]) -> Iterator[Tensor]:
        state = None
        for frame in frames:
            state = self.initial_state(frame) if state is None else self.observe(state, frame)
            logits, state = self.step(state)
            yield logits

    def observe(self, state: Any, x: Tensor) -> Any:
        """The state in which the image has changed to `x` `[B, C, H, W]` before the next step: of cascaded networks alone."""
        raise ValueError(
            f"a {type(self).__name__} answers to one image: its blocks run once each, and cannot follow new frames"
        )


def _convert(model: ResidualNet, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Makes the state dict of a relative fit: statistics by their rows, a shared head copied to separate ones."""
    norms = {f"blocks.{k}.norms.{i}": k + 1 for k, block in enumerate(model.blocks) for i in range(len(block.norms))}
    source = convert_state(model, state, prefix, model.dynamics, norms)
    given_heads = {name for name in state if name.startswith(f"{prefix}heads.") and name.endswith("weight")}
    if len(given_heads) == 1 < len(model.heads):
        for i in range(1, len(model.heads)):
            for part in ("weight", "bias"):
                state[f"{prefix}heads.{i}.{part}"] = state[f"{prefix}heads.0.{part}"].clone()
    elif len(given_heads) not in (0, len(model.heads)):
        raise ValueError(
            f"{len(given_heads)} separate heads cannot become {len(model.heads)}: each answers at its own step alone"
        )
    elif len(given_heads) > 1 and not model.dynamics.shares_heads(source):
        raise ValueError(
            f"separate heads of {source.description} cannot answer to {model.dynamics.description}: each knows the features "
            "of its own time alone"
        )
