"""A plain convolutional network with early exits, built to be trained and to answer fast."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anytime.model import AnytimeModel
from anytime.models.common.layers import check_depth, require_whole
from anytime.models.common.steps import require_step_left
from anytime.registry import variant

PATCH = 2  # height and width of a whitened patch, in pixels
WHITENING_EPS = 5e-4  # added to the variances of the whitened patches
VIEWS = ((False, 0), (True, 0), (False, 1), (True, -1))  # whether mirrored, and pixels of the shift up and left


def view(images: Tensor, number: int) -> Tensor:
    """View 0..3 of the images; pixels that a shift brings in are reflected at the border."""
    mirrored, shift = VIEWS[number]
    if mirrored:
        images = images.flip(-1)
    if not shift:
        return images
    height, width = images.shape[2:]
    return F.pad(images, (1, 1, 1, 1), "reflect")[..., 1 + shift : 1 + shift + height, 1 + shift : 1 + shift + width]


def halved(h: Tensor) -> Tensor:
    """The largest of each 2 x 2 pixels; maps of a single row or column stay as they are."""
    return F.max_pool2d(h, 2) if min(h.shape[2:]) > 1 else h


def identity_conv(channels: int, width: int) -> nn.Conv2d:
    """A 3x3 convolution without bias whose first outputs copy its inputs at first; the others are torch's default."""
    conv = nn.Conv2d(channels, width, 3, padding=1, bias=False)
    with torch.no_grad():
        nn.init.dirac_(conv.weight[: min(channels, width)])
    return conv


class ShiftNorm(nn.BatchNorm2d):
    """Batch norm that learns a bias and no scale: the convolution after it learns the scale.

    Its statistics follow 0.4 of each batch, because the training has few steps.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, momentum=0.4)
        self.weight.requires_grad_(False)


class Group(nn.Module):
    """gelu(norm2(conv2(a))), a = gelu(norm1(halved(conv1(h)))); both convolutions are 3x3."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = identity_conv(channels, width), ShiftNorm(width)
        self.conv2, self.norm2 = identity_conv(width, width), ShiftNorm(width)

    def forward(self, h: Tensor) -> Tensor:
        h = F.gelu(self.norm1(halved(self.conv1(h))))
        return F.gelu(self.norm2(self.conv2(h)))


class Halving(nn.Module):
    """gelu(norm(halved(conv(h)))), or with `first` gelu(norm(conv(halved(h)))) for a quarter of its MACs."""

    def __init__(self, channels: int, width: int, first: bool = False) -> None:
        super().__init__()
        self.conv, self.norm, self.first = identity_conv(channels, width), ShiftNorm(width), first

    def forward(self, h: Tensor) -> Tensor:
        return F.gelu(self.norm(self.conv(halved(h)) if self.first else halved(self.conv(h))))


class Residual(nn.Module):
    """gelu(h + norm_n(conv_n(... gelu(norm_1(conv_1(h)))))) of n = `convs` 3x3 convolutions."""

    def __init__(self, width: int, convs: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(identity_conv(width, width) for _ in range(convs))
        self.norms = nn.ModuleList(ShiftNorm(width) for _ in range(convs))

    def forward(self, h: Tensor) -> Tensor:
        inner = h
        for number, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            inner = norm(conv(F.gelu(inner) if number else inner))
        return F.gelu(h + inner)


def residual_group(channels: int, width: int, convs: int, halves: bool) -> nn.Sequential:
    """A block with a shortcut, behind a convolution that halves the map if the group does."""
    return nn.Sequential(*[Halving(channels, width)] if halves else [], Residual(width, convs))


class EarlyHead(nn.Module):
    """logits = W max(g) + b over the cells of a 3 x 3 grid, g = gelu(norm(conv3x3(halved(h)))) with few channels."""

    grid = 3

    def __init__(self, channels: int, width: int, num_classes: int, scale: float) -> None:
        super().__init__()
        self.conv, self.norm = identity_conv(channels, width), ShiftNorm(width)
        self.linear = nn.Linear(width * self.grid**2, num_classes)
        self.scale = scale

    def forward(self, h: Tensor) -> Tensor:
        h = F.gelu(self.norm(self.conv(halved(h))))
        return self.scale * self.linear(F.adaptive_max_pool2d(h, self.grid).flatten(1))


class LastHead(nn.Module):
    """logits = scale * W max(h), the maximum over all positions.

    `amax` would share a gradient among equal maxima. Compiled in bfloat16 it finds none, because it compares a rounded
    maximum with values that are not rounded: the gradients would be NaN.
    """

    def __init__(self, channels: int, num_classes: int, scale: float) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, num_classes, bias=False)
        self.scale = scale

    def forward(self, h: Tensor) -> Tensor:
        return self.scale * self.linear(F.max_pool2d(h, h.shape[2:]).flatten(1))


