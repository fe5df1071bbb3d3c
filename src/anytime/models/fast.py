"""A plain convolutional network with early exits, built to be trained and to answer fast."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anytime.model import AnytimeModel
from anytime.models.common.steps import require_step_left
from anytime.registry import variant

PATCH = 2  # height and width of a whitened patch, in pixels
WHITENING_EPS = 5e-4  # added to the variances of the whitened patches


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
    """gelu(norm(conv(gelu(norm(halved(conv(h)))))), both convolutions 3x3."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = identity_conv(channels, width), ShiftNorm(width)
        self.conv2, self.norm2 = identity_conv(width, width), ShiftNorm(width)

    def forward(self, h: Tensor) -> Tensor:
        h = F.gelu(self.norm1(halved(self.conv1(h))))
        return F.gelu(self.norm2(self.conv2(h)))


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
    """logits = scale * W max(h), the maximum over all positions."""

    def __init__(self, channels: int, num_classes: int, scale: float) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, num_classes, bias=False)
        self.scale = scale

    def forward(self, h: Tensor) -> Tensor:
        return self.scale * self.linear(h.amax((2, 3)))


class FastState(NamedTuple):
    """`features` is the last map (before the first step, the normalised images); the others serve the mirrored view."""

    step: int
    features: Tensor
    image: Tensor | None  # the normalised images, after the first step
    logits: Tensor | None  # of the last group, after its step


class FastNet(AnytimeModel):
    """Whitened 2x2 patches, then groups of two 3x3 convolutions; each group halves the map and answers.

    h_0 = gelu(V x + b), V the whitening of the training images' patches; h_t = group_t(h_{t-1});
    logits_t = head_t(h_t), head_t of few channels before the last step.

    With `mirrored`, one answer follows: the mean of logits_T and the logits_T of the mirrored image, for the cost of the trunk
    once more. In training mode that answer repeats logits_T, since a training shows each image in both views.

    V is not learned. A training sets it from its images (`initialize_from`): its rows are e / sqrt(v + 5e-4) and their
    negatives, for the eigenvectors e and eigenvalues v of the patches' second moments. Untrained, V passes each pixel and
    its negative.

    Args:
        num_classes: K of the logits, or the sizes of several label levels.
        in_channels: Channels of the images.
        widths: Channels of each group; each group gives an answer.
        head_widths: Channels of the early heads, one fewer than groups; none: the plain network, with only the last answer.
        scale: Factor of all logits; the smaller, the faster the heads learn beside the trunk.
        mirrored: Adds the answer from both views.

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
        mirrored: bool = False,
    ) -> None:
        super().__init__(num_classes, in_channels)
        if not widths or min(widths) < 1:
            raise ValueError(f"widths must be at least 1 in every group, got {widths!r}")
        if len(head_widths) not in (0, len(widths) - 1) or min(head_widths, default=1) < 1:
            raise ValueError(
                f"head_widths needs {len(widths) - 1} widths of at least 1, one for each group but the last of widths "
                f"{tuple(widths)}, or none for a single answer, got {tuple(head_widths)}"
            )
        if not scale > 0:
            raise ValueError(f"scale must be above 0, got {scale!r}")
        self.exits = tuple(range(1, len(widths) + 1)) if head_widths else (len(widths),)  # groups with a head
        self.mirrored = mirrored
        self.num_steps = len(self.exits) + mirrored
        size = in_channels * PATCH**2
        self.whitening = nn.Conv2d(in_channels, 2 * size, PATCH)
        self.whitening.weight.requires_grad_(False)
        self._set_whitening(torch.eye(size))
        nn.init.zeros_(self.whitening.bias)  # type: ignore[arg-type]
        self.groups = nn.ModuleList(Group(i, o) for i, o in zip((2 * size, *widths), widths, strict=False))
        early = zip(widths, head_widths, strict=False)
        self.heads = nn.ModuleList(EarlyHead(channels, width, self.num_classes, scale) for channels, width in early)
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
        if t == last:
            logits = self._of_both_views(state)
            return logits, state._replace(step=t + 1, logits=logits)
        h = state.features if t else F.gelu(self.whitening(state.features))
        h = self._through(h, self.exits[t - 1] if t else 0, self.exits[t])
        logits = self.heads[t](h)
        image = (state.image if t else state.features) if self.mirrored else None
        return logits, FastState(t + 1, h, image, logits if self.mirrored and t + 1 == last else None)

    def jump(self, x: Tensor, step: int) -> tuple[Tensor, FastState]:
        """Runs the groups up to `step` without the earlier heads."""
        self.check_step(step)
        image, last = self.initial_state(x).features, len(self.exits)
        t = min(step, last)
        h = self._trunk(image, self.exits[t - 1])
        logits = self.heads[t - 1](h)
        state = FastState(t, h, image if self.mirrored else None, logits if self.mirrored and t == last else None)
        return self.step(state) if step > last else (logits, state)

    def _trunk(self, image: Tensor, groups: int) -> Tensor:
        return self._through(F.gelu(self.whitening(image)), 0, groups)

    def _through(self, h: Tensor, first: int, last: int) -> Tensor:
        for group in self.groups[first:last]:
            h = group(h)
        return h

    def _of_both_views(self, state: FastState) -> Tensor:
        assert state.image is not None
        assert state.logits is not None
        if self.training:
            return state.logits
        return (state.logits + self.heads[-1](self._trunk(state.image.flip(-1), len(self.groups)))) / 2


fast = variant(
    FastNet,
    "fast",
    "A plain network of 3 answers for 32x32 images that trains in minutes: 120 M MACs.",
)
fast_mirrored = variant(
    FastNet,
    "fast_mirrored",
    "`fast` with a fourth answer, from the image and its mirror image: 240 M MACs.",
    mirrored=True,
)
