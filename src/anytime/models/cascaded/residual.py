"""The base of cascaded and serial residual networks: stem, blocks and heads, and with them the layout of the state dict."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anytime.models.cascaded.statistics import KEY, Dynamics, convert_state
from anytime.models.common.batch_norm import RUNNING
from anytime.models.common.frames import FrameModel
from anytime.models.common.layers import he_init
from anytime.models.common.step_norm import StepNorms, step_norms

StemLayout = Literal["cifar", "tinyimagenet", "imagenet"]
Heads = Literal["shared", "separate"]
Clock = Literal["asymptotic", "published"]

STAGES = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


def check_count(name: str, value: Any) -> None:
    """Raises ValueError if `value` is not a whole number of at least 1."""
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be {'at least 1' if isinstance(value, int) else 'a whole number'}, got {value!r}")


def check_choice(name: str, value: Any, choices: Sequence[Any]) -> None:
    """Raises ValueError if `value` is not one of the `choices`."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


class ResidualStem(nn.Sequential):
    """Convolution, batch norm, ReLU and (`pool`) 3x3 max-pooling of stride 2."""

    def __init__(self, in_channels: int, width: int, layout: StemLayout, pool: bool, rows: int, norms: StepNorms) -> None:
        size, stride, padding = (7, 2, 3) if layout == "imagenet" else (3, 1, 1)
        super().__init__(
            nn.Conv2d(in_channels, width, size, stride, padding, bias=False),
            norms(width, rows),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2, 1) if pool else nn.Identity(),
        )
        self.pools = pool

    def forward(self, input: Tensor, steps: int = 1) -> Tensor:
        """The images of `steps` time steps follow each other in the batch; in training each step has its own statistics."""
        return self.finish(self.convolve(input), (0,) * steps)

    def convolve(self, images: Tensor) -> Tensor:
        """The convolution: what the stem of a network with `temporal_affine` computes once for an image."""
        return self[0](images)

    def finish(self, convolved: Tensor, rows: Sequence[int]) -> Tensor:
        """The rest, for n time steps that follow each other in the batch, each with its row of the batch norm."""
        parts: list[Any] = list(self)
        _, norm, relu, pool = parts
        return pool(relu(norm.over_time(convolved, rows)))