class FastState(NamedTuple):
    """`features` is the last map (before the first step, the normalised images), `image` and `logits` serve further views."""

    step: int
    features: Tensor
    image: Tensor | None  # the normalised images, after the first step
    logits: Tensor | None  # mean over the views so far, after the last group
    branch: Tensor | None = None  # the last group's branch, which the next group adds


class FastNet(AnytimeModel):
    """Whitened 2x2 patches, then groups of 3x3 convolutions; each group halves the map and answers.

    h_0 = gelu(V x + b), V the whitening of the training images' patches; h_t = group_t(h_{t-1});
    logits_t = head_t(h_t), head_t of few channels before the last step.

    The first `branches` groups have a branch b_t, a group of its own that halves the map before it convolves:
    logits_t = head_t(b_t(h_t)), and h_{t+1} = group_{t+1}(h_t) + b_t(h_t). So an early answer gets deeper features for few
    MACs, and none of them are lost.

    With `views` = n, n - 1 answers follow, each for the cost of the whole network without early heads: the mean over the views
    so far of the last group's logits. The views are the image, its mirror image, the image shifted by a pixel up and left, and
    the mirror image shifted back. In training mode these answers repeat that of the image itself, because a training shows
    each image mirrored and shifted anyway.

    V is not learned. A training sets it from its images (`initialize_from`): its rows are e / sqrt(v + 5e-4) and their
    negatives, for the eigenvectors e and eigenvalues v of the patches' second moments. Untrained, V passes each pixel and
    its negative.

    Args:
        num_classes: K of the logits, or the sizes of several label levels.
        in_channels: Channels of the images.
        widths: Channels of each group; each group gives an answer.
        head_widths: Channels of the early heads, one fewer than groups; 0: a head like the last, without a convolution; none:
            the plain network, with only the last answer.
        scale: Factor of all logits; the smaller, the faster the heads learn beside the trunk.
        views: Views of the image, 1 to 4.
        convs: Convolutions of each group around which there is a shortcut, after the one that halves the map; a group as wide
            as the one before it does not halve. Empty: each group has one, without a shortcut.
        branches: Number of groups with a branch, from the first on.

    Source: The trunk follows Jordan 2024 (94 % on CIFAR-10 in 3.29 seconds on a single GPU, arXiv:2404.00498), whose network
    has no early answers.
    """

    def __init__(
        self,
        num_classes: int | tuple[int, ...] = 10,
        in_channels: int = 3,
        widths: tuple[int, ...] = (64, 256, 256),
        head_widths: tuple[int, ...] = (32, 64),
        scale: float = 1 / 9,
        views: int = 1,
        convs: tuple[int, ...] = (),
        branches: int = 0,
    ) -> None:
        super().__init__(num_classes, in_channels)
        require_whole(views=views, branches=branches)
        for name, numbers in (("widths", widths), ("head_widths", head_widths), ("convs", convs)):
            if not isinstance(numbers, (tuple, list)):
                raise ValueError(f"{name} must be a list of whole numbers, got {numbers!r}")
            for number in numbers:
                require_whole(**{name: number})
        check_depth("convs", convs)
        check_depth("widths", [1] * len(widths))
        if not widths or min(widths) < 1:
            raise ValueError(f"widths must be at least 1 in every group, got {widths!r}")
        if len(head_widths) not in (0, len(widths) - 1) or min(head_widths, default=0) < 0:
            raise ValueError(
                f"head_widths needs {len(widths) - 1} widths of at least 0, one for each group but the last of widths "
                f"{tuple(widths)}, or none for a single answer, got {tuple(head_widths)}"
            )
        if convs and (len(convs) != len(widths) or min(convs) < 1):
            raise ValueError(f"convs needs {len(widths)} numbers of at least 1, one a group, or none, got {tuple(convs)}")
        halves = [not (convs and t and widths[t] == widths[t - 1]) for t in range(len(widths))]
        if branches not in range(len(head_widths) + 1) or not all(halves[: branches + 1]):
            raise ValueError(
                f"branches must be a whole number in 0..{len(head_widths)}, of groups with an early head and a group after "
                f"them that halves, got {branches!r} for widths {tuple(widths)}"
            )
        if not 0 < scale < math.inf:
            raise ValueError(f"scale must be above 0 and finite, got {scale!r}")
        self.exits = tuple(range(1, len(widths) + 1)) if head_widths else (len(widths),)  # groups with a head
        if views not in range(1, len(VIEWS) + 1):
            raise ValueError(f"views must be a whole number in 1..{len(VIEWS)}, got {views!r}")
        self.views = views
        self.num_steps = len(self.exits) + views - 1
        size = in_channels * PATCH**2
        self.whitening = nn.Conv2d(in_channels, 2 * size, PATCH)
        self.whitening.weight.requires_grad_(False)
        self._set_whitening(torch.eye(size))
        nn.init.zeros_(self.whitening.bias)  # type: ignore[arg-type]
        self.groups = nn.ModuleList(
            residual_group(before, width, convs[t], halves[t]) if convs else Group(before, width)
            for t, (before, width) in enumerate(pairwise((2 * size, *widths)))
        )
        self.branches = nn.ModuleList(
            nn.Sequential(Halving(widths[t], widths[t + 1], first=True), Residual(widths[t + 1], 1)) for t in range(branches)
        )
        answering = (*widths[1 : branches + 1], *widths[branches:])  # channels of the map that each head reads
        self.heads = nn.ModuleList(
            EarlyHead(channels, width, self.num_classes, scale) if width else LastHead(channels, self.num_classes, scale)
            for channels, width in zip(answering, head_widths, strict=False)
        )
        self.heads.append(LastHead(widths[-1], self.num_classes, scale))

    def _set_whitening(self, rows: Tensor) -> None:
        self.whitening.weight.data.copy_(torch.cat([rows, -rows]).view_as(self.whitening.weight))

    def initialize_from(self, images: Tensor) -> None:
        patches = F.unfold(self.normalize(images.double()), PATCH).transpose(1, 2).flatten(0, 1)
        variances, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
        self._set_whitening((vectors / (variances + WHITENING_EPS).sqrt()).T)

    def initial_state(self, x: Tensor) -> FastState:
        self.check_input(x, PATCH)
        return FastState(0, self.normalize(x), None, None)

    def step(self, state: FastState) -> tuple[Tensor, FastState]:
        require_step_left(state.step, self.num_steps)
        t, last = state.step, len(self.exits)
        if t >= last:
            mean = self._with_view(state, t - last + 1)
            return mean, state._replace(step=t + 1, logits=mean)
        h = state.features if t else F.gelu(self.whitening(state.features))
        h, branch = self._through(h, state.branch, self.exits[t - 1] if t else 0, self.exits[t])
        return self._after_group(t + 1, h, branch, state.image if t else state.features)

    def jump(self, x: Tensor, step: int) -> tuple[Tensor, FastState]:
        """Runs the groups up to `step` without the earlier heads."""
        self.check_step(step)
        image = self.initial_state(x).features
        exit = min(step, len(self.exits))
        logits, state = self._after_group(exit, *self._trunk(image, self.exits[exit - 1]), image)
        for _ in range(step - exit):
            logits, state = self.step(state)
        return logits, state

    def _after_group(self, step: int, h: Tensor, branch: Tensor | None, image: Tensor | None) -> tuple[Tensor, FastState]:
        """The answer to a group's features or its branch's, and the state with what further groups and views need."""
        logits = self.heads[step - 1](h if branch is None else branch)
        seen = (image, logits if step == len(self.exits) else None) if self.views > 1 else (None, None)
        return logits, FastState(step, h, *seen, branch)

    def _with_view(self, state: FastState, number: int) -> Tensor:
        """The mean of the logits over the views up to `number`, counted from 0."""
        assert state.image is not None
        assert state.logits is not None
        if self.training:
            return state.logits
        logits = self.heads[-1](self._trunk(view(state.image, number), len(self.groups))[0])
        return state.logits + (logits - state.logits) / (number + 1)

    def _trunk(self, image: Tensor, groups: int) -> tuple[Tensor, Tensor | None]:
        return self._through(F.gelu(self.whitening(image)), None, 0, groups)

    def _through(self, h: Tensor, branch: Tensor | None, first: int, last: int) -> tuple[Tensor, Tensor | None]:
        """The map after the groups `first` to `last` - 1 and its branch, from the map and the branch before them."""
        for t in range(first, last):
            h = self.groups[t](h) if branch is None else self.groups[t](h) + branch
            branch = self.branches[t](h) if t < len(self.branches) else None
        return h, branch


fast = variant(
    FastNet,
    "fast",
    "A plain network of 3 answers for 32x32 images that trains in minutes (trunk of Jordan 2024): 120 M MACs.",
)
fast_views = variant(
    FastNet,
    "fast_views",
    "`fast` with three further answers, from mirrored and shifted views of the image: 475 M MACs.",
    views=4,
)
fast_branched = variant(
    FastNet,
    "fast_branched",
    "A network of 4 answers like `fast`, with a branch for the first one and shortcuts, for more classes: 184 M MACs.",
    widths=(64, 192, 440, 440),
    head_widths=(192, 256, 0),
    convs=(2, 1, 1, 2),
    branches=1,
)
