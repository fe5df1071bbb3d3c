"""BranchyNet: side branches that answer early (Teerapittayanon, McDanel, Kung, ICPR 2016)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anytime.model import eval_mode
from anytime.models.common.grid import Grid, nominal_size
from anytime.models.common.layers import check_depth, he_init, require_counts
from anytime.models.common.stages import Stages
from anytime.registry import register_model


class Branch(NamedTuple):
    """What answers after a unit: `layers` on its map, then linear layers with ReLU and dropout between them, the last to K."""

    unit: int
    layers: Sequence[nn.Module]
    hidden: Sequence[int] = ()
    dropout: float = 0.0


class BranchyNet(Stages):
    """logits_t = branch_t(h_{e_t}): the units of the network run once, and a branch of a few layers answers at each exit.

    All branches hang on one trunk, and one optimizer trains all of it by L = sum_t w_t CE_t (`Weighted`). In the published
    code each exit has its own copy of the trunk, with an optimizer that also steps, and w is not used. An image leaves at the
    first branch with -sum_k p_k log p_k < T_t: `anytime.stopping.Entropy`.

    Args:
        num_classes: K of the logits, or the sizes of several label levels.
        in_channels: Channels of the images.
        size: (height, width) of the images that linear layers are built for; maps of others are pooled to the same grids.
        units: The L units of the trunk.
        branches: The T branches, the last after unit L.
        smallest: Smallest height and width of the images.

    Source: Teerapittayanon, McDanel, Kung, ICPR 2016, and its published code.
    """

    def __init__(
        self,
        num_classes: int | Sequence[int],
        in_channels: int,
        size: tuple[int, int],
        units: Sequence[nn.Module],
        branches: Sequence[Branch],
        smallest: int = 1,
    ) -> None:
        super().__init__(num_classes, in_channels, nn.Identity(), units, [branch.unit for branch in branches[:-1]], smallest)
        self.heads = nn.ModuleList(nn.Sequential(*branch.layers) for branch in branches)
        with torch.no_grad(), eval_mode(self):
            h = torch.zeros(1, in_channels, *size)
            for number, unit in enumerate(self.units, 1):
                h = unit(h)
                if number in self.exits:
                    exit = self.exits.index(number)
                    self._finish(self.heads[exit], self.heads[exit](h), branches[exit])  # type: ignore[arg-type]

    def _finish(self, head: nn.Sequential, out: Tensor, branch: Branch) -> None:
        """Appends the linear layers, of which the first reads all positions of `out`."""
        head.append(Grid(out.shape[2], out.shape[3]))
        before = out.numel()
        for width in branch.hidden:
            head.extend([nn.Linear(before, width), nn.ReLU()])
            if branch.dropout:
                head.append(nn.Dropout(branch.dropout))
            before = width
        head.append(nn.Linear(before, self.num_classes))


def _halved(conv: nn.Module) -> nn.Sequential:
    return nn.Sequential(conv, nn.MaxPool2d(2, ceil_mode=True), nn.ReLU())


@register_model
def branchynet_lenet(
    num_classes: int | tuple[int, ...] = 10,
    in_channels: int = 1,
    width: int = 5,
    input_size: int | tuple[int, int, int] | None = None,
) -> BranchyNet:
    """B-LeNet of Teerapittayanon et al. 2016: LeNet-5 with a branch after the first convolution, for MNIST.

    The published code has no ReLU between its two linear layers; here there is one.

    Args:
        num_classes: K of the logits, or the sizes of several label levels.
        in_channels: Channels of the images.
        width: Channels of the first convolution; the others have two and four times as many.
        input_size: (channels, height, width) of the images, or their side; default 28, in training that of the data.
    """
    require_counts(width=width)
    channels = (in_channels, width, 2 * width, 4 * width)
    units = [_halved(nn.Conv2d(channels[i], channels[i + 1], 5, 1, 3)) for i in range(3)]
    branches = [Branch(1, [_halved(nn.Conv2d(width, 2 * width, 3, 1, 1))]), Branch(3, [], [84])]
    return BranchyNet(num_classes, in_channels, nominal_size(in_channels, input_size, 28), units, branches)


class ChannelNorm(nn.Module):
    """h / (2 + 5e-5 s)^0.75, s the sum of h^2 over a channel and its two neighbours; torch's own has no bfloat16 on a CPU."""

    def forward(self, h: Tensor) -> Tensor:
        squares = F.pad(h * h, (0, 0, 0, 0, 1, 1))
        return h / (2 + 5e-5 * (squares[:, :-2] + squares[:, 1:-1] + squares[:, 2:])) ** 0.75


def _pool() -> nn.Module:
    return nn.MaxPool2d(3, 2, ceil_mode=True)