class ResidualBlock(nn.Module):
    """A residual branch F (convolutions, batch norms) and its shortcut S (identity, or a 1x1 convolution where shapes change).

    Basic: conv3x3-BN-ReLU-conv3x3-BN. Bottleneck: conv1x1-BN-ReLU-conv3x3-BN-ReLU-conv1x1-BN with four times the channels.
    """

    def __init__(self, inputs: int, width: int, stride: int, rows: int, bottleneck: bool, norms: StepNorms) -> None:
        super().__init__()
        outputs = 4 * width if bottleneck else width
        shapes = [(inputs, width, 1, 1), (width, width, 3, stride), (width, outputs, 1, 1)]
        shapes = shapes if bottleneck else [(inputs, width, 3, stride), (width, width, 3, 1)]
        self.convs: Any = nn.ModuleList(nn.Conv2d(i, o, size, s, size // 2, bias=False) for i, o, size, s in shapes)
        self.norms: Any = nn.ModuleList(norms(o, rows) for _, o, _, _ in shapes)
        same = inputs == outputs and stride == 1
        self.projection = None if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def residual(self, z: Tensor, rows: Sequence[int]) -> Tensor:
        """F for n time steps that follow each other in the batch, each with its row of statistics."""
        return self._after_first_conv(self.convs[0](z), rows, 1)

    def _after_first_conv(self, z: Tensor, rows: Sequence[int], copies: int) -> Tensor:
        z = self.norms[0].over_time(z, rows, copies)
        for conv, norm in zip(self.convs[1:], self.norms[1:], strict=True):
            z = norm.over_time(conv(F.relu_(z)), rows, copies)
        return z

    def empty(self, like: Tensor, copies: int) -> Tensor:
        """F(0), the same for all images, `[1, C, H, W]`: the block's output before its first input has arrived.

        The first convolution of zeros is skipped. In evaluation the rest is constant except at the border, so a small map
        determines a large one.
        """
        first, stride = self.convs[0], self.convs[1].stride[0]
        sides = [(side - 1) // first.stride[0] + 1 for side in like.shape[2:]]
        small = [min(side, 2 * stride + (stride == 1 or side % 2)) for side in sides]
        zeros = like.new_zeros(1, first.out_channels, *(sides if self.norms[0].uses_batch else small))
        out = self._after_first_conv(zeros, (0,), copies)
        for dim, side in enumerate(sides, 2):
            last, wanted = out.shape[dim] - 1, (side - 1) // stride + 1
            if wanted > last + 1:
                index = torch.ones(wanted, dtype=torch.int64, device=out.device)
                index[0], index[-1] = 0, last
                out = out.index_select(dim, index)
        channels_last = like.is_contiguous(memory_format=torch.channels_last)  # adding mixed memory formats would be slow
        return out.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)

    def forward(self, arrived: Tensor | None, shortcut: Tensor) -> Tensor:
        """ReLU(arrived + shortcut): the output of one time step, from what a branch delivers then (None: nothing) and S."""
        return F.relu(shortcut if arrived is None else arrived + shortcut)

    def shortcut(self, z: Tensor) -> Tensor:
        """S for any number of images."""
        return z if self.projection is None else self.projection(z)


class ResidualNet(FrameModel):
    """The base of cascaded and serial networks: they share stem, blocks, heads and therefore the state dict.

    Depths 18 and 34 have basic blocks, the others bottlenecks. The stem of `"cifar"` and `"tinyimagenet"` is 3x3, that of
    `"imagenet"` 7x7 of stride 2. `CascadedResNet` documents the arguments except for these.

    Args:
        rows: Rows of statistics of block k = 1..K.
        dynamics: The dynamics that these rows belong to; stored in the state dict.
        affine_rows: Affine maps of each batch norm, one for each time step; None for one map. With them no input ever settles
            before the last row, so the stem has as many rows of statistics as a block.
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
        layout: StemLayout,
        pool: bool | None,
        norm_eps: float,
        norm_momentum: float,
        affine_rows: int | None = None,
    ) -> None:
        super().__init__(num_classes, in_channels)
        check_choice("heads", heads, ("shared", "separate"))
        check_choice("layout", layout, ("cifar", "tinyimagenet", "imagenet"))
        check_choice("depth", depth, tuple(STAGES))
        check_count("width", width)
        check_choice("pool", pool, (True, False, None))
        self.num_steps = num_steps
        bottleneck, norms = depth >= 50, step_norms(norm_eps, norm_momentum, affine_rows)
        pools = layout == "imagenet" if pool is None else pool
        self.stem = ResidualStem(in_channels, width, layout, pools, 1 if affine_rows is None else rows(0), norms)
        blocks: list[ResidualBlock] = []
        channels = width
        for stage, count in enumerate(STAGES[depth]):
            for i in range(count):
                stride = 2 if stage and not i else 1
                blocks.append(ResidualBlock(channels, width * 2**stage, stride, rows(len(blocks) + 1), bottleneck, norms))
                channels = width * 2**stage * (4 if bottleneck else 1)
        self.blocks: Any = nn.ModuleList(blocks)  # typed as Any: a ModuleList does not tell its elements' type
        self._top_channels = channels
        answers = num_steps if heads == "separate" else 1
        self.heads: Any = nn.ModuleList(nn.Linear(channels, self.num_classes) for _ in range(answers))
        he_init(self)
        self.dynamics = dynamics
        self.register_buffer(KEY, dynamics.tensor())
        self.register_load_state_dict_pre_hook(_fit_state)

    def settles(self, block: int) -> bool:
        """Whether an answer depends on block 1..K through its settled statistics."""
        return True

    def _logits(self, features: Tensor, first: int = 0) -> Tensor:
        """Logits `[n, B, K]` from the pooled top features `[n, B, C]` of n steps, the first being number `first` from 0."""
        steps = len(features)
        if len(self.heads) == 1:
            return self.heads[0](features)
        if first + steps > len(self.heads):
            raise ValueError(f"{len(self.heads)} separate heads answer {len(self.heads)} times, not {first + steps}")
        heads = list(self.heads)[first : first + steps]
        weights = torch.stack([head.weight for head in heads])
        bias = torch.stack([head.bias for head in heads])
        return features @ weights.mT + bias[:, None]


def _fit_state(model: ResidualNet, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Makes a relative's state dict fit, in place: statistics by their rows, a shared head copied to separate ones."""
    norms = {f"blocks.{k}.norms.{i}": k + 1 for k, block in enumerate(model.blocks) for i in range(len(block.norms))}
    own: Any = model.stem.get_parameter("1.weight")
    given_affine: Any = state.get(f"{prefix}stem.1.weight", own)
    if own.shape[:-1] != given_affine.shape[:-1]:
        counts = [len(weight) if weight.ndim == 2 else 1 for weight in (given_affine, own)]
        raise ValueError(
            f"these weights have {counts[0]} affine maps in each batch norm, but this network needs {counts[1]}: "
            "temporal_affine must be the same, and no serial network has more than one"
        )
    if own.ndim == 2:  # nothing settles before the last row
        norms = dict.fromkeys(["stem.1", *norms], len(model.blocks))
    source = convert_state(model, state, prefix, model.dynamics, norms)
    if source.serial:
        _check_learned(model, state, prefix)
    needed = len(model.heads)
    given = sum(key.startswith(f"{prefix}heads.") and key.endswith("weight") for key in state)
    if given == 1 < needed:
        for i in range(1, needed):
            for part in ("weight", "bias"):
                state[f"{prefix}heads.{i}.{part}"] = state[f"{prefix}heads.0.{part}"].clone()
    elif given not in (0, needed):
        raise ValueError(f"{given} separate heads cannot become {needed}: each answers only at its own step")
    elif given > 1 and not model.dynamics.shares_heads(source):
        raise ValueError(
            f"separate heads of {source.description} cannot answer to {model.dynamics.description}: each knows only the "
            "features of its own time"
        )


def _check_learned(model: ResidualNet, state: dict[str, Any], prefix: str) -> None:
    """Raises ValueError if a serial network has trained, but never ran a block that `model` needs."""

    def learned(norm: str) -> bool:
        mean, var = (state.get(f"{prefix}{norm}.{name}") for name in RUNNING)
        return mean is None or var is None or bool((mean[-1] != 0).any() or (var[-1] != 1).any())

    for k in range(1, len(model.blocks) + 1):
        if learned("stem.1") and model.settles(k) and not learned(f"blocks.{k - 1}.norms.0"):
            raise ValueError(
                f"block {k} never ran on its settled input in training, so its statistics (mean 0, variance 1) cannot serve "
                "other dynamics or more steps: train with clock='asymptotic' and all steps"
            )