def _pool_norm() -> list[nn.Module]:
    return [_pool(), ChannelNorm()]


def _conv_relu(channels: int, width: int, kernel: int = 3) -> list[nn.Module]:
    return [nn.Conv2d(channels, width, kernel, 1, kernel // 2), nn.ReLU()]


@register_model
def branchynet_alexnet(
    num_classes: int | tuple[int, ...] = 10,
    in_channels: int = 3,
    width: int = 32,
    places: Literal["paper", "code"] = "paper",
    input_size: int | tuple[int, int, int] | None = None,
) -> BranchyNet:
    """B-AlexNet of Teerapittayanon et al. 2016: five convolutions with two branches, for CIFAR-10.

    Args:
        num_classes: K of the logits, or the sizes of several label levels.
        in_channels: Channels of the images.
        width: Channels of the first convolution; the others have 2, 3, 3 and 2 times as many, those of the branches as many.
        places: The branches sit after convolutions 1 and 2 ("paper"), or 2 and 3, as in the published code ("code").
        input_size: (channels, height, width) of the images, or their side; default 32, in training that of the data.
    """
    require_counts(width=width)
    if places not in ("paper", "code"):
        raise ValueError(f"places must be 'paper' or 'code', got {places!r}")
    units = [
        nn.Sequential(*_conv_relu(in_channels, width, 5), *_pool_norm()),
        nn.Sequential(*_conv_relu(width, 2 * width, 5), *_pool_norm()),
        nn.Sequential(*_conv_relu(2 * width, 3 * width)),
        nn.Sequential(
            *_conv_relu(3 * width, 3 * width), *_conv_relu(3 * width, 2 * width), nn.MaxPool2d(3, 2, ceil_mode=True)
        ),
    ]
    first, (second, pool) = (1, (2, [])) if places == "paper" else (2, (3, _pool_norm()))  # unit 3 is not yet pooled
    branches = [
        Branch(first, [*_conv_relu(first * width, width), *_conv_relu(width, width), _pool()]),
        Branch(second, [*pool, *_conv_relu(second * width, width), _pool()]),
        Branch(4, [], [8 * width, 4 * width], 0.5),
    ]
    size = nominal_size(in_channels, input_size, 32, smallest=8)
    return BranchyNet(num_classes, in_channels, size, units, branches, smallest=8)


class Subsample(nn.Module):
    """Every second pixel, with `more` channels of zeros in front: the shortcut without parameters of He et al. 2016."""

    def __init__(self, more: int) -> None:
        super().__init__()
        self.more = more

    def forward(self, h: Tensor) -> Tensor:
        return F.pad(h[:, :, ::2, ::2], (0, 0, 0, 0, self.more, 0))


class AveragePool(nn.Module):
    """The mean over windows of 6 x 6 pixels; maps that are smaller have one window."""

    def forward(self, h: Tensor) -> Tensor:
        return F.avg_pool2d(h, (min(6, h.shape[2]), min(6, h.shape[3])), 1)


@register_model
def branchynet_resnet110(
    num_classes: int | tuple[int, ...] = 10,
    in_channels: int = 3,
    blocks: int = 18,
    width: int = 16,
    input_size: int | tuple[int, int, int] | None = None,
) -> BranchyNet:
    """B-ResNet-110 of Teerapittayanon et al. 2016: branches after the first convolution and the first stage, for CIFAR-10.

    Args:
        num_classes: K of the logits, or the sizes of several label levels.
        in_channels: Channels of the images.
        blocks: Blocks of each of the three stages.
        width: Channels of the first stage, doubled from stage to stage.
        input_size: (channels, height, width) of the images, or their side; default 32, in training that of the data.
    """
    require_counts(width=width, blocks=blocks)
    check_depth("blocks of the three stages", [3 * blocks])
    from torchvision.models.resnet import BasicBlock  # late: imports torchvision

    units: list[nn.Module] = [nn.Sequential(nn.Conv2d(in_channels, width, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU())]
    before = width
    for stage in range(3):
        for block in range(blocks):
            after, stride = width << stage, 2 if stage and not block else 1
            units.append(BasicBlock(before, after, stride, Subsample(after - before) if stride > 1 else None))
            before = after
    first = [nn.Conv2d(width, 4 * width, 5, 1, 2), nn.ReLU(), ChannelNorm()]
    first += [*_conv_relu(4 * width, 2 * width), *_conv_relu(2 * width, 2 * width)]
    branches = [Branch(1, first), Branch(1 + blocks, [BasicBlock(width, width)]), Branch(len(units), [AveragePool()])]
    size = nominal_size(in_channels, input_size, 32, smallest=3)
    model = BranchyNet(num_classes, in_channels, size, units, branches, smallest=3)
    he_init(model)
    return model
